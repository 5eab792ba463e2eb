"""A photo that somebody else made: what a search or a list says of it before anything is fetched."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any
from urllib.parse import unquote, urlsplit

from replaygen.classes import slug
from replaygen.errors import DataError

_PHOTO = re.compile(r"[a-z0-9_-]{1,80}")
_FLICKR_HOST = re.compile(r"(?:[a-z0-9-]+\.)*staticflickr\.com|(?:farm[0-9]+\.)?static\.flickr\.com", re.ASCII)
_FLICKR_FILE = re.compile(r"(?:/+[0-9]+)+/+0*([1-9][0-9]{0,19})_[^/]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One photo on offer.

    Attributes:
        photo: its id in this project, `[a-z0-9_-]+`: "flickr-53412", or `web_photo(url)`.
        url: where its bytes are.
        page: where people look at it.
        owner, owner_page, title: who made it and what they call it, as they wrote it (untrusted text).
        licence: id of a licence in `crawl.licences`, None where none is stated.
        width, height: pixels of the file at `url`, where told.
        sha256: of the bytes at `url`, where told.
    """

    photo: str
    url: str
    page: str | None = None
    owner: str | None = None
    owner_page: str | None = None
    title: str | None = None
    licence: str | None = None
    width: int | None = None
    height: int | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        if not _PHOTO.fullmatch(self.photo):
            raise DataError(f"{self.photo[:80]!r} is no photo id", hint="ids are [a-z0-9_-]+, at most 80 characters")

    def as_json(self) -> dict[str, Any]:
        """Plain data; what is not known is left out."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Candidate:
        """As `as_json` gave it; DataError where a name is unknown."""
        known = {one.name for one in fields(cls)}
        if odd := sorted(set(told) - known):
            raise DataError(f"a candidate has no {odd[0]!r}")
        return cls(**told)


@dataclass(frozen=True, slots=True)
class Found:
    """What a search or a list offers for a class.

    Attributes:
        candidates: in their order, each photo once.
        rejected: (photo id, reason) of each that was looked at and refused; what has no id is called "malformed-" and
            the first digits of its digest.
        calls: of an API, now; pages that were known from before do not count.
        total: photos that the API says it has, or rows of the class that were read.
        repeated: photos that came again within one query.
        unnamed: reason -> how many more were refused, beyond what `rejected` names.
    """

    candidates: list[Candidate]
    rejected: list[tuple[str, str]]
    calls: int
    total: int
    repeated: int = 0
    unnamed: dict[str, int] = field(default_factory=dict)


def flickr_photo(number: str) -> str:
    """The photo id of a photo of Flickr; DataError where the API's id is not a number."""
    if not re.fullmatch(r"[0-9]{1,20}", number, flags=re.ASCII):
        raise DataError(f"{number[:40]!r} is no id of a Flickr photo")
    return f"flickr-{number}"


def web_photo(url: str) -> str:
    """The photo id of an address on the web: Flickr's own where Flickr serves it, else the digest of the address.

    So a photo of Flickr has one id however it comes, and in every size. http and https are one address.
    """
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".")
        if _FLICKR_HOST.fullmatch(host) and (file := _FLICKR_FILE.fullmatch(unquote(parts.path))):
            return flickr_photo(file[1])
    except ValueError:
        pass  # no address at all: it has an id all the same, to be refused by
    address = re.sub(r"^https?://", "", url, flags=re.IGNORECASE)
    return f"web-{hashlib.sha256(address.encode('utf-8', 'surrogatepass')).hexdigest()[:20]}"


def plain_text(value: object, most: int = 300) -> str | None:
    """Text that somebody wrote, without control and formatting characters, on one line; None where nothing is left."""
    if not isinstance(value, str):
        return None
    kept = (" " if char.isspace() else char for char in value[: most * 8])
    text = "".join(char for char in kept if unicodedata.category(char)[0] != "C")
    return " ".join(text.split())[:most].strip() or None


def sample_of(class_name: str, photo: str) -> str:
    """The sample id of a photo that was crawled for a class: `<class>-<photo>`."""
    return f"{slug(class_name)}-{photo}"
