"""Who made the photos: the files, the page's section, the terms of showing them. Nothing outside gets through raw."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import markdown_it
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_proof import Crawl, candidate, sample
from test_report import EVIL, Maker, Seen, small_world

from replaygen.errors import ReplaygenError
from replaygen.plan import Plan
from replaygen.report import sheet, write_attribution, write_report
from replaygen.report.attribution import (
    FLICKR_NOTICE,
    MOST_OWNERS,
    as_csv,
    as_markdown,
    link,
    photo_summary,
)
from replaygen.report.sheets import MOST_FLICKR, sheets
from replaygen.runs.proof import Proof
from replaygen.runs.replay import ReplaySet

NASTY = (
    *EVIL, "[a](javascript:alert(1))", "![x](https://evil.example/x.png)", "**bold** _it_ `code` ~~no~~ $x$", "](<",
    "<https://evil.example>", "https://evil.example www.evil.example", "&lt;script&gt; &#60;b&#62; &amp;",
    "a\nb\r\n# c", "\t=1+1", "\r=1+1", "  @SUM(A1)", "＝1+1", "-2+3", "+1", "|a|b|", "\\",
    "\ud800", "- x\n- y", "<!-- ", "]]>", "",
)  # fmt: skip


def proof(photo: str = "flickr-1", **more: Any) -> Proof:
    """An accepted photo of Flickr."""
    told: dict[str, Any] = {
        "source": "flickr", "class_name": "cow", "sample": f"cow-{photo}", "owner": "Ann Example",
        "owner_page": "https://www.flickr.com/people/123@N00/", "title": "Two cows",
        "page": f"https://www.flickr.com/photos/123@N00/{photo}/", "url": "https://live.staticflickr.com/1.jpg",
        "licence": "cc-by-2.0", "licence_name": "CC BY 2.0",
        "licence_url": "https://creativecommons.org/licenses/by/2.0/", "decision": "accepted",
        "changes": "resized and re-encoded", "fetched_at": "2026-03-01T10:00:00Z",
    }  # fmt: skip
    return Proof(photo, **{**told, **more})


class Html(HTMLParser):
    """Elements, link targets and text of rendered Markdown."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(markdown_it.MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        self.tags.append("comment")


# the files


def test_a_photo_is_credited_as_creative_commons_recommends() -> None:
    """Title, owner, licence and page with their links, and what was done to the image."""
    line = as_markdown([proof()], title="Cows").splitlines()[-1]
    assert line == (
        "- “Two cows” by [Ann Example](<https://www.flickr.com/people/123@N00/>), "
        "[CC BY 2.0](<https://creativecommons.org/licenses/by/2.0/>); "
        "[flickr-1](<https://www.flickr.com/photos/123@N00/flickr-1/>); resized and re-encoded"
    )


def test_photos_are_grouped_by_class_and_licences_counted() -> None:
    """A heading a class; the notice of Flickr and the conditions of the licences stand at the top."""
    told = [proof(), proof("flickr-2", class_name="horse"), proof("flickr-3", licence="cc-by-nc-sa-2.0",
            licence_name="CC BY-NC-SA 2.0", owner_page="", owner="Bo")]  # fmt: skip
    text = as_markdown(told, title="Cows & horses")
    assert re.findall("^#.*", text, re.MULTILINE) == [
        "# Cows &amp; horses: photos of other people", "## cow: 2 photos", "## horse: 1 photo",
    ]  # fmt: skip
    assert "3 photos, 2 owners named" in text
    assert "CC BY 2.0 (2), CC BY-NC-SA 2.0 (1)" in text
    assert FLICKR_NOTICE in text
    assert "stays under their licence" in text
    assert "no commercial use" in text


def test_a_licence_that_changed_stands_beside_the_old_one() -> None:
    """In the credit, in a column, and in what the conditions are: it was taken under the one, and has the other."""
    told = [proof(licence_now="cc-by-nc-sa-2.0", reason="no longer visible"), proof("flickr-2")]
    text = as_markdown(told, title="x")
    assert (
        "fetched under [CC BY 2.0](<https://creativecommons.org/licenses/by/2.0/>), "
        "now [CC BY-NC-SA 2.0](<https://creativecommons.org/licenses/by-nc-sa/2.0/>); "
    ) in text
    assert text.count("fetched under") == text.count("re-encoded; no longer visible\n") == 1
    assert "no commercial use" in text
    assert "stays under their licence" in text
    assert [row["licence_now"] for row in csv.DictReader(io.StringIO(as_csv(told)))] == ["cc-by-nc-sa-2.0", ""]


def test_without_photos_of_flickr_there_is_no_notice_of_flickr() -> None:
    """The notice speaks of the API; a list of addresses does not use it."""
    assert FLICKR_NOTICE not in as_markdown([proof("web-1", source="web")], title="x")
    assert as_markdown([], title="x").endswith("No photo of other people is in it.\n")


def test_markdown_names_accepted_photos_and_csv_all(tmp_path: Path) -> None:
    """What was refused is evidence, not credit; `all_photos` says otherwise."""
    told = [proof(), proof("flickr-2", decision="rejected", reason="duplicate", of="cow-flickr-1"),
            Proof("flickr-3", "flickr", "cow", decision="purged")]  # fmt: skip
    names = {"ATTRIBUTION.md": None, "all.md": True, "ATTRIBUTION.csv": None, "few.csv": False}
    text = {name: write_attribution(told, tmp_path / name, title="Cows", all_photos=wanted).read_text("utf-8")
            for name, wanted in names.items()}  # fmt: skip
    assert "flickr-2" not in text["ATTRIBUTION.md"]
    assert "rejected: duplicate" in text["all.md"]
    assert "Photo flickr-3: purged" in text["all.md"]
    rows = list(csv.DictReader(io.StringIO(text["ATTRIBUTION.csv"])))
    assert [row["decision"] for row in rows] == ["accepted", "rejected", "purged"]
    assert rows[1]["of"] == "cow-flickr-1"
    assert len(list(csv.DictReader(io.StringIO(text["few.csv"])))) == 1


@pytest.mark.parametrize("name", ["ATTRIBUTION", "photos.txt", "nowhere/ATTRIBUTION.md"])
def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path, name: str) -> None:
    """Another ending or a missing folder is an error, and nothing is left behind."""
    with pytest.raises(ReplaygenError, match=name):
        write_attribution([proof()], tmp_path / name, title="x")
    assert list(tmp_path.iterdir()) == []


def test_files_are_the_same_every_time(tmp_path: Path) -> None:
    """Equal proofs give equal bytes."""
    told = [proof(f"flickr-{i}", owner=f"Owner {i % 3}") for i in range(9)]
    for kind in ("md", "csv"):
        first, second = (write_attribution(told, tmp_path / f"{n}.{kind}", title="x") for n in "ab")
        assert first.read_bytes() == second.read_bytes()


# hostile text (reliability row 21)

nasty_text = st.one_of(
    st.sampled_from(NASTY),
    st.text(max_size=30),
    st.lists(st.sampled_from([*NASTY, "[", "](", ")", "<", ">", "*", "_", "`", "a", " ", "'"]), max_size=6).map(
        "".join
    ),
)
nasty_link = st.one_of(
    st.sampled_from(["javascript:alert(1)", "data:text/html,x", "https://a:b@evil.example/", "//evil.example", "",
                     "https://ok.example/?a=1&copy=2", "https://ok.example/>)\"'<b>", "file:///etc/passwd"]),
    nasty_text, nasty_text.map(lambda text: f"https://ok.example/{text}"),
)  # fmt: skip
CLEAN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u2028\u202a-\u202e\ud800-\udfff]")


@given(nasty_text, nasty_text, nasty_text, nasty_link, nasty_link)
@settings(max_examples=200, deadline=None)
def test_no_title_or_owner_becomes_markup(title: str, owner: str, name: str, page: str, owner_page: str) -> None:
    """Rendered with HTML allowed, the file has the elements that plain words would have, and safe links alone."""
    told = proof(title=title, owner=owner, class_name=name, page=page, url="", owner_page=owner_page)
    text = as_markdown([told], title=title)
    seen = Html(text)
    expected = {"h1", "h2", "p", "ul", "li", "a"}
    assert set(seen.tags) <= expected
    assert seen.tags.count("li") == seen.tags.count("h1") == seen.tags.count("h2") == 1
    assert all(address.startswith(("https://", "http://")) and "@evil" not in address for address in seen.links)
    assert len(seen.links) == 1 + bool(link(page)) + bool(link(owner_page))
    assert not set("<>") & set(re.sub(r"\]\(<[^<>]*>\)", "", text))
    assert not CLEAN.search(text)


@given(nasty_text, nasty_text, nasty_link)
@settings(max_examples=200, deadline=None)
def test_no_cell_of_the_csv_is_a_formula(title: str, owner: str, page: str) -> None:
    """Read back, each row has its columns, no cell begins a formula, and no control character is left."""
    text = as_csv([proof(title=title, owner=owner, page=page, reason=title), proof("flickr-2")])
    rows = list(csv.reader(io.StringIO(text)))
    assert [len(row) for row in rows] == [len(rows[0])] * 3
    for cell in (cell for row in rows for cell in row if cell.strip() != "-"):
        assert not cell.lstrip().startswith(("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠"))
    assert not CLEAN.search(text)


def test_escaped_text_reads_as_it_was_written() -> None:
    """Escaping changes what a machine sees, not what a reader reads."""
    title = "*Cows* [2] <b>_x_</b> & `more` #1 | 50 % $5"
    assert f"“{title}”" in Html(as_markdown([proof(title=title)], title="x")).text


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("https://www.flickr.com/people/1@N00/", "https://www.flickr.com/people/1@N00/"),
        ("HTTP://example.org/a", "http://example.org/a"),
        ("https://example.org/a b(c)", "https://example.org/a%20b%28c%29"),
        ("https://user:word@example.org/", ""),
        ("javascript:alert(1)", ""),
        (" https://example.org/", ""),
        ("https://[bad/", ""),
        ("https:///path", ""),
        ("https://example.org/\x1b[31m", ""),
    ],
)
def test_only_plain_web_addresses_become_links(address: str, expected: str) -> None:
    """No script, no user name, no control character; what could end the link is encoded."""
    assert link(address) == expected


# the page


def crawled_plan(root: Path, classes: dict[str, int], text: Callable[[int], str] = lambda i: f"Photo {i}") -> Plan:
    """A run with one replay set of photos of Flickr a class, `classes[name]` photos in each."""
    maker = Maker(root, small_world(names=("background", *classes)))
    crawl = Crawl(root)
    for channel, (name, count) in enumerate(classes.items(), start=1):
        told = [
            candidate(f"flickr-{100 * channel + i}", title=text(i), owner=f"{text(i % 3)} maker",
                      owner_page=f"https://www.flickr.com/people/{i % 3}@N00/", licence=("cc-by-2.0", "cc0-1.0")[i % 2])
            for i in range(count)
        ]  # fmt: skip
        gone = candidate(f"flickr-{100 * channel + 98}")
        search = crawl.search(name, [*told, gone], {f"flickr-{100 * channel + 99}": "licence-not-allowed"})
        fetch = crawl.fetch(name, search, told, rejected={gone["photo"]: "too-small"})
        label = crawl.label(fetch, [sample(name, one["photo"]) for one in told], channel=channel)
        slot = f"replay/web/base/seed0/{name}"
        crawl.replay(name, [(fetch, label, count)], channel=channel, slot=slot)
    for task in crawl.tasks.values():
        maker.built.add(task)
    return maker.plan()


@pytest.fixture(scope="module")
def crawled_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("crawled")
    plan = crawled_plan(root / "store", {"cat": 5, "cow": 24, "bus": 24})
    return write_report(plan, root / "page.html").read_text(encoding="utf-8")


def section(page: str) -> str:
    return page.partition('<section id="photos">')[2].partition("</section>")[0]


def test_page_tells_what_became_of_every_photo(crawled_page: str) -> None:
    """Decisions, reasons, licences, times, owners, the notice, and the command for the whole list."""
    text = " ".join(" ".join(Seen(section(crawled_page)).text).split())
    assert "53 photos by others stand in for old classes" in text
    assert "cow flickr 26 24 2 too-small 1, licence-not-allowed 1" in text
    assert "Fetched 2026-03-01." in text
    assert "were not asked for again" in text
    assert "CC BY 2.0" in text
    assert "Photo 0 maker" in text
    assert FLICKR_NOTICE in text
    assert "replaygen crawl attribution pipelines/small.toml --out ATTRIBUTION.md" in text


def test_page_without_a_crawl_has_no_such_section(tmp_path: Path) -> None:
    """A run from folders says nothing of other people's photos."""
    plan = Maker(tmp_path / "store", small_world()).plan()
    assert 'id="photos"' not in write_report(plan, tmp_path / "page.html").read_text(encoding="utf-8")


def test_page_shows_thirty_photos_of_flickr_at_most(crawled_page: str) -> None:
    """53 are there; 30 are shown, spread over the sets, each with a link to its page, its owner and its licence."""
    tiles = re.findall(r"<li data-sample=.*?</figure></li>", crawled_page, re.DOTALL)
    assert len(tiles) == MOST_FLICKR
    for tile in tiles:
        seen = Seen(tile)
        (page, *_), links = list(seen.attributes("href")), set(seen.attributes("href"))
        photo = page.removeprefix("https://example.org/photos/")
        assert next(seen.attributes("data-sample")).endswith(f"-{photo}")
        assert any("/people/" in address for address in links)
        assert any("creativecommons.org" in address for address in links)
        assert "photo by Photo" in next(seen.attributes("alt"))
    assert crawled_page.count("A page shows 30 photos of Flickr at most.") == 2


def test_thirty_are_spread_evenly_over_the_sets(tmp_path: Path) -> None:
    """A small set leaves its share to the others; 40 sets get none or one."""
    few = sheets(crawled_plan(tmp_path / "a", {"cat": 2, "cow": 24, "bus": 24}))
    assert [len(one.tiles) for one in few] == [2, 14, 14]
    many = sheets(crawled_plan(tmp_path / "b", {f"class {i}": 1 + i % 2 for i in range(40)}))
    assert sum(len(one.tiles) for one in many) == MOST_FLICKR
    assert max(len(one.tiles) for one in many) == 1


def test_a_sheet_of_its_own_bears_the_notice(tmp_path: Path) -> None:
    """Saved alone or shown in a notebook it says whose API was used, and shows no more than a page may."""
    plan = crawled_plan(tmp_path / "store", {"cow": 24})
    (key,) = [key for slot, key in plan.slots.items() if slot.startswith("replay/")]
    record = plan.store.get(key)
    assert record is not None
    shown = sheet(ReplaySet(plan.store, record, plan.opened.scenario.names, "web"), flickr=5)
    assert len(shown.tiles) == 5
    assert FLICKR_NOTICE in shown._repr_html_()
    assert shown.licences == (("CC0 1.0", 4), ("CC BY 2.0", 1))


def test_a_sheet_names_the_reasons_of_the_selection(tmp_path: Path) -> None:
    """What the screens refused is counted once, under the screens' own words."""
    maker, crawl = Maker(tmp_path, small_world()), Crawl(tmp_path)
    told = [candidate(f"flickr-{i}") for i in range(4)]
    fetch = crawl.fetch("cat", crawl.search("cat", told), told, rejected={"flickr-9": "too-small"})
    ids = [sample("cat", one["photo"]) for one in told]
    gone = [{"id": ids[2], "reason": "duplicate"}, {"id": ids[3], "reason": "leak"}]
    chosen = crawl.select("cat", [fetch], ids[:2], gone)
    refused = {ids[1]: "class-absent", ids[2]: "screened", ids[3]: "screened"}
    label = crawl.label(fetch, ids[:1], refused, selection=chosen)
    crawl.replay("cat", [(fetch, label, 1)], slot="replay/web/base/seed0/cat")
    for task in crawl.tasks.values():
        maker.built.add(task)
    (shown,) = sheets(maker.plan())
    assert shown.rejected == {"too-small": 1, "class-absent": 1, "duplicate": 1, "leak": 1}


def test_hostile_titles_and_owners_make_no_element_on_the_page(tmp_path: Path, crawled_page: str) -> None:
    """Titles and owners of crawled photos are text in the captions, the tables and the alternatives of images."""
    plan = crawled_plan(tmp_path / "store", {"cat": 5, "cow": 24, "bus": 24}, lambda i: NASTY[i % len(EVIL)] + NASTY[i])
    page = write_report(plan, tmp_path / "page.html").read_text(encoding="utf-8")
    seen, usual = Seen(page), Seen(crawled_page)
    assert {tag for tag, _ in seen.tags} == {tag for tag, _ in usual.tags}
    assert seen.scripts == usual.scripts
    assert not [name for _, attributes in seen.tags for name in attributes if name.startswith("on")]
    assert all(address.startswith(("data:", "#", "https://")) for address in seen.attributes("src", "href"))
    assert "https://evil" not in " ".join(seen.attributes("src", "href"))
    assert not CLEAN.search(page)
    assert not [text for text in seen.text if text.strip().startswith(("=", "+", "@"))]


def test_owners_are_told_apart_by_their_page_and_bounded() -> None:
    """Two owners of one name are two; more than 200 are counted, not named."""
    told = [proof(f"flickr-{i}", owner_page=f"https://www.flickr.com/people/{i}/") for i in range(MOST_OWNERS + 7)]
    told += [proof("flickr-a", owner_page="https://www.flickr.com/people/3/", licence_name="CC0 1.0")]
    summary = photo_summary(told)
    assert summary is not None
    assert (len(summary.owners), summary.more, summary.makers) == (MOST_OWNERS, 7, MOST_OWNERS + 7)
    assert summary.owners[0].page == "https://www.flickr.com/people/3/"
    assert summary.owners[0].licences == ("CC BY 2.0", "CC0 1.0")


def test_summary_tells_when_photos_were_looked_at_again() -> None:
    """First and last day, and how many were not."""
    told = [proof("flickr-1", revalidated_at="2026-04-02T00:00:00Z"), proof("flickr-2"),
            proof("flickr-3", revalidated_at="2026-04-01T00:00:00Z", fetched_at="2026-03-05T00:00:00Z")]  # fmt: skip
    summary = photo_summary(told)
    assert summary is not None
    assert (summary.fetched, summary.revalidated, summary.unchecked) == (
        ("2026-03-01", "2026-03-05"), ("2026-04-01", "2026-04-02"), 1,
    )  # fmt: skip
