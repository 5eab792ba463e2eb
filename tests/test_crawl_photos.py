"""What is known of a photo before it is fetched: its id, and texts that others wrote."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replaygen.crawl.photos import flickr_photo, plain_text, web_photo

FLICKRS = [
    "https://live.staticflickr.com/65535/53412_0a1b2c_b.jpg", "http://farm4.staticflickr.com/3/53412_0a1b2c.jpg",
    "https://c2.staticflickr.com/4/3789/53412_0a1b2c_z.jpg?zz=1", "http://farm2.static.flickr.com/17/53412_ab_o.png",
    "http://static.flickr.com/17/53412_ab.jpg", "HTTPS://LIVE.StaticFlickr.com:443//65535/%35%33412_0a_b.JPG#x",
]  # fmt: skip


@pytest.mark.parametrize("address", FLICKRS)
def test_a_photo_of_flickr_has_flickrs_id(address: str) -> None:
    """In every size and on every server, so that one that was removed stays away however it is offered."""
    assert web_photo(address) == flickr_photo("53412")


@pytest.mark.parametrize(
    "address",
    [
        "https://staticflickr.com.evil.example/65535/53412_0a_b.jpg", "https://a.example/65535/53412_0a_b.jpg",
        "https://live.staticflickr.com/1234/buddyicons/77@N00.jpg", "https://evilstaticflickr.com/65535/53412_0a_b.jpg",
    ],
)  # fmt: skip
def test_what_only_looks_like_flickr_is_a_photo_of_the_web(address: str) -> None:
    """Nobody else's address stands for a photo of Flickr."""
    assert web_photo(address).startswith("web-")


def test_an_address_is_one_photo_with_any_scheme() -> None:
    """http and https give one id, another host or path another one."""
    assert web_photo("http://a.example/1") == web_photo("https://a.example/1") == web_photo("HTTPS://a.example/1")
    assert len({web_photo(f"https://{place}") for place in ("a.example/1", "a.example/2", "b.example/1")}) == 3


@given(st.text())
def test_any_text_has_an_id(text: str) -> None:
    """What is no address at all can still be named where it is refused."""
    assert re.fullmatch(r"web-[0-9a-f]{20}|flickr-[1-9][0-9]*", web_photo(text))


@given(st.text(max_size=400))
def test_texts_of_others_are_harmless(text: str) -> None:
    """A text has no control character, no change of direction and at most 300 characters."""
    clean = plain_text(text + "\x1b[31m\u202e")
    assert clean is None or (len(clean) <= 300 and not set(clean) & set("\x00\x07\x1b\n\r\t\x85\u2028\u202e\u200b"))


def test_text_of_others_is_made_plain() -> None:
    """Control, colour and direction characters go, blanks become one, and it ends after 300 characters."""
    assert plain_text("a\x1b[31m\x00 cow\n\t\u202egoat \ud800") == "a[31m cow goat"
    assert plain_text("a\x1b[1m\tb" + "c" * 400) == "a[1m b" + "c" * 294
    assert plain_text(" \x00 ") is None
    assert plain_text(3) is None
