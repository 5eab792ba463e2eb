"""Several runs side by side: the numbers are those of each run, the tests are paired, and only what differs is told."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import TRAINING, Workspace
from test_report import EVIL, Seen

import replaygen as rg
from replaygen.errors import ReplaygenError
from replaygen.learn.significance import compare
from replaygen.plan import Recipe
from replaygen.report.compare import (
    LETTERS,
    NOT_COMPARABLE,
    Comparisons,
    compared,
    comparison_page,
    differing,
    finding,
    flat,
    scene_of,
    write_comparison,
)
from replaygen.report.compare_curves import MOST_LINES, together_svg
from replaygen.report.planned import write_picture
from replaygen.report.tables import final
from replaygen.store import Store

FIRST = (
    TRAINING.replace("iterations = 80", "iterations = 12")
    .replace("[train.fit]", "[train]\nseeds = [0, 1]\n[train.fit]")
    .replace('name = "web"\ntrainer = "recall"\nreplay = "photos"', 'name = "kept"\ntrainer = "lwf"')
)
SECOND = FIRST.replace('"tiny"', '"slow"').replace("iterations = 6\n", "iterations = 6\nlr = 0.0005\n").replace(
    '[[method]]\nname = "kept"\ntrainer = "lwf"\n', ""
)  # fmt: skip


class Runs:
    """Two recipes of one workspace, run with two seeds each."""

    def __init__(self, root: Path, data: Path) -> None:
        self.workspace = Workspace(root / "work", data)
        self.paths = [self.workspace.recipe(FIRST, "tiny"), self.workspace.recipe(SECOND, "slow")]
        self.store = Store(root / "work" / "cache")
        for path in self.paths:
            rg.run(Recipe.load(path, {"run.workers": 0}).plan(self.store))

    def plans(self) -> list[Any]:
        return [Recipe.load(path).plan(self.store) for path in self.paths]


def replaygen(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "replaygen", *arguments], cwd=cwd, capture_output=True, text=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_digits: Path) -> Runs:
    return Runs(tmp_path_factory.mktemp("compare"), tiny_digits)


@pytest.fixture(scope="module")
def told(runs: Runs) -> Comparisons:
    return compared(runs.plans())


def test_rows_are_those_of_each_run(told: Comparisons) -> None:
    """Mean and spread over the seeds of old, new and all; a row that one run lacks stands alone."""
    table = told.table()
    assert list(table) == ["finetune", "recall", "kept", "joint"]
    assert [line.run.letter for line in table["recall"]] == ["A", "B"]
    assert [line.run.letter for line in table["kept"]] == ["A"]
    for method, lines in table.items():
        for line in lines:
            values = [step.metrics["all"] for step in line.run.result.last(method)]
            assert len(values) == 2
            assert line.row.all.mean == pytest.approx(statistics.fmean(values))
            assert line.row.all.deviation == pytest.approx(statistics.stdev(values))


def test_rows_are_tested_pair_by_pair_against_the_first_run(told: Comparisons) -> None:
    """The paired t test over the seeds of both, of the later run minus the first; the first has none."""
    first, second = told.table()["recall"]
    assert not first.tests
    assert (second.first, set(second.tests or ())) == ("A", {"old", "new", "all"})
    a, b = (final(run.result, "recall", "all") for run in told.runs)
    assert second.tests is not None
    assert second.tests["all"] == compare([b[0], b[1]], [a[0], a[1]])
    assert second.tests["all"].pairs == 2
    ((run, theirs, line),) = told.best
    assert (run.letter, line.first) == ("B", "A")
    assert "joint" not in (theirs, line.row.method)
    assert finding(told).startswith(f"B's best row, {line.row.method}, ends at ")


def test_other_data_is_not_tested(runs: Runs, told: Comparisons) -> None:
    """Runs of different scenes stand side by side, and the page says why there is no test."""
    apart = Comparisons((told.runs[0], replace(told.runs[1], scene="another")))
    assert told.comparable
    assert not apart.comparable
    assert not any(line.tests for lines in apart.table().values() for line in lines)
    assert apart.best == []
    assert NOT_COMPARABLE in " ".join(Seen(comparison_page(apart)).text)
    assert NOT_COMPARABLE not in comparison_page(told)
    assert finding(apart) == ""


@pytest.mark.parametrize(
    "change", [{"scenario.holdout": 5}, {"scenario.protocol": "ignore"}, {"flip": True}, {"data.val": "train"},
               {"scenario.setting": "disjoint"}],
)  # fmt: skip
def test_what_numbers_are_measured_on_decides(runs: Runs, change: dict[str, Any]) -> None:
    """Other images, another protocol or prediction: no test. How it was trained is no matter."""
    plain = Recipe.load(runs.paths[0]).plan(runs.store)
    assert scene_of(plain) == scene_of(Recipe.load(runs.paths[0], {"train.fit.lr": 0.1}).plan(runs.store))
    assert scene_of(plain) != scene_of(Recipe.load(runs.paths[0], change).plan(runs.store))


def test_a_store_that_is_not_there_is_not_made(runs: Runs) -> None:
    """RECIPE@STORE with a slip of the pen: an error, and no new folder."""
    done = replaygen("report", "tiny", "slow@nostore", cwd=runs.workspace.root)
    assert (done.returncode, "no store here" in done.stderr) == (1, True)
    assert not (runs.workspace.root / "nostore").exists()


def test_only_settings_that_differ_are_told(told: Comparisons) -> None:
    """The learning rate, and the row that one recipe lacks; nothing of what both say, no name, no title, no [run]."""
    differences = dict(told.differences())
    assert differences["train.fit.lr"][1] == "0.0005"
    assert differences["method.kept.trainer"] == ('"lwf"', "–")
    assert all(key == "train.fit.lr" or key.startswith("method.kept") for key in differences)
    seen = " ".join(Seen(comparison_page(told)).text)
    assert "train.fit.lr" in seen
    assert "views.size" not in seen


def test_tables_are_flattened_by_name() -> None:
    rows = [{"name": "a", "lr": 1, "views": [1, 2]}, {"name": "b", "lr": 2}]
    assert flat({"method": rows}) == {"method.a.lr": 1, "method.a.views": [1, 2], "method.b.lr": 2}
    twice = [{"name": "a", "lr": 1}, {"name": "a", "lr": 2}]
    assert flat({"method": twice, "none": {}}) == {"method": twice, "none": {}}
    assert differing([{"x": 1, "y": None}, {"x": 1}, {"x": 1, "y": "é" * 400}]) == [
        ("y", ("–", "–", '"' + "é" * 158 + "…"))
    ]


def test_the_page_stands_alone(told: Comparisons, runs: Runs, tmp_path: Path) -> None:
    """One file without requests; tables, three charts, both commands; the same runs give the same bytes."""
    path = write_comparison(told, tmp_path / "compare.html")
    text = path.read_text(encoding="utf-8")
    page = Seen(text)
    assert text == comparison_page(compared(runs.plans()))
    assert all(address.startswith(("data:", "#")) for address in page.attributes("src", "href"))
    assert sum(tag == "svg" for tag, _ in page.tags) == 3
    words = " ".join(page.text)
    assert "replaygen run pipelines/tiny.toml" in words
    assert "replaygen run pipelines/slow.toml" in words
    assert words.count("paired t test") == 1
    with pytest.raises(ReplaygenError, match="no such folder"):
        write_comparison(told, tmp_path / "nowhere" / "compare.html")


def test_charts_hold_every_line_of_every_run(told: Comparisons) -> None:
    """A name at each line's end, with its run's letter; beyond a number only those that end highest."""
    pairs = [(run.letter, run.result) for run in told.runs]
    svg = together_svg(pairs, "all")
    assert svg == together_svg(pairs, "all")
    for run in told.runs:
        for row in run.rows:
            assert f"{run.letter} {row.method} {row.all.mean:.1f}" in svg
    many = [(letter, told.runs[0].result) for letter in LETTERS]
    crowd = together_svg(many, "all")
    best = max(told.runs[0].rows, key=lambda row: row.all.mean or 0.0)
    assert all(f">{letter} {best.method} " in crowd for letter in LETTERS)
    assert sum(crowd.count(f" {row.method} ") for row in told.runs[0].rows) == MOST_LINES
    assert f"{len(LETTERS) * 4 - MOST_LINES} lower lines are left out" in crowd


def test_names_from_outside_are_escaped(told: Comparisons) -> None:
    """Titles, class names, methods, settings and versions come through as text."""
    first = told.runs[0]
    step = first.result.steps[0]
    evil = dict.fromkeys(EVIL, 1.0)
    steps = tuple(replace(one, metrics={**one.metrics, "per_class": evil}) for one in first.result.steps)
    result = replace(first.result, title="".join(EVIL), steps=steps)
    bad = replace(
        first, name="".join(EVIL), result=result, settings={EVIL[0]: EVIL[3]}, versions={EVIL[3]: EVIL[0]},
        command=EVIL[0], rows=tuple(replace(row, method=EVIL[i % 6]) for i, row in enumerate(first.rows)),
    )  # fmt: skip
    assert step.metrics["per_class"] != evil
    told_of = Comparisons((bad, told.runs[1]))
    text = comparison_page(told_of)
    page = Seen(text)
    assert "<script>alert" not in text
    assert "\x1b" not in text
    assert not [tag for tag, attributes in page.tags if any(name.startswith("on") for name in attributes)]
    assert not [tag for tag, attributes in page.tags if attributes.get("src") == "x"]
    assert all("\x1b" not in line for line in told_of.lines())


def test_the_command_compares(runs: Runs, tmp_path: Path) -> None:
    """Two recipes, one of them of a copy of the store; `--json` has the rows; without results it names the run."""
    copy = tmp_path / "copy"
    shutil.copytree(runs.store.root, copy)
    root = runs.workspace.root
    done = replaygen("report", "tiny", f"slow@{copy}", "--out", str(tmp_path / "c.html"), "--json", cwd=root)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [run["store"] for run in told["runs"]] == [str(root / "cache"), str(copy)]
    assert told["comparable"]
    rows = {(row["method"], row["run"]): row for row in told["rows"]}
    assert rows["recall", "B"]["tests"]["all"]["pairs"] == 2
    assert Path(told["report"]).is_file()
    plain = replaygen("report", "tiny", "slow", "--out", str(tmp_path / "made" / "c.html"), cwd=root)
    assert plain.returncode == 0, plain.stderr
    assert "A  tiny: 8-1 overlapped" in plain.stdout
    Store(tmp_path / "empty")
    none = replaygen("report", "tiny", f"slow@{tmp_path / 'empty'}", cwd=root)
    assert none.returncode == 1
    assert "nothing was evaluated of slow@" in none.stderr


def test_one_run_is_no_comparison(runs: Runs) -> None:
    with pytest.raises(ReplaygenError, match="1 runs cannot"):
        compared(runs.plans()[:1])
    with pytest.raises(ReplaygenError, match="9 runs cannot"):
        compared(runs.plans()[:1] * 9)


# in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as player:
        opened = player.chromium.launch(executable_path=chromium)
        yield opened
        opened.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_pages_are_right_in_a_browser(
    runs: Runs, told: Comparisons, browser: Any, tmp_path: Path, width: int, scheme: str
) -> None:
    """The comparison and the plan's page: no console error, no request, no serious axe finding, nothing juts out."""
    from axe_playwright_python.sync_playwright import Axe

    pages = [
        write_comparison(told, tmp_path / "compare.html"),
        write_picture(runs.plans()[0], tmp_path / "plan.html"),
    ]
    said: list[str] = []
    asked: list[str] = []
    for path in pages:
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda one: asked.append(one.url))
        page.goto(path.as_uri())
        found = Axe().run(page).response["violations"]
        assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        assert said == []
        page.close()
    assert [address for address in asked if not address.startswith("data:")] == [path.as_uri() for path in pages]
