"""Checkpoints of steps: the same network back, and everything that does not fit refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from replaygen.errors import ModelError
from replaygen.learn import (
    Checkpoint,
    FitOptions,
    NetworkSpec,
    StepJob,
    build_network,
    load_network,
    predict_mask,
    predict_probabilities,
    save_checkpoint,
)

SPEC = NetworkSpec(widths=(6, 8))
NAMES = ["background", "cat", "dog"]


@pytest.fixture
def checkpoint() -> Checkpoint:
    """A random network of step 0."""
    return save_checkpoint(build_network(SPEC, 3, 0), {"names": NAMES, "step": 0, "network": SPEC.identity()})


def test_network_comes_back(checkpoint: Checkpoint) -> None:
    """Saved and loaded, a network gives the same logits; saved twice, the same bytes."""
    net = build_network(SPEC, 3, 0).eval()
    images = torch.rand(1, 3, 32, 32)
    back = load_network(checkpoint.tensors, checkpoint.info, SPEC, names=NAMES, step=0)
    assert torch.equal(back(images), net(images))
    assert not back.training
    assert save_checkpoint(back, checkpoint.info).tensors == checkpoint.tensors


def change_tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Checkpoint], Checkpoint]:
    """A change of a checkpoint's tensors."""

    def changed(checkpoint: Checkpoint) -> Checkpoint:
        tensors = load(checkpoint.tensors)
        change(tensors)
        return Checkpoint(save(tensors), checkpoint.info)

    return changed


def change_info(**more: Any) -> Callable[[Checkpoint], Checkpoint]:
    """A change of a checkpoint's description."""
    return lambda checkpoint: Checkpoint(checkpoint.tensors, {**checkpoint.info, **more})


@pytest.mark.parametrize(("change", "message"), [
    (change_info(names=["background", "dog", "cat"]), "channel 1 is 'dog', expected 'cat'"),
    (change_info(names=["background", "cat"]), "do not agree"),
    (change_info(step=1), "of step 1, expected step 0"),
    (change_info(format=2), "unknown checkpoint format"),
    (change_info(network=NetworkSpec(widths=(6, 9)).identity()), "these differ: widths"),
    (change_tensors(lambda t: t.pop("head.classify.bias")), "'head.classify.bias' is missing"),
    (change_tensors(lambda t: t.update(extra=torch.zeros(1))), "'extra' is unknown"),
    (change_tensors(lambda t: t.update({"head.classify.bias": torch.zeros(4)})), "expected torch.float32 \\(3,\\)"),
    (change_tensors(lambda t: t["head.classify.weight"].fill_(float("nan"))), "NaN"),
    (change_tensors(lambda t: t["head.classify.weight"].fill_(float("inf"))), "infinity"),
    (lambda c: Checkpoint(c.tensors[:-7], c.info), "not a safetensors file"),
    (lambda c: Checkpoint(b"", c.info), "not a safetensors file"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(
    checkpoint: Checkpoint, change: Callable[[Checkpoint], Checkpoint], message: str
) -> None:
    """Wrong classes, a stale step, another network, missing or extra tensors, NaN, damaged bytes."""
    wrong = change(checkpoint)
    with pytest.raises(ModelError, match=message):
        load_network(wrong.tensors, wrong.info, SPEC, names=NAMES, step=0)


def test_network_with_nan_is_not_saved() -> None:
    """NaN never gets into a checkpoint."""
    net = build_network(SPEC, 3, 0)
    net.head.get_parameter("classify.bias").data[1] = float("nan")
    with pytest.raises(ModelError, match="NaN"):
        save_checkpoint(net, {"names": NAMES, "step": 0, "network": SPEC.identity()})


def job(k: int, names: list[str], new: tuple[int, ...], old: tuple[int, ...]) -> StepJob:
    """A step's job."""
    return StepJob(k=k, names=tuple(names), new=new, old=old, spec=SPEC, fit=FitOptions(), device="cpu")


def test_next_step_grows_the_previous_network(checkpoint: Checkpoint) -> None:
    """Step 1 starts from step 0's network with a row for each new class; old logits stay."""
    net = job(1, [*NAMES, "cow", "horse"], (3, 4), (1, 2)).network(checkpoint)
    images = torch.rand(1, 3, 32, 32)
    assert net.channels == 5
    assert net.step == 1
    assert torch.allclose(net.eval()(images)[:, :3], build_network(SPEC, 3, 0).eval()(images), atol=1e-6)


def test_job_refuses_a_previous_model_that_does_not_fit(checkpoint: Checkpoint) -> None:
    """Other classes, a stale step, none at all: refused before any work."""
    with pytest.raises(ModelError, match="expected 'cow'"):
        job(1, ["background", "cow", "dog", "cat"], (3,), (1, 2)).network(checkpoint)
    with pytest.raises(ModelError, match="expected step 1"):
        job(2, [*NAMES, "cow"], (3,), (1, 2)).network(checkpoint)
    with pytest.raises(ModelError, match="needs the model of step 0"):
        job(1, [*NAMES, "cow"], (3,), (1, 2)).network(None)
    with pytest.raises(ModelError, match="seen classes"):
        job(1, [*NAMES, "cow"], (2, 3), (1, 2))


@pytest.mark.parametrize("flip", [False, True])
def test_probabilities_at_full_size(flip: bool) -> None:
    """float32 [C, H, W] of the image's own size that sum to 1; the mask is their argmax."""
    net = build_network(SPEC, 3, 0).train()
    image = np.random.default_rng(0).integers(0, 256, (37, 53, 3)).astype(np.uint8)
    found = predict_probabilities(net, image, 32, flip=flip)
    assert found.shape == (3, 37, 53)
    assert found.dtype == np.float32
    assert np.allclose(found.sum(0), 1, atol=1e-5)
    assert np.array_equal(predict_mask(net, image, 32, flip=flip), found.argmax(0))


def test_mirrored_image_gives_mirrored_probabilities() -> None:
    """With flip, prediction and mirroring commute."""
    net = build_network(SPEC, 3, 0)
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    one = predict_probabilities(net, image, 32, flip=True)
    two = predict_probabilities(net, np.ascontiguousarray(image[:, ::-1]), 32, flip=True)
    assert np.allclose(one, two[:, :, ::-1], atol=1e-5)


def test_features_predict_as_their_image() -> None:
    """From the features of view 0 the probabilities are the image's."""
    net = build_network(SPEC, 3, 0).eval()
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    with torch.no_grad():
        taps = net.encode(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)
    found = predict_probabilities(net, [tap[0] for tap in taps], 32, shape=(40, 50))
    assert found.shape == (3, 40, 50)
    assert np.allclose(predict_probabilities(net, [tap[0] for tap in taps], 32, shape=(32, 32)),
                       predict_probabilities(net, image, 32), atol=1e-5)  # fmt: skip


def noise(seed: int) -> list[torch.Tensor]:
    """Features for the small network: 6 channels of 16 x 16, 8 of 8 x 8."""
    dice = torch.Generator().manual_seed(seed)
    return [torch.randn(width, side, side, generator=dice) for width, side in ((6, 16), (8, 8))]


def test_mirrored_features_give_mirrored_probabilities() -> None:
    """With flip, prediction and mirroring of features commute; without it they do not."""
    net, features = build_network(SPEC, 3, 0), noise(0)
    mirrored = [feature.flip(-1) for feature in features]
    for flip in (True, False):
        one, two = (predict_probabilities(net, maps, 32, shape=(32, 40), flip=flip) for maps in (features, mirrored))
        assert np.allclose(one, two[:, :, ::-1], atol=1e-5) == flip


def test_symmetric_features_give_symmetric_probabilities() -> None:
    """Features that are their own mirror image: probabilities that are theirs, summing to 1."""
    symmetric = [feature + feature.flip(-1) for feature in noise(1)]
    found = predict_probabilities(build_network(SPEC, 3, 0), symmetric, 32, shape=(30, 44), flip=True)
    assert found.shape == (3, 30, 44)
    assert np.allclose(found, found[:, :, ::-1], atol=1e-5)
    assert np.allclose(found.sum(0), 1, atol=1e-5)


def test_head_logits_are_not_resized() -> None:
    """head_logits has the finest map's size; decode is its bilinear resizing."""
    net = build_network(SPEC, 3, 0).eval()
    maps = tuple(feature[None] for feature in noise(2))
    logits = net.head_logits(maps)
    assert logits.shape == (1, 3, 16, 16)
    larger = torch.nn.functional.interpolate(logits, (40, 24), mode="bilinear", align_corners=False)
    assert torch.equal(net.decode(maps, (40, 24)), larger)
    assert torch.equal(net.decode(maps, (16, 16)), logits)


@pytest.mark.parametrize(("progress", "expected"), [(0.0, 0.2), (0.25, 0.4), (0.5, 0.6), (1.0, 1.0)])
def test_background_weight_moves_linearly(progress: float, expected: float) -> None:
    """From background_weight to background_weight_end; the classes weigh 1; no weights where all are 1."""
    moving = replace(
        job(0, NAMES, (1, 2), ()), fit=FitOptions(background_weight=0.2, background_weight_end=1.0)
    )  # fmt: skip
    weights = moving.class_weights(progress)
    if progress == 1.0:
        assert weights is None
    else:
        assert weights is not None
        assert weights.tolist() == pytest.approx([expected, 1.0, 1.0])


def test_new_classes_weigh_more_after_step_0() -> None:
    """new_weight is of the step's own classes; where every class is new (step 0, joint training) it is not read."""
    fit = FitOptions(background_weight=0.2, new_weight=8.0)
    later = replace(job(1, (*NAMES, "three"), (3,), (1, 2)), fit=fit).class_weights()
    first = replace(job(0, NAMES, (1, 2), ()), fit=fit).class_weights()
    joint = replace(job(1, NAMES, (1, 2), ()), fit=FitOptions(new_weight=8.0)).class_weights()
    assert joint is None
    assert later is not None
    assert first is not None
    assert later.tolist() == pytest.approx([0.2, 1.0, 1.0, 8.0])
    assert first.tolist() == pytest.approx([0.2, 1.0, 1.0])


def test_background_weight_stays_without_an_end() -> None:
    """Without background_weight_end the weight is the same at any progress."""
    still = replace(job(0, NAMES, (1, 2), ()), fit=FitOptions(background_weight=0.2))
    for progress in (0.0, 0.9):
        weights = still.class_weights(progress)
        assert weights is not None
        assert weights.tolist() == pytest.approx([0.2, 1.0, 1.0])
