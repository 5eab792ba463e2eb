"""Source `web`: photos from lists of addresses that somebody else made; each row is checked on its own."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Generator
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit, urlunsplit

from replaygen.classes import nearest_hint, slug
from replaygen.crawl.licences import allowed_licences, read_licence
from replaygen.crawl.photos import Candidate, Found, plain_text, web_photo
from replaygen.errors import DataError
from replaygen.sources.url_lists import Row, list_digest, list_file
from replaygen.sources.url_lists import read_list as _read_rows

if TYPE_CHECKING:
    from replaygen.crawl.specs import WebSpec

__all__ = ["Found", "Row", "candidates_of", "clean_address", "list_digest", "list_file", "read_list"]

MOST_ADDRESS: Final = 2_000
"""Characters of an address."""
MOST_NAMED: Final = 10_000
"""Refused rows of a class that are named; more are counted by reason."""
_SIZES: Final = ("original_width", "original_height", "width", "height")
_STATUS: Final = "status"
_FAILED: Final = frozenset({"failed_to_download", "failed_to_resize"})
_UNSEEN: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_AMERICAN: Final = "license"
"""Read where the list spells the column so: a licence that is told must not go unread."""
_licence_of: Final = lru_cache(maxsize=1024)(read_licence)
_HOST: Final = re.compile(r"[^\s%<>\"'`{}|^/?#@]+")


def read_list(path: Path, spec: WebSpec, *, classes: bool = False) -> Generator[Row, None, None]:
    """The rows of the list at `path`, one after the other, with the columns that `spec` names.

    Args:
        path: a file, see `url_lists`.
        spec: which column says what.
        classes: whether the column of classes must be there.

    Raises:
        DataError: while reading; it names the file and the row.
    """
    needed = {"url": spec.url, "class_column": spec.class_column} if classes else {"url": spec.url}
    return _read_rows(
        path, needed, (spec.licence, _AMERICAN, spec.owner, spec.title, spec.page, spec.sha256, _STATUS, *_SIZES)
    )


def candidates_of(path: Path, class_name: str, spec: WebSpec, *, wanted: int, gone: Callable[[str], bool]) -> Found:
    """The first `wanted` photos of a class that a list offers and the recipe allows.

    Args:
        path: one list with a column of classes, or a folder of one list a class.
        class_name: the class; the column of classes may hold its slug instead.
        spec: which column says what, and which licences are allowed.
        wanted: how many candidates; reading ends there.
        gone: whether a photo id was removed for good.

    Returns:
        The candidates, and why rows were refused: "bad-address" (see `clean_address`), "duplicate-address" (an earlier
        candidate is the same photo), "tombstoned", "listed-as-failed" (img2dataset noted that it could not be had),
        "bad-sha256" (64 hexadecimal digits were expected), "licence-unknown" (it cannot be read; where
        nothing is told of it, that is what `spec.unknown_licence` decides), "licence-not-allowed".

    Raises:
        DataError: no list, a list that cannot be read, a column that is missing, or a class that no row has.
    """
    file = list_file(path, class_name)
    shared = path.is_file()
    names, others = {class_name, slug(class_name)}, dict[str, None]()
    door = _Door(spec, gone)
    with closing(read_list(file, spec, classes=shared)) as rows:
        for row in rows:
            of_class = row.get(spec.class_column) or ""
            if shared and of_class not in names:
                if len(others) < 1000:
                    others[of_class[:80]] = None
                continue
            if len(door.found) >= wanted:
                break
            door.ask(row)
    if shared and others and not door.total and wanted > 0:
        raise DataError(
            f"no row has {class_name!r} in the column {spec.class_column!r}", where=str(file),
            hint=nearest_hint(class_name, others),
        )  # fmt: skip
    return Found(list(door.found.values()), door.rejected, 0, door.total, unnamed=door.unnamed)


class _Door:
    """Lets rows of a class in, or notes why not."""

    def __init__(self, spec: WebSpec, gone: Callable[[str], bool]) -> None:
        self._spec, self._gone = spec, gone
        self._allowed = allowed_licences(spec.licences)
        self.found: dict[str, Candidate] = {}
        self.rejected: list[tuple[str, str]] = []
        self.unnamed: dict[str, int] = {}
        self.total = 0

    def ask(self, row: Row) -> None:
        self.total += 1
        told = row.get(self._spec.url) or ""
        address = clean_address(told)
        if address is None:
            self._refuse(web_photo(told), "bad-address")
            return
        told = row.get(self._spec.licence) or row.get(_AMERICAN) or ""
        photo, licence = web_photo(address), _licence_of(told[:400])
        if reason := self._fault(row, photo, licence):
            self._refuse(photo, reason)
            return
        width, height = _size(row)
        self.found[photo] = Candidate(
            photo=photo, url=address, page=clean_address(row.get(self._spec.page) or ""),
            owner=plain_text(row.get(self._spec.owner)), title=plain_text(row.get(self._spec.title)),
            licence=licence, width=width, height=height, sha256=_sha256(row.get(self._spec.sha256) or ""),
        )  # fmt: skip

    def _fault(self, row: Row, photo: str, licence: str | None) -> str | None:
        sha256 = row.get(self._spec.sha256)
        if photo in self.found:
            return "duplicate-address"
        if self._gone(photo):
            return "tombstoned"
        if row.get(_STATUS) in _FAILED:
            return "listed-as-failed"
        if sha256 and _sha256(sha256) is None:
            return "bad-sha256"
        if licence is None:
            columns = (self._spec.licence, _AMERICAN)
            told = any(row.get(column) is not None or column in row.odd for column in columns)
            return "licence-unknown" if told or self._spec.unknown_licence == "reject" else None
        return None if licence in self._allowed else "licence-not-allowed"

    def _refuse(self, photo: str, reason: str) -> None:
        if len(self.rejected) < MOST_NAMED:
            self.rejected.append((photo, reason))
        else:
            self.unnamed[reason] = self.unnamed.get(reason, 0) + 1


def clean_address(text: str) -> str | None:
    """An address of the web in one spelling: scheme and host in lower case, no fragment, no default port.

    None for other schemes than http and https, no host, a user name, a backslash, a control or invisible character, a
    port that is no number, or more than `MOST_ADDRESS` characters.
    """
    text = text.strip(" ")
    if not text or len(text) > MOST_ADDRESS or "\\" in text or _hides(text):
        return None
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return None
    if parts.scheme not in {"http", "https"} or "@" in parts.netloc or not _HOST.fullmatch(host):
        return None
    host = f"[{host}]" if ":" in host else host
    place = host if port in {None, 80 if parts.scheme == "http" else 443} else f"{host}:{port}"
    address = urlunsplit((parts.scheme, place, parts.path or "/", parts.query, "")).replace(" ", "%20")
    return address if len(address) <= MOST_ADDRESS else None


def _hides(text: str) -> bool:
    """Whether a character controls or is not seen, such as a line end, half a surrogate, a change of direction."""
    return not text.isprintable() and any(unicodedata.category(letter) in _UNSEEN for letter in text)


def _sha256(text: str) -> str | None:
    return text.lower() if re.fullmatch(r"[0-9A-Fa-f]{64}", text) else None


def _size(row: Row) -> tuple[int | None, int | None]:
    """Width and height of the file at the address, where told; img2dataset's `width` is that of its own copy."""
    names = _SIZES[:2] if row.get(_STATUS) else _SIZES[2:]
    told = [row.get(name) or "" for name in names]
    if not all(re.fullmatch(r"[1-9][0-9]{0,5}", number, flags=re.ASCII) for number in told):
        return None, None
    return int(told[0]), int(told[1])
