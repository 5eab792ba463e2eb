"""What stands still: parts held in a fit, the previous model as a teacher, and weights fused with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from replaygen.errors import ModelError
from replaygen.learn import (
    Batch,
    FitOptions,
    MixedBatches,
    NetworkSpec,
    Prediction,
    Samples,
    SegNet,
    StepJob,
    Teacher,
    ViewSpec,
    build_network,
    cross_entropy,
    fit,
    fused,
    image_item,
    save_checkpoint,
)
from replaygen.learn.heads import Classifier

HEADS = ("deeplabv2", "deeplabv3", "deeplabv3plus", "segformer", "light", "aspp")
ADAMW = FitOptions(optimizer="adamw", lr=0.01, weight_decay=0.1)
SGD = FitOptions(optimizer="sgd", lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1, average=0.5)
Make = Callable[[str], NetworkSpec]


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Tiny networks by name: small, an op list, and a ResNet of transformers below each head."""
    root = tmp_path_factory.mktemp("networks")
    shapes = {"a": [8, 3, 3, 3], "b": [8, 1, 3, 3], "c": [6, 8, 3, 3]}
    kinds = {"a": "conv", "b": "dwconv", "c": "conv"}
    ops = [
        {"op": kinds[key], "inp": [index], "out": index + 1, "key": key, "shape": shape, "stride": 2, "dilation": 1,
         "pad": "same", "act": "relu"}
        for index, (key, shape) in enumerate(shapes.items())
    ]  # fmt: skip
    (root / "net.json").write_text(json.dumps({"input": 0, "output": 3, "ops": ops}))
    torch.manual_seed(0)
    tensors = {f"{key}.weight": torch.randn(shape) * 0.3 for key, shape in shapes.items()}
    tensors |= {f"{key}.bias": torch.randn(shape[0]) * 0.1 for key, shape in shapes.items()}
    torch.save(tensors, root / "net.pt")

    def make(name: str) -> NetworkSpec:
        if name == "small":
            return NetworkSpec(widths=(4, 6, 8))
        table: dict[str, Any] = {"kind": "deeplab", "width": 8, "rates": (1, 2), "head": "light"}
        if name == "oplist":
            return NetworkSpec.model_validate({**table, "weights": str(root / "net.json"), "output_stride": 8})
        if not (root / "resnet").is_dir():
            transformers = pytest.importorskip("transformers")
            config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 8, 12, 16], depths=[1, 1, 1, 1])
            transformers.ResNetModel(config).save_pretrained(root / "resnet")
        named = {"encoder": "transformers", "weights": str(root / "resnet"), "head": name, "output_stride": 16}
        return NetworkSpec.model_validate({**table, **named})

    return make


def scenes(channels: int = 3) -> Samples:
    """Two images with a square of every class."""
    dice = np.random.default_rng(0)
    image, mask = dice.integers(0, 255, (32, 32, 3), np.uint8), np.zeros((32, 32), np.uint8)
    for channel in range(1, channels):
        mask[4 * channel : 4 * channel + 4, 4:28] = channel
        image[mask == channel] = 60 * channel
    views, visible = ViewSpec(size=32, count=2), tuple(range(1, channels))
    return Samples([image_item(f"s{i}", visible, False, lambda: (image, mask), views) for i in range(2)])


def a_batch(channels: int = 3) -> Batch:
    """The first of its batches."""
    return MixedBatches(scenes(channels), None, batch=2, seed=0, iterations=1, channels=channels)[0]


def learnt(
    net: SegNet, options: FitOptions = ADAMW, iterations: int = 3
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """All tensors before and after a fit."""
    before = {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}
    batches = MixedBatches(scenes(net.channels), None, batch=2, seed=0, iterations=iterations, channels=net.channels)
    fit(net, batches, lambda said, batch: cross_entropy(said.logits, batch.masks), options, 0, device="cpu")
    return before, dict(net.state_dict())


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Names of the tensors that are not the same bit for bit."""
    return {name for name in before if not torch.equal(before[name], after[name])}


def convolutions(net: SegNet) -> list[str]:
    """Names of the encoder's convolution weights, in order."""
    return [name for name, tensor in net.named_parameters() if name.startswith("encoder.") and tensor.ndim == 4]


@pytest.mark.parametrize("options", [ADAMW, SGD], ids=["adamw", "sgd"])
@pytest.mark.parametrize("name", ["small", "oplist", "deeplabv2", "deeplabv3"])
def test_a_held_encoder_does_not_move(specs: Make, name: str, options: FitOptions) -> None:
    """hold("encoder"): weights, norms and statistics of the encoder are the same bytes after a fit; the head learns."""
    net = build_network(specs(name), 3, 0).at_step(1).hold("encoder")
    names = moved(*learnt(net, options))
    assert not any(name.startswith("encoder.") for name in names)
    assert {name for name, _ in net.head.named_parameters(prefix="head")} <= names


@pytest.mark.parametrize("options", [ADAMW, SGD], ids=["adamw", "sgd"])
@pytest.mark.parametrize("name", ["small", "oplist", "deeplabv3"])
def test_the_first_third_does_not_move(specs: Make, name: str, options: FitOptions) -> None:
    """hold("first"): a third of the encoder's convolutions and the norms between stay, all that follows learns."""
    net = build_network(specs(name), 3, 0).at_step(1).hold("first")
    order = convolutions(net)
    held = order[: len(order) // 3]
    before, after = learnt(net, options)
    names = moved(before, after)
    assert len(held) >= 1
    assert not names & set(held)
    assert set(order[len(held) :]) <= names
    statistics = [one for one in before if one.startswith("encoder.") and one.endswith("running_mean")]
    if statistics:
        assert [one in names for one in statistics] == [place >= len(held) for place in range(len(statistics))]


@pytest.mark.parametrize("options", [ADAMW, SGD], ids=["adamw", "sgd"])
@pytest.mark.parametrize("name", ["small", "oplist", *HEADS])
def test_a_held_body_learns_new_rows_only(specs: Make, name: str, options: FitOptions) -> None:
    """hold("body", rows): only the classifiers' rows of new classes move, the old ones keep every bit."""
    net = build_network(specs(name), 2, 0).grow(4, "balanced").at_step(1).hold("body", rows=2)
    before, after = learnt(net, options)
    layers = [f"head.{name}" for name, module in net.head.named_modules() if isinstance(module, Classifier)]
    assert moved(before, after) == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    for layer in layers:
        for kind in ("weight", "bias"):
            now, then = after[f"{layer}.{kind}"], before[f"{layer}.{kind}"]
            assert torch.equal(now[:2], then[:2])
            assert all(not torch.equal(now[row], then[row]) for row in (2, 3))


def test_nothing_held_moves_everything(specs: Make) -> None:
    """hold("none") is a fit of all parameters, and releases what was held before."""
    net = build_network(specs("deeplabv3"), 3, 0).at_step(1).hold("body", rows=2).hold("none")
    assert {name for name, _ in net.named_parameters()} <= moved(*learnt(net))


def test_holding_replaces_what_was_held(specs: Make) -> None:
    """The last word counts: after "body" and then "encoder" the head and its old rows learn again."""
    net = build_network(specs("light"), 3, 0).at_step(1).hold("body", rows=2).hold("encoder")
    learning = {name for name, tensor in net.named_parameters() if tensor.requires_grad}
    assert learning == {name for name, _ in net.head.named_parameters(prefix="head")}
    assert all(module.held == 0 for module in net.head.modules() if isinstance(module, Classifier))


@pytest.mark.parametrize("what", ["first", "encoder", "body"])
def test_holding_lasts(specs: Make, what: Any) -> None:
    """Neither another step nor evaluation and training again release what is held, in gradient and statistics."""
    net = build_network(specs("deeplabv3"), 3, 0).hold(what, rows=3)
    held = [name for name, tensor in net.named_parameters() if not tensor.requires_grad]
    still = [name for name, module in net.train().named_modules() if not module.training]
    net.eval().at_step(2).train()
    assert held
    assert [name for name, tensor in net.named_parameters() if not tensor.requires_grad] == held
    assert [name for name, module in net.named_modules() if not module.training] == still


def test_held_parts_of_a_frozen_network(specs: Make) -> None:
    """The recipe's freezing stays under a hold and after its release."""
    spec = specs("deeplabv3").model_copy(update={"freeze": "after_base"})
    net = build_network(spec, 3, 0).at_step(1).hold("first").hold("none")
    assert not any(parameter.requires_grad for parameter in net.encoder.parameters())
    assert all(parameter.requires_grad for parameter in net.head.parameters())


def test_what_cannot_be_held_is_refused() -> None:
    """An unknown word, and the first third of an encoder that has no convolutions, are errors with a way out."""
    net = SegNet(nn.Identity(), build_network(NetworkSpec(widths=(4, 6)), 2, 0).head, 2)
    with pytest.raises(ModelError, match="no convolutions") as caught:
        net.hold("first")
    assert "encoder" in caught.value.hint
    with pytest.raises(ModelError, match="'encodre'"):
        net.hold("encodre")  # type: ignore[arg-type]


def shapes(maps: tuple[Tensor, ...]) -> list[tuple[int, ...]]:
    """Sizes of maps."""
    return [tuple(one.shape) for one in maps]


@pytest.mark.parametrize("freeze", ["never", "after_base"])
@pytest.mark.parametrize("name", HEADS)
def test_teacher_and_student_speak_of_the_same_maps(specs: Make, name: str, freeze: Any) -> None:
    """At step 1 both give maps of equal sizes and logits at the masks' size; the encoder's only where it learns."""
    spec = specs(name).model_copy(update={"freeze": freeze})
    job = StepJob(k=1, names=("background", "a", "b"), new=(2,), old=(1,), spec=spec, fit=FitOptions(), device="cpu")
    base = build_network(spec, 2, 0)
    saved = save_checkpoint(base, {"names": ["background", "a"], "step": 0, "network": spec.identity()})
    student, teacher, batch = job.network(saved), job.teacher(saved), a_batch()
    assert teacher is not None
    assert batch.images is not None
    said, before = student.train().predicted(student.encode(batch.images), (32, 32)), teacher(batch)
    assert (said.logits.shape, before.logits.shape) == ((2, 3, 32, 32), (2, 2, 32, 32))
    assert shapes(said.encoded) == shapes(before.encoded)
    assert shapes(said.decoded) == shapes(before.decoded)
    assert bool(said.encoded) == (freeze == "never")
    assert bool(said.decoded) == (name != "deeplabv2")
    assert shapes(said.stages) == shapes(said.encoded) + shapes(said.decoded)
    if said.stages:
        assert said.features is (said.encoded or said.decoded)[-1]
        assert said.features.shape == before.features.shape
        assert said.features.requires_grad
        assert not before.features.requires_grad
    else:
        with pytest.raises(ModelError, match="nothing learns below the classifier"):
            _ = said.features


@pytest.mark.parametrize("what", ["first", "encoder", "body"])
def test_a_held_student_still_speaks_of_its_encoder(specs: Make, what: Any) -> None:
    """What only `hold` keeps still gives its maps as the teacher does, so their difference is 0 and no error."""
    net = build_network(specs("deeplabv3"), 3, 0).at_step(1)
    teacher = Teacher(build_network(specs("deeplabv3"), 3, 0).at_step(1), torch.device("cpu"))
    batch = a_batch()
    assert batch.images is not None
    student = net.hold(what, rows=3).train()
    said, before = student.predicted(student.encode(batch.images), (32, 32)), teacher(batch)
    assert shapes(said.stages) == shapes(before.stages)
    if what != "first":
        assert torch.allclose(said.features, before.features, atol=1e-6)


def test_decoded_maps_are_the_heads_own(specs: Make) -> None:
    """For small networks too: the encoder's maps come first, the head's last is what the classifier reads."""
    net = build_network(specs("small"), 3, 0).eval()
    images = torch.rand(1, 3, 32, 32)
    said = net.predicted(net.encode(images), (32, 32))
    head: Any = net.head
    assert len(said.stages) == 5
    assert torch.equal(net(images), said.logits)
    assert torch.equal(head.classified(said.decoded[-1]), net.head_logits(net.encode(images)))


def test_a_head_of_ones_own_has_no_maps() -> None:
    """A head that is only a torch module predicts as ever, with the encoder's maps alone."""
    net, features = SegNet(nn.Identity(), OneMap(), 2), (torch.rand(1, 4, 8, 8),)
    said = net.predicted(features, (16, 16))
    assert isinstance(said, Prediction)
    assert (said.logits.shape, said.stages) == ((1, 2, 16, 16), features)


class OneMap(nn.Module):
    """A user's head."""

    def __init__(self) -> None:
        super().__init__()
        self.classify = Classifier(4, 2)

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        logits: Tensor = self.classify(features[-1])
        return logits


def test_a_teacher_never_learns(specs: Make) -> None:
    """A fit against it leaves all its tensors alone: no gradient, no statistics, equal answers before and after."""
    teacher = Teacher(build_network(specs("deeplabv3"), 3, 0).train(), torch.device("cpu"))
    kept = {name: tensor.clone() for name, tensor in teacher.net.state_dict().items()}
    student, batch = build_network(specs("deeplabv3"), 3, 1), a_batch()
    answer = teacher(batch).logits

    def loss(said: Prediction, batch: Batch) -> Tensor:
        return (said.features - teacher(batch).features).square().mean()

    batches = MixedBatches(scenes(), None, batch=2, seed=0, iterations=2, channels=3)
    fit(student, batches, loss, ADAMW, 0, device="cpu")
    assert moved(kept, dict(teacher.net.state_dict())) == set()
    assert torch.equal(teacher(batch).logits, answer)
    assert not answer.requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.net.parameters())


def test_a_teacher_reads_cached_features(specs: Make) -> None:
    """Where a batch has features the encoder is not asked; logits have the size of the batch's masks."""
    net = build_network(specs("light"), 3, 0).eval()
    batch = a_batch()
    assert batch.images is not None
    with torch.no_grad():
        features = net.encode(batch.images)
    teacher = Teacher(net, torch.device("cpu"))
    wanted = teacher(batch).logits
    cached = replace(batch, images=None, features=features, masks=batch.masks[:, :20, :20])
    net.encoder = nn.Identity()
    assert teacher(cached).logits.shape == (2, 3, 20, 20)
    assert torch.equal(teacher(replace(cached, masks=batch.masks)).logits, wanted)


def test_fused_weights_are_the_mean_of_both(specs: Make) -> None:
    """EWF: 0.75 of the old network and 0.25 of the new in every floating tensor, statistics included; counters stay."""
    old, new = (build_network(specs("deeplabv3"), 3, seed) for seed in (0, 1))
    for net, value in ((old, 1.0), (new, 5.0)):
        with torch.no_grad():
            for tensor in net.saved_tensors().values():
                tensor.fill_(value)
    assert fused(new, old.saved_tensors(), 0.25) is new
    for name, tensor in new.saved_tensors().items():
        wanted = 0.75 * 1 + 0.25 * 5 if tensor.is_floating_point() else 5
        assert torch.equal(tensor, torch.full_like(tensor, wanted)), name
    assert all(bool((tensor == 1).all()) for tensor in old.saved_tensors().values())


@pytest.mark.parametrize("name", ["small", "deeplabv2"])
def test_new_rows_are_not_fused(specs: Make, name: str) -> None:
    """A grown classifier is fused in its old rows; rows of new classes keep what they learnt, bit for bit."""
    old = build_network(specs(name), 2, 0)
    new = build_network(specs(name), 2, 1).grow(4, "random", 3)
    learnt_rows = {key: tensor.clone() for key, tensor in new.saved_tensors().items()}
    fused(new, old.saved_tensors(), 0.5)
    layers = [f"head.{key}" for key, module in new.head.named_modules() if isinstance(module, Classifier)]
    for key in (f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")):
        now, before, then = new.saved_tensors()[key], learnt_rows[key], old.saved_tensors()[key]
        assert torch.equal(now[2:], before[2:])
        assert torch.allclose(now[:2], (then + before[:2]) / 2, atol=1e-7)


@pytest.mark.parametrize(("alpha", "seed"), [(0.0, 0), (1.0, 1)])
def test_fusing_by_nothing_or_all(specs: Make, alpha: float, seed: int) -> None:
    """alpha = 0 gives the old network's logits, alpha = 1 the new one's."""
    old, new = (build_network(specs("small"), 3, number).eval() for number in (0, 1))
    images = torch.rand(1, 3, 32, 32)
    wanted = build_network(specs("small"), 3, seed).eval()(images)
    assert torch.allclose(fused(new, old.saved_tensors(), alpha)(images), wanted, atol=1e-6)


def test_fusing_what_does_not_fit_is_refused(specs: Make) -> None:
    """A share outside 0..1, and a network that shrank, are errors; nothing is changed by the first."""
    small, large = build_network(specs("small"), 2, 0), build_network(specs("small"), 4, 0)
    kept = {name: tensor.clone() for name, tensor in small.saved_tensors().items()}
    for alpha in (-0.1, 1.5, float("nan")):
        with pytest.raises(ModelError, match="is no share"):
            fused(small, large.saved_tensors(), alpha)
    assert moved(kept, small.saved_tensors()) == set()
    with pytest.raises(ModelError, match=r"was \(4, 4, 1, 1\) and is \(2, 4, 1, 1\)"):
        fused(small, large.saved_tensors(), 0.5)
