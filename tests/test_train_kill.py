"""A training that is killed: SIGKILL at random moments, resumed, and the very same bytes at its end."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import learn_fit_child as child
import pytest
import torch
from safetensors.torch import load_file

CHECKPOINTS = child.OPTIONS.iterations // child.OPTIONS.checkpoint_every


@pytest.fixture(scope="module")
def uninterrupted() -> dict[str, torch.Tensor]:
    """Weights, the loss's own tensors, the loss scale and all losses of the fit without a folder and without a kill."""
    return child.everything(None)[0]


def differing(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> list[str]:
    """Names of tensors that are not equal bit for bit, or are in one of both only."""
    return [name for name in found.keys() | expected.keys() if name not in found or name not in expected
            or not torch.equal(found[name], expected[name])]  # fmt: skip


def killed_and_resumed(folder: Path, dice: random.Random) -> tuple[dict[str, torch.Tensor], list[int]]:
    """One or two SIGKILLs, each a moment after a random number of checkpoints; then a run to the end."""
    result = folder / "result.safetensors"
    command = [sys.executable, child.__file__, str(folder / "partial"), str(result)]
    for _ in range(dice.randint(1, 2)):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        waiting = dice.randint(0, CHECKPOINTS - 1)
        for line in process.stdout:
            waiting -= line.strip() == "checkpoint"
            if waiting < 0 or (waiting == 0 and line.strip() in ("begins", "checkpoint")):
                break
        time.sleep(dice.uniform(0.0, 0.12))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        result.unlink(missing_ok=True)  # of one that ended before its kill
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    return load_file(result), json.loads(told.stdout.splitlines()[-1].removeprefix("resumed at "))


def test_the_fit_that_is_killed_uses_all_that_must_survive(uninterrupted: dict[str, torch.Tensor]) -> None:
    """Its loss scale has grown, its own tensors have moved, and its weights depend on them."""
    fresh = child.Scaled.of(child.OPTIONS, torch.device("cpu")).state()
    assert uninterrupted["scaler"][0] > fresh["scale"]
    assert uninterrupted["state/means"].abs().max() > 0
    assert len(uninterrupted["losses"]) == child.OPTIONS.iterations


def test_killed_training_ends_with_the_same_bytes(tmp_path: Path, uninterrupted: dict[str, torch.Tensor]) -> None:
    """Three trainings, killed at random moments and resumed: every tensor equals that of the uninterrupted one."""
    dice = random.Random(7)
    resumptions = []
    for number in range(3):
        found, resumed = killed_and_resumed(tmp_path / str(number), dice)
        assert differing(found, uninterrupted) == []
        resumptions += resumed
    assert max(resumptions) > 0


@pytest.mark.soak
def test_50_killed_trainings_end_with_the_same_bytes(tmp_path: Path, uninterrupted: dict[str, torch.Tensor]) -> None:
    """RELIABILITY, row 7: equal weights 50 of 50."""
    dice = random.Random(50)
    wrong = {
        number: odd
        for number in range(50)
        if (odd := differing(killed_and_resumed(tmp_path / str(number), dice)[0], uninterrupted))
    }
    assert wrong == {}


@pytest.mark.parametrize("lost", ["state/means", "scaler"])
def test_what_is_left_out_of_a_checkpoint_is_missed(
    tmp_path: Path, uninterrupted: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """Resuming without the loss's tensors, or without the loss scale, gives another end: the comparison sees it."""

    def stop(event: child.Event) -> None:
        if event["event"] == "checkpoint" and event["iteration"] == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        child.everything(tmp_path, tell=stop)
    if lost == "scaler":
        monkeypatch.setattr(child.Scaled, "restore", lambda self, state: None)
    else:
        read = child.fitting.PartialFolder.newest

        def forgetful(self: child.fitting.PartialFolder) -> child.fitting.FitState | None:
            found = read(self)
            assert found is not None
            found.tensors[lost].zero_()
            return found

        monkeypatch.setattr(child.fitting.PartialFolder, "newest", forgetful)
    found, resumed = child.everything(tmp_path)
    assert resumed == [12]
    assert lost in differing(found, uninterrupted)


def test_one_seed_gives_the_same_weights_twice(uninterrupted: dict[str, torch.Tensor]) -> None:
    """The same fit again on this machine: equal bytes."""
    assert differing(child.everything(None)[0], uninterrupted) == []
