"""Images that came with masks: checked one by one, and from there the same walk as any replay."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Workspace
from PIL import Image
from test_export_peers import KEPT
from test_export_support import contents, planned
from test_report import EVIL

from replaygen.errors import DataError, RecipeError, ReplaygenError
from replaygen.exports import export
from replaygen.exports.importing import Imported, import_masks, read_mask_classes
from replaygen.plan import Plan, Recipe
from replaygen.report.labels import judge
from replaygen.runs import ReplaySet, replay_sets, run
from replaygen.sample import encode_jpeg, encode_png
from replaygen.stages.masks import GivenLabelParams, _mapped

GIVEN = """
name = "given"
shard = 8
[data]
kind = "digits"
path = "{data}"
options = {{ train = 60, val = 12, photos = 24 }}
[scenario]
task = "5-1"
[network]
kind = "small"
widths = [16, 24]
[views]
size = 32
[replay.theirs]
source = "folder"
path = "PACK"
count = 20
labeler = "given"
only = ["zero", "one", "five"]
MORE
"""
METHOD = """
[train.fit]
iterations = 4
batch = 4
[train.base]
iterations = 10
[[method]]
name = "theirs"
trainer = "recall"
replay = "theirs"
"""


def draw(folder: Path, masks: Path, name: str, value: int, *, size: tuple[int, int] = (40, 64), side: int = 12) -> None:
    """A picture with a square of a class in it, and its mask; a strip of the mask says nothing."""
    rng = np.random.default_rng(list(name.encode()))
    image = rng.integers(0, 255, (*size, 3), np.uint8)
    mask = np.zeros(size, np.uint8)
    mask[4 : 4 + side, 8 : 8 + side], mask[-2:] = value, 255
    for path in (folder, masks):
        path.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.png").write_bytes(encode_png(image))
    (masks / f"{name}.png").write_bytes(encode_png(mask))


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """Somebody's pictures of three classes with masks; ids are theirs."""
    root = tmp_path / "theirs"
    for value, name in ((3, "zero"), (7, "one"), (9, "five")):
        for i in range(6):
            draw(root / "images" / name, root / "masks" / name, f"{name} {i}", value)
    (root / "classes.txt").write_text("# mine\n0 background\n3 zero\n7 one\n9 five\n200 a stranger\n")
    return root


def taken(theirs: Path, out: Path) -> Imported:
    return import_masks(theirs / "images", theirs / "masks", read_mask_classes(theirs / "classes.txt"), out)


def recipe(pack: Path, more: str = "") -> str:
    return GIVEN.replace("PACK", str(pack)).replace("MORE", more)


def sets(plan: Plan) -> dict[str, ReplaySet]:
    return {str(one.manifest["class"]): one for one in replay_sets(plan).values()}


# taking in


def test_images_and_masks_are_laid_out_by_class(theirs: Path, tmp_path: Path) -> None:
    """Every image's bytes as they were, its mask beside it, and the table for a recipe."""
    done = taken(theirs, tmp_path / "pack")
    assert done.samples == {"zero": 6, "one": 6, "five": 6}
    assert not done.rejected
    images = sorted((tmp_path / "pack" / "one").iterdir())
    masks = sorted((tmp_path / "pack" / "_masks" / "one").iterdir())
    assert [path.stem for path in images] == [path.stem for path in masks]
    assert {path.read_bytes() for path in images} == {path.read_bytes() for path in (theirs / "images/one").iterdir()}
    assert 'labeler = "given"' in done.recipe()
    again = taken(theirs, tmp_path / "again")
    assert contents(done.out) == contents(again.out)


def test_without_class_folders_the_largest_class_counts(theirs: Path, tmp_path: Path) -> None:
    """A flat folder: each picture is of the class that covers most of it; without any it is refused."""
    flat, masks = tmp_path / "flat", tmp_path / "flat-masks"
    draw(flat, masks, "a", 7)
    draw(flat, masks, "b", 3)
    draw(flat, masks, "nothing", 0)
    done = import_masks(flat, masks, read_mask_classes(theirs / "classes.txt"), tmp_path / "pack")
    assert done.samples == {"zero": 1, "one": 1}
    assert done.rejected == [("nothing.png", "class-absent")]


def test_every_image_is_taken_or_counted(theirs: Path, tmp_path: Path) -> None:
    """What does not fit is refused with its reason, and told in import.json."""
    one, masks = theirs / "images" / "one", theirs / "masks" / "one"
    (masks / "one 0.png").unlink()
    (masks / "one 1.png").write_bytes(encode_png(np.zeros((40, 63), np.uint8)))
    (masks / "one 2.png").write_bytes(encode_png(np.zeros((40, 64, 3), np.uint8)))
    (one / "one 3.png").write_bytes(b"\x89PNG not at all")
    (masks / "one 4.png").write_bytes(encode_png(np.zeros((40, 64), np.uint8)))
    (one / "one 5.jpg").write_bytes(encode_jpeg(np.zeros((40, 64, 3), np.uint8)))
    done = taken(theirs, tmp_path / "pack")
    assert dict(done.rejected) == {
        "one/one 0.png": "no-mask", "one/one 1.png": "mask-of-another-size", "one/one 2.png": "mask-unreadable",
        "one/one 3.png": "unreadable", "one/one 4.png": "class-absent", "one/one 5.png": "same-name",
    }  # fmt: skip
    assert done.samples["one"] == 1
    told = json.loads((tmp_path / "pack" / "import.json").read_text())
    assert {row["file"] for row in told["refused"]} == dict(done.rejected).keys()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda root: (root / "masks/one/one 1.png").write_bytes(encode_png(np.full((40, 64), 8, np.uint8))),
            "holds 8",
        ),
        (lambda root: (root / "images/one").rename(root / "images/ona"), "'ona' is no class"),
        (lambda root: shutil.rmtree(root / "masks"), "masks are NAME.png"),
        (lambda root: shutil.rmtree(root / "images"), "folder not found"),
        (lambda root: (root / "classes.txt").write_text("3 zero\none\n"), "not a list of classes"),
        (lambda root: (root / "classes.txt").write_text("3 zero\n3 one\n"), "given twice"),
        (lambda root: (root / "classes.txt").write_text("300 zero\n"), "above 255"),
        (lambda root: (root / "classes.txt").write_bytes(b"\xff\xfe"), "not UTF-8"),
    ],
)
def test_what_cannot_be_right_is_refused_as_a_whole(theirs: Path, tmp_path: Path, change: Any, words: str) -> None:
    """With the way out; and no pack is left."""
    change(theirs)
    with pytest.raises(DataError) as error:
        taken(theirs, tmp_path / "pack")
    assert words in str(error.value)
    assert error.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_classes_are_a_list_or_json(tmp_path: Path) -> None:
    """Names alone count from 0; a folder pack's classes.json says its own ignore value."""
    (tmp_path / "names.txt").write_text("background\ncow\n\nsheep dog\n")
    told = read_mask_classes(tmp_path / "names.txt")
    assert (told.objects(), told.background, told.ignore) == ({"cow": 1, "sheep dog": 2}, 0, 255)
    (tmp_path / "c.json").write_text('{"classes": [{"id": 0, "name": "cow"}], "background_id": null, "ignore_id": 9}')
    told = read_mask_classes(tmp_path / "c.json")
    assert (told.objects(), told.background, told.values) == ({"cow": 0}, None, {0, 9, 255})
    assert read_mask_classes(tmp_path / "c.json", ignore=4).ignore == 4


def test_hostile_names_stay_inside(tmp_path: Path) -> None:
    """Class names and file names with slashes, markup and escapes: folders are slugs, and nothing is outside."""
    names = [*EVIL, "..", "con/..", "a\nb"]
    classes = {"classes": [{"id": i + 1, "name": name} for i, name in enumerate(names)], "background_id": 0}
    classes["classes"].insert(0, {"id": 0, "name": "background"})  # type: ignore[attr-defined]
    (tmp_path / "classes.json").write_text(json.dumps(classes))
    for i in range(len(names)):
        draw(tmp_path / "in", tmp_path / "masks", f"<b>{i}\u202e=1+1", i + 1)
    done = import_masks(
        tmp_path / "in", tmp_path / "masks", read_mask_classes(tmp_path / "classes.json"), tmp_path / "pack"
    )
    assert sum(done.samples.values()) == len(names) == len(done.folders)
    files = [path for path in (tmp_path / "pack").rglob("*") if path.is_file()]
    assert len(files) == 2 * len(names) + 3
    assert all(path.name.isascii() and not set("<>=") & set(path.name) for path in files)
    assert len(set(done.folders.values())) == len(names)


def test_masks_that_are_elsewhere_are_said_to_be(theirs: Path, tmp_path: Path) -> None:
    """A slip in the masks' folder is no word about the images."""
    with pytest.raises(DataError, match=r"folder not found\s+where: .*maks"):
        import_masks(theirs / "images", theirs / "maks", read_mask_classes(theirs / "classes.txt"), tmp_path / "pack")
    assert not (tmp_path / "pack").exists()


def test_nothing_is_overwritten(theirs: Path, tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    with pytest.raises(ReplaygenError, match="something is there already"):
        taken(theirs, tmp_path / "pack")


# from there on


def test_given_masks_are_the_labels(theirs: Path, tmp_path: Path, workspace: Workspace) -> None:
    """Without any model: the queried class in its channel, other classes background, ignore stays, visible is told."""
    pack = taken(theirs, tmp_path / "pack").out
    plan = run(planned(workspace, recipe(pack))).plan
    found = sets(plan)
    assert {name: len(one) for name, one in found.items()} == {"zero": 6, "one": 6, "five": 6}
    for sample in found["one"]:
        assert sample.mask.shape == (40, 64)
        assert sorted(np.unique(sample.mask)) == [0, 2, 255]
        assert int((sample.mask == 2).sum()) == 144
        assert (sample.label["visible"], sample.label["labeler"]) == ([2], "given")
    assert not run(planned(workspace, recipe(pack))).tally.made


def test_other_classes_stay_where_they_compete(theirs: Path, tmp_path: Path, workspace: Workspace) -> None:
    """`label = "step"`: what the masks know of the step's classes is kept, and visible."""
    both = np.asarray(Image.open(theirs / "masks/one/one 1.png")).copy()
    both[30:34, 30:34] = 3
    (theirs / "masks/one/one 1.png").write_bytes(encode_png(both))
    pack = taken(theirs, tmp_path / "pack").out
    plan = run(planned(workspace, recipe(pack, 'label = "step"'))).plan
    kept = {tuple(sorted(np.unique(sample.mask))) for sample in sets(plan)["one"]}
    assert kept == {(0, 2, 255), (0, 1, 2, 255)}
    assert {tuple(sample.label["visible"]) for sample in sets(plan)["one"]} == {(1, 2)}
    assert {tuple(sample.label["visible"]) for sample in sets(plan)["five"]} == {(6,)}


def test_masks_shrink_with_their_images(theirs: Path, tmp_path: Path, workspace: Workspace) -> None:
    """Nearest neighbours: no new values, and the class stays where it was."""
    pack = taken(theirs, tmp_path / "pack").out
    plan = run(planned(workspace, recipe(pack, "max_side = 32"))).plan
    for sample in sets(plan)["zero"]:
        assert sample.image.shape[:2] == sample.mask.shape == (20, 32)
        assert sorted(np.unique(sample.mask)) == [0, 1, 255]
        rows, columns = np.nonzero(sample.mask == 1)
        assert (rows.min(), rows.max(), columns.min(), columns.max()) == (2, 7, 4, 9)


def test_training_on_them_and_exporting_them(theirs: Path, tmp_path: Path, workspace: Workspace) -> None:
    """One walk: screens on labels, a training step, the report's verdicts, and out again with their provenance."""
    pack = taken(theirs, tmp_path / "pack").out
    trust = "[replay.theirs.trust]\narea = 0.0\nconfidence = 0.0\ntypical = 0.2\n[replay.theirs.erase]\nothers = true\n"
    plan = run(planned(workspace, recipe(pack, trust + METHOD))).plan
    found = sets(plan)
    assert set(found) == {"zero", "one"} | ({"five"} if "five" in found else set())
    assert {"trust", "erase", "given-labels"} <= {task.stage for task in plan.tasks.values()}
    told = judge(found["one"])
    assert len(told.kept) + sum(reason.samples for reason in told.reasons) == told.looked == 6
    again = plan.recipe.plan(plan.store)
    done = export(again, "folders", tmp_path / "out", classes=["one"])
    rows = [json.loads(line) for line in (done.out / "samples.jsonl").read_text().splitlines()]
    assert {row["labeler"] for row in rows} == {"given"}
    assert {tuple(row["visible_names"]) for row in rows} == {("one",)}


def test_a_changed_mask_is_another_key(theirs: Path, tmp_path: Path, workspace: Workspace) -> None:
    """Only the labels of its slice, and what is made of them."""
    pack = taken(theirs, tmp_path / "pack").out
    before = planned(workspace, recipe(pack)).slots
    mask = sorted((pack / "_masks" / "one").iterdir())[0]
    other = np.asarray(Image.open(mask)).copy()
    other[30, 30] = 7
    mask.write_bytes(encode_png(other))
    after = planned(workspace, recipe(pack)).slots
    changed = {slot for slot in before if before[slot] != after[slot]}
    assert changed == {"label/theirs/given/seed0/one/0000", "replay/theirs/given/seed0/one"}


def test_what_does_not_fit_is_counted(theirs: Path, tmp_path: Path, workspace: Workspace) -> None:
    """A pack that somebody changed by hand: no mask, a strange value, another size, too little of the class."""
    pack = taken(theirs, tmp_path / "pack").out
    masks = sorted((pack / "_masks" / "one").iterdir())
    masks[0].unlink()
    masks[1].write_bytes(encode_png(np.full((40, 64), 77, np.uint8)))
    masks[2].write_bytes(encode_png(np.full((41, 64), 7, np.uint8)))
    masks[3].write_bytes(encode_png(np.zeros((40, 64), np.uint8)))
    masks[4].write_bytes(b"no PNG")
    done = run(planned(workspace, recipe(pack, "min_share = 0.06")))
    tally = done.tally.stages["given-labels"]
    assert tally.rejected == {
        "no-mask": 1, "mask-unknown-value": 1, "mask-of-another-size": 1, "class-absent": 1, "mask-unreadable": 1,
        "area-too-small": 13,
    }  # fmt: skip
    assert tally.accepted == 0


@pytest.mark.parametrize(
    ("more", "words"),
    [("looks = 2", "nobody labels"), ('refine = "grabcut"', "nobody labels")],
)
def test_what_goes_with_no_given_mask_is_refused(
    theirs: Path, tmp_path: Path, workspace: Workspace, more: str, words: str
) -> None:
    with pytest.raises(RecipeError) as error:
        Recipe.load(workspace.recipe(recipe(tmp_path, more)))
    assert words in str(error.value)


def test_a_folder_without_masks_is_refused_with_the_way_out(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder _masks") as error:
        planned(workspace, recipe(workspace.data / "photos"))
    assert "replaygen import" in error.value.hint
    text = KEPT.replace('source = "exemplar"', 'source = "web"\npath = "x"\nlabeler = "given"')
    with pytest.raises(RecipeError, match='"given" is for source "folder"'):
        Recipe.load(workspace.recipe(text, "web"))


def test_what_was_exported_can_be_taken_in(theirs: Path, tmp_path: Path, workspace: Workspace) -> None:
    """The circle: folders out, in again, and the labels are the same."""
    pack = taken(theirs, tmp_path / "pack").out
    plan = run(planned(workspace, recipe(pack))).plan
    done = export(plan, "folders", tmp_path / "out")
    back = import_masks(
        done.out / "images", done.out / "masks", read_mask_classes(done.out / "classes.json"), tmp_path / "back"
    )
    assert back.samples == done.samples
    other = Workspace(tmp_path / "other", workspace.data)
    again = run(planned(other, recipe(back.out))).plan
    first, second = (
        {sample.about["sha256"]: sample.mask.tobytes() for one in sets(one).values() for sample in one}
        for one in (plan, again)
    )
    assert len(first) == 18
    assert first == second


def test_the_command(theirs: Path, tmp_path: Path) -> None:
    """Text with the table for a recipe, JSON with stable keys."""
    command = [sys.executable, "-m", "replaygen", "import", str(theirs / "images"), "--masks", str(theirs / "masks"),
               "--classes", str(theirs / "classes.txt"), "--out"]  # fmt: skip
    text = subprocess.run([*command, "pack"], cwd=tmp_path, capture_output=True, text=True)
    assert text.returncode == 0, text.stderr
    assert f'path = "{tmp_path / "pack"}"' in text.stdout
    told = json.loads(subprocess.run([*command, "two", "--json"], cwd=tmp_path, capture_output=True).stdout)
    assert list(told) == ["out", "samples", "classes", "rejected", "folders", "recipe"]
    assert told["samples"] == 18


def test_a_mask_is_mapped_by_its_table() -> None:
    """Values to channels; the ignore value of its own, and 255, are 255; an enlarged picture's mask does not fit."""
    params = GivenLabelParams("cow", 2, (), ((0, 0), (4, 2), (9, 0)), 7, (2,), 0.0, False, False, {}, 1)
    image = np.zeros((2, 3, 3), np.uint8)
    mask, _ = _mapped(encode_png(np.array([[0, 4, 9], [7, 255, 4]], np.uint8)), image, params)
    assert mask is not None
    assert mask.tolist() == [[0, 2, 0], [255, 255, 2]]
    assert _mapped(encode_png(np.zeros((1, 1), np.uint8)), image, params) == (None, "mask-of-another-size")
    assert _mapped(encode_png(np.full((2, 3), 5, np.uint8)), image, params) == (None, "mask-unknown-value")
