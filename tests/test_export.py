"""Exports: which sets, who may leave, all or nothing, the same bytes, and nothing from outside raw."""

from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import markdown_it
import numpy as np
import pytest
from conftest import TRAINING, Workspace
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from test_attribution import NASTY, Html
from test_crawl_end_to_end import CRAWLING
from test_export_peers import KEPT
from test_report import EVIL

from replaygen.errors import DataError, ReplaygenError
from replaygen.exports import FORMATS, export
from replaygen.exports.choose import choose
from replaygen.exports.coco import CocoLayout, run_lengths
from replaygen.exports.ids import ExportClass, Ids
from replaygen.exports.place import new_folder
from replaygen.exports.samples import HIDDEN, PURGED, RESTRICTED, UNKNOWN, Door, Sample, samples
from replaygen.plan import Plan, Recipe
from replaygen.runs import run
from replaygen.sample import encode_png
from replaygen.store import Store
from replaygen.testing.local_flickr import LocalFlickr

ROWS = TRAINING.partition("[[method]]")[0] + "".join(
    f'[[method]]\nname = "{name}"\ntrainer = "{trainer}"\n{more}'
    for name, trainer, more in (
        ("finetune", "finetune", ""), ("web", "recall", 'replay = "photos"\n'),
        ("keeps", "recall", 'replay = "kept"\n'),
    )
)  # fmt: skip


def planned(workspace: Workspace, text: str, **changes: Any) -> Plan:
    recipe = Recipe.load(workspace.recipe(text), {key.replace("__", "."): value for key, value in changes.items()})
    return recipe.plan(recipe.store())


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


def contents(folder: Path) -> dict[str, str]:
    """Every file's sha256, by its path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*")) if path.is_file()
    }  # fmt: skip


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
    about = json.loads((raw / "samples.jsonl").read_text().splitlines()[0])
    assert (about["class_id"], about["visible_names"][0]) == (10, "nine")
    assert (raw / "masks" / f"{about['id']}.png").is_file()
    assert not (tmp_path / "channels" / "masks" / "x.png").exists()


def test_without_a_background_what_is_no_class_is_ignored() -> None:
    """A data set whose every pixel has a class has no id for "other"."""
    ids = Ids("dataset", (ExportClass(0, "road", 1), ExportClass(4, "car", 2)), None)
    assert ids.apply(np.array([[0, 1, 2, 255]], np.uint8), "").tolist() == [[255, 0, 4, 255]]
    with pytest.raises(DataError, match="channel 3"):
        ids.apply(np.array([[3]], np.uint8), "")


def sample_of(image: Any, mask: Any, **about: Any) -> Sample:
    told = dict.fromkeys(("licence_name", "licence_url", "url", "page", "source")) | about
    return Sample("cow-1", "cow", encode_png(image), "png", image.shape[1], image.shape[0], mask, told)


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


# who may leave


@pytest.mark.parametrize(
    ("about", "reason"),
    [
        ({"licence": None}, ""), ({"licence": "cc-by-2.0", "photo": "flickr-9"}, ""),
        ({"licence": "cc-by-nc-sa-4.0", "photo": "flickr-9"}, ""), ({"licence": "cc-by-nd-4.0"}, RESTRICTED),
        ({"licence": "cc-by-nc-nd-2.0", "photo": "flickr-9"}, RESTRICTED),
        ({"licence": "all-rights-reserved", "photo": "web-1"}, RESTRICTED), ({"licence": "my own terms"}, RESTRICTED),
        ({"licence": None, "photo": "web-1"}, UNKNOWN), ({"licence": "cc-by-2.0", "photo": "flickr-1"}, PURGED),
        ({"licence": "cc-by-2.0", "photo": "flickr-2"}, HIDDEN),
        ({"licence": "cc-by-2.0", "photo": "flickr-3"}, RESTRICTED),
    ],
)  # fmt: skip
def test_who_may_leave(tmp_path: Path, about: Mapping[str, Any], reason: str) -> None:
    """By licence, then and now, by what was purged, by what went away; a word of one's own opens all but the purged."""
    store = Store(tmp_path / "store")
    store.bury(["flickr-1"], "asked")
    store.note_checked({
        "flickr-2": {"at": "2026-01-01T00:00:00Z", "licence": "cc-by-2.0", "visible": False},
        "flickr-3": {"at": "2026-01-01T00:00:00Z", "licence": "all-rights-reserved", "visible": True},
    })  # fmt: skip
    door = Door(store)
    assert door.opens("cow-1", about) == (reason == "")
    assert dict(door.left_out) == ({reason: 1} if reason else {})
    assert Door(store, "I asked them").opens("cow-1", about) == (reason != PURGED)


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


def test_photos_go_with_their_makers(workspace: Workspace, flickr: LocalFlickr, tmp_path: Path) -> None:
    """Of a crawl: each photo's owner, page and licence in its row and in ATTRIBUTION; Flickr's notice; none purged."""
    plan = planned(workspace, CRAWLING)
    plan = plan.recipe.narrowed(methods=["crawled"]).plan(plan.store)
    run(plan)
    plan = plan.recipe.plan(plan.store)
    done = export(plan, "folders", tmp_path / "out")
    rows = [json.loads(line) for line in (done.out / "samples.jsonl").read_text().splitlines()]
    assert done.photos == len(rows) == sum(done.samples.values()) > 8
    for row in rows:
        assert all(row[name] for name in ("owner", "page", "licence", "licence_url", "title", "photo", "sha256"))
        assert "url" not in row or row["url"].startswith("http")
    told = list(csv.DictReader(io.StringIO((done.out / "ATTRIBUTION.csv").read_text())))
    assert {row["sample"] for row in told} == {row["id"] for row in rows}
    assert all(row["fetched_at"] and row["changes"] for row in told)
    card = (done.out / "README.md").read_text()
    assert "not endorsed or certified by SmugMug" in card
    plan.store.bury([rows[0]["photo"]], "asked")
    again = export(plan, "webdataset", tmp_path / "again")
    assert again.left_out == {PURGED: 1}
    assert rows[0]["photo"] not in (again.out / "ATTRIBUTION.md").read_text()


# all or nothing


def test_nothing_is_overwritten(kept: Plan, tmp_path: Path) -> None:
    """A file, a folder, a broken link: what is there stays as it is."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "folder", "link"):
        with pytest.raises(ReplaygenError, match="something is there already"):
            export(kept, "voc", tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(ReplaygenError, match="no such folder"):
        export(kept, "voc", tmp_path / "a" / "b")


def test_an_export_that_fails_leaves_nothing(kept: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged object in the middle: the folder is not there, and neither is a part of it."""
    chosen = choose(kept)
    victim = kept.store.open_object(chosen.sets[-1][1].manifest["shards"][0]["images"])
    good = victim.read_bytes()
    os.chmod(victim, 0o644)
    victim.write_bytes(good[:600] + bytes([good[600] ^ 1]) + good[601:])
    try:
        with pytest.raises(ReplaygenError):
            export(kept, "webdataset", tmp_path / "out")
    finally:
        kept.store.put(good)
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_was_killed_is_begun_anew(kept: Plan, tmp_path: Path) -> None:
    """What a killed export left is removed; of two at once the second is refused and harms nothing."""
    part = tmp_path / ".out.part"
    (part / "images").mkdir(parents=True)
    (part / "images" / "half.jpg").write_bytes(b"half")
    done = export(kept, "folders", tmp_path / "out")
    assert not (done.out / "images" / "half.jpg").exists()
    with new_folder(tmp_path / "other") as folder:
        (folder / "mine").touch()
        with (
            pytest.raises(ReplaygenError, match="another export to this place is running"),
            new_folder(tmp_path / "other"),
        ):
            pass
        assert (folder / "mine").exists()
    assert (tmp_path / "other" / "mine").exists()


def test_what_is_purged_meanwhile_stops_the_export(
    kept: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_digits: Path
) -> None:
    """A purge between the first look and the end: the export is not finished."""
    plan = planned(Workspace(tmp_path / "work", tiny_digits), KEPT)
    run(plan)
    real = FORMATS["folders"].close

    def purged_now(self: Any) -> None:
        plan.store.bury(["flickr-77"], "asked just now")
        real(self)

    monkeypatch.setattr(FORMATS["folders"], "close", purged_now)
    with pytest.raises(DataError, match="were purged while"):
        export(plan, "folders", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# nothing raw


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory, tiny_digits: Path) -> Plan:
    """A data set whose class names, and a recipe whose title, are hostile."""
    root = tmp_path_factory.mktemp("evil")
    shutil.copytree(tiny_digits, root / "data")
    classes = json.loads((root / "data" / "classes.json").read_text())
    names = [*EVIL, NASTY[10], "../../x", "a|b\n# c"]
    for row, name in zip(classes["classes"][1:], names, strict=False):
        row["name"] = name
    (root / "data" / "classes.json").write_text(json.dumps(classes))
    workspace = Workspace(root / "work", root / "data")
    text = "\n".join(line for line in KEPT.splitlines() if not line.startswith(("title", "classes")))
    path = workspace.recipe(text)
    path.write_text(f"title = {json.dumps(''.join(EVIL))}\n" + path.read_text())
    plan = Recipe.load(path).plan(Recipe.load(path).store())
    return run(plan).plan


@pytest.mark.parametrize("layout", FORMATS)
def test_nothing_from_outside_is_raw(evil: Plan, tmp_path: Path, layout: str) -> None:
    """Class names and titles with markup, formulas and escapes: harmless in every file, and paths are ids."""
    done = export(evil, layout, tmp_path / "out")
    for path in done.out.rglob("*"):
        assert path.resolve().is_relative_to(done.out)
        assert path.name.isascii()
        if path.is_file() and path.suffix in (".md", ".csv", ".json", ".jsonl", ".txt"):
            text = path.read_text()
            assert "\x1b" not in text
            assert "\u202e" not in text
    card = (done.out / "README.md").read_text().rpartition("---\n\n# ")[2]
    seen = Html("# " + card if layout == "huggingface" else card)
    assert not {"script", "img", "b", "comment"} & set(seen.tags)
    assert all(address.startswith("https://") for address in seen.links)


def test_the_card_is_a_table_of_its_classes(evil: Plan, tmp_path: Path) -> None:
    """A name with "|" or line ends stays in its cell."""
    done = export(evil, "folders", tmp_path / "out")
    html = markdown_it.MarkdownIt("commonmark").enable("table").render((done.out / "README.md").read_text())
    classes = html.partition("images made for it")[2].partition("</table>")[0]
    assert classes.count("<tr>") == 11
    assert classes.count("<td>") == 33


def test_the_front_of_a_card_is_yaml_that_says_one_thing(evil: Plan, tmp_path: Path) -> None:
    """A title with quotes, colons and line ends is one string."""
    yaml = pytest.importorskip("yaml")
    done = export(evil, "huggingface", tmp_path / "out")
    told = yaml.safe_load((done.out / "README.md").read_text().split("---\n")[1])
    assert told["pretty_name"].endswith(": replay")
    assert told["license"] == "other"
    assert list(told["configs"][0]) == ["config_name", "data_files"]


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


def test_a_lock_is_let_go_when_its_holder_is_gone(tmp_path: Path) -> None:
    """The kernel frees it, so an export that died holds nobody up."""
    part = tmp_path / ".out.part"
    part.mkdir()
    held = os.open(part, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(ReplaygenError), new_folder(tmp_path / "out"):
        pass
    os.close(held)
    with new_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out").is_dir()


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
