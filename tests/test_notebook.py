"""The lesson `docs/forgetting.ipynb` runs, and plans, runs and replay show themselves in a notebook."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import numpy as np
import pytest
from conftest import TRAINING, Workspace
from nbclient import NotebookClient
from traitlets.config import Config

import replaygen as rg
from replaygen.errors import ReplaygenError
from replaygen.plan import Recipe
from replaygen.report import overview_png
from replaygen.report.gallery import gallery, inpainted, telling
from replaygen.report.notebook import result as result_html
from replaygen.report.overview import _columns
from replaygen.runs import Run, RunResult, StepResult, Tally
from replaygen.runs.replay import ReplaySets
from replaygen.store import Store

HOSTILE = "<script>alert('hi')</script>\x1b[31m=HYPERLINK(\"http://x\")\x00"

# a few seconds of the lesson: every cell runs, what it shows says nothing
SHORT = {
    "data.options": {"train": 60, "val": 12, "photos": 24}, "network.widths": [16, 24], "views.size": 32,
    "train.base.iterations": 60, "train.fit.iterations": 4, "method.joint.iterations": 20, "replay.photos.count": 8,
}  # fmt: skip


class Seen(HTMLParser):
    """HTML as a browser reads it: names of elements, values of attributes, text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.values: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.values += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def stands_alone(html: str) -> Seen:
    """HTML that runs nothing and asks for nothing outside itself."""
    seen = Seen(html)
    assert not {"script", "iframe", "object", "embed", "link", "base", "form"} & set(seen.tags)
    for name, value in seen.values:
        assert not name.startswith("on"), (name, value)
        if name in ("src", "href", "xlink:href", "srcset", "poster", "data"):
            assert value.startswith(("data:image/", "#")), value[:80]
    for address in re.findall(r"url\(\s*['\"]?([^)'\"]{0,12})", html):
        assert address.startswith(("data:image/", "#")), address
    assert "@import" not in html
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f]", html)
    return seen


# the lesson


@pytest.fixture
def lesson(repository: Path) -> nbformat.NotebookNode:
    return nbformat.read(repository / "docs" / "forgetting.ipynb", as_version=4)


def execute(
    lesson: nbformat.NotebookNode, folder: Path, changes: Mapping[str, Any], workers: int, monkeypatch: Any
) -> dict[str, nbformat.NotebookNode]:  # fmt: skip
    """Run every cell in a kernel of its own that listens on files alone, not on ports; cells by id."""
    cells = {cell.id: cell for cell in lesson.cells}
    told = f"folder, changes, workers = Path({str(folder)!r}), {dict(changes)!r}, {workers}"
    cells["parameters"].source = f"from pathlib import Path\n{told}"
    end = nbformat.v4.new_code_cell("import json\nprint(json.dumps(run.result.as_json()))", id="told")
    lesson.cells.append(end)
    with tempfile.TemporaryDirectory(prefix="nb") as own:  # of a short path: a socket's has 107 characters at most
        for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
            monkeypatch.setenv(name, own)
        files = Config(KernelManager={"transport": "ipc", "ip": f"{own}/kernel"})
        place = {"metadata": {"path": str(folder.parent)}}
        NotebookClient(lesson, kernel_name="python3", timeout=1200, resources=place, config=files).execute()
    return {**cells, "told": end}


def shown(cell: nbformat.NotebookNode) -> Seen:
    """What a cell shows as HTML."""
    (html,) = [one.data["text/html"] for one in cell.outputs if "text/html" in one.get("data", {})]
    return stands_alone(html)


def test_the_lesson_is_tracked_without_outputs(lesson: nbformat.NotebookNode, repository: Path) -> None:
    """No output, no count, no private metadata: a change of the lesson is a change of its words."""
    nbformat.validate(lesson)
    for cell in lesson.cells:
        assert not cell.get("outputs"), cell.id
        assert cell.get("execution_count") is None, cell.id
        assert set(cell.metadata) <= {"tags"}, cell.id
    assert (repository / "docs" / "forgetting.ipynb").stat().st_size < 40_000


def test_every_cell_of_the_lesson_runs(
    lesson: nbformat.NotebookNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a network and data so small that it takes seconds; each picture is there, and nothing runs twice."""
    cells = execute(lesson, tmp_path / "lesson", SHORT, 0, monkeypatch)
    assert "what step 1 is told" in shown(cells["step-1"]).text
    assert "background inpainted" not in shown(cells["step-1"]).text
    assert "background inpainted" in shown(cells["see-inpainted"]).text
    for name in ("plan-bounds", "plan-recall", "change"):
        assert {"table", "svg"} <= set(shown(cells[name]).tags)
    assert "changed: " in shown(cells["change"]).text
    for name in ("see-forgetting", "see-cured"):
        assert [f"after step {k}" in shown(cells[name]).text for k in range(6)] == [True] * 6
    assert all(name in shown(cells["see-all"]).text for name in ("finetune", "recall", "joint"))
    assert all(name in shown(cells["run-recall"]).text for name in ("zero", "three", "eight"))
    assert "img" in shown(cells["sheet-three"]).tags
    assert "0 tasks run" in "".join(one.text for one in cells["again"].outputs)
    assert (tmp_path / "lesson" / "forgetting.html").is_file()
    for cell in cells.values():
        assert all(len(one.get("data", {}).get("text/plain", "")) < 2000 for one in cell.get("outputs", []))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_the_lesson_tells_the_truth(
    lesson: nbformat.NotebookNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a student runs it: forgotten by fine-tuning, kept by RECALL, joint training above both."""
    cells = execute(lesson, tmp_path / "lesson", {}, 2, monkeypatch)
    told = json.loads("".join(one.text for one in cells["told"].outputs))
    last = {one["method"]: one["metrics"] for one in told["results"] if one["step"] == 5}
    assert last["finetune"]["old"] < 20
    assert last["recall"]["old"] > 60
    assert last["recall"]["all"] < last["joint"]["all"]
    after = next(one["metrics"] for one in told["results"] if one["method"] == "finetune" and one["step"] == 1)
    assert all(after["per_class"][name] < 5 for name in ("zero", "one", "two", "three", "four"))


def test_exercises_can_be_planned(lesson: nbformat.NotebookNode, tiny_digits: Path, tmp_path: Path) -> None:
    """Every change of the recipe that an exercise names is one that the recipe takes, and it leaves something to do."""
    text = next(cell.source for cell in lesson.cells if cell.id == "exercises")
    changes = [json.loads(one.replace("False", "false")) for one in re.findall(r"`(\{\"[^`]*\})`", text)]
    assert len(changes) == 4
    told = {"data.path": str(tiny_digits), "data.options": SHORT["data.options"]}
    plain = Recipe.load("digits", told).plan(Store(tmp_path / "cache"))
    for change in changes:
        assert set(Recipe.load("digits", {**told, **change}).plan(plain.store).tasks) - set(plain.tasks), change
    for name in re.findall(r"--only ([a-z,_]+)", text)[0].split(","):
        assert (Path(__file__).parent.parent / "trainers" / f"{name}.py").is_file()


# what shows itself


@pytest.fixture(scope="module")
def tiny_run(tiny_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A whole run, trained in seconds."""
    place = Workspace(tmp_path_factory.mktemp("notebook") / "work", tiny_digits)
    recipe = Recipe.load(place.recipe(TRAINING.replace('name = "tiny"', 'name = "tiny"\ntitle = "Tiny & small"')))
    return rg.run(recipe.plan(Store(place.root / "cache")))


def test_a_plan_shows_its_tasks_and_why(workspace: Workspace, tiny_run: Run) -> None:
    """Before: all to run, with the reason. After: all cached. A plan that nobody looked at is not run by looking."""
    fresh = Recipe.load(workspace.recipe(TRAINING)).plan(Store(workspace.root / "cache"))
    before = stands_alone(str(fresh._repr_html_()))
    assert f"{len(fresh.tasks)} tasks: 0 cached, {len(fresh.tasks)} to run" in before.text
    assert "missing" in before.text
    after = stands_alone(str(tiny_run.plan.recipe.plan(tiny_run.plan.store)._repr_html_()))
    assert "0 to run" in after.text
    assert "Tiny & small" in after.text
    assert "missing" not in after.text


def test_a_run_shows_what_was_done_and_its_results(tiny_run: Run) -> None:
    """The tally, the final numbers, a curve, each class after each step."""
    seen = stands_alone(str(tiny_run._repr_html_()))
    assert f"{tiny_run.tally.made} tasks done" in seen.text
    mean, _ = tiny_run.result.mean("recall", "all")
    assert f"{mean:.1f}" in seen.words
    assert "svg" in seen.tags
    assert {"zero", "eight", "step 1"} <= set(seen.words)
    assert seen.text.count("upper bound") == 0


def test_results_of_nothing_say_so(workspace: Workspace) -> None:
    """No result, no table, no chart, no error."""
    fresh = Recipe.load(workspace.recipe(TRAINING)).plan(Store(workspace.root / "cache"))
    seen = stands_alone(str(Run(fresh, Tally(), 0.0).result._repr_html_()))
    assert "Nothing was evaluated yet" in seen.text
    assert "svg" not in seen.tags


def test_replay_shows_itself(tiny_run: Run) -> None:
    """All sets in a table with a few samples each, one set as its sheet, a buffer as what it holds."""
    sets = tiny_run.replay
    assert isinstance(sets, ReplaySets)
    table = stands_alone(str(sets._repr_html_()))
    assert all(name in table.words for name in sets)
    assert "img" in table.tags
    one = next(iter(sets))
    assert one in stands_alone(str(sets[one]._repr_html_())).text
    buffer = rg.ReplayBuffer(sets, size=32)
    told = stands_alone(str(buffer._repr_html_()))
    assert f"{len(buffer)} samples" in told.text
    assert [name for name in sets if name in told.words] == list(sets)


def test_a_table_of_sets_shows_no_photos_of_others(tiny_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where images were fetched a table cannot say whose they are, and a Flickr page has a limit."""
    fetched = SimpleNamespace(stage="fetch")
    monkeypatch.setattr("replaygen.report.notebook.ancestors", lambda store, record: iter([fetched]))
    seen = stands_alone(str(tiny_run.replay._repr_html_()))  # type: ignore[attr-defined]
    assert "img" not in seen.tags
    assert "photos of other people" in seen.text


def test_text_where_no_html_is_shown(tiny_run: Run) -> None:
    """A terminal's IPython prints a few lines, never the inside of a store."""
    things = (tiny_run.plan, tiny_run, tiny_run.result, tiny_run.replay, tiny_run.replay["zero"])
    for thing in things:
        said: list[str] = []
        thing._repr_pretty_(SimpleNamespace(text=said.append), False)  # type: ignore[union-attr]
        assert 0 < len("".join(said)) < 3000
        assert "Record(" not in "".join(said)
    assert len(repr(rg.predictions(tiny_run))) < 100


def test_without_the_packages_for_pages_there_is_text(tiny_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """IPython falls back to the text where `_repr_html_` gives None."""
    monkeypatch.setattr("replaygen.shown.find_spec", lambda name: None)
    assert tiny_run.plan._repr_html_() is None


# galleries


def test_predictions_of_a_method_step_by_step(tiny_run: Run) -> None:
    """Image, truth, and each step's model; the shared step 0 comes first."""
    found = rg.predictions(tiny_run, "recall", count=3)
    assert found.columns == ("image", "truth", "after step 0", "after step 1", "after step 2")
    assert len(found.rows) == 3
    assert all(cell is not None for _, cells in found.rows for cell in cells)
    stands_alone(found._repr_html_())


def test_predictions_of_all_rows_after_the_last_step(tiny_run: Run) -> None:
    """One column a row of the recipe; what was not trained has none."""
    assert rg.predictions(tiny_run.plan).columns == ("image", "truth", "finetune", "recall", "web", "joint")


def test_predictions_name_what_is_wrong(tiny_run: Run, workspace: Workspace) -> None:
    """A misspelt row is told with the nearest one, a run that did not happen as such."""
    with pytest.raises(ReplaygenError, match="no row 'recal'") as misspelt:
        rg.predictions(tiny_run, "recal")
    assert "recall" in str(misspelt.value)
    fresh = Recipe.load(workspace.recipe(TRAINING)).plan(Store(workspace.root / "cache"))
    with pytest.raises(ReplaygenError, match="nothing was evaluated yet"):
        rg.predictions(fresh)


def test_scenes_are_chosen_by_their_truth() -> None:
    """Most classes of the first step, then most classes; the order given decides between equals."""
    masks = {"a": [1, 5, 6], "b": [1, 2], "c": [1, 2, 5], "d": [2, 1]}
    found: Any = [SimpleNamespace(id=name, true=np.array([mask], np.uint8)) for name, mask in masks.items()]
    assert [one.id for one in telling(found, (1, 2, 3))] == ["c", "b", "d", "a"]


def test_step_images_show_what_labels_hide(tiny_run: Run) -> None:
    """A step's label is the truth with all but its own classes gone; inpainting gives old ones back."""
    plan = tiny_run.plan
    scenario, dataset = plan.opened.scenario, plan.opened.dataset
    found = rg.step_images(plan, 1, count=2)
    assert [name for name, _ in found.rows] == [
        "the image", "what is there", "what step 1 is told", "background inpainted"
    ]  # fmt: skip
    assert {cell.alt for cell in found.rows[2][1] if cell} == {"eight"}
    filled = inpainted(plan, 1, scenario.step(1).ids)
    assert set(filled) == set(scenario.step(1).ids)
    for image, mask in filled.items():
        given = scenario.apply(scenario.step_table(1), dataset.mask(image))
        assert np.array_equal(mask[given != 0], given[given != 0])
        assert set(np.unique(mask)) <= {0, *scenario.step(1).seen, 255}
    assert any(np.isin(mask, scenario.step(1).old).any() for mask in filled.values())
    assert inpainted(plan, 1, scenario.step(1).ids, method="finetune") == {}


def test_step_images_need_no_run(workspace: Workspace) -> None:
    """A plan of which nothing ran shows what its steps are given."""
    fresh = Recipe.load(workspace.recipe(TRAINING)).plan(Store(workspace.root / "cache"))
    assert [name for name, _ in rg.step_images(fresh, 0, count=1).rows][-1] == "what step 0 is told"


def test_a_gallery_saves_a_page_of_its_own(tmp_path: Path) -> None:
    """A whole page; hostile words are words."""
    image, mask = np.zeros((8, 8, 3), np.uint8), np.ones((8, 8), np.uint8)
    drawn = gallery(
        [image], [(HOSTILE, [(0, None), (0, mask), None])], ("background", HOSTILE), columns=[HOSTILE, "b", "c"],
        title=HOSTILE, note=HOSTILE,
    )  # fmt: skip
    text = drawn.save(tmp_path / "gallery.html").read_text(encoding="utf-8")
    assert Seen(text).tags[0] == "html"
    assert "<script>alert" not in text
    seen = stands_alone(drawn._repr_html_())
    assert "<script>alert('hi')</script>" in seen.text
    assert seen.tags.count("img") == 1


def test_hostile_words_in_results(tiny_run: Run) -> None:
    """A title, a method and a class from outside are text, never markup."""
    steps = tuple(hostile(one) for one in tiny_run.result.steps)
    told = RunResult("r", HOSTILE, "8-1", "overlapped", tiny_run.result.step_names, steps)
    seen = stands_alone(result_html(told))
    assert "<script>alert('hi')</script>" in seen.text


def hostile(one: StepResult) -> StepResult:
    metrics = {**one.metrics, "per_class": {HOSTILE: 1.0}}
    method = one.method if one.method == "base" else HOSTILE
    return StepResult(method, 0, one.step, one.names, one.new, one.old, metrics, one.matrix, one.images, 1.0)


def complaints(page: Any, file: Path, axe: Any) -> list[str]:
    """What a page says on the console, asks for outside, shows too wide, or hides from people (serious findings)."""
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.on("request", lambda asked: told.append(asked.url[:80]))
    page.goto(file.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    if page.evaluate("document.documentElement.scrollWidth > window.innerWidth"):
        told.append("too wide")
    for one in axe.run(page).response["violations"]:
        if one["impact"] in ("serious", "critical"):
            told.append(f"{one['id']}: {one['nodes'][0]['html']}")
    return [line for line in told if not line.startswith((file.as_uri(), "data:"))]


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_in_a_browser(tiny_run: Run, tmp_path: Path) -> None:
    """In light and dark notebooks, wide and narrow: nothing to complain of, nothing asked for, all can be read."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    things = (tiny_run.plan, tiny_run, tiny_run.replay, rg.ReplayBuffer(tiny_run.replay, size=32),
              rg.predictions(tiny_run, "recall"), rg.step_images(tiny_run, 1))  # fmt: skip
    body = "".join(str(thing._repr_html_()) for thing in things)
    told: list[str] = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for light, ink, ground in (("true", "#212121", "#ffffff"), ("false", "#e0e0e0", "#111111")):
            style = f"--jp-layout-color0:{ground};background:{ground};color:{ink};font:13px sans-serif"
            file = tmp_path / f"{light}.html"
            file.write_text(
                '<!doctype html><html lang="en"><meta charset="utf-8"><title>A notebook</title>'
                f'<body data-jp-theme-light="{light}" style="{style}"><main><h1>A</h1><h2>B</h2>{body}</main>'
            )
            for width in (1280, 390):
                told += complaints(browser.new_page(viewport={"width": width, "height": 900}), file, axe.Axe())
        browser.close()
    assert told == []


# the picture of the README


def test_overview_of_a_real_run(tiny_run: Run, tmp_path: Path) -> None:
    """It is 1200 pixels wide, has colours of classes, and is drawn of a run that is half done too."""
    from PIL import Image

    with Image.open(overview_png(tiny_run.plan, tmp_path / "a.png")) as picture:
        assert picture.width == 1200
        assert len(picture.convert("RGB").getcolors(2**24) or []) > 100


def test_overview_of_nothing(workspace: Workspace, tmp_path: Path) -> None:
    """A plan of which nothing ran gives an empty chart, no error."""
    fresh = Recipe.load(workspace.recipe(TRAINING)).plan(Store(workspace.root / "cache"))
    assert overview_png(fresh, tmp_path / "a.png").stat().st_size > 1000


@pytest.mark.parametrize(("steps", "shown"), [(1, (0,)), (2, (0, 1)), (6, tuple(range(6))), (16, (0, 3, 6, 9, 12, 15))])
def test_overview_shows_six_steps_at_most(steps: int, shown: tuple[int, ...]) -> None:
    """The first, the last, and some between."""
    assert _columns(steps) == shown
