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


_PORTS: Final = {
    "am": "armenia", "ar": "argentina", "at": "austria", "au": "australia", "az": "azerbaijan", "be": "belgium",
    "bg": "bulgaria", "br": "brazil", "ca": "canada", "ch": "switzerland", "cl": "chile", "cn": "china mainland",
    "co": "colombia", "cr": "costa rica", "cz": "czech republic", "de": "germany", "dk": "denmark", "ec": "ecuador",
    "ee": "estonia", "eg": "egypt", "es": "spain", "fi": "finland", "fr": "france", "ge": "georgia", "gr": "greece",
    "gt": "guatemala", "hk": "hong kong", "hr": "croatia", "hu": "hungary", "ie": "ireland", "igo": "igo",
    "il": "israel", "in": "india", "it": "italy", "jp": "japan", "kr": "south korea", "lu": "luxembourg",
    "mk": "macedonia", "mt": "malta", "mx": "mexico", "my": "malaysia", "nl": "netherlands", "no": "norway",
    "nz": "new zealand", "pe": "peru", "ph": "philippines", "pl": "poland", "pr": "puerto rico", "pt": "portugal",
    "ro": "romania", "rs": "serbia", "scotland": "uk: scotland", "se": "sweden", "sg": "singapore", "si": "slovenia",
    "th": "thailand", "tw": "taiwan", "ug": "uganda", "uk": "uk: england & wales", "us": "united states",
    "ve": "venezuela", "vn": "vietnam", "za": "south africa",
}  # fmt: skip
"""Code and name of every place that Creative Commons wrote a version of its licences for."""
_SCOPES: Final = "|".join(map(re.escape, ("international", "unported", "generic", *_PORTS, *_PORTS.values(), "korea")))
_TAIL: Final = rf"(?: (?:{_SCOPES}))?(?: (?:public )?licen[cs]e)?(?: (?:deed|legal ?code))?"
"""All that may stand behind a version: whatever else stands there may take back what stands before."""
_URL: Final = re.compile(
    r"(?:https?:)?(?://)?(?:www\.)?creativecommons\.org/"
    r"(?:licenses/(?P<kind>[a-z-]{2,10})|publicdomain/(?P<public>zero|mark))/(?P<version>\d\.\d)"
    rf"(?:/(?:{'|'.join(_PORTS)}))?(?:/(?:deed|legalcode)(?:[.-][a-z]{{2,5}}(?:[-_][a-z]{{2,4}})?)?)?/?"
    r"(?:[?#](?:(?!\.\.)[!-~])*)?",
    re.ASCII,
)
_SHORT: Final = re.compile(rf"cc[ -]?(?P<kind>by(?:[ -](?:sa|nd|nc))*)[ -]v?(?P<version>\d\.\d){_TAIL}", re.ASCII)
_LONG: Final = re.compile(
    r"(?:creative commons )?(?P<kind>attribution(?:[ -](?:sharealike|share alike|noncommercial|non-commercial|"
    rf"noderivatives|noderivs|no derivatives))*)[ -]v?(?P<version>\d\.\d){_TAIL}",
    re.ASCII,
)
_TWICE: Final = re.compile(r"([^()]+) \(([^()]+)\)")
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
FLICKR_NUMBERS: Final = {str(one.flickr): one.id for one in LICENCES.values() if one.flickr is not None}
"""The id of each licence that Flickr offers, by the number it has in the answers of Flickr's API, and nowhere else."""


def read_licence(text: str) -> str | None:
    """The id of a licence as somebody wrote it; None where it cannot be read for sure.

    Read are: an id, an address of Creative Commons (any port, deed or legal code), "CC BY 4.0", "CC0", a licence's
    long name with its version, and that with its short name in brackets. A name without a version is unknown: it names
    no one licence. So is a name with anything behind it that is not part of the name, such as "except the images", and
    a number: what it means is known only to those who wrote it.
    """
    if len(text) > 300:
        return None
    given = text.strip().lower()
    told = re.sub(r"[\s_]+", " ", given)
    if match := _URL.fullmatch(given):
        if match["public"]:
            name = {"zero": "cc0", "mark": "pdm"}[match["public"]]
            return _known(f"{name}-{match['version']}")
        return _commons(match["kind"].split("-"), match["version"])
    if found := _named(told):
        return found
    if match := _TWICE.fullmatch(told):
        long, short = map(_named, match.groups())
        return long if long == short else None
    place = re.sub(r"^(?:https?:)?//(?:www\.)?", "", told).rstrip("/")
    return _PLACES.get(place)


def _named(told: str) -> str | None:
    dashed = told.replace(" ", "-")
    if dashed in LICENCES:
        return dashed
    if found := _NAMES.get(told):
        return found
    if match := _SHORT.fullmatch(told):
        return _commons(re.split("[ -]", match["kind"]), match["version"])
    if match := _LONG.fullmatch(told):
        kind = match["kind"]
        for long, short in _PARTS.items():
            kind = kind.replace(long, short)
        return _commons(re.split("[ -]", kind), match["version"])
    return None


def _commons(parts: list[str], version: str) -> str | None:
    order = ("by", "nc", "sa", "nd")
    if len(set(parts)) != len(parts) or not set(parts) <= set(order):
        return None
    return _known(f"cc-{'-'.join(sorted(parts, key=order.index))}-{version}")


def _known(name: str) -> str | None:
    return name if name in LICENCES else None
