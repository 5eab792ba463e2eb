"""The page as a person uses it, in a real browser: wide and narrow, light and dark, by mouse and by keyboard.

Chromium is the system's; where there is none, or no playwright, these tests are left out and say so.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from test_report import EVIL, Maker, build, small_world
from test_report_labels import whole

from replaygen.report import write_report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
SERIOUS = ("serious", "critical")


@dataclass
class Shown:
    """A page in a browser, and what it asked for and complained of."""

    page: Page
    outside: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with everything that the page can show: curves, scenes, confusions, judged and rejected replay."""
    root = tmp_path_factory.mktemp("browser")
    world = small_world()
    plan = build(root / "store", world)
    maker = Maker(root / "store", world)
    maker.built = plan.built
    whole(maker, 40, name="cow", channel=2)
    return write_report(plan, root / "page.html")


def opened(browser: Browser, path: Path, size: str = "desktop", scheme: Any = "light", **more: Any) -> Shown:
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **more)
    shown = Shown(context.new_page())
    shown.page.on("console", lambda told: shown.errors.append(told.text) if told.type in ("error", "warning") else None)
    shown.page.on("pageerror", lambda error: shown.errors.append(str(error)))
    address = path.as_uri()
    shown.page.on("request", lambda asked: shown.outside.append(asked.url)
                  if not asked.url.startswith((address, "data:")) else None)  # fmt: skip
    shown.page.goto(address)
    return shown


def opacity(page: Page, selector: str) -> float:
    told = page.locator(selector).first.evaluate("one => getComputedStyle(one).opacity")
    return float(told)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", list(SIZES))
def test_page_is_quiet_complete_and_accessible(browser: Browser, written: Path, size: str, scheme: str) -> None:
    """No error, no request, nothing wider than the window, and no serious finding of axe, also with all unfolded."""
    shown = opened(browser, written, size, scheme)
    shown.page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
    found = axe.Axe().run(shown.page).response["violations"]
    assert [
        (one["id"], [node["target"] for node in one["nodes"][:3]]) for one in found if one["impact"] in SERIOUS
    ] == []
    shown.page.locator("a[data-opens]").first.click()
    found = axe.Axe().run(shown.page).response["violations"]
    assert [one["id"] for one in found if one["impact"] in SERIOUS] == []
    assert (shown.errors, shown.outside) == ([], [])


def test_toggle_shows_image_overlay_or_label(browser: Browser, written: Path) -> None:
    """The three ways to look hold for replay and for scenes, by mouse and by arrow keys; the slider for the overlay."""
    page = opened(browser, written).page
    mask, image = "#replay .rg-mask", "#replay .rg-stack img:not(.rg-mask)"
    assert (opacity(page, mask), opacity(page, image)) == (0.75, 1.0)
    page.get_by_text("Label", exact=True).click()
    assert (opacity(page, mask), opacity(page, image)) == (1.0, 0.0)
    page.locator("#view-label").press("ArrowLeft")
    page.locator("#view-overlay").press("ArrowLeft")
    assert (opacity(page, mask), opacity(page, "#scenes .shot img")) == (0.0, 0.0)
    page.locator("#view-overlay").check(force=True)
    page.locator("[data-overlay] input").fill("25")
    assert opacity(page, mask) == 0.25


def test_confusion_opens_closes_and_gives_focus_back(browser: Browser, written: Path) -> None:
    """Enter opens the images behind a cell, arrows go to the next, Escape closes, and focus is where it was."""
    page = opened(browser, written).page
    cell = page.locator("a[data-opens]", has_text="100").first
    name = cell.get_attribute("data-opens")
    cell.focus()
    page.keyboard.press("Enter")
    window = page.locator("#rg-window")
    assert window.is_visible()
    assert "pixels confused" in window.inner_text()
    assert window.locator(".three .shot").count() >= 3
    assert page.evaluate(
        "getComputedStyle(document.querySelector('#rg-window .shot'), '::before').backgroundImage"
    ).startswith("url(")
    first = window.locator("h4").inner_text()
    page.keyboard.press("ArrowRight")
    assert window.locator("h4").inner_text() != first
    page.keyboard.press("ArrowLeft")
    assert window.locator("h4").inner_text() == first
    page.keyboard.press("Escape")
    assert not window.is_visible()
    assert page.evaluate("document.activeElement.dataset.opens") == name


GREY = "grayscale(1) brightness(0.65)"


def filtered(page: Page, selector: str, layer: str = "") -> str:
    return str(page.locator(selector).first.evaluate("(one, layer) => getComputedStyle(one, layer).filter", layer))


def test_photo_under_a_label_is_grey_and_alone_in_colour(browser: Browser, written: Path) -> None:
    """What the model calls background cannot look like a class; an image without a label keeps its colours."""
    page = opened(browser, written).page
    under = {"#scenes .cell .shot": "::before", "#replay .rg-stack:has(.rg-mask) img:not(.rg-mask)": ""}
    assert [filtered(page, *one) for one in under.items()] == [GREY, GREY]
    assert filtered(page, "#scenes .given .shot", "::before") == "none"
    page.get_by_text("Image", exact=True).click()
    assert [filtered(page, *one) for one in under.items()] == ["none", "none"]
    assert page.get_by_text("Where a picture is grey").count() == 1


def test_window_tells_its_classes_and_has_the_switch(browser: Browser, written: Path) -> None:
    """The page's own switch is in the window while it is open, works there, and goes back to its place."""
    page = opened(browser, written).page
    page.locator("a[data-opens]").first.click()
    window = page.locator("#rg-window")
    names = window.locator(".rg-legend li").all_inner_texts()
    assert names[0] == "background"
    assert len(names) > 1
    three = window.locator(".three").first.locator(".shot")
    layer = "one => getComputedStyle(one, '::before').filter"
    assert [one.evaluate(layer) for one in three.all()] == ["none", GREY, GREY]
    window.get_by_text("Image", exact=True).click()
    assert [one.evaluate(layer) for one in three.all()] == ["none"] * 3
    first = window.locator("h4").inner_text()
    window.get_by_role("radio", name="Image").press("ArrowRight")
    assert window.get_by_role("radio", name="Overlay").is_checked()
    assert window.locator("h4").inner_text() == first
    window.get_by_role("button", name="Close").click()
    assert page.locator("nav .tools .view").is_visible()
    assert page.locator("nav .tools #view-overlay").is_checked()


def test_prediction_opens_large_by_keyboard(browser: Browser, written: Path) -> None:
    """A tile of a scene opens beside its image and truth, arrows turn through the same image, and focus returns."""
    shown = opened(browser, written)
    page, window = shown.page, shown.page.locator("#rg-window")
    tile = page.locator("#scenes .enlarge").first
    small = tile.bounding_box()
    tile.focus()
    page.keyboard.press("Enter")
    assert window.locator("h4").inner_text() == tile.locator("img").get_attribute("alt")
    assert window.locator(".large small").all_inner_texts() == ["image", "truth", "prediction"]
    large = window.locator(".large .shot").last.bounding_box()
    assert small
    assert large
    assert large["width"] > 2 * small["width"]
    layer = "one => getComputedStyle(one, '::before').backgroundImage"
    assert str(window.locator(".large .shot").last.evaluate(layer)).startswith("url(")
    page.keyboard.press("ArrowRight")
    assert window.locator("h4").inner_text() == page.locator("#scenes .enlarge img").nth(1).get_attribute("alt")
    found = axe.Axe().run(page).response["violations"]
    assert [one["id"] for one in found if one["impact"] in SERIOUS] == []
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement === document.querySelectorAll('#scenes .enlarge')[1]")
    assert (shown.errors, shown.outside) == ([], [])


def test_table_that_is_cut_fades_until_its_end(browser: Browser, written: Path) -> None:
    """On a phone the edge of a wide table says that there is more; at its end the other edge does."""
    page = opened(browser, written, "phone").page
    box = page.locator("#results .scroll").first
    assert box.evaluate("one => one.scrollWidth > one.clientWidth + 50")
    page.wait_for_function("document.querySelector('#results .scroll').classList.contains('rg-right')")
    box.evaluate("one => { one.scrollLeft = one.scrollWidth }")
    page.wait_for_function("document.querySelector('#results .scroll').className === 'scroll rg-left'")


def test_rejected_are_filtered_by_reason_and_class(browser: Browser, written: Path) -> None:
    """Only the chosen reason's tiles stay, and their number is told; all come back."""
    page = opened(browser, written).page
    tiles = page.locator("#rejected li[data-reason]")
    every = tiles.count()
    page.locator("#rejected select[data-filter=reason]").select_option("unsure")
    seen = [one for one in tiles.all() if one.is_visible()]
    assert len(seen) == 2
    assert {one.get_attribute("data-reason") for one in seen} == {"unsure"}
    assert page.locator("#rejected [role=status]").inner_text() == "2 shown"
    page.locator("#rejected select[data-filter=reason]").select_option("")
    assert len([one for one in tiles.all() if one.is_visible()]) == every


def test_long_sheets_are_turned_page_by_page(browser: Browser, written: Path) -> None:
    """30 samples: 24, then the other 6; two more than a page are no page of their own."""
    page = opened(browser, written).page
    sheet = page.locator("#replay details.sheet").filter(has=page.locator(".rg-pager")).first
    tiles = sheet.locator("li[data-sample]")
    assert tiles.count() > 24
    assert len([one for one in tiles.all() if one.is_visible()]) == 24
    sheet.get_by_role("button", name="Next").click()
    assert len([one for one in tiles.all() if one.is_visible()]) == tiles.count() - 24
    short = written.with_name("short.html")
    text = written.read_text("utf-8").replace('data-pages="24"', 'data-pages="28"')
    short.write_text(text, "utf-8")
    page = opened(browser, short).page
    assert len([one for one in page.locator("#replay details[open] li[data-sample]").all() if one.is_visible()]) >= 30
    assert not page.locator("#replay .rg-pager").first.get_by_role("button", name="Next").is_visible()


def test_colours_can_be_chosen_and_stay(browser: Browser, written: Path) -> None:
    """Light on a dark system, and again after loading anew."""
    page = opened(browser, written, scheme="dark").page
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.get_by_role("button", name="Colours").click()
    assert page.evaluate(ground) == "rgb(255, 255, 255)" != dark
    page.reload()
    assert page.evaluate(ground) == "rgb(255, 255, 255)"
    page.get_by_role("button", name="Colours").click()
    assert page.evaluate(ground) == dark


def test_keyboard_reaches_the_results_first(browser: Browser, written: Path) -> None:
    """The first Tab is the link that skips the contents."""
    page = opened(browser, written).page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.url.endswith("#content")


def test_without_script_everything_is_there(browser: Browser, written: Path) -> None:
    """All samples of a sheet and all rejected are visible, a cell's link leads to its images, the toggle works."""
    page = opened(browser, written, java_script_enabled=False).page
    for section in ("#replay details[open]", "#rejected"):
        tiles = page.locator(f"{section} li[data-sample]").all()
        assert tiles
        assert all(one.is_visible() for one in tiles)
    link = page.locator("a[data-opens]").first
    place = link.get_attribute("data-opens")
    link.click()
    assert page.locator(f"#{place}").is_visible()


def test_printed_page_shows_every_sample_and_no_control(browser: Browser, written: Path) -> None:
    """Paper has no buttons and no second page of a list."""
    page = opened(browser, written, scheme="dark").page
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not [one for one in page.locator(".rg-pager, .theme, nav, .rg-filters").all() if one.is_visible()]
    assert all(one.is_visible() for one in page.locator("#replay details[open] li[data-sample]").all())


def test_hostile_names_run_nothing(browser: Browser, tmp_path: Path) -> None:
    """Titles, classes, files and ids with markup are text in a real browser too, in the window as well."""
    world = small_world(
        names=("background", EVIL[0], EVIL[1] + EVIL[3], EVIL[2]), title="".join(EVIL), file_name=EVIL[3]
    )
    shown = opened(browser, write_report(build(tmp_path / "store", world), tmp_path / "page.html"))
    asked: list[str] = []
    shown.page.on("dialog", lambda box: (asked.append(box.message), box.dismiss()))
    shown.page.locator("a[data-opens]").first.click()
    assert "<script>alert(1)</script>" in shown.page.locator("#rg-window").inner_text()
    assert (asked, shown.errors, shown.outside) == ([], [], [])
