"""A search of Flickr against a local server: what is found, what is refused and why, lies, a search that was killed."""

from __future__ import annotations

import contextlib
import datetime
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from replaygen.crawl.licences import allowed_licences
from replaygen.crawl.limits import ApiLimit
from replaygen.errors import DataError
from replaygen.sources.flickr import ApiFault, FlickrApi
from replaygen.sources.flickr_search import Found, Search, search
from replaygen.testing.local_flickr import LIES, LocalFlickr
from replaygen.testing.local_photos import FREE, LocalPhoto, made_photo

SEARCH = "flickr.photos.search"
COWS = Search(text="cow", as_of=datetime.date(2025, 1, 1), licences=allowed_licences(["free"]))
URL = "https://live.staticflickr.com/1_m.jpg"


class Place:
    """A local Flickr, an API that asks it, and a memory."""

    def __init__(self, flickr: LocalFlickr, tmp_path: Path) -> None:
        self.flickr = flickr
        self.tmp_path = tmp_path
        limit = ApiLimit(tmp_path / "limit", "test", 3600, per_second=2000, durable=False)
        self.api = FlickrApi(limit=limit, timeout=10.0, backoff=0.001)

    def search(self, query: Search = COWS, wanted: int = 10**6, memory: str = "memory", **options: Any) -> Found:
        told = {"gone": lambda photo: False, **options}
        return search(self.api, query, wanted=wanted, memory=self.tmp_path / memory, **told)

    def numbers(self, found: Found) -> list[str]:
        return [candidate.photo.removeprefix("flickr-") for candidate in found.candidates]


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Place]]:
    """Start a local Flickr with given photos or lies."""
    with contextlib.ExitStack() as stack:
        count = itertools.count()

        def begin(photos: list[LocalPhoto], **options: Any) -> Place:
            flickr = stack.enter_context(LocalFlickr(photos=photos, **options))
            for name, value in flickr.environment().items():
                monkeypatch.setenv(name, value)
            return Place(flickr, tmp_path / f"place{next(count)}")

        yield begin


def cows(count: int, word: str = "cow", licences: Any = FREE) -> list[LocalPhoto]:
    return [made_photo(f"{word}/{number}", [word], licences) for number in range(count)]


def test_every_free_photo_is_found_once_in_the_order_of_the_api(place: Callable[..., Place]) -> None:
    """1,234 photos come over three pages, in order, with licence, owner and page; the filter asked for free ones."""
    there = place(cows(1234))
    found = there.search()
    order = [photo.id for photo in there.flickr.found({"text": "cow"})]
    assert there.numbers(found) == order
    assert (found.calls, found.total, found.rejected, found.repeated) == (3, 1234, [], 0)
    first, photo = found.candidates[0], there.flickr.photos[order[0]]
    assert (first.title, first.owner) == (photo.title, photo.ownername)
    assert first.page == f"https://www.flickr.com/photos/{photo.owner}/{photo.id}"
    assert (first.url, first.width, first.height) == (f"http://{there.flickr.host}{photo.name}", 1024, 683)
    asked = there.flickr.asked[-1]
    assert (asked["license"], asked["media"], asked["safe_search"], asked["sort"]) == (
        "4,7,8,9,10,11",
        "photos",
        "1",
        "relevance",
    )
    assert (asked["min_upload_date"], asked["max_upload_date"]) == ("1075593600", "1735775999")


def test_a_search_ends_when_enough_is_found(place: Callable[..., Place]) -> None:
    """Ten candidates need one page of 1,234."""
    there = place(cows(1234))
    assert len(there.search(wanted=10).candidates) == 10
    assert there.flickr.calls[SEARCH] == 1
    assert there.search(wanted=0, memory="other").calls == 0


def test_synonyms_are_taken_in_turn(place: Callable[..., Place]) -> None:
    """The first of each text, then the second of each; a photo that answers to both counts once, as the first."""
    both = [replace(photo, words=("cow", "cattle")) for photo in cows(3, "both")]
    there = place(cows(20) + cows(20, "cattle") + both)
    found = there.search(replace(COWS, synonyms=("cattle", "cow")))
    first, second = ([photo.id for photo in there.flickr.found({"text": text})] for text in ("cow", "cattle"))
    turns = [number for pair in itertools.zip_longest(first, second) for number in pair if number]
    assert there.numbers(found) == list(dict.fromkeys(turns))
    assert len(found.candidates) == 43


def test_more_than_4000_results_are_found_by_cutting_the_time(place: Callable[..., Place]) -> None:
    """Of 5,000 photos a query shows 4,000; cut by date of upload, all come, each once, those of the whole first."""
    there = place(cows(5000))
    found = there.search()
    assert sorted(there.numbers(found)) == sorted(there.flickr.photos)
    whole = [photo.id for photo in there.flickr.found({"text": "cow"})]
    assert there.numbers(found)[:4000] == whole[:4000]


def test_a_total_that_is_a_lie_does_not_ask_for_ever(place: Callable[..., Place]) -> None:
    """Where 40 photos are said to be a billion, the search ends with the 40."""
    there = place(cows(40), lies=["totals"], seed=1)
    assert len(there.search().candidates) == 40
    assert there.flickr.calls[SEARCH] < 10


@pytest.mark.parametrize("seed", range(12))
def test_no_lie_lets_a_disallowed_photo_in(place: Callable[..., Place], seed: int) -> None:
    """Row 14: whatever the API tells and however it fails, 0 photos under another licence, date, medium, or twice."""
    photos = cows(700, licences=range(17))
    photos = [replace(photo, media="video" if n % 9 == 0 else "photo") for n, photo in enumerate(photos)]
    there = place(
        photos, lies=LIES if seed == 0 else [lie for n, lie in enumerate(LIES) if (n * 7 + seed) % 3], seed=seed
    )
    query = replace(COWS, as_of=datetime.date(2015, 6, 30), since=datetime.date(2010, 1, 1))
    found = there.search(query)
    numbers = there.numbers(found)
    first, last = query.window()
    for number in numbers:
        photo = there.flickr.photos[number]
        assert photo.licence in FREE
        assert photo.media == "photo"
        assert first <= photo.uploaded <= last
    assert len(numbers) == len(set(numbers))
    assert not {f"flickr-{number}" for number in numbers} & {name for name, _ in found.rejected}


def test_each_refusal_has_its_reason(place: Callable[..., Place]) -> None:
    """An ignored filter, an unknown licence, a video, a date, a word, a tombstone, a size: each is named."""
    good = cows(1)[0]
    numbers = (str(number) for number in itertools.count(100))
    changes: list[tuple[str, dict[str, Any]]] = [
        ("licence-not-allowed", {"licence": 0}),
        ("licence-not-allowed", {"licence": 2}),
        ("licence-unknown", {"licence": 17}),
        ("not-a-photo", {"media": "video"}),
        ("outside-dates", {"uploaded": 1_735_776_000}),
        ("excluded-word", {"title": "Cow and GOAT!"}),
        ("excluded-word", {"words": ("cow", "guinea pig")}),
        ("no-size", {"sizes": {"m": ("javascript:alert(1)", 500, 400), "o": ("http://", 500, 400)}}),
        ("no-size", {"sizes": {"q": (URL, 150, 150)}}),
        ("too-small", {"sizes": {"m": (URL, 500, 90), "t": (URL, 100, 18)}}),
        ("malformed", {"owner": "../../x"}),
    ]
    photos = [replace(good, id=next(numbers), **change) for _, change in changes]
    buried = replace(good, id="99")
    there = place([good, buried, *photos])
    query = replace(COWS, exclude=("goat", "guinea pig"), min_side=96)
    # an API that ignores all it is asked
    there.flickr.found = lambda asked: list(there.flickr.photos.values())  # type: ignore[method-assign]
    found = there.search(query, gone=lambda photo: photo == "flickr-99")
    assert there.numbers(found) == [good.id]
    expected = {f"flickr-{photo.id}": reason for photo, (reason, _) in zip(photos, changes, strict=True)}
    assert dict(found.rejected) == {**expected, "flickr-99": "tombstoned"}


@pytest.mark.parametrize(
    ("max_side", "min_side", "taken"),
    [(320, 1, "n"), (321, 1, "z"), (640, 481, "c"), (2000, 1, "o"), (None, 1, "o"), (100, 1, "t"), (100, 100, "n")],
)
def test_the_smallest_size_that_is_large_enough_is_taken(
    place: Callable[..., Place], max_side: int | None, min_side: int, taken: str
) -> None:
    """Longer side at least max_side, shorter at least min_side, whole pictures only; else the largest."""
    sides = {
        "sq": (75, 75),
        "t": (100, 75),
        "q": (150, 150),
        "n": (320, 240),
        "z": (640, 480),
        "c": (800, 600),
        "o": (1000, 750),
    }
    sizes = {size: (f"https://live.staticflickr.com/1_{size}.jpg", *side) for size, side in sides.items()}
    there = place([replace(cows(1)[0], sizes=sizes)])
    found = there.search(replace(COWS, max_side=max_side, min_side=min_side))
    assert [candidate.url[-5] for candidate in found.candidates] == [taken]


def test_tags_and_words_to_leave_out_are_asked_for(place: Callable[..., Place]) -> None:
    """Tags, their mode and excluded words go to the API too, so that no page is wasted on what is refused."""
    there = place(cows(3) + [replace(photo, words=("cow", "goat")) for photo in cows(3, "x")])
    found = there.search(replace(COWS, tags=("cow", "farm"), any_tag=True, exclude=("goat",)))
    assert (len(found.candidates), found.rejected) == (3, [])
    asked = there.flickr.asked[-1]
    assert (asked["text"], asked["tags"], asked["tag_mode"]) == ("cow -goat", "cow,farm", "any")


def test_a_title_is_bounded_and_plain(place: Callable[..., Place]) -> None:
    """What people wrote comes without escape codes and line breaks, and not longer than 300 characters."""
    there = place([replace(cows(1)[0], title="cow \x1b[2J\r\n" + "ü" * 999, ownername="\x07")])
    candidate = there.search().candidates[0]
    assert candidate.title == "cow [2J " + "ü" * 292
    assert candidate.owner == next(iter(there.flickr.photos.values())).owner


def test_a_killed_search_asks_only_for_the_rest(place: Callable[..., Place]) -> None:
    """Three pages were answered before the API went away; the next search asks for the others, and finds the same."""
    there = place(cows(3000))
    whole = there.search(memory="whole")
    assert whole.calls == 6
    there.flickr.calls.clear()
    api_call, answered = there.api.call, itertools.count()

    def dying(method: str, **parameters: str | int) -> dict[str, Any]:
        if method == SEARCH and next(answered) == 3:
            raise KeyboardInterrupt
        return api_call(method, **parameters)

    there.api.call = dying  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        there.search()
    there.api.call = api_call  # type: ignore[method-assign]
    assert there.flickr.calls[SEARCH] == 3
    again = there.search()
    assert (again.calls, there.flickr.calls[SEARCH]) == (3, 6)
    assert again.candidates == whole.candidates
    assert there.search().calls == 0


def test_a_damaged_page_of_the_memory_is_asked_again(place: Callable[..., Place]) -> None:
    """A page that cannot be read, or is the answer to something else, does not count as answered."""
    there = place(cows(1200))
    whole = there.search()
    pages = sorted((there.tmp_path / "memory").iterdir())
    assert len(pages) == 3
    pages[0].write_bytes(pages[1].read_bytes())
    pages[2].write_bytes(b'{"asked": ')
    again = there.search()
    assert again.calls == 2
    assert again.candidates == whole.candidates


def test_a_page_that_fails_ends_the_search_with_its_fault(
    place: Callable[..., Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that cannot be had is an error, never a shorter list."""
    there = place(cows(1200), rate=3)
    with pytest.raises(ApiFault, match="429"):
        there.search()


def test_licences_that_flickr_does_not_have_are_no_search(place: Callable[..., Place]) -> None:
    """CC BY 3.0 is a free licence, but no photo of Flickr is under it: that is said before anything is asked."""
    there = place(cows(3))
    with pytest.raises(DataError, match="none of the allowed licences"):
        there.search(replace(COWS, licences=frozenset({"cc-by-3.0"})))
    assert there.flickr.calls[SEARCH] == 0
