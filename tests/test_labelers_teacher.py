"""Teachers: segmentation models of transformers from a folder, their labels matched to our classes by name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_generators_hub import MAIN, REPOSITORY, Hub, bodies

from replaygen.errors import ModelError, RecipeError
from replaygen.labelers.specs import TeacherSpec
from replaygen.labelers.teacher import Processor, open_teacher, read_processor, teacher_of

transformers: Any = pytest.importorskip("transformers")

LABELS = ("Background", "cat", "dog", "TV monitor", "cow, ox", "airplane", "pig")
NAMED = {"id2label": dict(enumerate(LABELS)), "label2id": {name: index for index, name in enumerate(LABELS)}}
CPU = {"device": "cpu"}
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
REVISION = "c" * 40


def segformer() -> Any:
    """SegFormer, logits at a quarter of the input's side."""
    return transformers.SegformerForSemanticSegmentation(
        transformers.SegformerConfig(
            depths=[1] * 4, hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=16,
            **NAMED,
        )
    )  # fmt: skip


def mobilenet() -> Any:
    """MobileNetV2 with DeepLabv3+'s head."""
    return transformers.MobileNetV2ForSemanticSegmentation(
        transformers.MobileNetV2Config(depth_multiplier=0.1, min_depth=8, **NAMED)
    )


def dpt() -> Any:
    """DPT, a transformer whose maps are joined again."""
    return transformers.DPTForSemanticSegmentation(
        transformers.DPTConfig(
            hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16, image_size=32,
            patch_size=8, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8] * 4, fusion_hidden_size=8,
            use_auxiliary_head=False, **NAMED,
        )
    )  # fmt: skip


def beit() -> Any:
    """BEiT, a transformer with patches of 16 x 16."""
    return transformers.BeitForSemanticSegmentation(
        transformers.BeitConfig(
            hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16, image_size=32,
            patch_size=16, out_indices=[1, 2, 3, 4], use_auxiliary_head=False, **NAMED,
        )
    )  # fmt: skip


def upernet() -> Any:
    """UperNet on ConvNeXt, logits at the input's own size."""
    backbone = transformers.ConvNextConfig(
        hidden_sizes=[8] * 4, depths=[1] * 4, out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    return transformers.UperNetForSemanticSegmentation(
        transformers.UperNetConfig(backbone_config=backbone, hidden_size=16, use_auxiliary_head=False, **NAMED)
    )


def mobilevit() -> Any:
    """MobileViT with DeepLabv3's head, which sees blue first."""
    return transformers.MobileViTForSemanticSegmentation(
        transformers.MobileViTConfig(
            hidden_sizes=[16] * 3, neck_hidden_sizes=[8] * 4 + [16] * 3, num_attention_heads=2, image_size=64,
            aspp_out_channels=8, **NAMED,
        )
    )  # fmt: skip


MODELS: dict[str, tuple[Callable[[], Any], str, dict[str, Any]]] = {
    "segformer": (segformer, "Segformer", {"size": {"height": 64, "width": 64}}),
    "mobilenet": (mobilenet, "MobileNetV2", {"size": {"shortest_edge": 64}, "do_center_crop": False}),
    "dpt": (dpt, "DPT", {"size": {"height": 32, "width": 32}}),
    "beit": (beit, "Beit", {"size": {"height": 32, "width": 32}, "do_center_crop": False}),
    "upernet": (upernet, "Segformer", {"size": {"height": 64, "width": 64}}),
    "mobilevit": (mobilevit, "MobileViT", {"size": {"shortest_edge": 64}, "do_center_crop": False}),
}


def processor_of(kind: str, **asked: Any) -> Any:
    """transformers' own processor, the one that needs no torchvision."""
    return getattr(transformers, f"{kind}ImageProcessorPil")(**asked)


def save(model: Any, folder: Path) -> None:
    """As a user would save it, without bars."""
    from replaygen.learn.encoders import quiet_transformers

    with quiet_transformers():
        model.save_pretrained(folder)


def _make_lively(model: Any) -> None:
    """Statistics of batches instead of 0 and 1, and scores that vary: a random network's are all but constant."""
    side = getattr(model.config, "image_size", 64)
    pictures = torch.nn.functional.interpolate(torch.rand(4, 3, 4, 4), (side, side))
    for module in model.modules():
        if hasattr(module, "reset_running_stats"):
            module.momentum = None
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
        for _ in range(5):
            model.train()(pictures)
        spread = model.eval()(pictures).logits.std((0, 2, 3)).mean()
        last = [parameter for parameter in model.parameters() if parameter.ndim == 4 and len(parameter) == len(LABELS)]
        last[-1].mul_(1 / spread)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each tiny model with random weights in a folder of its own, as it would be shared."""
    root = tmp_path_factory.mktemp("teachers")
    for name, (build, kind, asked) in MODELS.items():
        torch.manual_seed(0)
        model = build()
        _make_lively(model)
        save(model, root / name)
        processor_of(kind, **asked).save_pretrained(root / name)
    return {name: root / name for name in MODELS}


@pytest.fixture
def copied(folders: dict[str, Path], tmp_path: Path) -> Path:
    """The SegFormer's folder, to be spoilt."""
    return Path(shutil.copytree(folders["segformer"], tmp_path / "teacher"))


@pytest.mark.parametrize("name", MODELS)
def test_a_teacher_says_what_its_model_says(folders: dict[str, Path], name: str) -> None:
    """Through our own resizing, the probabilities are those of the model behind transformers' processor."""
    _, kind, asked = MODELS[name]
    teacher = open_teacher(TeacherSpec(model=str(folders[name])), ["cow", "dog", "tv_monitor"], CPU)
    made = teacher.probabilities(IMAGE)
    assert made.shape == (4, 40, 60)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made.sum(0), 1, atol=1e-5)
    processed = processor_of(kind, **asked)(images=[IMAGE], return_tensors="pt", input_data_format="channels_last")
    model = transformers.AutoModelForSemanticSegmentation.from_pretrained(folders[name]).eval()
    with torch.no_grad():
        logits = model(processed["pixel_values"]).logits
        whole = torch.nn.functional.interpolate(logits, size=(40, 60), mode="bilinear").softmax(1)[0].numpy()
    np.testing.assert_allclose(made[1:], whole[[4, 2, 3]], rtol=1e-3)
    np.testing.assert_allclose(made[0], whole[[0, 1, 5, 6]].sum(0), rtol=1e-3)
    assert (made.std((1, 2)) > 0.01 * made.mean((1, 2)))[1:].all()


def test_the_mirror_image_takes_part(folders: dict[str, Path]) -> None:
    """With `flip` an image and its mirror image get mirrored labels."""
    teacher = open_teacher(TeacherSpec(model=str(folders["segformer"])), ["cat"], CPU)
    both = teacher.probabilities(IMAGE, flip=True)
    np.testing.assert_allclose(both, teacher.probabilities(IMAGE[:, ::-1], flip=True)[:, :, ::-1], atol=1e-6)
    plain = teacher.probabilities(IMAGE), teacher.probabilities(IMAGE[:, ::-1])[:, :, ::-1]
    np.testing.assert_allclose(both, sum(plain) / 2, atol=1e-6)


def test_a_teacher_of_just_our_classes_leaves_nothing_else(folders: dict[str, Path]) -> None:
    """Where every label stands for a class of ours, "everything else" has no probability."""
    spec = TeacherSpec(model=str(folders["segformer"]), classes={"none": "background", "tv": "TV_monitor"})
    made = open_teacher(spec, ["none", "cat", "dog", "tv", "ox", "aeroplane", "pig"], CPU).probabilities(IMAGE)
    assert (made[0] == 0).all()
    np.testing.assert_allclose(made.sum(0), 1, atol=1e-5)


def test_many_labels_are_added_up(tmp_path: Path) -> None:
    """More labels than are enlarged at a time still sum to 1, whichever stand for us."""
    torch.manual_seed(1)
    config = transformers.SegformerConfig(
        depths=[1] * 4, hidden_sizes=[8] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8, num_labels=45
    )
    save(transformers.SegformerForSemanticSegmentation(config), tmp_path)
    processor_of("Segformer", size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    one = open_teacher(TeacherSpec(model=str(tmp_path), classes={"a": 40, "b": 3}), ["a", "b"], CPU)
    every = open_teacher(TeacherSpec(model=str(tmp_path)), [f"label_{index}" for index in range(45)], CPU)
    made, whole = one.probabilities(IMAGE), every.probabilities(IMAGE)[1:]
    np.testing.assert_allclose(made[1:], whole[[40, 3]], atol=1e-6)
    np.testing.assert_allclose(made[0], 1 - whole[[40, 3]].sum(0), atol=1e-5)


# names


def test_equal_names_are_found_however_they_are_written() -> None:
    """Case, spaces, underscores, synonyms and the two usual spellings; or what `classes` says, by name or index."""
    spec = TeacherSpec(model="x", classes={"calf": "ox", "telly": 3})
    assert spec.indices(["CAT", "aeroplane", "cow", "Tv_Monitor"], LABELS) == (1, 5, 4, 3)
    assert spec.indices(["calf", "telly"], LABELS) == (4, 3)
    assert spec.indices([], LABELS) == ()


def test_what_stands_for_nothing_is_refused_with_the_nearest_name() -> None:
    """A missing label, an index that is not there, one label for two classes, two labels of one name."""
    with pytest.raises(RecipeError, match="no label 'pigg' for the class 'pigg'") as caught:
        TeacherSpec(model="x").indices(["pigg"], LABELS)
    assert "'pig'" in caught.value.hint
    with pytest.raises(RecipeError, match="no label 'bull' for the class 'calf'"):
        TeacherSpec(model="x", classes={"calf": "bull"}).indices(["calf"], LABELS)
    with pytest.raises(RecipeError, match="no label 7"):
        TeacherSpec(model="x", classes={"cat": 7}).indices(["cat"], LABELS)
    with pytest.raises(RecipeError, match="stands for both 'cow' and 'calf'"):
        TeacherSpec(model="x", classes={"calf": 4}).indices(["cow", "calf"], LABELS)
    with pytest.raises(RecipeError, match="2 labels 'cat'") as caught:
        TeacherSpec(model="x").indices(["cat"], ["CAT", "c_at"])
    assert "0 (CAT) or 1 (c_at)" in caught.value.hint
    with pytest.raises(RecipeError, match="no class called 'kat'") as caught:
        TeacherSpec(model="x", classes={"kat": 1}).check(["dog", "cat"])
    assert "'cat'" in caught.value.hint


# what is in the folder


def test_identity_is_the_files_and_not_their_place(copied: Path, folders: dict[str, Path]) -> None:
    """Equal files have one identity wherever they lie; each pin is checked when the teacher is opened."""
    here = TeacherSpec(model=str(copied), classes={"cow": 4})
    there = here.model_copy(update={"model": str(folders["segformer"])})
    assert here.identity() == there.identity()
    assert set(here.identity()["files"]) == {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert here.identity() != here.model_copy(update={"size": 32}).identity()
    assert here.labels() == LABELS
    pinned = here.pinned()
    open_teacher(pinned, ["cow"], CPU)
    (copied / "preprocessor_config.json").write_text(
        (copied / "preprocessor_config.json").read_text().replace("64", "32")
    )
    assert pinned.identity() == there.identity() != here.identity()
    with pytest.raises(ModelError, match=r"preprocessor_config.json is not the one that was asked for"):
        open_teacher(pinned, ["cow"], CPU)
    hub = TeacherSpec(model="org/name", revision=REVISION)
    assert hub.identity() == {"classes": {}, "size": None, "model": "org/name", "revision": REVISION}
    assert (hub.files(), hub.labels()) == ({}, None)
    assert hub.pinned() == hub


def test_a_worker_holds_the_teacher_that_was_planned(copied: Path) -> None:
    """Opened once for equal specifications; refused where its files are others, or more, than when it was planned."""
    spec = TeacherSpec(model=str(copied)).pinned()
    where = {**CPU, "teacher": {"spec": spec.model_dump(mode="json"), "names": ["cow", "cat"]}}
    planned = json.loads(json.dumps(spec.identity()))
    teacher = teacher_of(planned, where)
    assert teacher.indices == (4, 1)
    assert teacher_of(planned, where) is teacher
    other = {**where, "teacher": {**where["teacher"], "names": ["cat"]}}
    assert teacher_of(planned, other).indices == (1,)
    (copied / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="changed after the plan was made"):
        teacher_of(planned, where)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"model": "org/name", "revision": "main"}, "revision"),
        ({"model": "org/name", "revision": REVISION, "sha256": {"config.json": "0" * 64}}, "fixes a hub's files"),
        ({"model": "here", "sha256": {"config.json": "0" * 63}}, "64 hexadecimal"),
        ({"model": "here", "labels": []}, "labels"),
        ({"model": ""}, "model"),
    ],
)
def test_specifications_that_make_no_sense(given: dict[str, Any], match: str) -> None:
    """They are refused when the recipe is read."""
    with pytest.raises(ValueError, match=match):
        TeacherSpec.model_validate(given)


def test_pickles_are_never_read(copied: Path) -> None:
    """A folder whose weights are only a pickle is refused before anything is opened."""
    torch.save({}, copied / "pytorch_model.bin")
    (copied / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"only pickled weights: pytorch_model.bin"):
        open_teacher(TeacherSpec(model=str(copied)), ["cat"], CPU)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_missing_files_are_named(copied: Path, name: str) -> None:
    """Each of the three files is needed."""
    (copied / name).unlink()
    with pytest.raises(ModelError, match=r"no \.?" + name.removeprefix("model")) as caught:
        open_teacher(TeacherSpec(model=str(copied)), ["cat"], CPU)
    assert "config.json" in caught.value.hint
    with pytest.raises(ModelError, match="no folder"):
        TeacherSpec(model=str(copied / "other")).identity()


def spoil(copied: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the tensors of a folder."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(copied / "model.safetensors")
    change(tensors)
    save_file(tensors, copied / "model.safetensors", metadata={"format": "pt"})


def test_bad_weights_are_refused(copied: Path) -> None:
    """NaN, infinity, a missing tensor, another shape, a file that is cut off."""
    name = "decode_head.classifier.weight"
    whole = (copied / "model.safetensors").read_bytes()
    spec = TeacherSpec(model=str(copied))
    for value in (float("nan"), float("-inf")):
        spoil(copied, lambda tensors, value=value: tensors[name][0, 0].fill_(value))  # type: ignore[misc]
        with pytest.raises(ModelError, match=rf"'{name}' holds NaN or infinity"):
            open_teacher(spec, ["cat"], CPU)
        (copied / "model.safetensors").write_bytes(whole)
    spoil(copied, lambda tensors: tensors.__delitem__(name))
    with pytest.raises(ModelError, match=rf"lack '{name}'"):
        open_teacher(spec, ["cat"], CPU)
    (copied / "model.safetensors").write_bytes(whole)
    spoil(copied, lambda tensors: tensors.update({name: tensors[name][:3].clone()}))
    with pytest.raises(ModelError, match="transformers cannot open"):
        open_teacher(spec, ["cat"], CPU)
    (copied / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="transformers cannot open"):
        open_teacher(spec, ["cat"], CPU)


def test_what_is_no_segmentation_model_is_refused(copied: Path) -> None:
    """A classifier of images has no head for pixels."""
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    save(transformers.ResNetForImageClassification(config), copied)
    with pytest.raises(ModelError, match="transformers cannot open this teacher"):
        open_teacher(TeacherSpec(model=str(copied)), ["cat"], CPU)


def test_an_input_of_the_wrong_size_is_told(folders: dict[str, Path]) -> None:
    """BEiT's patches are 16 x 16: asked with less it says so, and what to set."""
    teacher = open_teacher(TeacherSpec(model=str(folders["beit"]), size=8), ["cat"], CPU)
    with pytest.raises(ModelError, match="an image of 8 x 8") as caught:
        teacher.probabilities(IMAGE)
    assert "teacher.size" in caught.value.hint


def test_overflowing_scores_are_refused(copied: Path) -> None:
    """Finite weights may still give infinite scores; no label is made of them."""
    spoil(copied, lambda tensors: tensors["decode_head.classifier.weight"].fill_(3e38))
    teacher = open_teacher(TeacherSpec(model=str(copied)), ["cat"], CPU)
    with pytest.raises(ModelError, match="not finite"):
        teacher.probabilities(IMAGE)


# the processor


NORMAL = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "do_normalize": True}


@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        ("Segformer", {"size": {"height": 31, "width": 47}, "resample": 2, **NORMAL}),
        ("Segformer", {"size": {"shortest_edge": 20, "longest_edge": 25}, "resample": 3, **NORMAL}),
        ("Segformer", {"do_resize": False, **NORMAL}),
        ("Segformer", {"size": {"height": 16, "width": 16}, "resample": 0, "do_normalize": False}),
        ("Segformer", {"size": {"height": 16, "width": 16}, "do_rescale": False, **NORMAL}),
        ("MobileNetV2", {"size": {"shortest_edge": 33}, "do_center_crop": False, "rescale_factor": 1 / 127.5}),
        ("MobileViT", {"size": {"shortest_edge": 33}, "do_center_crop": False}),
        ("DPT", {"size": {"height": 50, "width": 33}, "keep_aspect_ratio": True, "ensure_multiple_of": 8, **NORMAL}),
        ("DPT", {"size": {"height": 30, "width": 90}, "ensure_multiple_of": 16}),
        ("Beit", {"size": {"height": 48, "width": 48}, "do_center_crop": False}),
    ],
)
@pytest.mark.parametrize("shape", [(40, 60), (61, 37), (1, 9)])
def test_images_are_prepared_as_transformers_does(kind: str, asked: dict[str, Any], shape: tuple[int, int]) -> None:
    """Bit by bit, for wide, high and thin images."""
    theirs = processor_of(kind, **asked)
    ours = read_processor(json.loads(theirs.to_json_string()))
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    try:
        wanted = theirs(images=[image], return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    except ValueError:  # transformers would make an image without height of it
        assert min(ours(image).shape) == 1
        return
    assert torch.equal(ours(image), wanted)


def test_sizes_as_one_number() -> None:
    """Older files give one number: both sides, or the shorter edge where the processor is of that kind."""
    told = {"size": 32, "resample": 2, "feature_extractor_type": "SegformerFeatureExtractor"}
    assert read_processor(told).size == (32, 32)
    assert read_processor({**told, "feature_extractor_type": "MobileViTFeatureExtractor"}).size == 32
    assert read_processor({**told, "default_to_square": False}).size == 32
    assert read_processor(told, size=48).size == (48, 48)
    assert read_processor({**told, "default_to_square": False}, size=48).size == 48
    assert read_processor({"do_resize": False}, size=48).size == (48, 48)
    assert read_processor({"do_resize": False}).size is None


def test_the_crop_is_left_out_and_old_files_are_understood() -> None:
    """A labeler sees the whole image; no word of normalising but a mean means normalising."""
    told = {"size": {"shortest_edge": 30}, "resample": 2, "do_center_crop": True, "crop_size": 8, "reduce_labels": True,
            "image_mean": [0.5] * 3, "image_std": 0.25}  # fmt: skip
    made = read_processor(told)
    assert made.target(40, 60) == (30, 45)
    assert (made.mean, made.std) == ((0.5,) * 3, (0.25,) * 3)
    assert read_processor({"do_resize": False}).mean == (0.0,) * 3


@pytest.mark.parametrize(
    ("told", "match"),
    [
        ({"do_pad": True}, "not known here: do_pad = True"),
        ({"auto_map": {"AutoImageProcessor": "code.Own"}}, "not known here: auto_map"),
        ({"crop_pct": 0.9}, "not known here: crop_pct"),
        ({"size": {"longest_edge": 9}}, "size .* is not known"),
        ({"size": {"height": 9}}, "size .* is not known"),
        ({"size": {"height": 9, "width": -1}}, "size .* is not known"),
        ({"size": "large"}, "size 'large' is not known"),
        ({"size": None}, "size None is not known"),
        ({"size": {"shortest_edge": 9}, "keep_aspect_ratio": True}, "size .* is not known"),
        ({"resample": None}, "does not say resample"),
        ({"resample": 9}, "no filter of Pillow"),
        ({"image_mean": [0.5, 0.5]}, "image_mean must be three numbers"),
        ({"image_std": None}, "image_std must be three numbers"),
        ({"image_std": [1, 0, 1]}, "image_std holds 0"),
        ({"rescale_factor": "1/255"}, "rescale_factor = '1/255' is no number"),
        ({"do_flip_channel_order": True}, "have no known order"),
    ],
)
def test_unknown_settings_of_a_processor_are_refused(told: dict[str, Any], match: str) -> None:
    """Nothing is guessed: what is not understood would change every label a little."""
    sound = {"size": {"height": 8, "width": 8}, "resample": 2, **NORMAL}
    read_processor(sound)
    with pytest.raises(ModelError, match=match):
        read_processor({**sound, **told}, where="here")


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 900), st.integers(1, 900), st.integers(8, 600), st.integers(1, 32), st.booleans())
def test_inputs_are_never_empty(height: int, width: int, side: int, multiple: int, keep: bool) -> None:
    """Whatever the image, both sides have a pixel and are multiples where multiples are asked for."""
    sides = Processor((side, side + 7), keep=keep, multiple=multiple).target(height, width)
    assert all(one >= 1 and one % multiple == 0 for one in sides)
    shorter = Processor(side, longest=side * 4).target(height, width)
    assert min(shorter) >= 1
    assert max(shorter) <= side * 4


# the hub, and what is not installed


OPEN_TWICE = """
import os, sys
from replaygen.errors import ModelError
from replaygen.labelers.specs import TeacherSpec
from replaygen.labelers.teacher import open_teacher

def tell(revision):
    try:
        spec = TeacherSpec(model="org/name", revision=revision)
        print(open_teacher(spec, ["cow"], {"device": "cpu"}).indices, flush=True)
    except ModelError as error:
        print(error.what, flush=True)

for revision in sys.argv[1:]:
    tell(revision)
os.environ["REPLAYGEN_OFFLINE"] = "1"
for revision in sys.argv[1:]:
    tell(revision)
"""


def test_a_hubs_teacher_is_fetched_once(folders: dict[str, Path], tmp_path: Path) -> None:
    """Of a commit what is needed is fetched, no pickle and no subfolder, and found again without network."""
    published = Path(shutil.copytree(folders["segformer"], tmp_path / "published"))
    (published / "onnx").mkdir()
    for name in ("pytorch_model.bin", "run.py", "onnx/model.safetensors"):
        (published / name).write_bytes(b"not to be fetched")
    hub = Hub()
    hub.repositories = {"org/name": {MAIN: published}}
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING", "REPLAYGEN_OFF"))}
    environment = {**kept, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(REPOSITORY)}
    try:
        told = subprocess.run(
            [sys.executable, "-c", OPEN_TWICE, MAIN, "d" * 40], env=environment, capture_output=True, text=True,
            check=True, cwd=tmp_path, timeout=300,
        ).stdout.splitlines()  # fmt: skip
    finally:
        hub.server.shutdown()
        hub.server.server_close()
    assert (told[0], told[2]) == ("(4,)", "(4,)")
    assert told[1].startswith("the teacher cannot be had from the hub: ")
    assert told[3].startswith("the teacher cannot be had from the hub: it is not here")
    assert bodies(hub) == ["config.json", "model.safetensors", "preprocessor_config.json"]


def test_a_plan_reads_specifications_without_torch() -> None:
    """Neither torch nor numpy nor transformers is loaded by the specifications."""
    code = (
        "import sys, replaygen.labelers.specs\n"
        "print(sorted({'torch', 'numpy', 'transformers', 'PIL', 'cv2'} & set(sys.modules)))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == "[]"
