"""Networks: growth, freezing, op lists, dilation, transformers backbones."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from replaygen.errors import ModelError
from replaygen.learn import NetworkSpec, OpListNet, build_network, read_oplist
from replaygen.learn.oplist import same_padding, tap, with_output_stride

DATA = Path(os.environ.get("REPLAYGEN_DATA", Path(__file__).parents[2] / "shared" / "data"))
IMAGENET = DATA / "weights" / "mobilenet_v2_1.0_imagenet.json"
needs_weights = pytest.mark.skipif(
    not IMAGENET.is_file(), reason="set REPLAYGEN_DATA to the folder that holds weights/mobilenet_v2_1.0_imagenet.json"
)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """A small op list with strides 2, 4 (a residual sum), 8 and 16, and random weights beside it."""
    shapes = {"a": [8, 3, 3, 3], "b": [8, 1, 3, 3], "c": [8, 8, 1, 1], "d": [8, 1, 3, 3], "e": [6, 8, 1, 1],
              "f": [6, 1, 3, 3], "g": [6, 1, 3, 3]}  # fmt: skip
    ops = [
        conv("conv", 0, 1, "a", shapes, stride=2, act="relu6"),
        conv("dwconv", 1, 2, "b", shapes, stride=2, act="relu6"),
        conv("conv", 2, 3, "c", shapes),
        {"op": "add", "inp": [2, 3], "out": 4, "act": None},
        conv("dwconv", 4, 5, "d", shapes, stride=2, act="relu"),
        conv("conv", 5, 6, "e", shapes),
        conv("dwconv", 6, 7, "f", shapes, stride=2, act="relu6"),
        conv("dwconv", 7, 8, "g", shapes),
    ]
    path = tmp_path / "net.json"
    path.write_text(json.dumps({"input": 0, "output": 8, "ops": ops}))
    torch.manual_seed(0)
    tensors = {f"{key}.weight": torch.randn(shape) * 0.4 for key, shape in shapes.items()}
    tensors |= {f"{key}.bias": torch.randn(shape[0]) * 0.1 for key, shape in shapes.items()}
    torch.save(tensors, path.with_suffix(".pt"))
    return path


def conv(
    kind: str, source: int, out: int, key: str, shapes: dict[str, list[int]], stride: int = 1, act: str | None = None
) -> dict[str, Any]:
    """One convolution of an op list."""
    return {"op": kind, "inp": [source], "out": out, "key": key, "shape": shapes[key], "stride": stride,
            "dilation": 1, "pad": "same", "act": act}  # fmt: skip


def reference_runner() -> ModuleType:
    """The runner that came with the weights."""
    found = importlib.util.spec_from_file_location("run_graph", DATA / "weights" / "run_graph.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_specifications_cost_no_torch() -> None:
    """A plan may import the specifications and take a network's identity without importing torch."""
    code = (
        "import sys; from replaygen.learn import FitOptions, NetworkSpec, ViewSpec; NetworkSpec().identity();"
        "FitOptions().identity(); ViewSpec(); print('torch' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"


def test_equal_seeds_give_equal_weights() -> None:
    """build_network is a function of spec, channels and seed, and leaves torch's own random state alone."""
    spec = NetworkSpec(widths=(8, 12))
    before = torch.random.get_rng_state()
    one, two, other = (build_network(spec, 3, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["head.classify.weight"], other["head.classify.weight"])


@pytest.mark.parametrize("side", [64, 50])
def test_small_network_keeps_the_image_size(side: int) -> None:
    """Logits have the image's size, also where it is no multiple of the strides."""
    net = build_network(NetworkSpec(widths=(8, 12, 16)), 4, 0)
    assert net(torch.rand(2, 3, side, side)).shape == (2, 4, side, side)
    assert [feature.shape[1] for feature in net.encode(torch.rand(1, 3, side, side))] == [8, 12, 16]


@pytest.mark.parametrize("head", ["deeplabv2", "light", "aspp"])
def test_balanced_growth_splits_the_background_evenly(graph: Path, head: str) -> None:
    """After MiB's initialisation, each of N new classes and background has p_bg / (N + 1); old classes keep theirs."""
    net = build_network(NetworkSpec(kind="deeplab", weights=str(graph), head=head), 3, 0).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in net.head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        images = torch.rand(2, 3, 48, 48)
        before = net(images).double().softmax(1)
        after = net.grow(6, "balanced")(images).double().softmax(1)
    assert torch.allclose(after[:, 1:3], before[:, 1:3], atol=1e-6)
    for channel in (0, 3, 4, 5):
        assert torch.allclose(after[:, channel], before[:, 0] / 4, atol=1e-6)


def test_balanced_bias_is_lowered_by_the_log() -> None:
    """b_bg and b_new are b_bg - log(N + 1)."""
    net = build_network(NetworkSpec(widths=(8, 12)), 2, 0)
    net.head.get_parameter("classify.bias").data[:] = torch.tensor([0.5, -0.25])
    bias = net.grow(4, "balanced").head.get_parameter("classify.bias")
    lowered = 0.5 - math.log(3)
    assert bias.tolist() == pytest.approx([lowered, -0.25, lowered, lowered])


def test_random_growth_keeps_old_logits() -> None:
    """Random growth changes no old logit and depends on its seed only; a network never shrinks."""
    nets = [build_network(NetworkSpec(widths=(8, 12)), 3, 0).eval() for _ in range(3)]
    images = torch.rand(1, 3, 32, 32)
    before = nets[0](images)
    grown = [net.grow(5, "random", seed)(images) for net, seed in zip(nets, (7, 7, 8), strict=True)]
    assert torch.allclose(grown[0][:, :3], before, atol=1e-6)
    assert torch.equal(grown[0], grown[1])
    assert not torch.equal(grown[0], grown[2])
    with pytest.raises(ModelError, match="cannot grow to 2"):
        nets[0].grow(2)
    with pytest.raises(ModelError, match="balnced"):
        nets[0].grow(6, "balnced")  # type: ignore[arg-type]


def test_encoder_frozen_after_the_base_step() -> None:
    """freeze = after_base trains the encoder at step 0 only, keeps its batch norm still, and still saves it."""
    net = build_network(NetworkSpec(widths=(8, 12), freeze="after_base"), 2, 0).train()
    assert net.encoder.training
    assert not net.frozen_encoder
    net.at_step(1)
    statistics = {name: value.clone() for name, value in net.encoder.named_buffers()}
    net(torch.rand(2, 3, 32, 32)).sum().backward()
    assert net.frozen_encoder
    assert all(parameter.grad is None for parameter in net.encoder.parameters())
    assert all(parameter.grad is not None for parameter in net.head.parameters())
    assert all(torch.equal(value, statistics[name]) for name, value in net.encoder.named_buffers())
    assert any(name.startswith("encoder.") for name in net.saved_tensors())


def test_frozen_batch_norm_statistics_stay() -> None:
    """freeze_bn = always keeps running means where they are while weights still learn."""
    net = build_network(NetworkSpec(widths=(8, 12), freeze_bn="always"), 2, 0).train()
    net(torch.rand(2, 3, 32, 32)).sum().backward()
    assert all(float(value.abs().sum()) == 0 for name, value in net.named_buffers() if name.endswith("running_mean"))
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize(("side", "kernel", "stride", "dilation", "expected"), [
    (224, 3, 2, 1, (0, 1)), (225, 3, 2, 1, (1, 1)), (7, 3, 1, 1, (1, 1)), (7, 3, 1, 2, (2, 2)), (8, 1, 2, 1, (0, 0)),
])  # fmt: skip
def test_same_padding(side: int, kernel: int, stride: int, dilation: int, expected: tuple[int, int]) -> None:
    """SAME padding is TensorFlow's: the odd pixel goes after."""
    assert same_padding(side, kernel, stride, dilation) == expected


def test_output_stride_turns_strides_into_dilation(graph: Path) -> None:
    """At output stride 8 the last map has the size of the stride-8 map, and convolutions after it are dilated by 2."""
    oplist, tensors = read_oplist(graph)
    dilated = with_output_stride(oplist, 8)
    assert [op.dilation for op in dilated.ops if op.key in ("f", "g")] == [1, 2]
    images = torch.rand(1, 3, 64, 64)
    assert OpListNet(oplist, tensors)(images)[0].shape[-2:] == (4, 4)
    assert OpListNet(dilated, tensors)(images)[0].shape[-2:] == (8, 8)
    with pytest.raises(ModelError, match="coarsest map has stride 16, not 32"):
        with_output_stride(oplist, 32)


def test_dilated_map_holds_the_strided_one(graph: Path) -> None:
    """A stride turned into dilation computes the strided values too: every second value of the denser map is one."""
    oplist, tensors = read_oplist(graph)
    images = torch.rand(1, 3, 63, 63)  # odd sides pad SAME alike on both sides, so the two grids meet
    coarse = OpListNet(oplist, tensors)(images)[0]
    fine = OpListNet(with_output_stride(oplist, 8), tensors)(images)[0]
    inner = fine[..., ::2, ::2][..., 1:-1, 1:-1]
    assert fine.shape[-1] == 2 * coarse.shape[-1]
    odd = fine[..., 1::2, 1::2][..., 1:-1, 1:-1]
    wanted = coarse[..., 1:-1, 1:-1]
    assert torch.allclose(inner, wanted, atol=1e-5) or torch.allclose(odd, wanted, atol=1e-5)


def test_taps_by_stride_and_key(graph: Path) -> None:
    """A stride taps its last sum or linear map, a key its own; an unknown name says what there is."""
    oplist, _ = read_oplist(graph)
    assert tap(oplist, "4") == 4
    assert tap(oplist, "8") == 6
    assert tap(oplist, "d") == 5
    with pytest.raises(ModelError, match="no tap '5'"):
        tap(oplist, "5")


@pytest.mark.parametrize("change", [
    {"op": "exec"}, {"stride": 0}, {"dilation": 10**9}, {"inp": [99]}, {"out": 0}, {"key": "../a"}, {"pad": "odd"},
    {"shape": [8, 3, 3]}, {"act": "swish"},
])  # fmt: skip
def test_malformed_op_list_is_refused(graph: Path, change: dict[str, Any]) -> None:
    """Unknown operations, odd numbers and dangling values are refused before anything runs."""
    raw = json.loads(graph.read_text())
    raw["ops"][0] |= change
    graph.write_text(json.dumps(raw))
    with pytest.raises(ModelError):
        read_oplist(graph)


def test_pickled_code_in_weights_never_runs(graph: Path, tmp_path: Path) -> None:
    """A .pt file that would run code when unpickled is refused, and the code does not run."""
    marker = tmp_path / "ran"

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(marker),)

    torch.save({"a.weight": Payload()}, graph.with_suffix(".pt"))
    with pytest.raises(ModelError, match="cannot read tensors"):
        read_oplist(graph)
    assert not marker.exists()


def test_identity_names_bytes_not_paths(graph: Path, tmp_path: Path) -> None:
    """The same files elsewhere have the same identity; other bytes another; the head is in it, but no path."""
    spec = NetworkSpec(kind="deeplab", weights=str(graph))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for ending in (".json", ".pt"):
        (elsewhere / f"other{ending}").write_bytes(graph.with_suffix(ending).read_bytes())
    moved = NetworkSpec(kind="deeplab", weights=str(elsewhere / "other.json"))
    assert moved.identity() == spec.identity()
    assert str(tmp_path) not in json.dumps(spec.identity())
    assert spec.pinned().identity() == spec.identity()
    light, plain = (NetworkSpec(kind="deeplab", weights=str(graph), separable=s) for s in (True, False))
    assert light.encoder_identity() == plain.encoder_identity()
    assert light.identity() != plain.identity()
    (elsewhere / "other.json").write_text(graph.read_text() + " ")
    assert moved.identity() != spec.identity()


def test_changed_weights_are_refused(graph: Path) -> None:
    """A pinned network is not built from other bytes."""
    pinned = NetworkSpec(kind="deeplab", weights=str(graph)).pinned()
    build_network(pinned, 3, 0)
    graph.write_text(graph.read_text() + " ")
    with pytest.raises(ModelError, match="graph file is not the one"):
        build_network(pinned, 3, 0)


@pytest.mark.parametrize(("table", "message"), [
    ({"kind": "deeplab"}, "needs `weights`"), ({"kind": "small", "output_stride": 8}, "takes no output_stride"),
    ({"kind": "deeplab", "encoder": "transformers", "hub": "a/b"}, "needs `revision`"),
    ({"kind": "deeplab", "encoder": "module", "factory": "torch"}, "package.module:function"),
    ({"widths": (8,)}, "two or more"), ({"freeze": "always"}, "starts random"), ({"wieghts": "x"}, "Extra inputs"),
])  # fmt: skip
def test_impossible_specifications_are_refused(table: dict[str, Any], message: str) -> None:
    """A combination that cannot work is refused with the way out."""
    with pytest.raises(ValidationError, match=message):
        NetworkSpec.model_validate(table)


def test_specification_survives_json() -> None:
    """Dumped and read again, a specification is the same one."""
    spec = NetworkSpec(widths=(8, 12), freeze="after_base")
    assert NetworkSpec.model_validate(spec.model_dump(mode="json")) == spec


def test_users_module_as_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder by "module:function", its source file's sha256 in the identity."""
    code = (
        "import torch.nn as nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, 3, 4, 1))\n"
    )
    (tmp_path / "my_own_encoder.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = NetworkSpec(kind="deeplab", encoder="module", factory="my_own_encoder:make", taps=("16",), head="deeplabv2")
    assert len(spec.identity()["files"]["code"]) == 64
    assert build_network(spec, 3, 0)(torch.rand(1, 3, 64, 64)).shape == (1, 3, 64, 64)


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    """A tiny random ResNet of transformers, saved in a folder."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1], layer_type="basic"
    )
    torch.manual_seed(0)
    transformers.ResNetModel(config).save_pretrained(tmp_path / "backbone")
    return tmp_path / "backbone"


def test_transformers_backbone_learns(backbone: Path) -> None:
    """A local transformers backbone gives taps at strides 4 and 16, keeps sizes when dilated, and gets gradients."""
    spec = NetworkSpec(kind="deeplab", encoder="transformers", weights=str(backbone), width=8)
    net = build_network(spec, 3, 0).train()
    images = torch.rand(2, 3, 64, 64)
    assert [tuple(feature.shape[-2:]) for feature in net.encode(images)] == [(16, 16), (4, 4)]
    net(images).sum().backward()
    assert any(parameter.grad is not None for parameter in net.encoder.parameters())
    assert len(spec.identity()["files"]["tensors"]) == 64


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_transformers_backbone_dilated(backbone: Path, output_stride: int) -> None:
    """Later strides of a transformers backbone become dilation: the deepest map has the asked stride."""
    spec = NetworkSpec(
        kind="deeplab", encoder="transformers", weights=str(backbone), head="deeplabv2", output_stride=output_stride  # type: ignore[arg-type]
    )  # fmt: skip
    (deepest,) = build_network(spec, 3, 0).encode(torch.rand(1, 3, 96, 96))
    assert deepest.shape == (1, 20, 96 // output_stride, 96 // output_stride)


def test_even_kernels_are_not_dilated(tmp_path: Path) -> None:
    """A backbone that shrinks by even kernels works at its own stride; a smaller one is refused, not approximated."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ConvNextConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], num_stages=4)
    transformers.ConvNextModel(config).save_pretrained(tmp_path)
    spec = NetworkSpec(kind="deeplab", encoder="transformers", weights=str(tmp_path), output_stride=32)
    assert [tuple(tap.shape[-2:]) for tap in build_network(spec, 3, 0).encode(torch.rand(1, 3, 64, 64))] == [
        (16, 16),
        (2, 2),
    ]
    with pytest.raises(ModelError, match="even kernels"):
        build_network(spec.model_copy(update={"output_stride": 16}), 3, 0)


def test_incomplete_backbone_is_refused(backbone: Path) -> None:
    """Weights that lack a tensor are refused, not filled with random numbers."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(backbone / "model.safetensors")
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, backbone / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="the weights lack"):
        build_network(NetworkSpec(kind="deeplab", encoder="transformers", weights=str(backbone)), 3, 0)


@needs_weights
def test_oplist_equals_the_reference_runner() -> None:
    """ImageNet's MobileNetV2 gives the reference runner's numbers, at the end and at the deepest tap."""
    runner = reference_runner()
    raw = json.loads(IMAGENET.read_text())
    stored = torch.load(IMAGENET.with_suffix(".pt"), map_location="cpu", weights_only=True)
    tensors = {name: tensor.float() for name, tensor in stored.items()}
    graph, mine = read_oplist(IMAGENET)
    torch.manual_seed(0)
    images = torch.rand(1, 3, 160, 160) * 2 - 1
    with torch.inference_mode():
        whole = OpListNet(graph, mine)(images)[0]
        deep = OpListNet(graph, mine, [tap(graph, "32")])(images)[0]
        assert torch.allclose(whole, runner.run(raw, tensors, images), atol=1e-4)
        assert torch.allclose(deep, runner.run(raw, tensors, images, stop="conv50"), atol=1e-4)


@needs_weights
@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilated_mobilenet_keeps_sizes(output_stride: int) -> None:
    """The dilated variant has its taps at stride 4 and the asked stride."""
    spec = NetworkSpec(kind="deeplab", weights=str(IMAGENET), freeze="always", output_stride=output_stride)  # type: ignore[arg-type]
    net = build_network(spec, 3, 0)
    fine, deep = net.encode(torch.rand(1, 3, 96, 96))
    assert fine.shape == (1, 24, 24, 24)
    assert deep.shape == (1, 320, 96 // output_stride, 96 // output_stride)
    assert not any(name.startswith("encoder.") for name in net.saved_tensors())


@needs_weights
def test_mobilenet_recognises_animals() -> None:
    """Of 12 web pictures of cats and dogs, at least 8 get a cat or dog label of ImageNet as top-1."""
    from PIL import Image

    labels = (DATA / "weights" / "imagenet_labels.txt").read_text().splitlines()
    dogs = set(range(152, 270))  # with "background" as class 0, Chihuahua .. Mexican hairless
    cats = {index for index, label in enumerate(labels) if label.endswith("cat") or "cat," in label}
    graph, tensors = read_oplist(IMAGENET)
    net = OpListNet(graph, tensors)
    right = 0
    for kind, wanted in (("cat", cats), ("dog", dogs)):
        for path in sorted((DATA / "web_animals" / kind).glob("*.jpg"))[:6]:
            with Image.open(path) as picture:
                square = np.asarray(picture.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR))
            images = torch.from_numpy(square.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
            with torch.inference_mode():
                right += int(net(images)[0].argmax()) in wanted
    assert right >= 8
