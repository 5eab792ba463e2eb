"""A search of Flickr: pages asked once, each photo checked on its own, candidates in a fixed order.

Nothing that the API claims is taken on trust. A filter that it ignores, a photo that it gives twice, a licence that
nobody knows, a total that is wrong, a value of the wrong type: each is seen here, per photo, and refused by name.

Flickr gives at most 4,000 results to one query. Where it has more and they are needed, the time of upload is cut in
two and each half searched, down to an hour.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from replaygen.canonical import digest_of
from replaygen.crawl.photos import Candidate, Found, flickr_photo, plain_text
from replaygen.errors import DataError
from replaygen.sources.flickr import ApiFault, FlickrApi
from replaygen.store import fsops

_log = logging.getLogger(__name__)
_METHOD: Final = "flickr.photos.search"
_PER_PAGE: Final = 500
_PAGES: Final = 8
_MOST_RESULTS: Final = 4000
_MOST_PAGES: Final = 2000
_SHORTEST: Final = 3600
_SIZES: Final = ("t", "s", "n", "w", "m", "z", "c", "l", "h", "k", "o")
"""Suffixes of the sizes that show the whole photo, small to large; `sq` and `q` are cut to a square."""
_EXTRAS: Final = (
    ("license", "owner_name"),
    tuple(f"url_{size}" for size in _SIZES),
    ("media", "tags", "o_dims", "path_alias", "date_upload"),
)
_KEPT: Final = frozenset(
    {"id", "owner", "ownername", "title", "license", "media", "tags", "dateupload", "ispublic"}
    | {f"{name}_{size}" for name in ("url", "width", "height") for size in _SIZES}
)


@dataclass(frozen=True, slots=True)
class Search:
    """What to look for.

    Attributes:
        text: words in titles, descriptions and tags; each of `synonyms` is searched too, results are taken in turn.
        tags: a photo must have them all, or one where `any_tag`.
        exclude: a photo with one of these words in its title or tags is refused.
        since, as_of: first and last day of upload, both included, UTC.
        licences: ids that are allowed.
        max_side, min_side: pixels. The smallest offered size whose longer side has at least `max_side` and whose
            shorter at least `min_side` is taken, else the largest; None takes the largest.
    """

    text: str
    as_of: datetime.date
    licences: frozenset[str]
    synonyms: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    any_tag: bool = False
    exclude: tuple[str, ...] = ()
    since: datetime.date = datetime.date(2004, 2, 1)
    sort: str = "relevance"
    safe: bool = True
    max_side: int | None = None
    min_side: int = 1

    def window(self) -> tuple[int, int]:
        """First and last second of upload, since 1970."""
        midnight = datetime.time(tzinfo=datetime.UTC)
        first = datetime.datetime.combine(self.since, midnight)
        last = datetime.datetime.combine(self.as_of, midnight) + datetime.timedelta(days=1)
        return int(first.timestamp()), int(last.timestamp()) - 1


def search(api: FlickrApi, query: Search, *, wanted: int, memory: Path, gone: Callable[[str], bool]) -> Found:
    """Candidates for a query, until `wanted` are found or Flickr has no more.

    Args:
        api: asked for pages, and once for its table of licences.
        query: what to look for.
        wanted: how many candidates.
        memory: folder of answered pages; one that is there is not asked again, so a killed search goes on.
        gone: whether a photo id was removed for good; such a photo is refused.

    Raises:
        ApiFault: a page could not be had; those before it are remembered.
        DataError: Flickr offers none of the allowed licences.
    """
    table = api.licences()
    numbers = sorted((number for number, licence in table.items() if licence in query.licences), key=int)
    if not numbers:
        raise DataError("Flickr offers none of the allowed licences", hint="allow a group, such as licences = ['free']")
    fsops.make_folder(memory)
    pages = _Pages(api, memory)
    first, last = query.window()
    later_first = query.sort != "date-posted-asc"
    streams = [
        _walk(pages, _parameters(query, text, numbers), first, last, later_first)
        for text in dict.fromkeys((query.text, *query.synonyms))
    ]
    candidates: list[Candidate] = []
    rejected: dict[str, str] = {}
    seen: set[str] = set()
    while streams and len(candidates) < wanted:
        for stream in tuple(streams):
            if len(candidates) >= wanted:
                break
            try:
                name, entry = next(stream)
            except StopIteration:
                streams.remove(stream)
                continue
            if name in seen:
                continue
            seen.add(name)
            judged = _judge(name, entry, query, table, gone)
            if isinstance(judged, Candidate):
                candidates.append(judged)
            else:
                rejected[name] = judged
    return Found(candidates, list(rejected.items()), pages.calls, sum(pages.totals.values()), pages.repeated)


@dataclass(frozen=True, slots=True)
class _Page:
    """One page of an answer: photos as they came, and what it says of how many there are."""

    entries: list[Any]
    pages: int
    total: int


class _Pages:
    """Pages, from the memory or from the API."""

    def __init__(self, api: FlickrApi, memory: Path) -> None:
        self._api = api
        self._memory = memory
        self.calls = 0
        self.read = 0
        self.repeated = 0
        self.totals: dict[str, int] = {}

    def get(self, parameters: dict[str, str | int]) -> _Page:
        """A page. An empty one that claims to have photos is asked for once more."""
        self.read += 1
        path = self._memory / f"{digest_of([_METHOD, parameters])}.json"
        photos = _remembered(path, parameters)
        if photos is None:
            photos = self._ask(parameters)
            if not photos["photo"] and _page(photos).total > 0:
                photos = self._ask(parameters)
            told = json.dumps({"asked": parameters, "photos": photos}, sort_keys=True).encode()
            with fsops.explained("remember a page of the search", path):
                fsops.replace_file(path, told)
        return _page(photos)

    def _ask(self, parameters: dict[str, str | int]) -> dict[str, Any]:
        for _ in range(3):
            self.calls += 1
            photos = _shape(self._api.call(_METHOD, **parameters).get("photos"))
            if photos is not None:
                return photos
        raise ApiFault("Flickr's answer is no page of photos", where=_METHOD, transient=True)


def _walk(
    pages: _Pages, asked: dict[str, str | int], first: int, last: int, later_first: bool
) -> Iterator[tuple[str, Any]]:
    """Every photo of a query within a time of upload, once, with its photo id; pages are asked when they are needed."""
    seen: set[str] = set()
    total = 0
    for number in range(1, _PAGES + 1):
        if pages.read >= _MOST_PAGES:
            _log.warning("the search ends after %d pages", pages.read)
            return
        window = {"min_upload_date": first, "max_upload_date": last}
        page = pages.get({**asked, **window, "page": number})
        total = max(total, page.total)
        pages.totals.setdefault(str(asked.get("text", "")), page.total)
        fresh = {name: entry for entry in page.entries if (name := _name(entry)) not in seen}
        pages.repeated += len(page.entries) - len(fresh)
        if not fresh:
            return
        seen.update(fresh)
        yield from fresh.items()
        # a full last page is the last where the total covers all that came; a total that does not is a lie
        if number >= page.pages and (len(page.entries) < _PER_PAGE or len(seen) <= page.total):
            return
    if total > _MOST_RESULTS and last - first >= 2 * _SHORTEST:
        middle = (first + last) // 2
        halves = [(first, middle), (middle + 1, last)]
        for start, end in reversed(halves) if later_first else halves:
            yield from _walk(pages, asked, start, end, later_first)


def _parameters(query: Search, text: str, numbers: list[str]) -> dict[str, str | int]:
    """What is asked of the API, all but page and time."""
    asked: dict[str, str | int] = {
        "license": ",".join(numbers),
        "media": "photos",
        "content_types": "0",
        "content_type": 1,
        "sort": query.sort,
        "per_page": _PER_PAGE,
        "extras": ",".join(name for names in _EXTRAS for name in names),
    }
    without = [f'-"{word}"' if " " in word else f"-{word}" for word in map(str.strip, query.exclude) if word]
    if text.strip():
        asked["text"] = " ".join([text.strip(), *without])
    if query.tags:
        asked["tags"] = ",".join(query.tags)
        asked["tag_mode"] = "any" if query.any_tag else "all"
    if query.safe:
        asked["safe_search"] = 1
    return asked


def _judge(
    photo: str, entry: Any, query: Search, table: dict[str, str], gone: Callable[[str], bool]
) -> Candidate | str:
    """The candidate that a photo of a page is, or the reason why it is none."""
    if not photo.startswith("flickr-"):
        return "malformed"
    owner, number = entry.get("owner"), entry.get("license")
    uploaded, title = _count(entry.get("dateupload")), entry.get("title")
    if not isinstance(owner, str) or not re.fullmatch(r"[A-Za-z0-9@_-]{1,60}", owner):
        return "malformed"
    if uploaded is None or not isinstance(title, str | None) or not isinstance(number, str | int):
        return "malformed"
    licence = table.get(str(number))
    if licence is None:
        return "licence-unknown"
    if licence not in query.licences:
        return "licence-not-allowed"
    if entry.get("media") != "photo":
        return "not-a-photo"
    if _count(entry.get("ispublic", 1)) != 1:
        return "not-public"
    first, last = query.window()
    if not first <= uploaded <= last:
        return "outside-dates"
    if _has_word(query.exclude, title, entry.get("tags")):
        return "excluded-word"
    if gone(photo):
        return "tombstoned"
    size = _size(entry, query.max_side, query.min_side)
    if isinstance(size, str):
        return size
    width, height, url = size
    digits = photo.removeprefix("flickr-")
    return Candidate(
        photo=photo,
        url=url,
        page=f"https://www.flickr.com/photos/{owner}/{digits}",
        owner=plain_text(entry.get("ownername")) or owner,
        owner_page=f"https://www.flickr.com/people/{owner}",
        title=plain_text(title),
        licence=licence,
        width=width,
        height=height,
    )


def _size(entry: dict[str, Any], max_side: int | None, min_side: int) -> tuple[int, int, str] | str:
    """Width, height and address of the size to fetch, or the reason why there is none."""
    offered = []
    for rank, size in enumerate(_SIZES):
        url, width, height = (entry.get(f"{name}_{size}") for name in ("url", "width", "height"))
        wide, high = _count(width), _count(height)
        if wide and high and max(wide, high) <= 100_000 and isinstance(url, str) and _is_address(url):
            offered.append((max(wide, high), min(wide, high), rank, wide, high, url))
    if not offered:
        return "no-size"
    offered.sort()
    fit = [one for one in offered if max_side is not None and one[0] >= max_side and one[1] >= min_side]
    chosen = fit[0] if fit else offered[-1]
    return chosen[3:] if chosen[1] >= min_side else "too-small"


def _is_address(url: str) -> bool:
    if len(url) > 2000 or not re.fullmatch(r"https?://[!-~]+", url):
        return False
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.username is None and parts.password is None and parts.port != 0
    except ValueError:
        return False


def _has_word(words: tuple[str, ...], title: str | None, tags: object) -> bool:
    """Whether one of the words (or phrases) stands in the title, or in the tags as Flickr writes them: "guineapig"."""
    texts = [_tokens(title or ""), _tokens(tags if isinstance(tags, str) else "")]
    for word in map(_tokens, words):
        phrase = f" {' '.join(word)} "
        if word and any(phrase in f" {' '.join(tokens)} " or "".join(word) in tokens for tokens in texts):
            return True
    return False


def _tokens(text: str) -> list[str]:
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())


def _name(entry: Any) -> str:
    """The photo id of an entry; of one that has none, "malformed-" and a digest of it."""
    number = entry.get("id") if isinstance(entry, dict) else None
    if isinstance(number, int) and not isinstance(number, bool) and 0 < number < 10**20:
        number = str(number)
    # an id with leading zeros would be another name for the same photo
    if isinstance(number, str) and re.fullmatch(r"[1-9][0-9]{0,19}", number, flags=re.ASCII):
        return flickr_photo(number)
    told = json.dumps(entry, sort_keys=True).encode()
    return f"malformed-{hashlib.sha256(told).hexdigest()[:16]}"


def _count(value: object) -> int | None:
    """A number of up to 12 digits, told as a number or as text."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value if 0 <= value < 10**12 else None
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,12}", value, flags=re.ASCII):
        return int(value)
    return None


def _shape(photos: object) -> dict[str, Any] | None:
    """What is kept of an answer's `photos`; None where it is no page."""
    if not isinstance(photos, dict) or not isinstance(photos.get("photo"), list):
        return None
    entries = [
        {name: value for name, value in entry.items() if name in _KEPT} if isinstance(entry, dict) else entry
        for entry in photos["photo"][: 2 * _PER_PAGE]
    ]
    return {"photo": entries, "pages": photos.get("pages"), "total": photos.get("total")}


def _page(photos: dict[str, Any]) -> _Page:
    return _Page(photos["photo"], _count(photos["pages"]) or 0, _count(photos["total"]) or 0)


def _remembered(path: Path, asked: dict[str, str | int]) -> dict[str, Any] | None:
    """The photos of a page that was answered before; None where there is no such file, or it is damaged."""
    try:
        told = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(told, dict) or told.get("asked") != asked:
        return None
    return _shape(told.get("photos"))
