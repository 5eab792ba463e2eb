"""The report: what it says, that it asks for nothing outside itself, and that nothing from outside gets through raw."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from replaygen.errors import ReplaygenError
from replaygen.plan import Plan, Recipe
from replaygen.plan.build import Built, Opened
from replaygen.plan.recipe import RecipeTable
from replaygen.report import curves_svg, examples, overview_png, plain, sheet, write_report
from replaygen.report.choice import evenly
from replaygen.report.colors import CLASSES, class_color, colorize, rgb
from replaygen.report.contents import contents
from replaygen.report.curves import spread
from replaygen.report.examples import place_of
from replaygen.report.headline import headline
from replaygen.report.mistakes import mistakes
from replaygen.report.pictures import overlay, photo
from replaygen.report.published import Published
from replaygen.report.sheets import labelled_by, refusals, sheets, whole_pages
from replaygen.report.tables import confusion_table, final_rows, finding, gap_closed, heats
from replaygen.report.text import number
from replaygen.runs.replay import ReplaySample, replay_sets
from replaygen.runs.results import RunResult, StepResult, read_result
from replaygen.sample import encode_png
from replaygen.scenario import Scenario, Step
from replaygen.stages import Task
from replaygen.stages.evaluate import Behind, small
from replaygen.store import Counts, OutputObject, Record, Store, task_key, write_shard

U8 = npt.NDArray[np.uint8]

# a small run in a real store, without training anything


@dataclass
class World:
    """What the run is about; `predict(method, seed, step, truth)` stands for the trained models."""

    names: tuple[str, ...]
    steps: tuple[tuple[int, ...], ...]
    pictures: list[tuple[str, U8, U8]]
    predict: Callable[[str, int, int, U8], U8]
    rows: tuple[tuple[str, str], ...]
    photos: dict[int, list[tuple[U8, U8]]] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    title: str = "A small run"
    file_name: str = "photo.jpg"
    wanted: int = 12
    confused: bool = True


class Maker:
    """Publishes records as tasks would, and remembers the plan."""

    def __init__(self, root: Path, world: World) -> None:
        self.store, self.world, self.built = Store(root), world, Built()

    def task(
        self, stage: str, slot: str, outputs: dict[str, tuple[bytes, int]], inputs: tuple[tuple[str, str], ...] = (),
        rejected: dict[str, int] | None = None, seed: int | None = None, publish: bool = True, seconds: float = 1.5,
    ) -> str:  # fmt: skip
        params = {"slot": slot}
        key = task_key(stage, 1, params, seed, inputs)
        accepted = max([samples for _, samples in outputs.values()], default=1)
        counts = Counts(accepted + sum((rejected or {}).values()), accepted, rejected or {}, {})
        objects = []
        for name, (data, samples) in outputs.items():
            put = self.store.put(data)
            objects.append(OutputObject(name, put.digest, put.size, samples))
        if publish:
            self.store.publish(
                Record(
                    key, stage, 1, params, seed, inputs, slot, tuple(objects), counts,
                    {source: self.store.get(source).outputs_digest for _, source in inputs},  # type: ignore[union-attr]
                    {}, {"replaygen": "0.1.0", "torch": "2.13.0"}, "2026-03-01T10:00:00+00:00", seconds,
                )
            )  # fmt: skip
        self.built.add(Task(key, stage, 1, params, seed, inputs, slot, {}, counts.requested))
        return key

    def chain(self, method: str, seed: int, steps: range) -> dict[int, str]:
        models = {}
        for step in steps:
            model = self.task("train", f"train/{method}/seed{seed}/step{step}", {"model.json": (b"{}", 0)}, seed=seed)
            self.evaluate(method, seed, step, model)
            models[step] = model
        return models

    def evaluate(self, method: str, seed: int, step: int, model: str) -> None:
        world = self.world
        seen = [channel for channels in world.steps[: step + 1] for channel in channels]
        matrix = np.zeros((len(seen) + 1, len(seen) + 1), np.int64)
        shown, behind, looked = [], Behind(len(seen) + 1), {}
        for name, image, truth in world.pictures:
            current = np.where(np.isin(truth, [*seen, 255]), truth, 0).astype(np.uint8)
            predicted = world.predict(method, seed, step, current)
            valid = current != 255
            np.add.at(matrix, (current[valid], predicted[valid]), 1)
            behind.take(name, predicted, current)
            looked[name] = small(image, current, predicted)
            members = {"png": encode_png(image), "true.png": encode_png(current), "pred.png": encode_png(predicted)}
            shown.append((name, members))
        old = tuple(c for channels in world.steps[:step] for c in channels)
        told = {
            "names": list(world.names[: len(seen) + 1]), "new": list(world.steps[step]), "old": list(old),
            "metrics": metrics(matrix, world.names, old, world.steps[step]), "matrix": matrix.tolist(),
            "images": len(world.pictures),
        }  # fmt: skip
        tar, index = write_shard(shown)
        outputs = {"result.json": (json.dumps(told).encode(), 0), "examples.tar": (tar, len(shown)),
                   "examples.index.json": (index, 0)}  # fmt: skip
        if step == len(world.steps) - 1 and world.confused:
            cells, chosen = behind.choose(matrix)
            tar, index = write_shard([(name, looked[name]) for name in sorted(chosen)])
            cells_told = {"cells": [cell.as_json(str) for cell in cells]}
            outputs |= {"confused.json": (json.dumps(cells_told).encode(), 0), "confused.tar": (tar, len(chosen)),
                        "confused.index.json": (index, 0)}  # fmt: skip
        self.task("evaluate", f"evaluate/{method}/seed{seed}/step{step}", outputs, (("model", model),))

    def replay(self, source: str, chain: str, channel: int, model: str) -> None:
        world = self.world
        name = world.names[channel]
        images, labels = [], []
        for i, (image, mask) in enumerate(world.photos[channel]):
            about = {"class": name, "source": "folder", "file": f"{i:02d}-{world.file_name}", "licence": None}
            told = {"visible": [channel], "scores": {}, "labeler": model}
            images.append((f"s{i:03d}", {"png": encode_png(image), "json": json.dumps(about).encode()}))
            labels.append((f"s{i:03d}", {"mask.png": encode_png(mask), "label.json": json.dumps(told).encode()}))
        digests = {}
        parts = []
        for kind, items, refused in (("images", images, {"unreadable": 2}), ("labels", labels, {"class-absent": 5})):
            tar, index = write_shard(items)
            slot = f"{kind}/{source}/{chain if kind == 'labels' else ''}/{name}"
            parts.append((kind, self.task(
                "photos" if kind == "images" else "label", slot,
                {f"{kind}.tar": (tar, len(items)), f"{kind}.index.json": (index, 0)}, rejected=refused,
            )))  # fmt: skip
            digests[kind] = hashlib.sha256(tar).hexdigest()
            digests[f"{kind}_index"] = hashlib.sha256(index).hexdigest()
        count = len(images)
        manifest = {
            "class": name, "channel": channel, "source": source, "samples": count, "wanted": world.wanted,
            "shortfall": max(0, world.wanted - count), "shards": [{**digests, "samples": count}],
        }  # fmt: skip
        slot = f"replay/{source}/{chain}/{name}"
        self.task("replay", slot, {"manifest.json": (json.dumps(manifest).encode(), count)}, tuple(parts))

    def plan(self) -> Plan:
        world = self.world
        table = RecipeTable.model_validate(
            {
                "name": "small", "title": world.title, "data": {"path": "{data}"},
                "scenario": {"task": "-".join(str(len(new)) for new in world.steps)}, "network": {},
                "train": {"seeds": list(world.seeds)},
                "method": [{"name": name, "trainer": trainer} for name, trainer in world.rows],
            }
        )  # fmt: skip
        steps = []
        for k, new in enumerate(world.steps):
            steps.append(Step(k, new, tuple(c for channels in world.steps[:k] for c in channels), ()))
        scenario = Scenario(
            table.scenario.task, "overlapped", world.names, tuple(range(1, len(world.names))), 0, True, tuple(steps)
        )
        recipe = Recipe(table, Path("/home/nobody/work/pipelines/small.toml"), Path("/home/nobody/work"))
        return Plan(recipe, self.store, cast(Opened, SimpleNamespace(scenario=scenario)), self.built)


def metrics(matrix: npt.NDArray[np.int64], names: tuple[str, ...], old: Any, new: Any) -> dict[str, Any]:
    """As the evaluate stage gives them."""
    hit = np.diag(matrix)
    iou = 100.0 * hit / np.maximum(1, matrix.sum(0) + matrix.sum(1) - hit)
    seen = (0, *old, *new)
    return {
        "all": float(iou[list(seen)].mean()), "old": float(iou[[0, *old]].mean()) if old else None,
        "new": float(iou[list(new)].mean()), "background": float(iou[0]),
        "per_class": {names[c]: float(iou[c]) for c in seen}, "background_counted": True,
    }  # fmt: skip


def build(root: Path, world: World) -> Plan:
    """A whole run: base, chains, joint, replay labelled by the base and by each chain."""
    maker = Maker(root, world)
    last = len(world.steps) - 1
    for seed in world.seeds:
        base = maker.chain("base", seed, range(1))[0]
        for name, trainer in world.rows:
            models = maker.chain(name, seed, range(last, last + 1) if trainer == "joint" else range(1, last + 1))
            if trainer == "recall":
                for channel in world.photos:
                    first = channel in world.steps[0]
                    chain = f"base/seed{seed}" if first else f"{name}/seed{seed}"
                    maker.replay("web", chain, channel, base if first else models[1])
    return maker.plan()


def forgetful(method: str, seed: int, step: int, truth: U8) -> U8:
    """finetune keeps only the newest class, recall loses a strip of each image, joint nothing."""
    predicted = truth.copy()
    predicted[truth == 255] = 0
    if method == "finetune":
        predicted[predicted < truth[truth != 255].max(initial=0)] = 0
    elif method != "joint":
        predicted[:, : 4 + 3 * step + seed] = 0
    return predicted


def small_world(**changes: Any) -> World:
    """Three classes in three steps, squares on noise."""
    rng = np.random.default_rng(0)
    pictures = []
    for i in range(5):
        image = rng.integers(60, 200, (72, 96, 3)).astype(np.uint8)
        truth = np.zeros((72, 96), np.uint8)
        truth[5:30, 5:40], truth[35:60, 10:50], truth[10:60, 60:90] = 1, 2, 3
        truth[0, :] = 255
        pictures.append((f"val-{i}", image, truth))
    photos = {1: [(image, np.where(truth == 1, 1, 0).astype(np.uint8)) for _, image, truth in pictures * 6]}
    world = World(
        ("background", "cat", "cow", "bus"), ((1,), (2,), (3,)), pictures, forgetful,
        (("finetune", "finetune"), ("recall", "recall"), ("joint", "joint")), photos,
    )  # fmt: skip
    for name, value in changes.items():
        setattr(world, name, value)
    return world


@pytest.fixture(scope="module")
def small_plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return build(tmp_path_factory.mktemp("store"), small_world(seeds=(0, 1)))


class Seen(HTMLParser):
    """A page as a browser reads it: elements with their attributes, text, scripts."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self._in = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self._in = tag

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        (self.scripts if self._in == "script" else self.text).append(data)

    def attributes(self, *names: str) -> Iterator[str]:
        for _, attributes in self.tags:
            yield from (attributes[name] for name in names if name in attributes)


@pytest.fixture(scope="module")
def small_page(small_plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(small_plan, tmp_path_factory.mktemp("out") / "run.html").read_text(encoding="utf-8")


def results(small_plan: Plan) -> RunResult:
    return read_result(small_plan)


# the page


def test_page_asks_for_nothing_outside_itself(small_page: str) -> None:
    """Every address in the page is inside it, and its own policy forbids anything else."""
    seen = Seen(small_page)
    for address in seen.attributes("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
        assert address.startswith(("data:", "#"))
    for address in re.findall(r"url\(\s*['\"]?([^)'\"]{0,5})", small_page):
        assert address.startswith(("data:", "#"))
    assert "@import" not in small_page
    (policy,) = [a["content"] for tag, a in seen.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy


def test_page_policy_allows_the_one_script_it_has(small_page: str) -> None:
    """The hash in the policy is that of the script, so the opacity slider works."""
    (script,) = Seen(small_page).scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in small_page


def test_page_shows_final_numbers_and_the_gap(small_page: str, small_plan: Plan) -> None:
    """The mean of each method stands in the page as the records give it."""
    result = results(small_plan)
    for method in ("finetune", "recall", "joint"):
        mean, _ = result.mean(method, "all")
        assert f"{mean:.1f}" in small_page
    assert "points above finetune, closing" in small_page


def test_page_without_results_says_so(tmp_path: Path) -> None:
    """A plan of which nothing ran still gives a page."""
    plan = Maker(tmp_path / "store", small_world()).plan()
    text = write_report(plan, tmp_path).read_text(encoding="utf-8")
    assert "Nothing was evaluated yet" in text
    assert (tmp_path / "small.html").is_file()


def test_page_of_a_half_done_run_shows_what_is_there(tmp_path: Path) -> None:
    """A chain that stands at its first step is shown, and no bound is made up."""
    maker = Maker(tmp_path / "store", small_world())
    maker.chain("base", 0, range(1))
    maker.chain("recall", 0, range(1, 2))
    text = write_report(maker.plan(), tmp_path / "page.html").read_text(encoding="utf-8")
    assert "after step 1" in text
    assert "after step 2" not in text
    assert "upper bound</small>" not in text


def test_page_names_no_folder_of_the_machine(small_page: str) -> None:
    """Only the recipe's place inside the workspace is printed."""
    assert "/home/nobody" not in small_page
    assert "replaygen run pipelines/small.toml" in small_page


def test_page_ids_are_unique(small_page: str) -> None:
    """Three charts stand in one page without sharing an id."""
    ids = list(Seen(small_page).attributes("id"))
    assert len(ids) == len(set(ids))


def test_page_is_the_same_every_time(small_plan: Plan, small_page: str, tmp_path: Path) -> None:
    """Equal records give equal bytes."""
    assert write_report(small_plan, tmp_path / "again.html").read_text(encoding="utf-8") == small_page


def test_page_that_cannot_be_put_in_place_leaves_nothing_behind(small_plan: Plan, tmp_path: Path) -> None:
    """No temporary file stays where the rename fails, and the error names the place."""
    (tmp_path / "small.html" / "inside").mkdir(parents=True)
    with pytest.raises(ReplaygenError, match=r"small\.html"):
        write_report(small_plan, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["small.html"]


def test_page_in_a_missing_folder_is_refused(small_plan: Plan, tmp_path: Path) -> None:
    """The error says which folder to make."""
    with pytest.raises(ReplaygenError, match="nowhere"):
        write_report(small_plan, tmp_path / "nowhere" / "page.html")


# hostile text (reliability row 21)

EVIL = (
    "<script>alert(1)</script>", "\x1b[31mred\x1b[0m\x1b]0;title\x07", '=HYPERLINK("http://evil.example","x")',
    "\"><img src=x onerror=alert(1)>", "$\\frac{1}{0}$ </title><b>", "a\u202eb' onmouseover='x",
)  # fmt: skip


@pytest.fixture(scope="module")
def evil_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("evil")
    world = small_world(
        names=("background", EVIL[0], EVIL[1] + EVIL[3], EVIL[2]),
        title="".join(EVIL),
        file_name=EVIL[2] + EVIL[5] + EVIL[4] + EVIL[0],
    )
    return write_report(build(root / "store", world), root / "page.html").read_text(encoding="utf-8")


def test_hostile_names_make_no_element(evil_page: str, small_page: str) -> None:
    """Titles, class and file names are text: no element, script or handler comes of them."""
    seen = Seen(evil_page)
    assert {tag for tag, _ in seen.tags} == {tag for tag, _ in Seen(small_page).tags}
    assert seen.scripts == Seen(small_page).scripts
    assert not [name for _, attributes in seen.tags for name in attributes if name.startswith("on")]
    assert "<script>alert" not in evil_page
    assert any("<script>alert(1)</script>" in text for text in seen.text)


def test_hostile_names_bring_no_control_characters(evil_page: str) -> None:
    """No escape sequence and no character that turns text around is left."""
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", evil_page)
    assert "[31m" not in evil_page


def test_hostile_names_are_no_formula(evil_page: str) -> None:
    """A cell copied into a spreadsheet starts no formula."""
    seen = Seen(evil_page)
    assert any("HYPERLINK" in text for text in seen.text)
    assert not [text for text in seen.text if text.strip().startswith(("=", "+", "@"))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain name", "plain name"),
        ("Größe 牛", "Größe 牛"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]8;;http://x\x07link\x1b]8;;\x07", "link"),
        ("\x9b31mred", "red"),
        ("a\tb\nc\rd", "a b c d"),
        ("nul\x00 bell\x07", "nul bell"),
        ("gp\u202egpj.exe\u200b", "gpgpj.exe"),
        ("\ud800lone", "lone"),
        ("=1+1", "'=1+1"),
        ("\x1b[0m@SUM(A1)", "'@SUM(A1)"),
        ("-", "-"),
        ("two-one", "two-one"),
    ],
)
def test_plain_keeps_words_and_drops_tricks(text: str, expected: str) -> None:
    """What a reader reads stays, what a terminal or a spreadsheet would act on goes."""
    assert plain(text) == expected


# what opens behind a confusion, what was refused, what is in the replay


def test_a_cell_opens_the_images_behind_it(small_plan: Plan, small_page: str) -> None:
    """Every link of a matrix leads to an article of the page, with the pixels that the first seed confuses most."""
    seen = Seen(small_page)
    ids = set(seen.attributes("id"))
    places = list(seen.attributes("data-opens"))
    assert places
    assert set(places) <= ids
    found = mistakes(small_plan, 0)
    cell = found.cells["finetune", 1, 0]
    assert (cell.true, cell.predicted, cell.percent, cell.images) == ("cat", "background", 100.0, 5)
    assert [one.pixels for one in cell.shown] == [25 * 35] * 4
    assert "cat predicted as background, 100 percent" in " ".join(seen.attributes("aria-label"))


def test_pictures_of_confusions_stand_once_in_the_page(small_plan: Plan, small_page: str) -> None:
    """Images shared by cells and methods are written one time, truth and prediction as they were kept."""
    found = mistakes(small_plan, 0)
    assert len(found.pictures) == 4
    assert str(found.style()) in small_page
    assert [str(found.style()).count(str(picture.image.uri)) for picture in found.pictures] == [1] * 4
    shown = found.cells["finetune", 1, 0].shown[0]
    drawn = Image.open(io.BytesIO(base64.b64decode(found.own[shown.own].uri.split(",")[1]))).convert("RGBA")
    assert drawn.getpixel((20, 20))[3] == 0  # type: ignore[index]
    assert drawn.getpixel((70, 20))[:3] == rgb(class_color(3))  # type: ignore[index]


def test_an_older_result_shows_its_matrix_without_links(tmp_path: Path) -> None:
    """Where nothing was kept no cell opens anything, and the numbers stand."""
    text = write_report(build(tmp_path / "store", small_world(confused=False)), tmp_path / "p.html").read_text("utf-8")
    assert 'id="confusion"' in text
    assert "data-opens" not in text.replace("a[data-opens]", "")
    assert "<h2>Confusion after the last step</h2>" in text
    assert "Images behind" not in text


def test_contents_count_images_and_pixels(small_plan: Plan) -> None:
    """30 labels, each with a cat of 25 x 35 pixels less the line of ignore, which is no class."""
    (found,) = contents(small_plan, 0)
    assert (found.read, found.samples) == (30, 30)
    assert [(bar.name, bar.samples, bar.images, bar.pixels, bar.percent) for bar in found.bars] == [
        ("cat", 30, 30, 30 * 25 * 35, 100.0)
    ]


def test_headline_stands_beside_the_papers_row() -> None:
    """The best row between the bounds, its marks, and the published numbers of the same trainer."""
    rows = final_rows(run_of(
        step_result("finetune", 2, 20.0), step_result("recall", 2, 50.0), step_result("mine", 2, 45.0),
        step_result("joint", 2, 60.0),
    ))  # fmt: skip
    paper = Published("RECALL", "1-1-1", "overlapped", "voc", 40.0, None, 41.5, "net", "")
    told = headline(rows, {"recall": paper})
    assert told is not None
    assert told.method == "recall"
    assert [[(mark.who, mark.value) for mark in one.marks] for one in told.numbers] == [
        [("recall", 50.0), ("finetune", 20.0), ("joint", 60.0), ("published", 40.0)],
        [("recall", 50.0), ("finetune", 20.0), ("joint", 60.0)],
        [("recall", 50.0), ("finetune", 20.0), ("joint", 60.0), ("published", 41.5)],
    ]
    assert headline([], {}) is None


# numbers


def step_result(method: str, step: int, every: float | None, seed: int = 0, **more: Any) -> StepResult:
    told = {"all": every, "old": every, "new": every, "background": None, "per_class": {"a": every}}
    return StepResult(method, seed, step, ("other", "a"), (1,), (), told, more.get("matrix", [[1, 0], [0, 1]]), 3, 1.0)


def run_of(*steps: StepResult) -> RunResult:
    return RunResult("r", "R", "1-1-1", "overlapped", (("a",), ("b",), ("c",)), steps)


def test_gap_closed_is_per_seed_and_leaves_out_a_closed_gap() -> None:
    """A seed in which joint equals finetune has no gap to close; the others count."""
    result = run_of(
        step_result("finetune", 2, 20.0), step_result("recall", 2, 50.0), step_result("joint", 2, 60.0),
        step_result("finetune", 2, 30.0, 1), step_result("recall", 2, 50.0, 1), step_result("joint", 2, 30.0, 1),
    )  # fmt: skip
    assert gap_closed(result, "recall") == [75.0]


def test_final_rows_take_a_data_set_without_background() -> None:
    """Where channel 0 is "other" there is no background number, and nothing breaks."""
    rows = final_rows(run_of(step_result("finetune", 2, 20.0), step_result("recall", 2, 50.0)))
    assert rows[1].background.mean is None
    assert rows[1].best == {"old", "new", "all"}
    assert finding(rows).startswith("recall ends at 50.0 % mIoU over all classes, 30.0 points above finetune")


def test_heat_has_no_value_before_a_class_was_learnt(small_plan: Plan) -> None:
    """The class of step 2 has one value, in the last column."""
    (heat,) = [heat for heat in heats(results(small_plan)) if heat.method == "recall"]
    (bus,) = [row for row in heat.rows if row[0] == "bus"]
    assert heat.columns == (0, 1, 2)
    assert bus[1] == 2
    assert bus[2][:2] == (None, None)
    assert bus[2][2] is not None


def test_confusion_is_normalised_by_row() -> None:
    """Rows sum to 100 over seeds; a class without pixels has no shares."""
    told = [step_result("m", 1, 1.0, seed, matrix=[[3, 1], [0, 0]]) for seed in (0, 1)]
    table = confusion_table("m", told)
    assert table.cells == ((75.0, 25.0), (None, None))
    assert table.largest == (("other", "a", 25.0),)


def test_large_confusion_is_shown_as_its_largest_cells() -> None:
    """With 150 classes the page lists confusions instead of 22,500 cells."""
    size = 40
    matrix = (np.eye(size, dtype=int) * 9 + np.eye(size, k=1, dtype=int)).tolist()
    told = StepResult("m", 0, 1, tuple(map(str, range(size))), (1,), (), {}, matrix, 1, 1.0)
    table = confusion_table("m", [told])
    assert table.cells == ()
    assert table.largest[0] == ("0", "1", 10.0)


def test_missing_and_negative_numbers_are_readable() -> None:
    """No "nan", no "None", a true minus sign."""
    assert [number(None), number(float("nan")), number(-1.25)] == ["–", "–", "−1.2"]


# curves


def test_curves_are_the_same_every_time_and_take_the_pages_colours(small_plan: Plan) -> None:
    """Equal results give equal text, drawn in the colours of the page around."""
    svg = curves_svg(results(small_plan))
    assert svg == curves_svg(results(small_plan))
    assert "currentColor" in svg
    assert "var(--series-2, " in svg
    assert "#0102" not in svg
    assert "recall" in "".join(Seen(svg).text)


def test_curves_of_a_run_without_old_classes(small_plan: Plan) -> None:
    """A panel without values is drawn empty."""
    result = run_of(step_result("recall", 0, None))
    assert curves_svg(result, ["old"]).startswith("<svg")


def test_labels_are_spread_without_changing_their_order() -> None:
    """Labels that would overlap move apart around their mean; others stay."""
    heights = spread([50.0, 51.0, 10.0], 4.0)
    assert heights == pytest.approx([48.5, 52.5, 10.0])


# pictures


def test_first_colours_are_told_apart_without_red_or_green_cones() -> None:
    """The first eight class colours stay apart in CIELAB as people without green or red cones see them."""
    colors = np.array([rgb(color) for color in CLASSES[:8]]) / 255
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    green_blind = [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]
    red_blind = [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    for view in (np.eye(3), green_blind, red_blind):
        root = np.cbrt(np.clip(linear @ np.array(view).T, 0, 1) @ to_xyz.T / [0.9505, 1.0, 1.089])
        lab = np.stack([116 * root[:, 1], 500 * (root[:, 0] - root[:, 1]), 200 * (root[:, 1] - root[:, 2])], 1)
        apart = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + 1e9 * np.eye(8)
        assert apart.min() > 18


def test_overlay_is_clear_on_background_and_pixelated_elsewhere() -> None:
    """Background is clear, ignore half clear, a class has its colour, also after shrinking."""
    mask = np.zeros((300, 200), np.uint8)
    mask[:100], mask[200:] = 3, 255
    thumb = overlay(mask, 100)
    shown = np.array(Image.open(io.BytesIO(base64.b64decode(thumb.uri.split(",")[1]))).convert("RGBA"))
    assert (thumb.height, thumb.width) == shown.shape[:2] == (100, 67)
    assert shown[10, 10].tolist() == [*rgb(class_color(3)), 255]
    assert shown[50, 10, 3] == 0
    assert shown[90, 10, 3] == 128


def test_colours_of_a_mask_match_its_overlay() -> None:
    """The README's picture and the page paint a class alike."""
    painted = colorize(np.array([[0, 3, 255]], np.uint8))
    assert painted[0, 1].tolist() == [*rgb(class_color(3)), 255]
    assert painted[0, 0, 3] == 0


def test_every_channel_has_a_colour_of_its_own() -> None:
    """150 classes get 150 colours."""
    assert len({class_color(channel) for channel in range(1, 151)}) == 150


def test_tiny_image_stays_as_it_is() -> None:
    """A digit of 28 pixels is neither enlarged nor blurred by JPEG."""
    image = np.arange(28 * 28 * 3, dtype=np.uint32).reshape(28, 28, 3).astype(np.uint8)
    thumb = photo(image)
    assert thumb.tiny
    shown = np.array(Image.open(io.BytesIO(base64.b64decode(thumb.uri.split(",")[1]))))
    assert np.array_equal(shown, image)


# examples, sheets, overview


def test_examples_come_back_as_they_were_kept(small_plan: Plan) -> None:
    """Image, truth and prediction of a slot are those that evaluation wrote."""
    world = small_world()
    found = [e for e in examples(small_plan, seed=1) if (e.method, e.step, e.id) == ("recall", 2, "val-3")]
    (example,) = found
    _, image, truth = world.pictures[3]
    assert np.array_equal(example.image, image)
    assert np.array_equal(example.true, truth)
    assert np.array_equal(example.pred, forgetful("recall", 1, 2, truth))


def test_place_of_a_slot_allows_a_slash_in_the_method() -> None:
    """Only the last two parts are seed and step."""
    assert place_of("evaluate/a/b/seed3/step10") == ("a/b", 3, 10)
    assert place_of("train/a/seed3/step1") is None
    assert place_of("evaluate/a/seedx/step1") is None


def test_sheet_counts_and_shows_evenly_chosen_samples(small_plan: Plan) -> None:
    """30 samples were made and 7 refused; 24 of them are shown unless another number is asked for, the last too."""
    replay_set = next(iter(replay_sets(small_plan).values()))
    shown = sheet(replay_set)
    assert len(shown.tiles) == 24
    assert [shown.tiles[0].id, shown.tiles[-1].id] == ["s000", "s029"]
    assert shown.choice == "Showing 24 of 30, evenly chosen." in shown._repr_html_()
    assert sheet(replay_set, limit=100).choice == ""
    assert (shown.made, shown.wanted, shown.shortfall) == (30, 12, 0)
    assert shown.rejected == {"class-absent": 5, "unreadable": 2} == refusals(replay_set)
    assert shown.legend == (("cat", class_color(1)),)


def test_sheet_of_any_iterable_with_a_manifest() -> None:
    """A sheet needs no store: samples, a manifest and names do."""

    class Mine:
        manifest: dict[str, Any] = {"class": "cat", "source": "mine", "wanted": 3, "shortfall": 2}  # noqa: RUF012
        names = ("background", "cat")

        def __len__(self) -> int:
            return 1

        def __iter__(self) -> Iterator[ReplaySample]:
            about = {"file": "a.jpg", "licence": "CC BY 2.0", "author": "<b>Ann</b>", "page": "javascript:alert(1)"}
            yield ReplaySample("a", np.zeros((9, 9, 3), np.uint8), np.ones((9, 9), np.uint8), about, {})

    html = sheet(Mine())._repr_html_()
    assert "2 short" in html
    assert "CC BY 2.0" in html
    assert "&lt;b&gt;Ann" in html
    assert "javascript:" not in html


@pytest.mark.parametrize(
    ("about", "told"),
    [
        ({"source": "biggan", "generator": {"name": "g"}, "licence": None}, ""),
        ({"source": "folder", "file": "a.png", "licence": None}, "No licence is recorded."),
        ({"source": "openverse", "photo": "ov-1", "licence": None}, "licence not recorded"),
    ],
)
def test_licence_that_is_not_recorded_is_told_once(about: dict[str, Any], told: str) -> None:
    """Once a set; of what a generator drew not at all, and beside every photo of other people."""

    class Mine:
        manifest: dict[str, Any] = {"class": "cat", "source": "mine", "wanted": 3, "shortfall": 0}  # noqa: RUF012
        names = ("background", "cat")

        def __len__(self) -> int:
            return 3

        def __iter__(self) -> Iterator[ReplaySample]:
            for name in "abc":
                yield ReplaySample(name, np.zeros((9, 9, 3), np.uint8), np.ones((9, 9), np.uint8), about, {})

    html = sheet(Mine())._repr_html_()
    assert html.count("No licence is recorded.") == (told == "No licence is recorded.")
    assert len(re.findall(r"· licence not recorded</span>", html)) == 3 * (told == "licence not recorded")
    assert ("licence" in html.lower()) == bool(told)


def test_sheets_of_a_page_show_whole_pages() -> None:
    """26 would be a page and two; what fills no page is shown as it is."""
    assert [whole_pages(count) for count in (60, 48, 26, 24, 13)] == [48, 48, 24, 24, 13]


def test_sheet_saves_a_page_of_its_own(small_plan: Plan, tmp_path: Path) -> None:
    """The saved file is a whole page that asks for nothing outside itself."""
    shown = sheet(next(iter(replay_sets(small_plan).values())), limit=3)
    seen = Seen(shown.save(tmp_path / "cat.html").read_text(encoding="utf-8"))
    assert ("html", {"lang": "en"}) in seen.tags
    assert "view-image" in seen.attributes("id")
    assert all(address.startswith("data:") for address in seen.attributes("src", "href"))


def test_sheets_of_a_page_are_of_one_seed(small_plan: Plan) -> None:
    """Each seed labels its own replay; the page shows the first."""
    assert len(sheets(small_plan)) == 2
    (shown,) = sheets(small_plan, seed=0)
    assert shown.labelled == ("the step-0 model, seed 0",)


def test_a_long_set_shows_60_whatever_is_asked_for(tmp_path: Path) -> None:
    """A sheet is for looking; of two shards the samples chosen are those of their places."""
    world = small_world()
    world.photos = {1: world.photos[1] * 5}
    shown = sheet(next(iter(replay_sets(build(tmp_path, world)).values())), limit=1000)
    assert len(shown.tiles) == 60
    assert [tile.id for tile in shown.tiles] == [f"s{place:03d}" for place in evenly(150, 60)]


@pytest.mark.parametrize(
    ("total", "most", "expected"),
    [(5, 9, [0, 1, 2, 3, 4]), (5, 2, [0, 4]), (5, 1, [0]), (5, 0, []), (0, 3, []), (7, 3, [0, 3, 6])],
)
def test_places_are_spread_evenly(total: int, most: int, expected: list[int]) -> None:
    """The first and the last are among them."""
    assert evenly(total, most) == expected


def test_labelling_chain_is_read_from_a_slot() -> None:
    """Exemplars carry the data set's own labels; other sets name their chain."""
    manifest = {"source": "web", "class": "cow"}
    assert labelled_by("replay/web/recall/seed0/cow", manifest) == "recall/seed0"
    assert labelled_by("replay/web/cow", manifest) == ""


def test_overview_is_a_1200_pixel_picture(small_plan: Plan, tmp_path: Path) -> None:
    """A PNG for a README, equal bytes every time."""
    first, second = overview_png(small_plan, tmp_path / "a.png"), overview_png(small_plan, tmp_path / "b.png")
    assert first.read_bytes() == second.read_bytes()
    with Image.open(first) as picture:
        assert picture.format == "PNG"
        assert picture.width == 1200


def test_import_loads_no_drawing_library() -> None:
    """The command line stays quick: matplotlib, jinja2 and Pillow wait until a page is made."""
    import subprocess
    import sys

    heavy = "{'matplotlib', 'jinja2', 'PIL', 'torch'}"
    code = f"import sys, replaygen.report; print(sorted({heavy} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
