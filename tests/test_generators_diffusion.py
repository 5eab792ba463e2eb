"""Diffusion pipelines, built small here, saved, and drawn from through `open_diffusion`."""

from __future__ import annotations

import importlib.util
import json
import shutil
import string
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from replaygen.errors import ModelError, RecipeError
from replaygen.generators.diffusion import (
    DiffusionGenerator,
    class_count,
    class_names,
    open_diffusion,
    pipeline_kind,
    prompts_of,
)
from replaygen.generators.draws import Draw, fault
from replaygen.generators.specs import DiffusionSpec

VAE = Path("vae/diffusion_pytorch_model.safetensors")
REPOSITORY = Path(__file__).resolve().parent.parent
UNET, TEXT = Path("unet/diffusion_pytorch_model.safetensors"), Path("text_encoder/model.safetensors")
BAD = ("<|startoftext|>", "<|endoftext|>")
VOCABULARY = {
    token: index
    for index, token in enumerate([*string.ascii_lowercase, *(f"{one}</w>" for one in string.ascii_lowercase), *BAD])
}
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


class Tiny:
    """Builders of the smallest networks that the pipelines accept."""

    def __init__(self) -> None:
        import diffusers
        import transformers

        self.d, self.t = diffusers, transformers
        self.clip_words = transformers.CLIPTokenizer(vocab=VOCABULARY, merges=[], model_max_length=77)
        letters = [(letter, -3.0) for letter in string.ascii_lowercase]
        words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *letters]
        self.t5_words = transformers.T5Tokenizer(vocab=words, model_max_length=512, extra_ids=0)

    def vae(self, blocks: tuple[int, ...] = (8, 16)) -> Any:
        return self.d.AutoencoderKL(
            block_out_channels=blocks, down_block_types=("DownEncoderBlock2D",) * len(blocks), latent_channels=4,
            up_block_types=("UpDecoderBlock2D",) * len(blocks), norm_num_groups=4, shift_factor=0.0,
        )  # fmt: skip

    def unet(self, **changed: Any) -> Any:
        settings = {
            "sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "cross_attention_dim": 16,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "attention_head_dim": 4, "norm_num_groups": 4,
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        }  # fmt: skip
        return self.d.UNet2DConditionModel(**{**settings, **changed})

    def clip(self, kind: str = "CLIPTextModel") -> Any:
        start, end = (VOCABULARY[one] for one in BAD)
        return getattr(self.t, kind)(
            self.t.CLIPTextConfig(
                vocab_size=len(VOCABULARY), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                num_attention_heads=2, projection_dim=16, bos_token_id=start, eos_token_id=end, pad_token_id=end,
            )
        )  # fmt: skip

    def t5(self, width: int) -> Any:
        return self.t.T5EncoderModel(
            self.t.T5Config(vocab_size=40, d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        )

    def objecting_checker(self) -> tuple[Any, Any]:
        """A safety checker whose thresholds lie below every cosine: it objects to all that is a number."""
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

        small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        vision = {**small, "image_size": 16, "patch_size": 8, "projection_dim": 8}
        checker = StableDiffusionSafetyChecker(
            self.t.CLIPConfig(text_config=small, vision_config=vision, projection_dim=8)
        )
        checker.concept_embeds_weights.data.fill_(-2.0)
        return checker, self.t.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})

    def sd(self, **changed: Any) -> Any:
        parts = {
            "vae": self.vae(), "text_encoder": self.clip(), "tokenizer": self.clip_words, "unet": self.unet(),
            "scheduler": self.d.DDIMScheduler(**NOISE, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
            "safety_checker": None, "feature_extractor": None, "requires_safety_checker": False,
        }  # fmt: skip
        return self.d.StableDiffusionPipeline(**{**parts, **changed})

    def checked(self) -> Any:
        checker, extractor = self.objecting_checker()
        return self.sd(safety_checker=checker, feature_extractor=extractor, requires_safety_checker=True)

    def ancestral(self) -> Any:
        return self.sd(scheduler=self.d.EulerAncestralDiscreteScheduler(**NOISE, steps_offset=1))

    def sdxl(self) -> Any:
        unet = self.unet(
            cross_attention_dim=32, addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=64,
        )  # fmt: skip
        return self.d.StableDiffusionXLPipeline(
            self.vae(), self.clip(), self.clip("CLIPTextModelWithProjection"), self.clip_words, self.clip_words, unet,
            self.d.EulerDiscreteScheduler(**NOISE, steps_offset=1),
        )  # fmt: skip

    def lcm(self) -> Any:
        return self.d.LatentConsistencyModelPipeline(
            self.vae(), self.clip(), self.clip_words, self.unet(time_cond_proj_dim=8), self.d.LCMScheduler(**NOISE),
            None, None, requires_safety_checker=False,
        )  # fmt: skip

    def pixart(self) -> Any:
        network = self.d.PixArtTransformer2DModel(
            num_attention_heads=1, attention_head_dim=8, num_layers=1, norm_num_groups=4, cross_attention_dim=8,
            caption_channels=8, sample_size=32, use_additional_conditions=False,
        )  # fmt: skip
        return self.d.PixArtAlphaPipeline(
            self.t5_words, self.t5(8), self.vae((4, 4, 4, 4)), network, self.d.DPMSolverMultistepScheduler()
        )

    def sd3(self) -> Any:
        network = self.d.SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8,
            num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=32,
        )  # fmt: skip
        clips = [self.clip("CLIPTextModelWithProjection") for _ in range(2)]
        return self.d.StableDiffusion3Pipeline(
            network, self.d.FlowMatchEulerDiscreteScheduler(), self.vae(), clips[0], self.clip_words, clips[1],
            self.clip_words, self.t5(32), self.t5_words,
        )  # fmt: skip

    def flux(self) -> Any:
        network = self.d.FluxTransformer2DModel(
            patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
            axes_dims_rope=(4, 4, 8), num_attention_heads=1, joint_attention_dim=16, pooled_projection_dim=16,
        )  # fmt: skip
        return self.d.FluxPipeline(
            self.d.FlowMatchEulerDiscreteScheduler(), self.vae(), self.clip(), self.clip_words, self.t5(16),
            self.t5_words, network,
        )  # fmt: skip

    def dit(self, classes: int = 1000, scheduler: Any = None) -> Any:
        network = self.d.DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=8, out_channels=8, num_layers=1, sample_size=8, norm_num_groups=4,
            num_embeds_ada_norm=classes,
        )  # fmt: skip
        return self.d.DiTPipeline(network, self.vae(), scheduler or self.d.DDIMScheduler(clip_sample=False))

    def dit5(self) -> Any:
        return self.dit(5)

    def dit_ddpm(self) -> Any:
        return self.dit(scheduler=self.d.DDPMScheduler(clip_sample=False))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """name of a `Tiny` builder -> its folder, saved once; not to be written to."""
    root = tmp_path_factory.mktemp("pipelines")
    tiny = Tiny()

    def folder(name: str) -> Path:
        if not (root / name).exists():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.manual_seed(0)
                getattr(tiny, name)().save_pretrained(root / name, safe_serialization=True)
        return root / name

    return folder


@pytest.fixture
def copy(saved: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """name of a `Tiny` builder -> a folder that the test may spoil."""
    return lambda name: Path(shutil.copytree(saved(name), tmp_path / name))


def opened(folder: Path, **spec: Any) -> DiffusionGenerator:
    return open_diffusion(folder, DiffusionSpec(**{"steps": 2, **spec}), "cpu")


def one(generator: DiffusionGenerator, prompt: str = "a cow", seed: int = 7) -> Any:
    return generator.draw([Draw(seed, label=1, prompt=prompt)])


def rewrite(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change tensors of a safetensors file or entries of a JSON file."""
    if file.suffix == ".json":
        held = json.loads(file.read_text())
        change(held)
        file.write_text(json.dumps(held))
    else:
        held = load_file(file)
        change(held)
        save_file(held, file, metadata={"format": "pt"})


def test_prompts_take_turns_and_name_the_class() -> None:
    spec = DiffusionSpec(prompts=("a {class}", "{class} and {class}"), words={"tv_monitor": "television"})
    assert prompts_of(spec, "potted_plant", 3) == ["a potted plant", "potted plant and potted plant", "a potted plant"]
    assert prompts_of(spec, "tv_monitor", 1) == ["a television"]


def test_kind_names_and_count_are_read_without_torch(copy: Callable[[str], Path]) -> None:
    dit = copy("dit5")
    assert (pipeline_kind(dit), class_names(dit), class_count(dit)) == ("class", None, 5)
    named = {str(index): f"class {index}, also {index}" for index in reversed(range(11))}
    rewrite(dit / "model_index.json", lambda index: index.update(id2label=named))
    assert class_names(dit) == tuple(f"class {index}, also {index}" for index in range(11))
    rewrite(dit / "model_index.json", lambda index: index["id2label"].pop("3"))
    with pytest.raises(ModelError, match="each once"):
        class_names(dit)
    assert pipeline_kind(copy("sd")) == "text"
    read = "import sys; from pathlib import Path; from replaygen.generators import diffusion as d; "
    read += "d.class_count(Path(sys.argv[1])); print({'torch', 'diffusers', 'transformers'} & set(sys.modules))"
    heavy = subprocess.run(
        [sys.executable, "-c", read, dit], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    assert heavy.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("sd", {}),
        ("sd", {"scheduler": "dpm"}),
        ("sd", {"scheduler": "euler"}),
        ("sd", {"scheduler": "lcm", "steps": 3, "guidance": 1.0}),
        ("sd", {"negative_prompt": "blurred", "guidance": 3.0, "dtype": "bfloat16"}),
        ("ancestral", {"steps": 3}),
        ("sdxl", {}),
        ("sdxl", {"dtype": "float16", "steps": 1}),
        ("lcm", {"steps": 3}),
        ("pixart", {}),
        ("sd3", {"steps": 1}),
        ("flux", {"size": 16}),
        ("dit", {}),
        ("dit", {"scheduler": "dpm", "guidance": 1.0}),
        ("dit", {"scheduler": "lcm", "steps": 3}),
        ("dit_ddpm", {"steps": 3}),
        ("dit_ddpm", {"steps": 3, "guidance": 0.5, "dtype": "float16"}),
    ],
)
def test_an_image_depends_on_its_own_draw_alone(saved: Callable[[str], Path], name: str, spec: dict[str, Any]) -> None:
    """Other neighbours, another place in the batch, another batch before it: the same bytes; another seed: others."""
    generator = opened(saved(name), batch=2, **spec)
    draws = [Draw(2**62 + 5, 1, "a cow"), Draw(11, 2, "two dogs"), Draw(12, 3, "a very long prompt about a cat")]
    images = generator.draw(draws)
    assert images.dtype == np.float32
    assert images.shape[0] == 3
    assert images.shape[3] == 3
    assert [fault(image) for image in images] == [None] * 3
    assert 0 <= images.min() < images.max() <= 1
    assert np.array_equal(generator.draw(draws[::-1])[::-1], images)
    assert np.array_equal(generator.draw(draws[1:2])[0], images[1])
    assert not np.array_equal(generator.draw([Draw(13, 2, "two dogs")])[0], images[1])


def test_what_is_asked_for_shows(saved: Callable[[str], Path]) -> None:
    """Prompt, label, guidance (None: the pipeline's own), negative prompt, steps, size, scheduler change an image."""
    usual = opened(saved("sd"))
    image = one(usual)
    assert image.shape == (1, 16, 16, 3)
    assert np.array_equal(one(opened(saved("sd"), guidance=7.5)), image)
    assert not np.array_equal(one(usual, "a dog"), image)
    for spec in ({"guidance": 2.0}, {"negative_prompt": "fog"}, {"steps": 3}, {"scheduler": "euler"}):
        assert not np.array_equal(one(opened(saved("sd"), **spec)), image), spec
    assert one(opened(saved("sd"), size=24)).shape == (1, 24, 24, 3)
    dit = opened(saved("dit"))
    assert not np.array_equal(dit.draw([Draw(7, 1)]), dit.draw([Draw(7, 2)]))
    assert np.array_equal(one(dit), one(opened(saved("dit"), guidance=4.0)))
    assert dit.draw([]).shape[0] == 0


@pytest.mark.parametrize("name", ["sd", "dit"])
def test_half_precision_is_close(saved: Callable[[str], Path], name: str) -> None:
    exact = one(opened(saved(name)))
    for dtype in ("bfloat16", "float16"):
        assert 0 < np.abs(one(opened(saved(name), dtype=dtype)) - exact).mean() < 0.01


@pytest.mark.parametrize("name", ["sd", "dit"])
def test_a_decoder_that_overflows_in_half_precision_is_kept_in_float32(copy: Callable[[str], Path], name: str) -> None:
    folder, large = copy(name), torch.full((16,), 6e4)
    biases = ["decoder.conv_in.bias", *(f"decoder.mid_block.resnets.{number}.conv2.bias" for number in (0, 1))]
    rewrite(folder / VAE, lambda held: held.update({bias: large.clone() for bias in biases}))
    assert fault(one(opened(folder, dtype="float16"))[0]) is None
    rewrite(folder / "vae/config.json", lambda config: config.update(force_upcast=False))
    assert fault(one(opened(folder, dtype="float16"))[0]) == "not-finite"


def test_black_is_told_from_not_a_number(saved: Callable[[str], Path], copy: Callable[[str], Path]) -> None:
    """The checker blackens what it objects to; an image that failed stays NaN, and its neighbours stay as they are."""

    def spoil(tensors: dict[str, Any]) -> None:
        tensors["embeddings.token_embedding.weight"][VOCABULARY["z</w>"]] = float("nan")

    black = opened(saved("checked"), batch=2).draw([Draw(1, prompt="a cow"), Draw(2, prompt="a zebra")])
    assert [fault(image) for image in black] == ["black", "black"]
    for name, neighbour in (("checked", "black"), ("sd", None)):
        folder = copy(name)
        rewrite(folder / TEXT, spoil)
        drawn = opened(folder, batch=2).draw([Draw(1, prompt="a cow"), Draw(2, prompt="jazz")])
        assert [fault(image) for image in drawn] == [neighbour, "not-finite"]
        assert np.isnan(drawn[1]).all()
    folder = shutil.copytree(saved("dit"), folder.parent / "infinite")
    infinite = torch.full((3,), float("inf"))
    rewrite(folder / VAE, lambda held: held.update({"decoder.conv_out.bias": infinite}))
    assert fault(one(opened(folder))[0]) == "not-finite"


def test_noise_from_elsewhere_is_refused(saved: Callable[[str], Path]) -> None:
    generator = opened(saved("sd"))
    generator.pipeline.text_encoder.config.attention_dropout = 0.5
    generator.pipeline.text_encoder.train()
    for module in generator.pipeline.text_encoder.modules():
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.5
    with pytest.raises(ModelError, match="noise from elsewhere"):
        one(generator)


def test_a_prompt_that_would_be_cut_is_refused(saved: Callable[[str], Path]) -> None:
    for name, words, too_many in (("sd", 75, 76), ("sd3", 250, 300), ("pixart", 50, 130)):
        generator = opened(saved(name), steps=1)
        with pytest.raises(ModelError, match=r"the prompt '(x )+x?' has \d+ tokens"):
            one(generator, "x " * too_many)
        if name == "sd":
            one(generator, "x " * words)
    with pytest.raises(ModelError, match="without a prompt"):
        generator.draw([Draw(1, label=3)])


@pytest.mark.parametrize("label", [-1, 1000, None])
def test_an_unknown_class_is_refused(saved: Callable[[str], Path], label: int | None) -> None:
    """1000 is DiT's null class: an image of nothing."""
    with pytest.raises(ModelError, match="of 1000 classes"):
        opened(saved("dit")).draw([Draw(1, label)])


@pytest.mark.parametrize(
    ("name", "spec", "told"),
    [
        ("dit5", {"guidance": 4.0}, "no null class where there are 5"),
        ("dit5", {}, "no null class where there are 5"),
        ("dit", {"scheduler": "euler"}, "starts from unit noise"),
        ("dit", {"size": 256}, "one size only"),
        ("dit", {"negative_prompt": "fog"}, "no negative prompt"),
        ("dit", {"lora": "a.safetensors"}, "takes no LoRA"),
        ("sd", {"size": 17}, "multiples of 2 pixels, not 17"),
        ("sd", {"scheduler": "lcm", "steps": 60}, "60 steps"),
        ("sd3", {"scheduler": "ddim"}, "predicts a flow"),
        ("lcm", {"scheduler": "ddim"}, "made for LCM's steps"),
        ("lcm", {"negative_prompt": "fog"}, "no negative prompt"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(
    saved: Callable[[str], Path], name: str, spec: dict[str, Any], told: str
) -> None:
    with pytest.raises(RecipeError, match=told):
        opened(saved(name), **spec)


def test_five_classes_are_drawn_without_guidance(saved: Callable[[str], Path]) -> None:
    images = opened(saved("dit5"), guidance=1.0, batch=5).draw([Draw(1, label) for label in range(5)])
    assert len({image.tobytes() for image in images}) == 5


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-64])


SPOILED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no index": (lambda at: (at / "model_index.json").unlink(), "model_index.json"),
    "no component": (lambda at: shutil.rmtree(at / "vae"), "vae"),
    "truncated": (lambda at: cut(at / UNET), "header says"),
    "truncated text encoder": (lambda at: cut(at / TEXT), "header says"),
    "no such weights": (lambda at: (at / UNET).rename(at / "unet/other.safetensors"), "no weights under a name"),
    "a tensor is missing": (lambda at: rewrite(at / UNET, lambda held: held.pop("conv_in.weight")), "conv_in.weight"),
    "a text tensor is missing": (
        lambda at: rewrite(at / TEXT, lambda held: held.pop("encoder.layers.0.self_attn.q_proj.weight")),
        "text_encoder's weights lack 1 tensors",
    ),
    "another shape": (
        lambda at: rewrite(at / UNET, lambda held: held.update({"conv_in.bias": torch.zeros(3)})),
        "cannot be loaded",
    ),
    "own pipeline": (
        lambda at: rewrite(at / "model_index.json", lambda index: index.update(_class_name=["code", "Net"])),
        "own code is never run",
    ),
    "own component": (
        lambda at: rewrite(at / "model_index.json", lambda index: index.update(unet=["code", "Net"])),
        "code of its own",
    ),
    "another library": (
        lambda at: rewrite(at / "model_index.json", lambda index: index.update(unet=["subprocess", "Popen"])),
        "'subprocess'",
    ),
    "unknown pipeline": (
        lambda at: rewrite(at / "model_index.json", lambda index: index.update(_class_name="NoSuchPipeline")),
        "cannot be loaded",
    ),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_spoiled_folder_is_refused(copy: Callable[[str], Path], tmp_path: Path, how: str) -> None:
    folder, marker = copy("sd"), tmp_path / "ran"
    code = f"open({str(marker)!r}, 'w')\n"
    (folder / "code.py").write_text(code)
    (folder / "unet/code.py").write_text(code)
    spoil, told = SPOILED[how]
    spoil(folder)
    with pytest.raises(ModelError, match=told):
        opened(folder)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["unet/diffusion_pytorch_model", "text_encoder/pytorch_model"])
def test_a_pickle_is_never_loaded(copy: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    """Alone it is refused by name, with the way to convert it; beside safetensors it is left where it lies."""
    folder, marker = copy("sd"), tmp_path / "ran"
    pickled = folder / f"{name}.bin"
    pickled.write_bytes(f"cos\nmkdir\n(V{marker}\ntR.".encode())
    one(opened(folder))
    for file in pickled.parent.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(ModelError, match=pickled.name) as refused:
        opened(folder)
    assert "safe_serialization=True" in str(refused.value)
    assert not marker.exists()
    read = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))"
    subprocess.run([sys.executable, "-c", read, str(pickled)], check=True)
    assert marker.exists(), "the payload does nothing"


def test_weights_under_a_variant_name_are_found(saved: Callable[[str], Path], copy: Callable[[str], Path]) -> None:
    folder = copy("sd")
    (folder / UNET).rename(folder / "unet/diffusion_pytorch_model.fp16.safetensors")
    (folder / TEXT).rename(folder / "text_encoder/model.fp16.safetensors")
    assert np.array_equal(one(opened(folder)), one(opened(saved("sd"))))


def lora_of(folder: Path, target: Path) -> Path:
    """LoRA weights for the attention of a saved pipeline's UNet, named by the pipeline's own writer."""
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    unet = UNet2DConditionModel.from_pretrained(str(folder / "unet"), local_files_only=True)
    unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"]))
    torch.manual_seed(1)
    for key, tensor in unet.named_parameters():
        if "lora_" in key:
            torch.nn.init.normal_(tensor, std=0.5)
    weights = get_peft_model_state_dict(unet)
    StableDiffusionPipeline.save_lora_weights(target.parent, weights, weight_name=target.name)
    return target


def test_lora_weights_change_the_image_by_their_scale(saved: Callable[[str], Path], tmp_path: Path) -> None:
    lora = str(lora_of(saved("sd"), tmp_path / "own.safetensors"))
    plain = one(opened(saved("sd")))
    change = [np.abs(one(opened(saved("sd"), lora=lora, lora_scale=scale)) - plain).mean() for scale in (0.0, 0.1, 1.0)]
    assert change[0] == 0 < change[1] < change[2]
    half = opened(saved("sd"), lora=lora, dtype="bfloat16", batch=2)
    assert np.array_equal(half.draw([Draw(1, prompt="a"), Draw(2, prompt="b")])[1:], half.draw([Draw(2, prompt="b")]))


def test_lora_weights_that_do_not_fit_are_refused(saved: Callable[[str], Path], tmp_path: Path) -> None:
    own = lora_of(saved("sd"), tmp_path / "own.safetensors")
    (tmp_path / "renamed.bin").write_bytes(own.read_bytes())
    (tmp_path / "short.safetensors").write_bytes(own.read_bytes()[:-8])
    tensors = load_file(own)
    for name, old, new in (("deeper", "mid_block", "mid_block_2"), ("nothing", "unet.", "transformer.")):
        save_file({key.replace(old, new): tensors[key] for key in tensors}, tmp_path / f"{name}.safetensors")
    save_file({"unet.conv_in.weight": torch.zeros(1)}, tmp_path / "plain.safetensors")
    save_file({**tensors, "unet.a.dora_scale": torch.zeros(1)}, tmp_path / "dora.safetensors")
    for file, told in (
        (tmp_path / "absent.safetensors", "are missing"),
        (tmp_path / "renamed.bin", r"\.safetensors files only"),
        (tmp_path / "short.safetensors", "no whole safetensors file"),
        (tmp_path / "deeper.safetensors", r"\d+ of \d+ LoRA tensors fit"),
        (tmp_path / "nothing.safetensors", r"0 of \d+ LoRA tensors fit"),
        (tmp_path / "plain.safetensors", "do not fit|0 of 0"),
        (tmp_path / "dora.safetensors", "DoRA"),
    ):
        with pytest.raises(ModelError, match=told):
            opened(saved("sd"), lora=str(file))
    with pytest.raises(ModelError, match="do not fit StableDiffusionXLPipeline"):
        opened(saved("sdxl"), lora=str(own))


def test_nothing_is_said_and_no_one_is_asked(
    saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """No output, no connection, and the libraries' verbosity as it was, whatever the environment says."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    asked: list[Any] = []
    watching = True

    def watch(event: str, details: tuple[Any, ...]) -> None:
        if watching and event in ("socket.connect", "socket.getaddrinfo"):
            asked.append(details)

    def verbosity() -> list[Any]:
        libraries = (diffusers_logging, transformers_logging)
        return [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]

    folders = [saved(name) for name in ("checked", "sdxl", "sd3", "dit")]
    before = verbosity()
    capfd.readouterr()
    sys.addaudithook(watch)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    for folder in folders:
        one(opened(folder, steps=1))
    watching = False
    assert asked == []
    assert capfd.readouterr() == ("", "")
    assert verbosity() == before


@pytest.fixture(scope="module")
def fullsize() -> Any:
    """benchmarks/fullsize.py."""
    found = importlib.util.spec_from_file_location("fullsize", REPOSITORY / "benchmarks" / "fullsize.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_full_size_is_the_published_size(fullsize: Any) -> None:
    """Millions of parameters; DiT's is 675 and 27 more embeddings of step and class, as diffusers stores it."""
    embedding = 1001 * 1152 + 256 * 1152 + 1152 + 1152 * 1152 + 1152
    with torch.device("meta"):
        networks = {name: getattr(fullsize, name)(1.0) for name in ("dit", "unet", "text_encoder", "vae")}
    count = {name: sum(one.numel() for one in network.parameters()) for name, network in networks.items()}
    assert round((count.pop("dit") - 27 * embedding) / 1e6) == 675
    millions = {name: round(number / 1e6) for name, number in count.items()}
    assert millions == {"unet": 860, "text_encoder": 123, "vae": 84}


@pytest.mark.parametrize("make", ["make_dit", "make_stable_diffusion"])
def test_full_size_pipelines_run_when_shrunk(fullsize: Any, tmp_path: Path, make: str) -> None:
    for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
        getattr(fullsize, make)(tmp_path / folder, seed, scale=0.03)
    key = "decoder.conv_in.weight"
    files = {folder: load_file(tmp_path / folder / VAE) for folder in "abc"}
    assert {tensor.dtype for tensor in files["a"].values()} == {torch.bfloat16}
    assert all(torch.equal(files["a"][name], files["b"][name]) for name in files["a"])
    assert not torch.equal(files["a"][key], files["c"][key])
    told = fullsize.try_fullsize(tmp_path / "a", DiffusionSpec(dtype="bfloat16", steps=50, batch=4))
    assert (told["finite"], told["side"]) == (True, 64)
    assert 0 < told["step_s"] < told["step_s"] + told["rest_s"] < 60
    assert 0 < told["load_s"] < 60
    assert 0.1 < told["peak_rss_gb"] < 20
