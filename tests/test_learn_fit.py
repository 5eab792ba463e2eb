"""Fitting: the same bytes after kills, damaged checkpoints, folders that cannot be written, early diagnosis."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Literal

import learn_fit_child as child
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from replaygen.errors import ModelError, StoreError
from replaygen.learn import (
    Batch,
    FitOptions,
    MixedBatches,
    NetworkSpec,
    Prediction,
    Samples,
    ViewSpec,
    build_network,
    cross_entropy,
    encode_views,
    feature_item,
    fit,
    image_item,
)
from replaygen.learn.fitting import Event, FitResult, shifted
from replaygen.learn.optimise import schedule


def same_weights(one: FitResult, two: FitResult) -> bool:
    """Bit for bit."""
    mine, others = one.net.state_dict(), two.net.state_dict()
    return mine.keys() == others.keys() and all(torch.equal(mine[name], others[name]) for name in mine)


@pytest.fixture(scope="module")
def uninterrupted() -> FitResult:
    """The fit without a folder and without a kill."""
    found: FitResult = child.run(None)[0]
    return found


def test_finished_fit_is_not_done_again(tmp_path: Path, uninterrupted: FitResult) -> None:
    """A fit whose last checkpoint stands resumes at its end, with equal weights and the losses of every iteration."""
    child.run(tmp_path)
    again, events = child.run(tmp_path)
    assert [event["iteration"] for event in events if event["event"] == "resumed"] == [24]
    assert same_weights(again, uninterrupted)
    assert again.losses == uninterrupted.losses
    assert len(again.losses) == 24


def test_two_checkpoints_are_kept(tmp_path: Path) -> None:
    """Only the newest two checkpoints stay, and no temporary file."""
    child.run(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"fit-000000{n}.{ending}" for n in (21, 24) for ending in ("json", "safetensors")
    ]


@pytest.mark.parametrize(
    "damage", ["flip tensors", "cut tensors", "no tensors", "flip json", "cut json", "empty json", "swap"]
)
def test_damaged_checkpoint_is_passed_over(tmp_path: Path, uninterrupted: FitResult, damage: str) -> None:
    """The newest checkpoint damaged in any way: a warning names it, the one before is used, the end is the same."""
    child.run(tmp_path)
    tensors, told = tmp_path / "fit-00000024.safetensors", tmp_path / "fit-00000024.json"
    target = told if "json" in damage else tensors
    data = bytearray(target.read_bytes())
    if damage.startswith("flip"):
        data[len(data) // 2] ^= 1
    data = data[: len(data) // 2] if damage.startswith("cut") else bytearray() if damage.startswith("empty") else data
    target.write_bytes(data)
    if damage == "no tensors":
        target.unlink()
    if damage == "swap":
        target.write_bytes((tmp_path / "fit-00000021.safetensors").read_bytes())
    result, events = child.run(tmp_path)
    warnings = [event["message"] for event in events if event["event"] == "warning"]
    assert len(warnings) == 1
    assert "checkpoint at iteration 24 is not used" in warnings[0]
    assert [event["iteration"] for event in events if event["event"] == "resumed"] == [21]
    assert same_weights(result, uninterrupted)


def test_all_checkpoints_damaged_starts_anew(tmp_path: Path, uninterrupted: FitResult) -> None:
    """Without a sound checkpoint the fit starts from its beginning."""
    child.run(tmp_path)
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(b"")
    result, events = child.run(tmp_path)
    assert not any(event["event"] == "resumed" for event in events)
    assert same_weights(result, uninterrupted)


def test_checkpoint_of_another_fit_is_not_continued(tmp_path: Path) -> None:
    """Other options in the same folder: the old checkpoints are left alone with a warning."""
    child.run(tmp_path)
    other = child.OPTIONS.model_copy(update={"lr": 0.02})
    _, events = child.run(tmp_path, other)
    assert not any(event["event"] == "resumed" for event in events)
    assert any("another fit" in event["message"] for event in events if event["event"] == "warning")


def test_how_often_checkpoints_are_written_changes_nothing(tmp_path: Path, uninterrupted: FitResult) -> None:
    """The cadence of checkpoints and logs is no part of what a fit is."""
    other = child.OPTIONS.model_copy(update={"checkpoint_every": 5, "log_every": 1})
    assert other.identity() == child.OPTIONS.identity()
    result, _ = child.run(tmp_path, other)
    assert same_weights(result, uninterrupted)


def test_unwritable_folder_is_an_error(tmp_path: Path) -> None:
    """A folder that cannot be made stops the fit before its first iteration, and says where."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot write training checkpoints") as caught:
        child.run(tmp_path / "file" / "partial")
    assert str(tmp_path) in caught.value.where


def test_failed_save_is_an_error(tmp_path: Path) -> None:
    """A checkpoint that cannot be written is never passed over in silence."""
    (tmp_path / "fit-00000003.safetensors").mkdir()
    with pytest.raises(StoreError, match="cannot write"):
        child.run(tmp_path)


def test_the_loss_falls(uninterrupted: FitResult) -> None:
    """The fit learns something."""
    assert np.mean(uninterrupted.losses[-5:]) < 0.7 * np.mean(uninterrupted.losses[:3])


def tiny(visible: tuple[int, ...] = (1,)) -> Samples:
    """Two images of class 1."""
    views = ViewSpec(size=16)
    image, mask = np.full((16, 16, 3), 80, np.uint8), np.zeros((16, 16), np.uint8)
    mask[4:9, 4:9] = 1
    return Samples([image_item(f"t{i}", visible, False, lambda: (image, mask), views) for i in range(2)])


def test_loss_that_is_not_a_number_stops_the_fit() -> None:
    """A NaN loss names the step, the iteration and a way out; no weights come of it."""
    batches = MixedBatches(tiny(), None, batch=2, seed=0, iterations=5, channels=2)
    with pytest.raises(ModelError, match="nan at iteration 1 of 5") as caught:
        fit(build_network(NetworkSpec(widths=(4, 4)), 2, 0), batches, lambda z, b: z.logits.sum() * math.nan,
            FitOptions(), 0, device="cpu", where="step 3")  # fmt: skip
    assert caught.value.where == "step 3"
    assert "lower lr" in caught.value.hint


def test_class_without_pixels_is_told_early() -> None:
    """A class that is declared visible but has no pixel in the first epoch is warned about."""
    events: list[dict[str, object]] = []
    batches = MixedBatches(tiny((1, 2)), None, batch=2, seed=0, iterations=3, channels=3)
    fit(build_network(NetworkSpec(widths=(4, 4)), 3, 0), batches, lambda z, b: z.logits.mean(), FitOptions(), 0,
        log=events.append, device="cpu")  # fmt: skip
    warnings = [event["message"] for event in events if event["event"] == "warning"]
    assert len(warnings) == 1
    assert "class 2" in str(warnings[0])


def test_replay_that_is_never_drawn_is_told_early() -> None:
    """Batches that have a buffer and never draw from it are warned about."""

    class Forgetful(MixedBatches):
        def drawn(self, t: int) -> list[tuple[Samples, int, int]]:
            return [(self.current, 0, 0)]

    replay = Samples([replace(item, id=f"r-{item.id}", replay=True) for item in tiny().items])
    events: list[dict[str, object]] = []
    batches = Forgetful(tiny(), replay, batch=2, seed=0, iterations=3, channels=2)
    fit(build_network(NetworkSpec(widths=(4, 4)), 2, 0), batches, lambda z, b: z.logits.mean(), FitOptions(), 0,
        log=events.append, device="cpu")  # fmt: skip
    assert ["no replay sample was drawn" in str(e["message"]) for e in events if e["event"] == "warning"] == [True]


def test_fit_on_cached_features_moves_the_head_only() -> None:
    """Batches of features train the head of a frozen network without asking its encoder."""
    views = ViewSpec(size=16, count=2)
    net = build_network(NetworkSpec(widths=(4, 4), freeze="after_base"), 2, 0).at_step(1)
    taps = encode_views(net, [np.full((16, 16, 3), 80, np.uint8)], ["a"], views)[0]
    mask = np.zeros((16, 16), np.uint8)
    item = feature_item("a", (1,), False, lambda v: tuple(tap[v] for tap in taps), lambda: mask, views)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    batches = MixedBatches(Samples([item]), None, batch=2, seed=0, iterations=2, channels=2)
    fit(net, batches, lambda z, b: cross_entropy(z.logits, b.masks), FitOptions(), 0, device="cpu")
    changed = {name.split(".")[0] for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"head"}


@pytest.mark.soak
def test_random_damage_is_always_caught(tmp_path: Path, uninterrupted: FitResult) -> None:
    """40 random bit flips and cuts of the newest checkpoint: each is caught, and the end is the same."""
    dice = random.Random(0)
    for _ in range(40):
        child.run(tmp_path)
        target = tmp_path / f"fit-00000024.{dice.choice(['json', 'safetensors'])}"
        data = bytearray(target.read_bytes())
        place = dice.randrange(len(data))
        data[place] ^= 1 << dice.randrange(8)
        target.write_bytes(data if dice.random() < 0.7 else data[:place])
        result, events = child.run(tmp_path)
        assert [event["iteration"] for event in events if event["event"] == "resumed"] == [21]
        assert same_weights(result, uninterrupted)


def test_schedules() -> None:
    """poly, cosine and constant start at lr; poly and cosine head for lr_end; warm-up rises linearly."""
    poly = FitOptions(lr=1.0, lr_end=0.1, schedule="poly")
    assert schedule(poly, 0, 10) == 1
    assert schedule(poly, 5, 10) == pytest.approx(0.1 + 0.9 * 0.5**0.9)
    cosine = FitOptions(lr=1.0, lr_end=0.1, schedule="cosine")
    assert schedule(cosine, 5, 10) == pytest.approx(0.55)
    assert schedule(FitOptions(schedule="constant"), 9, 10) == 1
    assert schedule(FitOptions(schedule="constant", warmup=4), 1, 10) == 0.5


@pytest.mark.parametrize(
    "table",
    [
        {"lr": -1},
        {"lr": 0.1, "lr_end": 0.2},
        {"nesterov": True, "momentum": 0},
        {"learning_rate": 1},
        {"shift": -1},
        {"background_weight_end": 0},
        {"new_weight": 0},
        {"new_weight": float("inf")},
        {"precision": "int8"},
        {"batch": 9, "accumulate": 2},
        {"loaders": -1},
    ],
)
def test_impossible_options_are_refused(table: dict[str, object]) -> None:
    """Options that cannot work are refused before anything runs."""
    with pytest.raises(ValidationError):
        FitOptions.model_validate(table)


class Stopped(Exception):
    """Stands for a fit that ends early."""


def test_shifted_fit_resumes_with_the_same_bytes(tmp_path: Path, uninterrupted: FitResult) -> None:
    """A fit whose batches are shifted, stopped and resumed: weights and losses of the uninterrupted one."""
    options = child.OPTIONS.model_copy(update={"shift": 5})

    def stop(event: Event) -> None:
        if event["event"] == "checkpoint" and event["iteration"] == 12:
            raise Stopped

    whole, _ = child.run(None, options)
    with pytest.raises(Stopped):
        child.run(tmp_path, options, tell=stop)
    resumed, events = child.run(tmp_path, options)
    assert [event["iteration"] for event in events if event["event"] == "resumed"] == [12]
    assert same_weights(resumed, whole)
    assert resumed.losses == whole.losses
    assert not same_weights(whole, uninterrupted)


def test_shift_rolls_image_and_mask_together() -> None:
    """Every image of a batch and its mask are rolled by one offset, up to `most` pixels each way, in all ways."""
    batch = MixedBatches(child.samples(), None, batch=3, seed=0, iterations=1, channels=3)[0]
    assert batch.images is not None
    ramp = torch.arange(16 * 16).view(1, 16, 16).expand(3, -1, -1)
    marked = replace(batch, images=ramp.unsqueeze(1).expand(-1, 3, -1, -1).float(), masks=ramp)
    offsets = set()
    torch.manual_seed(0)
    for _ in range(60):
        moved = shifted(marked, 2)
        assert moved.images is not None
        assert torch.equal(moved.images[:, 0].long(), moved.masks)
        down, across = divmod(int((moved.masks[0] == 0).nonzero()[0] @ torch.tensor([16, 1])), 16)
        assert torch.equal(moved.masks, ramp.roll((down, across), (1, 2)))
        offsets |= {((down + 8) % 16 - 8, (across + 8) % 16 - 8)}
    assert {down for down, _ in offsets} == {across for _, across in offsets} == set(range(-2, 3))


def test_shift_of_nothing_changes_nothing() -> None:
    """Without a shift, or with features instead of images, the batch stays as it is and no random number is drawn."""
    batch = MixedBatches(child.samples(), None, batch=3, seed=0, iterations=1, channels=3)[0]
    features = replace(batch, images=None, features=(torch.zeros(3, 2, 4, 4),))
    before = torch.random.get_rng_state()
    assert shifted(batch, 0) is batch
    assert shifted(features, 3) is features
    assert torch.equal(torch.random.get_rng_state(), before)


def test_shift_needs_masks_of_the_images_size() -> None:
    """Masks smaller than their images would move by other distances: refused, not misaligned."""
    batch = MixedBatches(child.samples(), None, batch=3, seed=0, iterations=1, channels=3)[0]
    with pytest.raises(ModelError, match="masks of side 8 cannot be shifted with images of side 16"):
        shifted(replace(batch, masks=batch.masks[:, ::2, ::2]), 2)


def test_logits_have_the_size_of_the_masks() -> None:
    """With label_size, loss and logits are at the masks' resolution."""
    views = ViewSpec(size=16, label_size=8)
    image, mask = np.full((16, 16, 3), 80, np.uint8), np.zeros((16, 16), np.uint8)
    batches = MixedBatches(
        Samples([image_item("a", (1,), False, lambda: (image, mask), views)]), None,
        batch=1, seed=0, iterations=1, channels=2,
    )  # fmt: skip
    sizes = []

    def loss(said: Prediction, batch: Batch) -> torch.Tensor:
        sizes.append(tuple(said.logits.shape))
        return cross_entropy(said.logits, batch.masks)

    fit(build_network(NetworkSpec(widths=(4, 4)), 2, 0), batches, loss, FitOptions(), 0, device="cpu")
    assert sizes == [(1, 2, 8, 8)]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_biases_and_norms_do_not_decay(optimizer: Literal["sgd", "adamw"]) -> None:
    """Without any gradient, kernels shrink by 1 - lr * weight_decay and parameters of one dimension stay."""
    net = build_network(NetworkSpec(widths=(4, 4)), 2, 0)
    torch.nn.init.ones_(net.head.get_parameter("classify.bias"))
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    batches = MixedBatches(tiny(), None, batch=2, seed=0, iterations=1, channels=2)
    options = FitOptions(lr=0.5, weight_decay=0.2, optimizer=optimizer)
    fit(net, batches, lambda z, b: z.logits.sum() * 0, options, 0, device="cpu")
    for name, value in net.named_parameters():
        factor = 0.9 if value.ndim > 1 else 1.0
        assert torch.allclose(value, before[name] * factor, rtol=1e-6, atol=0), name


def test_head_and_encoder_rates() -> None:
    """head_lr multiplies the head's rate only: with 0 the head stays and the encoder moves."""
    net = build_network(NetworkSpec(widths=(4, 4)), 2, 0)
    before = {name: value.clone() for name, value in net.named_parameters()}
    batches = MixedBatches(tiny(), None, batch=2, seed=0, iterations=2, channels=2)
    fit(
        net,
        batches,
        lambda z, b: z.logits[:, 1].square().mean(),
        FitOptions(head_lr=0, weight_decay=0),
        0,
        device="cpu",
    )
    moved = {name.split(".")[0] for name, value in net.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {"encoder"}
