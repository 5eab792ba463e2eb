"""Exports: which sets, what is written of their samples, the same bytes, and the command."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Workspace
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from test_export_peers import KEPT
from test_export_support import ROWS, contents, planned, sample_of

from replaygen.errors import DataError
from replaygen.exports import FORMATS, export
from replaygen.exports.choose import choose
from replaygen.exports.coco import CocoLayout, run_lengths
from replaygen.exports.ids import ExportClass, Ids
from replaygen.exports.place import SUMS
from replaygen.exports.samples import PURGED, Door, samples
from replaygen.plan import Plan, Recipe
from replaygen.runs import run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_digits: Path) -> Plan:
    """A finished run with two rows that replay."""
    plan = planned(Workspace(tmp_path_factory.mktemp("export") / "work", tiny_digits), ROWS)
    return run(plan).plan.recipe.plan(plan.store)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, tiny_digits: Path) -> Plan:
    """Exemplars of a recipe that trains nothing."""
    plan = planned(Workspace(tmp_path_factory.mktemp("kept") / "work", tiny_digits), KEPT)
    return run(plan).plan


# which sets


def test_it_is_what_the_row_was_trained_on(trained: Plan) -> None:
    """By default the first row with replay; a set a class, those of the last training's inputs, in channel order."""
    first = choose(trained)
    assert first.method == "web"
    task = trained.tasks[trained.slots["train/web/seed0/step2"]]
    assert {one.record.key for _, one in first.sets} == {key for role, key in task.inputs if role == "replay"}
    assert [one.manifest["channel"] for _, one in first.sets] == list(range(1, 10))
    assert {one.source for _, one in choose(trained, method="keeps").sets} == {"kept"}
    assert [one.manifest["class"] for _, one in choose(trained, classes=["two", "one"]).sets] == ["one", "two"]


@pytest.mark.parametrize(
    ("asked", "words"),
    [({"method": "wep"}, "'web'"), ({"method": "finetune"}, "web, keeps"), ({"classes": ["tow"]}, "'two'"),
     ({"seed": 7}, "its seeds: 0")],
)  # fmt: skip
def test_what_is_not_there_is_refused_with_the_way_out(trained: Plan, asked: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError) as error:
        choose(trained, **asked)
    assert words in error.value.hint


def test_an_unfinished_run_is_not_exported(workspace: Workspace, tmp_path: Path) -> None:
    """Sets that are not made, or stale, are no export; nothing is left behind."""
    with pytest.raises(DataError, match="9 of 9 replay sets are not made"):
        export(planned(workspace, KEPT), "folders", tmp_path / "out")
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


# the samples


@pytest.mark.parametrize("layout", FORMATS)
def test_the_same_sets_give_the_same_bytes(kept: Plan, tmp_path: Path, layout: str) -> None:
    """Whenever and wherever; and no file knows where it was made."""
    first, again = (export(kept, layout, tmp_path / name) for name in ("one", "two"))
    assert contents(first.out) == contents(again.out)
    assert {**first.as_json(), "out": ""} == {**again.as_json(), "out": ""}
    assert len(contents(first.out)) == first.files
    sums = [line.split("  ") for line in (first.out / SUMS).read_text().splitlines()]
    assert {path: sha256 for sha256, path in sums} == {k: v for k, v in contents(first.out).items() if k != SUMS}
    assert not [path for path in first.out.rglob("*") if path.is_file() and str(tmp_path).encode() in path.read_bytes()]


def test_ids_are_the_data_sets_or_channels(kept: Plan, tmp_path: Path) -> None:
    """Explicit in classes.json; the two forms are one mask through one table."""
    raw, channels = (export(kept, "folders", tmp_path / kind, ids=kind, classes=["nine"]).out
                     for kind in ("dataset", "channels"))  # fmt: skip
    rows = json.loads((channels / "classes.json").read_text())["classes"]
    assert [row["id"] for row in rows] == [row["channel"] for row in rows] == list(range(10))
    assert rows[1]["name"] == "nine"
    table = {row["channel"]: row["id"] for row in json.loads((raw / "classes.json").read_text())["classes"]}
    assert table[1] == 10
    lines = (raw / "samples.jsonl").read_text().splitlines()
    for about in map(json.loads, lines):
        assert (about["class_id"], about["visible_names"][0]) == (10, "nine")
        one, other = (np.asarray(Image.open(out / "masks" / f"{about['id']}.png")) for out in (raw, channels))
        assert np.array_equal(np.vectorize({**table, 255: 255}.get)(other), one)
        assert (one == 10).any()
    assert len(lines) == len(list((channels / "masks").iterdir())) == 5


def test_without_a_background_what_is_no_class_is_ignored() -> None:
    """A data set whose every pixel has a class has no id for "other"."""
    ids = Ids("dataset", (ExportClass(0, "road", 1), ExportClass(4, "car", 2)), None)
    assert ids.apply(np.array([[0, 1, 2, 255]], np.uint8), "").tolist() == [[255, 0, 4, 255]]
    with pytest.raises(DataError, match="channel 3"):
        ids.apply(np.array([[3]], np.uint8), "")


@settings(deadline=None, max_examples=60)
@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_run_lengths_are_those_of_pycocotools(there: Any) -> None:
    """Down the columns, whatever the shape, also where all or nothing is in."""
    import warnings

    mask_api = pytest.importorskip("pycocotools.mask")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoded = mask_api.frPyObjects({"size": list(there.shape), "counts": run_lengths(there)}, *there.shape)
        assert np.array_equal(mask_api.decode(encoded), there)


def test_coco_of_an_image_that_is_no_square(tmp_path: Path) -> None:
    """Sizes and boxes are x before y; ignored pixels are in no segment."""
    image, mask = np.zeros((4, 6, 3), np.uint8), np.full((4, 6), 255, np.uint8)
    mask[1:3, 2:6] = 7
    layout = CocoLayout(tmp_path, Ids("dataset", (ExportClass(7, "cow", 1),), None), shard=1)
    layout.add(sample_of(image, mask))
    layout.close()
    told = json.loads((tmp_path / "annotations" / "stuff_train.json").read_text())
    assert (told["images"][0]["width"], told["images"][0]["height"]) == (6, 4)
    (one,) = told["annotations"]
    assert (one["bbox"], one["area"], one["category_id"]) == ([2, 1, 4, 2], 8, 7)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["annotations", "images"]


def test_a_sample_that_was_buried_stays(trained: Plan, tmp_path: Path) -> None:
    """Counted, and in no file of the export; with all of a class gone there is no export, and later plans have none."""
    shutil.copytree(trained.recipe.workspace, tmp_path / "work")
    recipe = Recipe.load(tmp_path / "work" / "pipelines" / trained.recipe.path.name)
    plan = recipe.plan(recipe.store())
    chosen, ids = choose(plan, classes=["two"]), Ids.of(plan, "dataset")
    there = [sample.id for sample in samples(chosen, ids, Door(plan.store))]
    plan.store.bury(there[:1], "asked")
    done = export(plan, "folders", tmp_path / "out", classes=["two"])
    assert (done.samples, done.left_out) == ({"two": len(there) - 1}, {PURGED: 1})
    assert not [path for path in done.out.rglob("*") if path.is_file() and there[0].encode() in path.read_bytes()]
    plan.store.bury(there, "asked")
    with pytest.raises(DataError, match="nothing is left to export"):
        export(plan, "coco", tmp_path / "none", classes=["two"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "work"]
    with pytest.raises(DataError, match="are not made"):
        export(recipe.plan(recipe.store()), "coco", tmp_path / "none", classes=["two"])


# the command


def replaygen(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "replaygen", *arguments], cwd=cwd, capture_output=True, text=True)


def test_the_command(kept: Plan, tmp_path: Path) -> None:
    """`--json` has stable keys; a place that is taken ends in an error with a hint."""
    recipe, out = str(kept.recipe.path), str(tmp_path / "out")
    done = replaygen("export", "webdataset", recipe, "two", "one", "--out", out, "--shard", "3", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert list(told) == ["out", "format", "ids", "samples", "classes", "left_out", "photos", "files", "bytes", "sets"]
    assert told["classes"] == {"two": 5, "one": 5}
    assert len(list((tmp_path / "out").glob("*.tar"))) == 4
    again = replaygen("export", "voc", recipe, "--out", out, cwd=tmp_path)
    assert again.returncode == 1
    assert "something is there already" in again.stderr
    assert "hint:" in again.stderr
    text = replaygen("export", "voc", recipe, "two", "--out", out + "2", cwd=tmp_path)
    assert text.stdout.startswith(f"wrote {out}2: 5 samples of 1 classes")


def test_an_export_keeps_little_in_memory(tmp_path: Path) -> None:
    """A tar of many large samples is written piece by piece."""
    import tracemalloc

    from replaygen.exports.webdataset import WebDatasetLayout

    mask = np.zeros((512, 512), np.uint8)
    one = sample_of(np.random.default_rng(0).integers(0, 255, (512, 512, 3), np.uint8), mask)
    layout = WebDatasetLayout(tmp_path, Ids("dataset", (), None), shard=100)
    tracemalloc.start()
    for i in range(60):
        layout.add(replace(one, id=f"cow-{i}"))
    layout.close()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) > 40e6
    assert peak < 10e6
