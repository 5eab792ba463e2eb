"""The papers' recipes: the field's rows, the published hyper-parameters, iterations that follow from images."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from replaygen.datasets.ade20k import ade20k_names
from replaygen.datasets.voc import VOC_CLASSES
from replaygen.plan import Recipe
from replaygen.plan.labelled import FEWEST
from replaygen.plan.rows import resolve_rows
from replaygen.report.published import beside, published_rows
from replaygen.scenario.tasks import parse_task

RECALL = ("voc-15-1", "voc-19-1", "voc-15-5", "voc-10-1")
MIB = ("voc-15-1-mib", "voc-15-5-mib", "voc-10-1-mib")
ADE = ("ade20k-100-50", "ade20k-50-50")
ROWS = ("finetune", "lwf", "ilt", "mib", "sdr", "plop", "ewf", "recall", "recall_plus", "joint")
NO_MAPS = ("sdr", "plop")
"""What has nothing to hold on to where a DeepLab-v2 reads a frozen encoder: RECALL's recipes have no such row."""
FEW = 4 * FEWEST
VOC_IMAGES, ADE_IMAGES = 10_582, 20_210


def _rows(name: str) -> tuple[str, ...]:
    return tuple(row for row in ROWS if name not in RECALL or row not in NO_MAPS)


def _recipe(repository: Path, name: str) -> Recipe:
    return Recipe.load(repository / "pipelines" / f"{name}.toml")


@pytest.mark.parametrize("name", [*RECALL, *MIB, *ADE])
def test_every_row_of_the_comparison_is_there(repository: Path, name: str) -> None:
    """Each recipe has the field's rows, with replay for the methods that need it, and cuts its classes exactly."""
    recipe = _recipe(repository, name)
    table = recipe.table
    assert tuple(row.name for row in table.method) == _rows(name)
    assert {row.name: row.replay for row in table.method if row.replay} == {"recall": "web", "recall_plus": "plus"}
    assert table.replay["plus"].trust is not None
    assert sum(parse_task(table.scenario.task, 20 if table.data.kind == "voc" else 150)) in (20, 150)
    assert (table.scenario.setting, table.train.seeds) == ("overlapped", (0, 1, 2))


@pytest.mark.parametrize("name", RECALL)
def test_recall_s_settings(repository: Path, name: str) -> None:
    """Iterations are classes x 1500, helpers' x 1000; DeepLab-v2, the encoder fixed after step 0; batch 4 of 321."""
    recipe = _recipe(repository, name)
    rows = resolve_rows(recipe.table, workspace=recipe.workspace, where=name)
    sizes = parse_task(recipe.table.scenario.task, 20)
    fits = {row.name: row.fit for row in rows.rows}
    assert rows.base.fit["iterations"] == sizes[0] * 1500
    assert fits["recall"]["iterations"] == sizes[1] * 1500
    assert fits["joint"]["iterations"] == 20 * 1500
    assert (rows.helper["iterations"], rows.helper["lr"], rows.helper["lr_end"]) == (sizes[1] * 1000, 2e-4, 2e-6)
    wanted = {"batch": 4, "lr": 5e-4, "lr_end": 5e-6, "momentum": 0.9, "weight_decay": 1e-4, "power": 0.9}
    assert {key: fits["recall"][key] for key in wanted} == wanted
    network, views = recipe.table.network, recipe.table.views
    assert (network.head, network.output_stride, network.freeze, network.freeze_bn, views.size) == (
        "deeplabv2", 8, "after_base", "always", 321,
    )  # fmt: skip


@pytest.mark.parametrize("name", [*MIB, *ADE])
def test_mib_s_settings(repository: Path, name: str) -> None:
    """DeepLab-v3, output stride 16, everything trains; batch 24 of 512; Nesterov; 1e-2 at first, 1e-3 later."""
    recipe = _recipe(repository, name)
    rows = resolve_rows(recipe.table, workspace=recipe.workspace, where=name)
    fits = {row.name: row.fit for row in rows.rows}
    wanted = {"batch": 24, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4, "schedule": "poly", "power": 0.9}
    for fit in (*fits.values(), rows.base.fit):
        assert {key: fit[key] for key in wanted} == wanted
    assert (rows.base.fit["lr"], fits["mib"]["lr"], fits["joint"]["lr"]) == (1e-2, 1e-3, 1e-2)
    network, views = recipe.table.network, recipe.table.views
    assert (network.head, network.output_stride, network.freeze, network.freeze_bn, views.size) == (
        "deeplabv3", 16, "never", "never", 512,
    )  # fmt: skip


@pytest.mark.parametrize("name", MIB)
def test_thirty_epochs_of_the_images_of_each_step(repository: Path, data_root: Path, name: str) -> None:
    """Iterations are 30 epochs of the overlapped step's images in batches of 24, of the mean over the later steps."""
    recipe = _recipe(repository, name)
    folder = data_root / "voc_splits" / recipe.table.scenario.task / "overlapped"
    if not folder.is_dir():
        pytest.skip("needs the lists of each step's images: voc_splits/ in REPLAYGEN_DATA")
    steps = range(len(parse_task(recipe.table.scenario.task, 20)))
    images = [len((folder / f"step{k}.txt").read_text().split()) for k in steps]
    rows = resolve_rows(recipe.table, workspace=recipe.workspace, where=name)
    later = sum(images[1:]) / len(images[1:])
    assert rows.base.fit["iterations"] == round(images[0] * 30 / 24)
    assert rows.rows[0].fit["iterations"] == round(later * 30 / 24)
    assert rows.rows[-1].fit["iterations"] == round(VOC_IMAGES * 30 / 24)


@pytest.mark.parametrize("name", ADE)
def test_sixty_epochs_cut_by_classes(repository: Path, name: str) -> None:
    """The steps together have the iterations of joint training, 60 epochs, each in proportion to its classes."""
    recipe = _recipe(repository, name)
    rows = resolve_rows(recipe.table, workspace=recipe.workspace, where=name)
    whole = ADE_IMAGES * 60 / 24
    sizes = parse_task(recipe.table.scenario.task, 150)
    assert rows.base.fit["iterations"] == round(whole * sizes[0] / 150)
    assert rows.rows[0].fit["iterations"] == round(whole * sizes[1] / 150)
    assert rows.rows[-1].fit["iterations"] == round(whole)


@pytest.mark.parametrize("name", [*RECALL, *MIB])
def test_published_rows_of_the_task_are_found(repository: Path, name: str) -> None:
    """Each VOC recipe compares with the rows of its own task, and its coarse classes leave out only person."""
    recipe = _recipe(repository, name)
    table = recipe.table
    known = published_rows("voc2012", table.scenario.task, table.scenario.setting)
    found = {one.method for one in beside(table)}
    assert found == {row.trainer for row in known if row.trainer is not None} & set(_rows(name))
    assert len(found) >= (3 if name in RECALL else 4)
    assert sum(len(classes) for classes in table.coarse.values()) == 19
    assert "person" not in {fine for classes in table.coarse.values() for fine in classes}


def _write(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the recipes ask for, in small: a few pictures of every class, photos, and an encoder that nobody opens."""
    root = tmp_path_factory.mktemp("papers")
    (root / "weights" / "resnet-101").mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (root / "weights" / "resnet-101" / name).write_text(name)
    voc, ade = root / "VOCdevkit" / "VOC2012", root / "ADEChallengeData2016"
    lists = voc / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, folder in (("train_aug", "SegmentationClassAug"), ("val", "SegmentationClass")):
        ids = [f"{split}_{i}" for i in range(20 * FEW)]
        for i, key in enumerate(ids):
            _write(voc / "JPEGImages" / f"{key}.jpg", np.zeros((8, 8, 3), np.uint8))
            _write(voc / folder / f"{key}.png", np.full((8, 8), 1 + i // FEW, np.uint8))
        (lists / f"{split}.txt").write_text("\n".join(ids) + "\n")
    for split in ("training", "validation"):
        for i in range(3 * FEW):
            raw = 50 * (i // FEW) + np.arange(1, 51, dtype=np.uint8).reshape(5, 10)
            _write(ade / "images" / split / f"{split}_{i}.jpg", np.zeros((5, 10, 3), np.uint8))
            _write(ade / "annotations" / split / f"{split}_{i}.png", raw)
    for folder, names in (("voc_web", VOC_CLASSES[1:]), ("ade20k_web", ade20k_names())):
        for name in names:
            _write(root / folder / name / "photo.jpg", np.zeros((8, 8, 3), np.uint8))
    return root


@pytest.mark.parametrize("name", [*RECALL, *MIB, *ADE])
def test_it_can_be_planned_once_the_data_are_there(
    repository: Path, data: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every row has a training for every later step and seed, on one shared step 0, and joint training one a seed."""
    monkeypatch.setenv("REPLAYGEN_DATA", str(data))
    (tmp_path / "pipelines").mkdir()
    shutil.copy(repository / "pipelines" / f"{name}.toml", tmp_path / "pipelines")
    recipe = Recipe.load(tmp_path / "pipelines" / f"{name}.toml", {"train.seeds": [0]})
    plan = recipe.plan(recipe.store())
    later = len(plan.opened.scenario.steps) - 1
    trained = Counter(slot.split("/")[1] for slot in plan.slots if slot.startswith("train/"))
    assert trained == {"base": 1, "joint": 1, **dict.fromkeys(_rows(name)[:-1], later)}


@pytest.mark.parametrize("name", RECALL)
def test_rows_of_a_frozen_encoder_need_no_maps(repository: Path, name: str) -> None:
    """DeepLab-v2 on an encoder that is fixed after step 0 has no map that learns, so ILT's row keeps outputs alone."""
    rows = {row.name: row for row in _recipe(repository, name).table.method}
    assert rows["ilt"].model_extra == {"feature": 0.0}
    assert not set(NO_MAPS) & set(rows)
