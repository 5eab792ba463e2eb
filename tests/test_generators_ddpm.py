"""The fitted diffusion model: it learns, repeats itself byte for byte, survives a kill, refuses what does not fit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from replaygen.errors import ModelError
from replaygen.generators.ddpm import fit_ddpm, open_ddpm
from replaygen.generators.draws import Draw
from replaygen.generators.pictures import Fitted, Pictures, Seen
from replaygen.generators.specs import FitSpec
from replaygen.learn.fitting import Event

SIZE = 16
TINY = FitSpec(
    kind="diffusion", size=16, width=8, iterations=12, batch=4, lr=2e-3, average=0.9, snapshots=2, steps=2,
    draw_batch=64, bf16=False,
)  # fmt: skip
LEARNS = TINY.model_copy(update={"iterations": 60, "batch": 8, "average": 0.95, "steps": 10, "bf16": True})
DRAWN = LEARNS.model_copy(update={"draw_batch": 4})
SHAPES = ("red square", "blue circle")
DRAWS = [Draw(seed=100 + i, label=i % 2) for i in range(7)]


def pictures(classes: tuple[str, ...] = SHAPES, shade: int = 230) -> Pictures:
    """Twelve images a class on a dark ground: squares of red for even labels, circles of blue for odd ones."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    seen = []
    for label in range(len(classes)):
        for n in range(12):
            far = np.abs(rows - 6 - n % 4), np.abs(columns - 6 - n // 4)
            inside = np.maximum(*far) < 5 if label % 2 == 0 else np.hypot(*far) < 5
            image = np.full((SIZE, SIZE, 3), 20, np.uint8)
            image[inside, 0 if label % 2 == 0 else 2] = shade
            seen.append(Seen(label, image))
    return Pictures(classes, seen, TINY)


@pytest.fixture(scope="module")
def learnt() -> Fitted:
    """A fit that is long enough to learn two colours."""
    return fit_ddpm(pictures(), LEARNS, seed=1)


@pytest.fixture(scope="module")
def tiny() -> Fitted:
    """A fit of a few iterations, never interrupted."""
    return fit_ddpm(pictures(), TINY, seed=1)


def test_it_learns_which_class_is_red(learnt: Fitted) -> None:
    """The loss falls to a third, and every drawn image is brightest in its own class's colour, its corners dark."""
    losses = [point["loss"] for point in learnt.losses]
    assert losses[-1] < losses[0] / 3
    assert learnt.losses[-1]["iteration"] == LEARNS.iterations
    images = open_ddpm(learnt.tensors, learnt.config, DRAWN).draw(DRAWS)
    assert images.shape == (7, SIZE, SIZE, 3)
    assert images.dtype == np.float32
    assert images.min() >= 0
    assert images.max() <= 1
    for draw, image in zip(DRAWS, images, strict=True):
        red, _, blue = image[3:12, 3:12].mean((0, 1))
        assert red > 2 * blue if draw.label == 0 else blue > 2 * red
        assert image[14:, 14:].mean() < 0.3


def test_snapshots_show_the_averaged_weights(learnt: Fitted) -> None:
    """Two snapshots of 64 images, classes in turn, the last with the colours of its classes."""
    assert [iteration for iteration, _ in learnt.snapshots] == [30, 60]
    last = learnt.snapshots[-1][1]
    assert last.shape == (64, SIZE, SIZE, 3)
    assert last.dtype == np.uint8
    means = last[:, 3:12, 3:12].mean((1, 2))
    assert (means[0::2, 0] > means[0::2, 2]).all()
    assert (means[1::2, 2] > means[1::2, 0]).all()


def test_an_image_is_a_function_of_its_draw(learnt: Fitted) -> None:
    """Any order and any number of draws: the same bytes for the same seed and label, others for another."""
    generator = open_ddpm(learnt.tensors, json.loads(json.dumps(learnt.config)), DRAWN)
    whole = generator.draw(DRAWS)
    turned = generator.draw(DRAWS[::-1])[::-1]
    single = [generator.draw([draw])[0] for draw in DRAWS[:3]]
    assert turned.tobytes() == whole.tobytes()
    assert np.stack(single).tobytes() == whole[:3].tobytes()
    assert generator.draw([]).shape == (0, SIZE, SIZE, 3)
    assert len({image.tobytes() for image in whole}) == len(DRAWS)


def test_steps_of_a_draw(learnt: Fitted) -> None:
    """A number of steps that does not divide the 1000 noise levels draws nearly the same images, on a flat ground."""
    seven, ten = (
        open_ddpm(learnt.tensors, learnt.config, DRAWN.model_copy(update={"steps": steps})).draw(DRAWS)
        for steps in (7, 10)
    )
    assert 0 < np.abs(seven - ten).mean() < 0.03
    assert seven[:, 14:, 14:].std((1, 2)).max() < 0.15


def test_equal_fits_are_equal_bytes(tiny: Fitted) -> None:
    """The same arguments give the same bytes whatever was drawn from torch's own generator; another seed does not."""
    torch.manual_seed(77)
    before = torch.get_rng_state()
    again = fit_ddpm(pictures(), TINY, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    assert_same(again, tiny)
    assert fit_ddpm(pictures(), TINY, seed=2).tensors != tiny.tensors


def assert_same(one: Fitted, two: Fitted) -> None:
    """Byte for byte."""
    assert one.tensors == two.tensors
    assert one.config == two.config
    assert one.losses == two.losses
    assert [at for at, _ in one.snapshots] == [at for at, _ in two.snapshots]
    for (_, mine), (_, others) in zip(one.snapshots, two.snapshots, strict=True):
        assert mine.tobytes() == others.tobytes()


def test_killed_fit_ends_with_the_same_bytes(tmp_path: Path, tiny: Fitted) -> None:
    """SIGKILL in a child process, between the two snapshots; what resumes equals the uninterrupted fit."""
    partial = tmp_path / "partial"
    process = subprocess.Popen([sys.executable, __file__, str(partial)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(7):
        while process.stdout.readline().strip() != "checkpoint":
            assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    events: list[Event] = []
    resumed = fit_ddpm(pictures(), TINY, seed=1, partial=partial, log=events.append)
    at = [event["iteration"] for event in events if event["event"] == "resumed"]
    assert len(at) == 1
    assert 7 <= at[0] < TINY.iterations
    assert_same(resumed, tiny)


def test_checkpoints_of_another_fit_are_left_alone(tmp_path: Path, tiny: Fitted) -> None:
    """A finished fit is not done again; another seed, other pictures or a start do not go on from its checkpoints."""
    spec = TINY.model_copy(update={"iterations": 2, "snapshots": 1})
    done = tmp_path / "done"
    fit_ddpm(pictures(), spec, seed=1, partial=done)

    def told(of: Pictures, seed: int, start: tuple[bytes, dict[str, Any]] | None) -> list[str]:
        events: list[Event] = []
        folder = tmp_path / f"copy{len(list(tmp_path.iterdir()))}"
        shutil.copytree(done, folder)
        fit_ddpm(of, spec, seed=seed, partial=folder, start=start, log=events.append)
        return [event["event"] for event in events]

    assert told(pictures(), 1, None) == ["resumed"]
    anew = ["warning", "progress", "progress", "checkpoint"]
    assert told(pictures(), 2, None) == anew
    assert told(pictures(shade=200), 1, None) == anew
    assert told(pictures(), 1, (tiny.tensors, tiny.config)) == anew


def test_warm_start_keeps_the_rows_of_known_classes(tiny: Fitted) -> None:
    """Known classes keep their embedding wherever they now stand, a new one starts at the mean; the rest is kept."""
    still = TINY.model_copy(update={"lr": 1e-30, "warm_iterations": 1})
    names = ("green star", SHAPES[1], SHAPES[0])
    grown = fit_ddpm(pictures(names), still, seed=9, start=(tiny.tensors, tiny.config))
    before, after = load(tiny.tensors), load(grown.tensors)
    rows, known = after.pop("class_embedding.weight"), before.pop("class_embedding.weight")
    assert torch.equal(rows[1:], known.flip(0))
    assert torch.allclose(rows[0], known.mean(0))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert grown.config["classes"] == list(names)
    assert grown.losses[-1]["iteration"] == 1


def test_warm_start_knows_what_was_learnt(learnt: Fitted) -> None:
    """The first loss of a warm start is near the last one of the fit before, far below a cold start's."""
    spec = LEARNS.model_copy(update={"warm_iterations": 5, "iterations": 5, "snapshots": 1})
    warm = fit_ddpm(pictures(), spec, seed=3, start=(learnt.tensors, learnt.config))
    cold = fit_ddpm(pictures(), spec, seed=3)
    assert warm.losses[0]["loss"] < cold.losses[0]["loss"] / 3


def damaged(data: bytes, how: str) -> bytes:
    """The tensors, damaged in one way."""
    tensors = load(data)
    name = "conv_in.weight"
    if how == "missing":
        del tensors[name]
    elif how == "unknown":
        tensors["a_tensor"] = torch.zeros(1)
    elif how == "expected":
        tensors[name] = tensors[name][:-1]
    elif how == "NaN":
        tensors[name][0, 0, 0, 0] = torch.nan
    return data[: len(data) // 2] if how == "not a safetensors" else save(tensors)


@pytest.mark.parametrize("how", ["missing", "unknown", "expected", "NaN", "not a safetensors"])
def test_damaged_weights_are_refused(tiny: Fitted, how: str) -> None:
    """Tensors that do not fit are refused with a way out, when drawn from and when started from."""
    data = damaged(tiny.tensors, how)
    with pytest.raises(ModelError, match=how) as caught:
        open_ddpm(data, tiny.config, TINY)
    assert caught.value.hint
    with pytest.raises(ModelError, match=how):
        fit_ddpm(pictures(), TINY, seed=1, start=(data, tiny.config))


def test_another_architecture_is_refused(tiny: Fitted) -> None:
    """The description must be of the spec's network; the differing keys are named."""
    wider = TINY.model_copy(update={"width": 12})
    with pytest.raises(ModelError, match=r"differ: widths\n"):
        open_ddpm(tiny.tensors, tiny.config, wider)
    with pytest.raises(ModelError, match=r"differ: widths\n") as caught:
        fit_ddpm(pictures(), wider, seed=1, start=(tiny.tensors, tiny.config))
    assert "warm = false" in caught.value.hint
    with pytest.raises(ModelError, match="differ: kind"):
        open_ddpm(tiny.tensors, {**tiny.config, "kind": "gan"}, TINY)
    with pytest.raises(ModelError, match="does not name its classes"):
        open_ddpm(tiny.tensors, {"kind": "diffusion"}, TINY)
    with pytest.raises(ModelError, match="class_embedding"):
        open_ddpm(tiny.tensors, {**tiny.config, "classes": ["a", "b", "c"]}, TINY)


def test_impossible_draws_are_refused(tiny: Fitted) -> None:
    """No class, a class that is not there, more steps than noise levels (before the fit, too)."""
    generator = open_ddpm(tiny.tensors, tiny.config, TINY)
    for label in (None, 2, -1):
        with pytest.raises(ModelError, match=f"class index {label} was asked"):
            generator.draw([Draw(1, 0), Draw(1, label)])
    endless = TINY.model_copy(update={"steps": 1001})
    with pytest.raises(ModelError, match="1000 noise levels"):
        open_ddpm(tiny.tensors, tiny.config, endless)
    with pytest.raises(ModelError, match="1000 noise levels"):
        fit_ddpm(pictures(), endless, seed=1)


@pytest.mark.parametrize(("iterations", "what"), [(20, "the loss became"), (1, "images drawn after 1 of 1")])
def test_a_fit_that_blows_up_is_stopped(iterations: int, what: str) -> None:
    """A learning rate that is far too high is an error that says what to lower, after the last iteration too."""
    spec = TINY.model_copy(update={"lr": 1e30, "iterations": iterations, "snapshots": 1, "average": 0.0})
    with pytest.raises(ModelError, match=what) as caught:
        fit_ddpm(pictures(), spec, seed=1)
    assert "lower fit.lr" in caught.value.hint


def _slow(event: Event) -> None:
    print(event["event"], flush=True)
    time.sleep(0.05)


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    fit_ddpm(pictures(), TINY, seed=1, partial=Path(sys.argv[1]), log=_slow, checkpoint_seconds=0.0)
