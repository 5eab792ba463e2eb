"""The methods of the field's comparison: what each remembers, what it reduces to, and that all of them take replay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from toy_steps import FIT, FOLDER, NAMES, SPEC, job, method, old_and_new, samples, step_zero, unlabelled

from replaygen.errors import DataError
from replaygen.learn import Checkpoint, Samples, StepJob, load_network
from replaygen.plan.method import read_method
from replaygen.stages.train import load_method

WITHOUT_REPLAY = ("frozen", "lwf", "ilt", "mib", "sdr", "plop", "ewf", "replaygen")
OPTIONAL = ("finetune", *WITHOUT_REPLAY)


@pytest.fixture(scope="module")
def base() -> Checkpoint:
    """Step 0, by fine-tuning."""
    return step_zero()


@pytest.fixture(scope="module")
def step_one() -> Samples:
    """Scenes whose old shapes are labelled background."""
    return unlabelled()


def short(name: str, base: Checkpoint, current: Samples, buffer: Samples | None = None, **options: Any) -> Checkpoint:
    """Five iterations of a method's step 1."""
    trainer = method(name)
    fit = FIT.model_copy(update={"iterations": 5})
    found: Checkpoint = trainer.step(1, current, buffer, base, job(1, trainer.Options(**options), fit))
    return found


GENTLE = {"lwf": {}, "ilt": {}, "frozen": {}, "mib": {"distil": 100.0}, "sdr": {"distil": 100.0},
          "plop": {"pod": 0.1}, "ewf": {"distil": 100.0}, "replaygen": {"merged": True, "distil": 100.0}}  # fmt: skip


@pytest.mark.parametrize("name", WITHOUT_REPLAY)
def test_remembers_what_fine_tuning_forgets(name: str, base: Checkpoint, step_one: Samples) -> None:
    """Old shapes that are labelled background stay known without any replay; fine-tuning is below 0.15 here."""
    trainer = method(name)
    made = trainer.step(1, step_one, None, base, job(1, trainer.Options(**GENTLE[name])))
    old, new = old_and_new(made)
    assert made.info["names"] == list(NAMES)
    assert old > 0.4
    assert new > {"frozen": 0.0, "ewf": 0.05}.get(name, 0.25)


@pytest.mark.parametrize("name", OPTIONAL)
def test_every_method_takes_replay(name: str, base: Checkpoint, step_one: Samples) -> None:
    """With a buffer the batches hold replay and another network comes out."""
    replay = samples("replay", range(200, 220), (1, 2), (1, 2))
    alone, mixed = short(name, base, step_one), short(name, base, step_one, replay)
    assert alone.tensors != mixed.tensors
    assert short(name, base, step_one, replay, r_old=3.0).tensors != mixed.tensors


@pytest.mark.parametrize("name", OPTIONAL)
def test_same_seed_same_weights(name: str, base: Checkpoint, step_one: Samples) -> None:
    """Twice the same step gives the same bytes, carried state included."""
    assert short(name, base, step_one) == short(name, base, step_one)


def test_recall_plus_without_replay_is_refused(base: Checkpoint, step_one: Samples) -> None:
    """Without replay it would silently be fine-tuning."""
    with pytest.raises(DataError, match="no replay"):
        short("recall_plus", base, step_one)


NONE = {"distil": 0.0, "init": "random"}
REDUCTIONS = [
    ("lwf", NONE, "finetune", {}),
    ("ilt", {"output": 0.0, "feature": 0.0}, "finetune", {}),
    ("ilt", {"feature": 0.0}, "lwf", {}),
    ("sdr", dict.fromkeys(("matching", "attraction", "repulsion", "sparsity"), 0.0), "mib", {}),
    ("ewf", {"alpha": 1.0}, "mib", {}),
    ("replaygen", {"merged": True}, "mib", {"distil": 0.0}),
    ("replaygen", {"init": "random"}, "finetune", {}),
]


@pytest.mark.parametrize(("name", "options", "simpler", "its"), REDUCTIONS)
def test_reduces_to_a_simpler_method(
    name: str, options: dict[str, Any], simpler: str, its: dict[str, Any], base: Checkpoint, step_one: Samples
) -> None:
    """With its own terms at 0 a method is the one it extends, byte for byte; at its defaults it is not."""
    plain = short(simpler, base, step_one, **its)
    assert load_equal(short(name, base, step_one, **options), plain)
    changed = {"distil": 20.0} if name == "replaygen" else {}
    assert not load_equal(short(name, base, step_one, **changed), plain)


def load_equal(one: Checkpoint, other: Checkpoint) -> bool:
    """Equal tensors, by name and value up to rounding (a term of weight 0 may change the order of sums)."""
    a, b = load(one.tensors), load(other.tensors)
    return set(a) == set(b) and all(torch.allclose(a[name], b[name], atol=1e-5) for name in a)


def test_frozen_moves_the_new_rows_only(base: Checkpoint, step_one: Samples) -> None:
    """After its step every tensor is as before, but for the classifier's rows of the new class."""
    before, after = load(base.tensors), load(short("frozen", base, step_one).tensors)
    for name, tensor in before.items():
        if "num_batches" not in name:
            assert torch.equal(after[name][: len(tensor)] if tensor.ndim else after[name], tensor), name
    grown = job(1).network(base, "random").saved_tensors()
    assert not torch.equal(after["head.classify.weight"][3], grown["head.classify.weight"][3])


@pytest.mark.parametrize("term", ["output", "feature", "decoder", "similarity"])
def test_each_distillation_of_ilt_acts_alone(term: str, base: Checkpoint, step_one: Samples) -> None:
    """Each of the four changes the network by itself."""
    off = {"output": 0.0, "feature": 0.0}
    assert short("ilt", base, step_one, **(off | {term: 50.0})).tensors != short("ilt", base, step_one, **off).tensors


@pytest.mark.parametrize("kind", ["soft", "temperature"])
@pytest.mark.parametrize("pixels", ["all", "old_or_background", "old"])
def test_forms_of_ilt_differ(kind: str, pixels: str, base: Checkpoint, step_one: Samples) -> None:
    """The output distillation's forms and pixel choices are all different networks from the default."""
    assert short("ilt", base, step_one, output_kind=kind, pixels=pixels).tensors != short("ilt", base, step_one).tensors


def test_freezing_of_ilt(base: Checkpoint, step_one: Samples) -> None:
    """E_F keeps the whole encoder, E_LF its first layers and not its last."""
    before = load(base.tensors)
    for freeze, first, last in (("encoder", True, True), ("first", True, False), ("none", False, False)):
        after = load(short("ilt", base, step_one, freeze=freeze).tensors)
        for name, stays in (("encoder.scales.0.0.0.weight", first), ("encoder.scales.2.2.0.weight", last)):
            assert torch.equal(after[name], before[name]) == stays, (freeze, name)


def test_prototypes_travel_and_grow(base: Checkpoint, step_one: Samples) -> None:
    """SDR's prototypes are in its checkpoint, and the next step begins with them."""
    made = short("sdr", base, step_one)
    carried = made.carried()
    assert made.state is not None
    assert all(len(tensor) == 4 for tensor in carried.values())
    names = (*NAMES, "yellow cross")
    fit = FIT.model_copy(update={"iterations": 1})
    following = StepJob(k=2, names=names, new=(4,), old=(1, 2, 3), spec=SPEC, fit=fit, device="cpu")
    batches = following.batches(samples("next", range(8), (1, 2, 3), (3,)))
    grown = following.prototypes(following.network(made), batches, made).tensors()
    for name, tensor in carried.items():
        assert len(grown[name]) == 5
        assert torch.equal(grown[name][:4], tensor)


def test_fusion_keeps_new_rows(base: Checkpoint, step_one: Samples) -> None:
    """EWF with alpha near 0 is the old network, with the rows of the new class as they were learnt."""
    before, after = load(base.tensors), load(short("ewf", base, step_one, alpha=1e-6).tensors)
    learnt = load(short("mib", base, step_one).tensors)
    weight = after["head.classify.weight"]
    assert torch.allclose(weight[:3], before["head.classify.weight"], atol=1e-4)
    assert torch.equal(weight[3:], learnt["head.classify.weight"][3:])


def test_distillation_needs_something_that_learns(step_one: Samples) -> None:
    """A network whose classifiers read a frozen encoder has no features to keep, and the error says so."""
    from replaygen.errors import ModelError
    from replaygen.learn import Prediction

    with pytest.raises(ModelError, match="nothing learns below the classifier"):
        _ = Prediction(torch.zeros(1, 2, 4, 4)).features


def test_loaded_network_is_the_trained_one(base: Checkpoint, step_one: Samples) -> None:
    """What a method returns can be loaded and continued with the classes it says."""
    made = short("plop", base, step_one)
    assert load_network(made.tensors, made.info, SPEC, names=NAMES, step=1).channels == 4


def test_the_method_of_the_docs_trains(base: Checkpoint, step_one: Samples, tmp_path: Path) -> None:
    """The edited copy of `mib` in docs/trainers.md is a method: the plan reads it, it trains, its option acts."""
    docs = (FOLDER.parent / "docs" / "trainers.md").read_text(encoding="utf-8")
    shown = docs.split("```python\n")[1].split("```")[0]
    copied = (FOLDER / "mib.py").read_text(encoding="utf-8")
    path = tmp_path / "my_mib.py"
    path.write_text(copied[: copied.index("TRAITS = ")] + shown, encoding="utf-8")
    assert read_method(path).options == {"distil": 10.0, "sure": 0.7}
    mine = load_method(path.read_bytes(), read_method(path).digest)
    fit = FIT.model_copy(update={"iterations": 3})
    strict, lenient = (
        mine.step(1, step_one, None, base, job(1, mine.Options(sure=sure), fit)) for sure in (0.999, 0.0)
    )
    assert strict.tensors != lenient.tensors
    assert strict.info["names"] == list(NAMES)
