"""Why a sample is not in a replay set, in plain words."""

from __future__ import annotations

import math
from typing import Any

from replaygen.report.text import number, plain

Limit = float | tuple[float, float] | None
"""What a value was held against: one number, the lowest and the highest, or nothing."""

_PLAIN = {
    "class-absent": "the class was not found in the picture",
    "screened": "refused at the door",
    "more-than-wanted": "more were kept than the set takes",
    "placeholder": "the placeholder of a host, not a photo",
    "exact-duplicate": "the same file as another",
    "duplicate-of-other-class": "nearly the same picture as one of another class",
    "flat": "next to nothing in the picture",
    "grayscale": "a picture without colour",
    "leak": "too close to an image that is evaluated on",
    "left-out": "not in what was made of the kept ones",
}


def words(
    reason: str, value: float | None = None, limit: Limit = None, *, of: str = "", by_recipe: bool = False
) -> str:
    """A reason in plain words, with the value and what it was held against.

    Args:
        reason: a kebab-case word, as screens and labelers give it.
        value: what was measured; shares, confidences and agreements 0..1.
        limit: what it was held against.
        of: the sample that it is too near to.
        by_recipe: whether the limit is a number of the recipe, and not learnt from real images of the class.
    """
    if reason in ("area-too-small", "area-too-large"):
        return _area(reason, value, limit, by_recipe)
    if reason == "unsure":
        return _measured("the labeler is unsure", "mean confidence", value, limit, least=True)
    if reason == "views-disagree":
        return _measured("two looks at the picture disagree", "agreement", value, limit, least=True)
    if reason == "atypical":
        return _measured("unlike real ones of this class", "likeness", value, limit, least=True)
    if reason == "unlike-the-best":
        return "the photos fall into two groups, and this one is in the lower"
    if reason == "not-like-real":
        return _measured("told apart from real ones of this class", "likeness", value, limit, least=True)
    if reason == "near-duplicate":
        return f"nearly the same picture as {of or 'another'}"
    if reason in ("mostly-text", "too-much-to-erase"):
        much = percent(value) if value is not None else "too much"
        return f"text covers {much} of the picture" if reason == "mostly-text" else f"{much} would have to be erased"
    if reason == "not-among-best":
        return _not_best(value, limit)
    if reason.startswith("inpainter-"):
        return f"nothing could be erased: {plain(reason.replace('-', ' '))}"
    told = _PLAIN.get(reason) or _measured(plain(reason.replace("-", " ")), "value", value, limit, least=None)
    return f"{told}: {of}" if of else told


def _area(reason: str, value: float | None, limit: Limit, by_recipe: bool) -> str:
    small = reason == "area-too-small"
    told = f"the class covers {percent(value) if value is not None else 'too little' if small else 'too much'}"
    told += " of the picture"
    if limit is None:
        return told
    if by_recipe and not isinstance(limit, tuple):
        return f"{told}; the recipe asks for at {'least' if small else 'most'} {percent(limit)}"
    if isinstance(limit, tuple):
        low, high = (percent(one) for one in limit)
        return f"{told}; real ones of this class cover {low.removesuffix(' %')} to {high}"
    return f"{told}; real ones of this class cover at {'least' if small else 'most'} {percent(limit)}"


def _measured(what: str, measure: str, value: float | None, limit: Limit, *, least: bool | None) -> str:
    if value is None:
        return what
    told = f"{what}: {measure} {measured(value)}"
    if isinstance(limit, tuple):
        return f"{told}, {measured(limit[0])} to {measured(limit[1])} is asked"
    if limit is None:
        return told
    least = value < limit if least is None else least  # it was refused, so it lies on the wrong side
    return f"{told}, at {'least' if least else 'most'} {measured(limit)} is asked"


def _not_best(value: float | None, limit: Limit) -> str:
    if value is None or limit is None or isinstance(limit, tuple):
        return "others of this class are better"
    if limit > 1:
        return f"place {measured(value)}; the first {measured(limit)} are kept" if value > 1 else (
            f"the best {measured(limit)} are kept; its score is {measured(value)}"
        )  # fmt: skip
    return f"score {measured(value)}; the last that is kept has {measured(limit)}"


def percent(share: float) -> str:
    """A share 0..1 in percent: "0.4 %", "71 %"."""
    value = 100.0 * share
    if 0 < value < 0.05:
        return "less than 0.1 %"
    return f"{number(value, 0 if value >= 9.95 else 1).removesuffix('.0')} %"


def measured(value: float) -> str:
    """A measure as it is read: whole numbers as they are, others with two decimals."""
    return number(value, 0 if float(value).is_integer() and abs(value) > 1 else 2)


def shown(limit: Limit) -> str:
    """A limit for a table; "–" where there is none."""
    if isinstance(limit, tuple):
        return " to ".join(measured(one) for one in limit)
    return "–" if limit is None else measured(limit)


def as_number(found: Any) -> float | None:
    """A number as JSON gave it; None for anything else, and for what is not finite."""
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        return None
    return float(found) if math.isfinite(found) else None


def as_limit(found: Any) -> Limit:
    """A limit as JSON gave it: a number, or two in a list."""
    if isinstance(found, (list, tuple)) and len(found) == 2:
        low, high = as_number(found[0]), as_number(found[1])
        return None if low is None or high is None else (low, high)
    return as_number(found)
