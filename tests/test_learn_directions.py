"""Projection of an op list's last map onto the directions that its own classifier tells classes apart by."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from replaygen.errors import ModelError
from replaygen.learn import NetworkSpec, build_network, read_oplist
from replaygen.learn.encoders import build_encoder, classifier_directions
from replaygen.learn.oplist import OpList, tap

CLASSES, WIDTH = 7, 12


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """Maps at strides 4, 8 and 16 (the last of 12 channels), then the mean and a classifier of 7 classes."""
    shapes = {"a": [6, 3, 3, 3], "b": [8, 6, 3, 3], "c": [WIDTH, 8, 3, 3], "logits": [CLASSES, WIDTH, 1, 1]}

    def conv(key: str, source: int, out: int, stride: int) -> dict[str, Any]:
        return {"op": "conv", "inp": [source], "out": out, "key": key, "shape": shapes[key], "stride": stride,
                "dilation": 1, "pad": "same", "act": None}  # fmt: skip

    ops = [conv("a", 0, 10, 4), conv("b", 10, 20, 2), conv("c", 20, 30, 2),
           {"op": "mean_hw", "inp": [30], "out": 40}, conv("logits", 40, 50, 1)]  # fmt: skip
    path = tmp_path / "net.json"
    path.write_text(json.dumps({"input": 0, "output": 50, "ops": ops}))
    dice = torch.Generator().manual_seed(0)
    tensors = {f"{key}.weight": torch.randn(shape, generator=dice) for key, shape in shapes.items()}
    tensors |= {f"{key}.bias": torch.randn(shape[0], generator=dice) for key, shape in shapes.items()}
    torch.save(tensors, path.with_suffix(".pt"))
    return path


def spec(graph: Path, **more: Any) -> NetworkSpec:
    """The graph as a network with taps at strides 8 and 16."""
    table = {"kind": "deeplab", "weights": str(graph), "taps": ("8", "16"), "head": "aspp", "width": 8, "rates": (1,)}
    return NetworkSpec.model_validate(table | more)


def test_directions_are_orthonormal(graph: Path) -> None:
    """float32 [count, D], rows of length 1 at right angles."""
    directions = classifier_directions(*read_oplist(graph), 5)
    assert directions.shape == (5, WIDTH)
    assert directions.dtype == torch.float32
    assert torch.allclose(directions @ directions.T, torch.eye(5), atol=1e-6)


def test_directions_have_a_positive_largest_entry(graph: Path) -> None:
    """The sign, which a singular vector leaves open, makes the largest entry positive."""
    directions = classifier_directions(*read_oplist(graph), 6)
    assert torch.equal(directions.max(1).values, directions.abs().max(1).values)


def test_directions_are_the_same_every_time(graph: Path) -> None:
    """Equal lists give equal bits, and fewer directions are the first of more."""
    one, again, fewer = (classifier_directions(*read_oplist(graph), count) for count in (6, 6, 3))
    assert torch.equal(one, again)
    assert torch.equal(one[:3], fewer)


def test_directions_do_not_depend_on_the_order_of_classes(graph: Path) -> None:
    """The classifier's rows shuffled, or all moved by one vector: the same directions."""
    oplist, tensors = read_oplist(graph)
    expected = classifier_directions(oplist, tensors, 6)
    dice = torch.Generator().manual_seed(1)
    shuffled = tensors["logits.weight"][torch.randperm(CLASSES, generator=dice)]
    moved = tensors["logits.weight"] + torch.randn(1, WIDTH, 1, 1, generator=dice)
    for changed in (shuffled, moved):
        found = classifier_directions(oplist, tensors | {"logits.weight": changed}, 6)
        assert torch.allclose(found, expected, atol=1e-4)


def test_all_directions_keep_what_tells_classes_apart(graph: Path) -> None:
    """From K - 1 directions the differences between the K classes' logits come back exactly."""
    oplist, tensors = read_oplist(graph)
    directions = classifier_directions(oplist, tensors, CLASSES - 1)
    weight = tensors["logits.weight"].flatten(1)
    weight = weight - weight.mean(0)
    features = torch.randn(WIDTH, 9, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(weight @ directions.T @ (directions @ features), weight @ features, atol=1e-4)


@pytest.mark.parametrize("count", [CLASSES, WIDTH + 1])
def test_more_directions_than_there_are_is_refused(graph: Path, count: int) -> None:
    """Centred rows of K classes span K - 1 directions; one more would be rounding noise."""
    with pytest.raises(ModelError, match=f"has no {count} directions"):
        classifier_directions(*read_oplist(graph), count)


@pytest.mark.parametrize("kind", ["no convolution", "wide kernel", "depthwise"])
def test_list_without_a_classifier_is_refused(graph: Path, kind: str) -> None:
    """Only a list that ends in a 1x1 convolution has directions."""
    oplist, tensors = read_oplist(graph)
    body = tuple(op for op in oplist.ops if op.key != "logits")
    if kind == "no convolution":
        body = tuple(op for op in body if not op.key)
    if kind == "depthwise":
        body = (*body, replace(oplist.ops[-1], kind="dwconv"))
    with pytest.raises(ModelError, match=r"network\.project"):
        classifier_directions(OpList(oplist.input, oplist.output, body, oplist.input_hw), tensors, 2)


def test_only_the_last_tap_is_projected(graph: Path) -> None:
    """The last map is its product with the directions, and the head is as wide as they are; other taps stay."""
    whole, projected = (build_encoder(spec(graph, project=count)) for count in (0, 5))
    assert whole.widths == (8, WIDTH)
    assert projected.widths == (8, 5)
    images = torch.rand(2, 3, 64, 64)
    fine, deep = whole(images)
    same, made = projected(images)
    assert torch.equal(same, fine)
    expected = torch.einsum("nd,bdhw->bnhw", classifier_directions(*read_oplist(graph), 5), deep)
    assert torch.allclose(made, expected, atol=1e-4)


def test_projected_network_answers(graph: Path) -> None:
    """A network on projected maps gives logits, and a frozen one leaves the directions out of its checkpoint."""
    net = build_network(spec(graph, project=5, freeze="always"), 3, 0)
    assert net(torch.rand(2, 3, 64, 64)).shape == (2, 3, 64, 64)
    assert not any("directions" in name for name in net.saved_tensors())


def test_tap_that_the_classifier_does_not_read_is_refused(graph: Path) -> None:
    """A last tap of other channels than the classifier's is refused with both numbers."""
    with pytest.raises(ModelError, match=f"has 8 channels, the classifier reads {WIDTH}"):
        build_encoder(spec(graph, taps=("4", "8"), project=3))


def test_projection_is_part_of_what_features_are(graph: Path) -> None:
    """Cached features of another projection have another key."""
    assert spec(graph, project=3).encoder_identity() != spec(graph, project=4).encoder_identity()


def test_projection_needs_an_op_list() -> None:
    """Other encoders have no classifier that could be read: refused, not passed over."""
    with pytest.raises(ValidationError, match="project"):
        NetworkSpec(kind="deeplab", encoder="module", factory="a:b", project=4)


def test_tap_by_value_number(graph: Path) -> None:
    """ "@20" is value 20 of the list; a number that no operation makes is refused."""
    oplist, _ = read_oplist(graph)
    assert tap(oplist, "@20") == 20
    for name in ("@21", "@", "@-20", "20"):
        with pytest.raises(ModelError, match=f"no tap '{name}'"):
            tap(oplist, name)
