"""The field's networks: ResNet, MobileNetV2 and SegFormer's encoder of transformers below every head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from replaygen.errors import ModelError
from replaygen.learn import NetworkSpec, build_network, load_network, save_checkpoint
from replaygen.learn.networks import SegNet

transformers = pytest.importorskip("transformers")

FAMILIES = ("resnet", "mobilenet_v2", "mit")
HEADS = ("deeplabv2", "deeplabv3", "deeplabv3plus", "segformer", "light", "aspp")
TOLD = {"names": ["background", "a", "b"], "step": 0}


def classifiers() -> dict[str, Any]:
    """The families' ImageNet classifiers, tiny: hubs hold classifiers, whose names have a prefix."""
    return {
        "resnet": transformers.ResNetForImageClassification(
            transformers.ResNetConfig(
                embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 2, 2, 2], layer_type="bottleneck"
            )
        ),
        "mobilenet_v2": transformers.MobileNetV2ForImageClassification(
            transformers.MobileNetV2Config(depth_multiplier=0.1, min_depth=4, depth_divisible_by=4, expand_ratio=2)
        ),
        "mit": transformers.SegformerForImageClassification(
            transformers.SegformerConfig(
                hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 2, 4], mlp_ratios=[2] * 4
            )
        ),
    }


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one folder a family, as `save_pretrained` writes it: lively weights, norms that saw something."""
    root = tmp_path_factory.mktemp("backbones")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, model in classifiers().items():
            for module in model.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight)
                if isinstance(module, nn.BatchNorm2d):
                    assert module.running_mean is not None
                    assert module.running_var is not None
                    module.running_mean.uniform_(-0.2, 0.2)
                    module.running_var.uniform_(0.5, 1.5)
            model.save_pretrained(root / name)
    return root


def spec_of(folders: Path, family: str, head: str, **more: Any) -> NetworkSpec:
    """A tiny network of a family and a head, at output stride 16, or 32 where nothing else is possible."""
    told = {"output_stride": 32 if family == "mit" else 16, "rates": (1, 2), "width": 8, **more}
    return NetworkSpec.model_validate(
        {"kind": "deeplab", "encoder": "transformers", "weights": str(folders / family), "head": head, **told}
    )


def pictures(count: int = 2, side: int = 64) -> Tensor:
    """Random images."""
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", HEADS)
def test_every_encoder_learns_below_every_head(folders: Path, family: str, head: str) -> None:
    """Logits of the image's size, and a gradient in every tensor of the encoder, its first convolution included."""
    net = build_network(spec_of(folders, family, head), 3, 0).train()
    logits = net(pictures())
    assert logits.shape == (2, 3, 64, 64)
    logits.square().mean().backward()
    silent = [name for name, tensor in net.named_parameters() if tensor.grad is None]
    assert silent == []
    first = next(net.encoder.parameters()).grad
    assert first is not None
    assert float(first.abs().sum()) > 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", HEADS)
def test_a_grown_network_comes_back_from_its_checkpoint(folders: Path, family: str, head: str) -> None:
    """Grown by two classes, saved and loaded: the same logits bit for bit, and no tensor of the encoder left out."""
    spec = spec_of(folders, family, head)
    net = build_network(spec, 3, 0).grow(5, "random", 1).at_step(1).eval()
    names = [*TOLD["names"], "c", "d"]  # type: ignore[misc]
    saved = save_checkpoint(net, {"names": names, "step": 1, "network": spec.identity()})
    again = load_network(saved.tensors, saved.info, spec, names=names, step=1)
    assert net(pictures()).shape == (2, 5, 64, 64)
    assert torch.equal(again(pictures()), net(pictures()))
    assert again.state_dict().keys() == net.state_dict().keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_encoder_holds_the_classifiers_weights(folders: Path, family: str) -> None:
    """Every tensor of the encoder is one of the saved classifier's, and another seed changes none."""
    stored = {tuple(value.shape): [] for value in classifiers()[family].state_dict().values()}
    saved = type(classifiers()[family]).from_pretrained(folders / family).state_dict()
    for value in saved.values():
        stored[tuple(value.shape)].append(value)
    one, two = (build_network(spec_of(folders, family, "light"), 3, seed).encoder.state_dict() for seed in (0, 1))
    assert all(torch.equal(one[name], two[name]) for name in one)
    lost = [name for name, value in one.items() if not any(torch.equal(value, at) for at in stored[tuple(value.shape)])]
    assert lost == []


@pytest.mark.parametrize("family", FAMILIES)
def test_encoder_is_fixed_after_the_base_step(folders: Path, family: str) -> None:
    """freeze = "after_base": at step 1 no gradient, no moving statistics, no random depth in the encoder."""
    net = build_network(spec_of(folders, family, "deeplabv3", freeze="after_base"), 3, 0).train()
    assert not net.frozen_encoder
    net.at_step(1)
    before = {name: value.clone() for name, value in net.encoder.named_buffers()}
    net(pictures()).sum().backward()
    assert all(parameter.grad is None for parameter in net.encoder.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.encoder.named_buffers())
    assert not any(module.training for module in net.encoder.modules())


@pytest.mark.parametrize("family", ["resnet", "mobilenet_v2"])
def test_frozen_batch_norm_is_statistics_only(folders: Path, family: str) -> None:
    """freeze_bn = "always": running means and variances of transformers' norms stay, their scales and offsets learn."""
    net = build_network(spec_of(folders, family, "deeplabv2", freeze_bn="always"), 3, 0).train()
    before = {name: value.clone() for name, value in net.encoder.named_buffers()}
    net(pictures()).square().mean().backward()
    assert all(torch.equal(value, before[name]) for name, value in net.encoder.named_buffers())
    norms = [module for module in net.encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) > 10
    for norm in norms:
        assert norm.weight.grad is not None
        assert norm.bias.grad is not None
    moving = build_network(spec_of(folders, family, "deeplabv2", freeze_bn="after_base"), 3, 0).train()
    moving(pictures())
    assert any(not torch.equal(value, before[name]) for name, value in moving.encoder.named_buffers())


@pytest.mark.parametrize("family", FAMILIES)
def test_first_layers_can_be_held(folders: Path, family: str) -> None:
    """hold("first"): the first third of the convolutions, and what lies between, gets no gradient; the rest does."""
    net = build_network(spec_of(folders, family, "light"), 3, 0).train().hold("first")
    learns = [tensor.requires_grad for tensor in net.encoder.parameters()]
    weights = [m.weight for m in net.encoder.modules() if isinstance(m, nn.Conv2d)]
    held = [not weight.requires_grad for weight in weights]
    assert held == [place < len(weights) // 3 for place in range(len(weights))]
    assert learns == sorted(learns)
    net(pictures()).square().mean().backward()
    assert [tensor.grad is not None for tensor in net.encoder.parameters()] == learns


@pytest.mark.parametrize("head", HEADS)
def test_a_helper_keeps_the_layers_below_the_classifier(folders: Path, head: str) -> None:
    """renewed(keep=True): the maps of the head stay, its classifiers are new; without `keep` the maps change too."""
    net = build_network(spec_of(folders, "resnet", head), 3, 0).eval()
    features = net.encode(pictures())
    before = net.predicted(features, (64, 64))
    kept = net.renewed(4, seed=5, keep=True).eval().predicted(features, (64, 64))
    new = net.renewed(4, seed=5).eval().predicted(features, (64, 64))
    assert kept.logits.shape == (2, 4, 64, 64)
    assert not torch.allclose(kept.logits[:, :3], before.logits, atol=1e-4)
    assert len(kept.decoded) == len(before.decoded)
    for made, old, other in zip(kept.decoded, before.decoded, new.decoded, strict=True):
        assert torch.equal(made, old)
        assert not torch.allclose(other, old, atol=1e-4)


def deepest(folders: Path, family: str, output_stride: int, side: int) -> Tensor:
    """The deepest map of a picture in evaluation mode."""
    net = build_network(spec_of(folders, family, "deeplabv2", output_stride=output_stride), 3, 0).eval()
    with torch.no_grad():
        return net.encode(pictures(1, side))[-1]


@pytest.mark.parametrize("family", ["resnet", "mobilenet_v2"])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_atrous_map_holds_the_strided_one(folders: Path, family: str, output_stride: int) -> None:
    """Strides turned into dilation keep every value: the denser map, sampled at the coarse one's positions, is it."""
    factor = 32 // output_stride
    coarse, dense = deepest(folders, family, 32, 192), deepest(folders, family, output_stride, 192)
    assert coarse.shape[-1] == 6
    assert dense.shape[-1] == 6 * factor
    # TensorFlow pads even sides after, so its windows are centred one pixel on
    first = factor - 1 if family == "mobilenet_v2" else 0
    assert float(coarse.std((2, 3)).max()) > 0.01
    assert torch.allclose(dense[..., first::factor, first::factor], coarse, rtol=1e-4, atol=1e-5)


def test_dilation_starts_behind_the_convolution_that_lost_its_stride(folders: Path) -> None:
    """ResNet at output stride 8: the 3x3 of stage 3 have rates 1, 2, those of stage 4 rates 2, 4; no stride is left."""
    net = build_network(spec_of(folders, "resnet", "deeplabv2", output_stride=8), 3, 0)
    stages: Any = net.encoder.body.model.encoder.stages
    for stage, rates in zip(stages, [(1,), (1, 1), (1, 2), (2, 4)], strict=True):
        wide = [m for m in stage.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
        assert [module.dilation[0] for module in wide] == list(rates)
    late = [module for stage in stages[2:] for module in stage.modules() if isinstance(module, nn.Conv2d)]
    assert {module.stride for module in late} == {(1, 1)}


@pytest.mark.parametrize("family", ["resnet", "mobilenet_v2"])
def test_sides_that_no_stride_divides(folders: Path, family: str) -> None:
    """DeepLab's crop of 321 pixels goes through at output stride 8, and comes back as 321 x 321."""
    net = build_network(spec_of(folders, family, "deeplabv3plus", output_stride=8), 3, 0).eval()
    with torch.no_grad():
        assert net(pictures(1, 321)).shape == (1, 3, 321, 321)


def test_segformer_head_reads_all_four_stages(folders: Path) -> None:
    """head = "segformer" without further words: output stride 32, all strides, width 256, dropout 0.1."""
    spec = NetworkSpec(kind="deeplab", encoder="transformers", weights=str(folders / "mit"), head="segformer")
    assert spec.used_taps == ("4", "8", "16", "32")
    assert (spec.output_stride, spec.width, spec.dropout) == (32, 256, 0.1)
    maps = build_network(spec, 3, 0).eval().encode(pictures())
    assert [tuple(feature.shape[1:]) for feature in maps] == [(8, 16, 16), (12, 8, 8), (16, 4, 4), (20, 2, 2)]


def test_segformer_equals_transformers_own(folders: Path) -> None:
    """Encoder and head with the weights of transformers' SegFormer give its logits."""
    torch.manual_seed(3)
    config = transformers.SegformerConfig.from_pretrained(folders / "mit", num_labels=4, decoder_hidden_size=8)
    theirs = transformers.SegformerForSemanticSegmentation(config).eval()
    theirs.segformer = transformers.SegformerModel.from_pretrained(folders / "mit").eval()
    net = build_network(spec_of(folders, "mit", "segformer"), 4, 0).eval()
    head: Any = theirs.decode_head
    mine = net.head.state_dict()
    for stage in range(4):
        mine[f"linear.{stage}.weight"] = head.linear_projections[stage].proj.weight[:, :, None, None]
        mine[f"linear.{stage}.bias"] = head.linear_projections[stage].proj.bias
    mine["fuse.0.weight"] = torch.cat(head.linear_fuse.weight.chunk(4, 1)[::-1], 1)  # theirs joins the deepest first
    for name, value in head.batch_norm.state_dict().items():
        mine[f"fuse.1.{name}"] = value
    mine["classify.weight"], mine["classify.bias"] = head.classifier.weight, head.classifier.bias
    net.head.load_state_dict(mine)
    encoder: Any = net.encoder
    with torch.no_grad():
        scaled = (pictures() - encoder.mean) / encoder.std
        wanted = theirs(scaled).logits
        assert torch.allclose(net.head_logits(net.encode(pictures())), wanted, rtol=1e-4, atol=1e-5)


def test_mobilenet_sees_pixels_from_minus_one_to_one(folders: Path) -> None:
    """preprocess = "auto" is what the weights were trained with: -1..1 for MobileNetV2, ImageNet's mean for others."""
    means = {family: build_network(spec_of(folders, family, "light"), 3, 0).encoder.mean for family in FAMILIES}
    assert means["mobilenet_v2"].flatten().tolist() == [0.5, 0.5, 0.5]
    assert means["resnet"].flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert torch.equal(means["mit"], means["resnet"])


def test_mobilenet_keeps_its_statistics_for_a_while(folders: Path) -> None:
    """One batch moves the running means by TensorFlow's 0.003, not to the batch; the classifier's layers are gone."""
    net = build_network(spec_of(folders, "mobilenet_v2", "light"), 3, 0)
    norms = [module for module in net.encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    assert [module.momentum for module in norms] == pytest.approx([0.003] * len(norms))
    assert not any("conv_1x1" in name for name in net.state_dict())


def test_segformer_at_a_smaller_output_stride_says_the_way_out(folders: Path) -> None:
    """SegFormer's encoder cannot be dilated: refused, with the output stride that works."""
    with pytest.raises(ModelError, match="even kernels") as caught:
        build_network(spec_of(folders, "mit", "segformer", output_stride=16), 3, 0)
    assert "output_stride" in caught.value.hint


@pytest.mark.parametrize(("head", "rates", "taps"), [
    ("deeplabv2", (6, 12, 18, 24), ("16",)), ("deeplabv3", (6, 12, 18), ("16",)),
    ("deeplabv3plus", (6, 12, 18), ("4", "16")),
])  # fmt: skip
def test_heads_come_with_the_papers_settings(head: str, rates: tuple[int, ...], taps: tuple[str, ...]) -> None:
    """A recipe that names only the head gets the paper's rates and width; one that names them keeps its own."""
    table: dict[str, Any] = {"kind": "deeplab", "encoder": "transformers", "weights": "somewhere", "head": head}
    spec = NetworkSpec.model_validate(table)
    assert (spec.rates, spec.used_taps) == (rates, taps)
    assert head == "deeplabv2" or spec.width == 256
    own = NetworkSpec.model_validate({**table, "rates": [2, 4], "width": 96, "output_stride": 8})
    assert (own.rates, own.width, own.used_taps[-1]) == ((2, 4), 96, "8")
    for one in (spec, own):
        assert NetworkSpec.model_validate_json(one.model_dump_json()) == one


def test_small_networks_take_no_papers_head() -> None:
    """kind "small" has its own decoder: a head beside it is refused by that name alone."""
    with pytest.raises(ValidationError, match="takes no head; use kind"):
        NetworkSpec(head="deeplabv3")


def test_heads_at_old_defaults_keep_their_identity(folders: Path) -> None:
    """New heads add no word to a network's identity, which keys of models are made of; how it is dilated does."""
    spec = NetworkSpec(kind="deeplab", encoder="transformers", weights=str(folders / "resnet"))
    assert set(spec.identity()) - {"dilated"} == {
        "kind", "encoder", "hub", "revision", "pretrained", "factory", "preprocess", "output_stride", "taps", "project",
        "head", "rates", "width", "convs", "separable", "image_pooling", "dropout", "freeze", "freeze_bn", "files",
    }  # fmt: skip
    assert (spec.rates, spec.width, spec.output_stride, spec.dropout) == ((6, 12, 18, 24), 96, 16, 0.0)


def full_size(tmp_path: Path, config: Any, head: str) -> SegNet:
    """A network of real size without memory: tensors on the meta device, which know their shapes only."""
    config.save_pretrained(tmp_path)
    spec = NetworkSpec.model_validate({
        "kind": "deeplab", "encoder": "transformers", "weights": str(tmp_path), "pretrained": False, "head": head
    })  # fmt: skip
    with torch.device("meta"):
        return build_network(spec, 21, 0)


def test_deeplabv3_of_resnet101_has_its_58_million_parameters(tmp_path: Path) -> None:
    """ResNet-101 without its classifier 44,549,160 - 2,049,000; five branches of 256, 1280 -> 256, 256 -> 21."""
    net = full_size(tmp_path, transformers.ResNetConfig(depths=[3, 4, 23, 3]), "deeplabv3")
    norm = 2 * 256
    branches = 2 * (2048 * 256 + norm) + 3 * (2048 * 256 * 9 + norm)
    head = branches + 5 * 256 * 256 + norm + 256 * 21 + 21
    assert head == 15_540_501
    assert sum(tensor.numel() for tensor in net.encoder.parameters()) == 44_549_160 - 2_049_000
    assert sum(tensor.numel() for tensor in net.head.parameters()) == head


def test_deeplabv2_of_resnet101_has_four_classifiers(tmp_path: Path) -> None:
    """RECALL's network: 4 x (2048 x 9 x 21 + 21) parameters above ResNet-101."""
    net = full_size(tmp_path, transformers.ResNetConfig(depths=[3, 4, 23, 3]), "deeplabv2")
    assert sum(tensor.numel() for tensor in net.head.parameters()) == 4 * (2048 * 9 * 21 + 21)


def test_segformer_b0_has_its_3_7_million_parameters(tmp_path: Path) -> None:
    """MiT-B0 has 3.32 M parameters and its decoder of width 256 0.4 M: the paper's 3.8 M with 150 classes."""
    net = full_size(tmp_path, transformers.SegformerConfig(), "segformer")
    head = sum(width * 256 + 256 for width in (32, 64, 160, 256)) + 1024 * 256 + 512 + 256 * 21 + 21
    assert sum(tensor.numel() for tensor in net.head.parameters()) == head
    total = sum(tensor.numel() for tensor in net.parameters()) + (150 - 21) * 257
    assert total == pytest.approx(3.8e6, rel=0.02)


@pytest.mark.parametrize(
    ("damage", "words"), [("resize", "config.json makes it"), ("cut", "cannot make this backbone")]
)
def test_damaged_weights_are_refused(folders: Path, tmp_path: Path, damage: str, words: str) -> None:
    """Weights of other shapes than config.json says, or cut short, are an error with the folder's name."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folders / "mobilenet_v2" / name).read_bytes())
    if damage == "cut":
        (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:5000])
    else:
        told = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**told, "depth_multiplier": 0.2}))
    spec = NetworkSpec(kind="deeplab", encoder="transformers", weights=str(tmp_path))
    with pytest.raises(ModelError, match=words) as caught:
        build_network(spec, 3, 0)
    assert caught.value.where == str(tmp_path)
