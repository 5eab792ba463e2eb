"""Licences: what may be allowed, and what a licence that somebody wrote is."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replaygen.crawl.licences import FLICKR_NUMBERS, LICENCES, allowed_licences, read_licence

FLICKR = [
    "all-rights-reserved",
    "cc-by-nc-sa-2.0",
    "cc-by-nc-2.0",
    "cc-by-nc-nd-2.0",
    "cc-by-2.0",
    "cc-by-sa-2.0",
    "cc-by-nd-2.0",
    "no-known-restrictions",
    "us-government",
    "cc0-1.0",
    "pdm-1.0",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "cc-by-nd-4.0",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0",
    "cc-by-nc-nd-4.0",
]


def numbers(*names: str) -> set[int]:
    """Flickr's numbers of what is allowed."""
    found = (LICENCES[one].flickr for one in allowed_licences(names))
    return {number for number in found if number is not None}


def test_flickrs_numbers_are_those_it_has_always_had() -> None:
    """0 to 16, in the order of Flickr's own table."""
    listed = {one.flickr: one.id for one in LICENCES.values() if one.flickr is not None}
    assert [listed[number] for number in range(17)] == FLICKR
    assert [FLICKR_NUMBERS[str(number)] for number in range(17)] == FLICKR


@pytest.mark.parametrize("number", [*FLICKR_NUMBERS, "17", "-1", "٤", "04"])
def test_a_bare_number_is_no_licence(number: str) -> None:
    """Only Flickr's own answers mean Flickr's numbers; a column of somebody's list may count anything."""
    assert read_licence(number) is None


def test_groups_hold_what_their_names_say() -> None:
    """Free is attribution at most; the two other groups add theirs, and what is both only together."""
    assert numbers("free") == {4, 7, 8, 9, 10, 11}
    assert numbers("share-alike") == {5, 12}
    assert numbers("non-commercial") == {2, 14}
    assert numbers("share-alike", "non-commercial") == {1, 2, 5, 12, 14, 15}
    assert {"cc-by-1.0", "cc-by-2.5", "cc-by-3.0"} <= allowed_licences(["free"])
    assert allowed_licences(["pdm-1.0"]) == {"pdm-1.0"}


@pytest.mark.parametrize("name", sorted(name for name in LICENCES if "nd" in name.split("-") or "reserved" in name))
def test_a_licence_that_forbids_derived_works_is_never_allowed(name: str) -> None:
    """A replay image is a derived work: these are refused by name, and in no group."""
    with pytest.raises(ValueError, match="never be allowed"):
        allowed_licences(["free", name])
    assert name not in allowed_licences(["free", "share-alike", "non-commercial"])


@pytest.mark.parametrize(
    ("wrong", "nearest"), [("fre", "free"), ("cc-by-40", "cc-by-4.0"), ("CC BY 4.0", "cc-by-4.0"), ("cc0", "cc0-1.0")]
)
def test_an_unknown_name_is_told_its_nearest(wrong: str, nearest: str) -> None:
    """A typing error names what was probably meant."""
    with pytest.raises(ValueError, match=re.escape(nearest)):
        allowed_licences([wrong])


def test_nothing_allowed_is_an_error() -> None:
    """A recipe that allows no licence would crawl nothing: it is told so."""
    with pytest.raises(ValueError, match="no licence"):
        allowed_licences([])


@pytest.mark.parametrize("one", LICENCES.values(), ids=lambda one: one.id)
def test_a_licence_is_read_back_from_each_way_to_write_it(one: object) -> None:
    """Its id, its name and its address, with and without scheme, port of law, deed and legal code."""
    licence = LICENCES[one.id]  # type: ignore[attr-defined]
    assert {read_licence(licence.id), read_licence(licence.name), read_licence(f" {licence.id.upper()} ")} == {
        licence.id
    }
    if "creativecommons" in licence.url:
        bare = licence.url.removeprefix("https:")
        for url in (
            licence.url,
            bare,
            "http:" + bare,
            bare[2:].rstrip("/"),
            licence.url + "deed.de",
            licence.url + "legalcode",
        ):
            assert read_licence(url) == licence.id
        assert read_licence(licence.url + "us/") == licence.id


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("CC0", "cc0-1.0"),
        ("Attribution-ShareAlike 2.0 Generic", "cc-by-sa-2.0"),
        ("Creative Commons Attribution-NonCommercial-NoDerivs 2.0", "cc-by-nc-nd-2.0"),
        ("CC BY-ND-NC 1.0", "cc-by-nc-nd-1.0"),
        ("cc_by_sa_3.0", "cc-by-sa-3.0"),
        ("Public Domain Mark", "pdm-1.0"),
        ("United States Government Work", "us-government"),
        ("https://www.flickr.com/commons/usage/", "no-known-restrictions"),
        ("All Rights Reserved", "all-rights-reserved"),
        ("CC BY 2.0 DE", "cc-by-2.0"),
        ("CC BY-SA 3.0 Unported License", "cc-by-sa-3.0"),
        ("Creative Commons Attribution 4.0 International Public License", "cc-by-4.0"),
        ("Creative Commons Attribution-NonCommercial 4.0 International (CC BY-NC 4.0)", "cc-by-nc-4.0"),
        ("Attribution 3.0 United States", "cc-by-3.0"),
        ("https://creativecommons.org/licenses/by/3.0/igo/legalcode", "cc-by-3.0"),
        ("https://creativecommons.org/licenses/by/4.0/legalcode.zh-hans", "cc-by-4.0"),
        ("https://creativecommons.org/licenses/by/4.0/deed.en_US", "cc-by-4.0"),
        ("https://creativecommons.org/licenses/by/4.0/?ref=a_b&atype=rich", "cc-by-4.0"),
    ],
)
def test_common_ways_to_write_a_licence_are_read(text: str, known: str) -> None:
    """Short and long names, with the parts in any order."""
    assert read_licence(text) == known


@pytest.mark.parametrize(
    "text",
    [
        "",
        "CC BY",
        "CC",
        "free",
        "public domain",
        "CC BY 9.0",
        "CC BY-BY 4.0",
        "CC SA 1.0",
        "not CC BY 4.0",
        "no CC0",
        "https://creativecommons.org.evil.example/licenses/by/4.0/",
        "https://evil.example/creativecommons.org/licenses/by/4.0/",
        "https://creativecommons.org/licenses/by/",
        "https://creativecommons.org/publicdomain/zero/2.0/",
        "CC BY 4.0" + " " * 400 + "x",
        "Attribution 2.0 Non-Commercial No Derivatives",
        "CC BY 4.0 ND",
        "CC BY-NC 4.0 ND",
        "CC BY 4.0 (non-commercial only)",
        "Attribution 4.0 International NonCommercial",
        "CC BY 4.0 or All Rights Reserved",
        "CC BY 4.0 (CC BY-NC 4.0)",
        "https://creativecommons.org/licenses/by/4.0/ except images",
        "https://creativecommons.org/licenses/by/4.0/../../by-nd/4.0/",
        "https://creativecommons.org/licenses/by/4.0/?../by-nd/4.0/",
        "https://creativecommons.org/licenses/by/4.0/nd/",
    ],
)
def test_what_cannot_be_read_for_sure_is_unknown(text: str) -> None:
    """No version, no such version, a number that does not exist, an address of somebody else: no licence."""
    assert read_licence(text) is None


TAKEN_BACK = (
    "nc", "ND", "non-commercial", "NonCommercial", "no derivatives", "NoDerivs", "all rights reserved", "except images",
    "for research only", "sa", "but ask me first", "excluding logos",
)  # fmt: skip
WRITTEN = sorted(
    {text for one in LICENCES.values() for text in (one.id, one.name, one.url)}
    | {f"Attribution {one.id[6:]} International" for one in LICENCES.values() if one.id.startswith("cc-by-4")}
    | {"CC0", "Public Domain Mark", "Creative Commons Attribution-ShareAlike 2.0 Generic", "CC BY 3.0 US"}
)


@settings(max_examples=500)
@given(
    text=st.sampled_from(WRITTEN),
    between=st.sampled_from([" ", "_", "  ", ", ", "; ", " - ", "-", "/", " (", ". ", " or ", " International ", "\n"]),
    words=st.lists(st.sampled_from(TAKEN_BACK), min_size=1, max_size=3),
    end=st.sampled_from(["", ")", ".", " 4.0", " licence"]),
)
def test_words_behind_a_licence_never_make_it_freer(text: str, between: str, words: list[str], end: str) -> None:
    """What is said behind a licence may take it back: then no one licence is known."""
    assert read_licence(text + between + " ".join(words) + end) is None


@given(st.text(alphabet="cby -ndsa0.1234/:htpsorgeiv", max_size=60))
def test_whatever_is_written_is_a_known_licence_or_none(text: str) -> None:
    """No text raises, and none that speaks of no derivatives is read as a licence that may be allowed."""
    read = read_licence(text)
    assert read is None or read in LICENCES
    if read and re.search(r"\bnd\b", text):
        assert "nd" in read.split("-")
