"""Which images each step sees."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Collection, Mapping, Sequence

from replaygen.classes import nearest_hint
from replaygen.errors import ScenarioError

SETTINGS = ("sequential", "disjoint", "overlapped", "partitioned")
"""The known settings."""

Holdout = tuple[int, int]
"""(m, r): images with sha256(id) mod m == r are held out."""


def cut_images(
    setting: str,
    ids: Sequence[str],
    present: Mapping[str, Collection[int]],
    new_classes: Sequence[Collection[int]],
    shares: Sequence[float] | None,
) -> list[tuple[str, ...]]:
    """The ids of each step, in the order of `ids`.

    - `overlapped`: the image has a class of the step;
    - `disjoint`, `sequential`: and none of a later step;
    - `partitioned`: step k has the k-th block of `ids`, its length in proportion to `shares[k]`.

    Args:
        setting: one of `SETTINGS`.
        ids: the images of the split.
        present: the classes of each image, in the numbering of `new_classes`; others do not matter.
        new_classes: the classes that each step brings.
        shares: only for `partitioned`: a positive number a step; None gives equal blocks.

    Raises:
        ScenarioError: unknown setting, or shares that do not fit.
    """
    if setting not in SETTINGS:
        raise ScenarioError(f"no setting called {setting!r}", hint=nearest_hint(setting, SETTINGS))
    if setting == "partitioned":
        return _blocks(ids, len(new_classes), shares)
    if shares is not None:
        raise ScenarioError(f"setting {setting!r} has no shares", hint="leave them out, or use 'partitioned'")
    step_of = {number: step for step, numbers in enumerate(new_classes) for number in numbers}
    steps: list[list[str]] = [[] for _ in new_classes]
    for key in ids:
        found = {step_of[number] for number in present[key] if number in step_of}
        if not found:
            continue
        for step in sorted(found) if setting == "overlapped" else (max(found),):
            steps[step].append(key)
    return [tuple(step) for step in steps]


def _blocks(ids: Sequence[str], count: int, shares: Sequence[float] | None) -> list[tuple[str, ...]]:
    if shares is None:
        shares = [1.0] * count
    if len(shares) != count or not all(math.isfinite(share) and share > 0 for share in shares):
        raise ScenarioError(f"shares {list(shares)} do not fit {count} steps", hint="give each step a positive number")
    total = math.fsum(shares)
    ends = [0] + [round(len(ids) * (math.fsum(shares[: step + 1]) / total)) for step in range(count)]
    return [tuple(ids[start:end]) for start, end in itertools.pairwise(ends)]


def hold_out(ids: Sequence[str], holdout: Holdout | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split `ids` into (kept, held out), each in the order of `ids`; an id's side depends on the id alone.

    Raises:
        ScenarioError: not a pair (m, r) with m >= 2 and 0 <= r < m.
    """
    if holdout is None:
        return tuple(ids), ()
    whole = len(holdout) == 2 and all(type(number) is int for number in holdout)
    if not whole or holdout[0] < 2 or not 0 <= holdout[1] < holdout[0]:
        raise ScenarioError(
            f"holdout {tuple(holdout)} is no pair (m, r)", hint="(10, 0) holds out about a tenth: m >= 2, 0 <= r < m"
        )
    modulus, remainder = holdout
    kept: list[str] = []
    held: list[str] = []
    for key in ids:
        number = int.from_bytes(hashlib.sha256(key.encode("utf-8")).digest(), "big")
        (held if number % modulus == remainder else kept).append(key)
    return tuple(kept), tuple(held)
