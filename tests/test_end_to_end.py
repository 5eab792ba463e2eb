"""Whole runs on other data and networks: a VOC devkit, DeepLab, cached features, a stranger's trainer, tar readers."""

from __future__ import annotations

import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import TRAINING, Workspace
from PIL import Image

import replaygen as rg
from replaygen.runs import Run, replay_sets

VOC = """
name = "voc-tiny"
shard = 4
[data]
kind = "voc"
path = "{voc}"
[scenario]
task = "2-1"
classes = ["cat", "dog", "cow"]
setting = "disjoint"
[network]
kind = "deeplab"
encoder = "transformers"
weights = "{backbone}"
output_stride = 8
{network}
[views]
size = 64
count = 2
[replay.photos]
source = "folder"
path = "{photos}"
count = 6
[train.fit]
iterations = 4
batch = 4
lr = 0.001
[train.base]
iterations = 30
[[method]]
name = "recall"
trainer = "recall"
replay = "photos"
[[method]]
name = "joint"
trainer = "joint"
"""

CLASSES = {"cat": 8, "dog": 12, "cow": 10}


def _picture(random: np.random.Generator, raw: int) -> tuple[np.ndarray, np.ndarray]:
    image = random.integers(0, 60, (48, 64, 3), dtype=np.uint8)
    mask = np.zeros((48, 64), np.uint8)
    image[10:40, 12:50] = [40 + 10 * raw, 255 - 15 * raw, 20 * raw]
    mask[10:40, 12:50] = raw
    mask[9, 12:50] = 255
    return image, mask


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    """A VOC 2012 devkit in small, and photos of its classes."""
    random = np.random.default_rng(0)
    root = tmp_path / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    ids: dict[str, list[str]] = {"train": [], "val": []}
    for split, count in (("train", 5), ("val", 2)):
        for name, raw in CLASSES.items():
            for i in range(count):
                key = f"2007_{len(ids[split]):03d}{'00' if split == 'train' else '99'}{i}"
                image, mask = _picture(random, raw)
                Image.fromarray(image).save(root / "JPEGImages" / f"{key}.jpg", quality=95)
                Image.fromarray(mask).save(root / "SegmentationClass" / f"{key}.png")
                ids[split].append(key)
                if split == "train":
                    (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
                    photo, _ = _picture(random, raw)
                    Image.fromarray(photo).save(tmp_path / "photos" / name / f"{i}.jpg")
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(ids[split]) + "\n")
    return tmp_path


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    """A small ResNet of transformers with random weights, saved as a user would have one."""
    import torch
    from transformers import ResNetBackbone, ResNetConfig

    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage4"],
    )  # fmt: skip
    ResNetBackbone(config).save_pretrained(tmp_path / "backbone")
    return tmp_path / "backbone"


def _voc(devkit: Path, backbone: Path, network: str) -> Run:
    path = devkit / "pipelines" / "voc-tiny.toml"
    path.parent.mkdir()
    path.write_text(VOC.format(voc=devkit / "VOC2012", backbone=backbone, photos=devkit / "photos", network=network))
    recipe = rg.Recipe.load(path)
    return rg.run(recipe.plan(recipe.store()))


def test_a_voc_devkit_is_learnt_with_deeplab_v2_as_recall_has_it(devkit: Path, backbone: Path) -> None:
    """DeepLab-v2 on a transformers backbone, frozen after step 0: every step trains, labels and evaluates."""
    done = _voc(devkit, backbone, 'head = "deeplabv2"\nfreeze = "after_base"\nfreeze_bn = "after_base"')
    assert [len(done.result.of(row, 0)) for row in ("recall", "joint")] == [2, 1]
    assert done.result.last("recall")[0].names == ("background", "cat", "dog", "cow")


def test_a_frozen_encoder_is_run_once_for_each_image(devkit: Path, backbone: Path) -> None:
    """With a frozen encoder every image's features are made once, and training, labelling and evaluation read them."""
    done = _voc(devkit, backbone, 'head = "aspp"\nrates = [1, 2]\ntaps = ["8"]\nfreeze = "always"'.replace(
        'taps = ["8"]', 'taps = ["4", "8"]'))  # fmt: skip
    stages = done.tally.stages
    assert stages["features-current"].accepted == 15 + 6
    assert stages["features-replay"].accepted == sum(len(one) for one in done.replay.values())
    for task in done.plan.tasks.values():
        if task.stage in ("train", "label", "relabel", "evaluate"):
            roles = {role for role, _ in task.inputs}
            assert "features" in roles or "replay" in roles


def test_features_and_images_train_the_same_views(devkit: Path, backbone: Path) -> None:
    """View 0 of cached features is what the encoder gives for the plain resized image, to half precision."""
    import torch

    from replaygen.learn import ViewSpec, build_network, encode_views
    from replaygen.learn.specs import NetworkSpec

    spec = NetworkSpec(
        kind="deeplab", encoder="transformers", weights=str(backbone), output_stride=8, taps=("4", "8"),
        head="aspp", rates=(1, 2), freeze="always",
    )  # fmt: skip
    net = build_network(spec, 3, 0)
    image = np.random.default_rng(1).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    cached = encode_views(net, [image], ["x"], ViewSpec(size=64, count=3))[0]
    direct = net.encode(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)
    for one, other in zip(cached, direct, strict=True):
        assert torch.allclose(one[0].float(), other[0], atol=2e-2, rtol=1e-2)


def test_plain_tar_and_webdataset_open_the_shards(workspace: Workspace) -> None:
    """A stranger reads a shard with tarfile, and with the webdataset package."""
    recipe = rg.Recipe.load(workspace.recipe(TRAINING))
    done = rg.run(recipe.plan(recipe.store()))
    found = done.replay["zero"]
    path = found.store.open_object(found.manifest["shards"][0]["images"])
    with tarfile.open(path) as tar:
        names = tar.getnames()
    assert {Path(name).suffix for name in names} == {".png", ".json"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package's own
        import webdataset

        samples = list(webdataset.WebDataset(str(path), shardshuffle=False).decode("pil"))
    assert [sample["__key__"] for sample in samples] == sorted({name.partition(".")[0] for name in names})
    assert samples[0]["png"].size == (64, 64)
    assert samples[0]["json"]["class"] == "zero"


def test_a_strangers_trainer_in_five_lines(workspace: Workspace) -> None:
    """`rg.ReplayBuffer` over a run's replay is a torch Dataset that a plain loop trains on."""
    import torch
    from torch.utils.data import DataLoader

    recipe = rg.Recipe.load(workspace.recipe(TRAINING))
    run = rg.run(recipe.plan(recipe.store()))

    buffer = rg.ReplayBuffer(run.replay, size=32)
    net = torch.nn.Conv2d(3, buffer.channels, 1)
    for image, mask, visible in DataLoader(buffer, batch_size=8, shuffle=True):
        loss = torch.nn.functional.cross_entropy(net(image), mask, ignore_index=255)
        loss.backward()
        assert visible.any(1).all()

    assert len(buffer) == sum(len(one) for one in run.replay.values())
    assert image.shape[1:] == (3, 32, 32)
    assert mask.dtype == torch.int64
    assert net.weight.grad is not None


def test_replay_sets_hold_what_their_manifest_says(workspace: Workspace) -> None:
    """Lengths, classes and shortfall of every set agree with its samples."""
    recipe = rg.Recipe.load(workspace.recipe(TRAINING), {"replay.kept.count": 50})
    run = rg.run(recipe.plan(recipe.store()))
    for found in replay_sets(run.plan).values():
        samples = list(found)
        assert len(samples) == len(found) == found.manifest["wanted"] - found.manifest["shortfall"]
        assert {sample.about["class"] for sample in samples} <= {found.manifest["class"]}


def test_a_trainer_from_python(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """`rg.trainer(name).fit(...)` builds a plan and runs it; again, and nothing is done."""
    monkeypatch.chdir(workspace.root)
    arguments = {
        "scenario": {"task": "9-1"},
        "data": {"kind": "digits", "path": str(workspace.data), "options": {"train": 60, "val": 12, "photos": 24}},
        "network": {"kind": "small", "widths": [8, 16]},
        "views": {"size": 32},
        "replay": {"source": "exemplar", "count": 4},
        "fit": {"iterations": 3, "batch": 4},
    }
    first = rg.trainer("recall").fit(**arguments, seed=1)  # type: ignore[arg-type]
    assert first.result.methods() == ("recall",)
    assert first.result.seeds() == (1,)
    assert rg.trainer("recall").fit(**arguments, seed=1).tally.made == 0  # type: ignore[arg-type]


def test_a_model_of_ones_own_stands_for_step_0(workspace: Workspace, tmp_path: Path) -> None:
    """A saved step-0 model is taken in, and the chain on it gives the weights of the chain that trained it."""
    recipe = rg.Recipe.load(workspace.recipe(TRAINING))
    first = rg.run(recipe.plan(recipe.store()))
    saved = {path.name: path for path in first.save_models(tmp_path / "models")}
    assert "base-seed0-step0" in saved
    assert "recall-seed0-step2" in saved
    given = rg.Recipe.load(workspace.recipe(TRAINING), {"train.base_model": str(saved["base-seed0-step0"])})
    again = rg.run(given.plan(given.store()))
    assert "train/base/seed0/step0" in again.plan.slots
    assert again.tally.stages["given-base"].accepted == 1
    for slot in ("train/finetune/seed0/step2", "train/recall/seed0/step2"):
        digests = set()
        for run in (first, again):
            record = run.plan.store.get(run.plan.slots[slot])
            assert record is not None
            digests.add(record.output("model.safetensors").digest)
        assert len(digests) == 1


@pytest.mark.parametrize("fault", ["step", "classes", "missing", "network"])
def test_a_wrong_model_is_refused_before_any_work(workspace: Workspace, tmp_path: Path, fault: str) -> None:
    """A model of another step, of other classes, of another network or none at all is refused by the plan."""
    import json

    network = {"kind": "small", "widths": [16, 24], "freeze": "never", "freeze_bn": "never"}
    names = ["background", "zero", "one", "two", "three", "four", "five", "six", "seven"]
    told = {"step": 0, "names": names, "network": network, "channels": 9, "format": 1, "new": [1, 2, 3, 4, 5, 6, 7, 8]}
    wrong = {"step": {"step": 2}, "classes": {"names": names[::-1]}, "network": {"network": {"kind": "deeplab"}}}
    (tmp_path / "given").mkdir()
    if fault != "missing":
        (tmp_path / "given" / "model.json").write_text(json.dumps({**told, **wrong[fault]}))
        (tmp_path / "given" / "model.safetensors").write_bytes(b"")
    recipe = rg.Recipe.load(workspace.recipe(TRAINING), {"train.base_model": str(tmp_path / "given")})
    with pytest.raises(rg.ReplaygenError) as caught:
        recipe.plan(recipe.store())
    assert str(tmp_path / "given") in str(caught.value)
    assert caught.value.hint
