"""The licences that a photo may come under, and what a recipe may allow.

A licence has one id in this project. What stands in an API's answer or in a list is turned into an id by
`read_licence`; where it cannot be read it is unknown, and an unknown licence is never allowed. A replay image is a
derived work (scaled, labelled, inpainted), so "all rights reserved" and "no derivatives" are never allowed either.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Licence:
    """One licence.

    Attributes:
        id: its name in this project.
        name: as people write it.
        url: where its text stands.
        flickr: its number at Flickr, None where Flickr does not offer it.
    """

    id: str
    name: str
    url: str
    flickr: int | None = None


_FLICKR_CC: Final = {
    "cc-by-nc-sa-2.0": 1,
    "cc-by-nc-2.0": 2,
    "cc-by-nc-nd-2.0": 3,
    "cc-by-2.0": 4,
    "cc-by-sa-2.0": 5,
    "cc-by-nd-2.0": 6,
    "cc-by-4.0": 11,
    "cc-by-sa-4.0": 12,
    "cc-by-nd-4.0": 13,
    "cc-by-nc-4.0": 14,
    "cc-by-nc-sa-4.0": 15,
    "cc-by-nc-nd-4.0": 16,
}
_KINDS: Final = ("by", "by-sa", "by-nd", "by-nc", "by-nc-sa", "by-nc-nd")
_VERSIONS: Final = ("1.0", "2.0", "2.5", "3.0", "4.0")
_PUBLIC: Final = (
    Licence("no-known-restrictions", "No known copyright restrictions", "https://www.flickr.com/commons/usage/", 7),
    Licence("us-government", "United States Government Work", "http://www.usa.gov/copyright.shtml", 8),
    Licence("cc0-1.0", "CC0 1.0", "https://creativecommons.org/publicdomain/zero/1.0/", 9),
    Licence("pdm-1.0", "Public Domain Mark 1.0", "https://creativecommons.org/publicdomain/mark/1.0/", 10),
)
_RESERVED: Final = Licence("all-rights-reserved", "All Rights Reserved", "https://www.flickrhelp.com/hc/en-us", 0)


def _creative_commons(kind: str, version: str) -> Licence:
    name = f"cc-{kind}-{version}"
    path = "by-nd-nc" if (kind, version) == ("by-nc-nd", "1.0") else kind
    url = f"https://creativecommons.org/licenses/{path}/{version}/"
    return Licence(name, f"CC {kind.upper()} {version}", url, _FLICKR_CC.get(name))


LICENCES: Final[dict[str, Licence]] = {
    licence.id: licence
    for licence in (_RESERVED, *_PUBLIC, *(_creative_commons(kind, one) for kind in _KINDS for one in _VERSIONS))
}
"""Every licence that is known, by id."""


def _of_kind(kind: str) -> frozenset[str]:
    return frozenset(f"cc-{kind}-{version}" for version in _VERSIONS)


_GROUPS: Final = {
    "free": _of_kind("by") | {licence.id for licence in _PUBLIC},
    "share-alike": _of_kind("by-sa"),
    "non-commercial": _of_kind("by-nc"),
}
_FORBIDDEN: Final = _of_kind("by-nd") | _of_kind("by-nc-nd") | {_RESERVED.id}


def allowed_licences(names: Iterable[str]) -> frozenset[str]:
    """The ids of the licences that a recipe allows.

    Args:
        names: ids, or groups: "free" (attribution only, or nothing at all), "share-alike", "non-commercial". The
            last two together allow the non-commercial share-alike licences as well.

    Raises:
        ValueError: a name is unknown, or its licence allows no derived works; or no name is given.
    """
    named = [names] if isinstance(names, str) else list(names)
    if not named:
        raise ValueError("no licence is allowed: give ids or groups, such as 'free'")
    allowed: set[str] = set()
    for name in named:
        if name in _GROUPS:
            allowed |= _GROUPS[name]
        elif name in _FORBIDDEN:
            raise ValueError(f"{name!r} can never be allowed: a replay image is a derived work")
        elif name in LICENCES:
            allowed.add(name)
        else:
            raise ValueError(_unknown(name))
    if "share-alike" in named and "non-commercial" in named:
        allowed |= _of_kind("by-nc-sa")
    return frozenset(allowed)


def _unknown(name: str) -> str:
    choices = sorted({*_GROUPS, *(set(LICENCES) - _FORBIDDEN)})
    folded = re.sub(r"[\s_]+", "-", str(name).strip().lower())
    near = difflib.get_close_matches(folded, choices, n=3, cutoff=0.5)
    told = f"nearest: {', '.join(near)}" if near else f"groups: {', '.join(_GROUPS)}"
    return f"{name!r} is no licence; {told}"


_URL: Final = re.compile(
    r"(?:https?:)?(?://)?(?:www\.)?creativecommons\.org/"
    r"(?:licenses/(?P<kind>[a-z-]{2,10})|publicdomain/(?P<public>zero|mark))/(?P<version>\d\.\d)(?:[/?#].*)?",
    flags=re.ASCII,
)
_SHORT: Final = re.compile(r"cc[ -]?(?P<kind>by(?:[ -](?:sa|nd|nc))*)[ -]v?(?P<version>\d\.\d)(?: .{0,40})?", re.ASCII)
_LONG: Final = re.compile(
    r"(?:creative commons )?(?P<kind>attribution(?:[ -](?:sharealike|share alike|noncommercial|non-commercial|"
    r"noderivatives|noderivs|no derivatives))*)[ -]v?(?P<version>\d\.\d)(?: .{0,40})?",
    re.ASCII,
)
_PARTS: Final = {
    "share alike": "sa",
    "sharealike": "sa",
    "non-commercial": "nc",
    "noncommercial": "nc",
    "no derivatives": "nd",
    "noderivatives": "nd",
    "noderivs": "nd",
    "attribution": "by",
}
_NAMES: Final = {
    "all rights reserved": "all-rights-reserved",
    "no known copyright restrictions": "no-known-restrictions",
    "united states government work": "us-government",
    "us government work": "us-government",
    "cc0": "cc0-1.0",
    "cc0 1.0": "cc0-1.0",
    "cc0 1.0 universal": "cc0-1.0",
    "cc zero": "cc0-1.0",
    "public domain dedication (cc0)": "cc0-1.0",
    "pdm": "pdm-1.0",
    "public domain mark": "pdm-1.0",
    "public domain mark 1.0": "pdm-1.0",
}
_PLACES: Final = {
    "flickr.com/commons/usage": "no-known-restrictions",
    "usa.gov/copyright.shtml": "us-government",
    "usa.gov/government-works": "us-government",
}
_NUMBERS: Final = {str(one.flickr): one.id for one in LICENCES.values() if one.flickr is not None}


def read_licence(text: str) -> str | None:
    """The id of a licence as somebody wrote it; None where it cannot be read for sure.

    Read are: an id, an address of Creative Commons (any port, deed or legal code), "CC BY 4.0", "CC0", a licence's
    long name with its version, and Flickr's number ("4"). A name without a version is unknown: it names no one licence.
    """
    if len(text) > 300:
        return None
    told = re.sub(r"[\s_]+", " ", text.strip().lower())
    dashed = told.replace(" ", "-")
    if dashed in LICENCES:
        return dashed
    if found := _NUMBERS.get(told) or _NAMES.get(told):
        return found
    if match := _URL.fullmatch(told):
        if match["public"]:
            name = {"zero": "cc0", "mark": "pdm"}[match["public"]]
            return _known(f"{name}-{match['version']}")
        return _commons(match["kind"].split("-"), match["version"])
    if match := _SHORT.fullmatch(told):
        return _commons(re.split("[ -]", match["kind"]), match["version"])
    if match := _LONG.fullmatch(told):
        kind = match["kind"]
        for long, short in _PARTS.items():
            kind = kind.replace(long, short)
        return _commons(re.split("[ -]", kind), match["version"])
    place = re.sub(r"^(?:https?:)?//(?:www\.)?", "", told).rstrip("/")
    return _PLACES.get(place)


def _commons(parts: list[str], version: str) -> str | None:
    order = ("by", "nc", "sa", "nd")
    if len(set(parts)) != len(parts) or not set(parts) <= set(order):
        return None
    return _known(f"cc-{'-'.join(sorted(parts, key=order.index))}-{version}")


def _known(name: str) -> str | None:
    return name if name in LICENCES else None
