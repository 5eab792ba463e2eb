"""What a diffusers folder holds, read without torch, and why it is refused before anything in it is loaded.

A folder has `model_index.json`, which names the pipeline's class and for each component its library and class, and one
subfolder a component. Only safetensors weights are accepted: no pickle and no code of the folder's own is ever run.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from replaygen.errors import ModelError
from replaygen.generators.folder import check_weights, read_json

_INDEX = "model_index.json"
_WEIGHTLESS = re.compile(r"Scheduler|Tokenizer|Processor|Extractor")
_WEIGHTS = re.compile(r"(diffusion_pytorch_model|model)(\.(?P<variant>\w+))?(-\d{5}-of-\d{5})?\.safetensors")


@dataclass(frozen=True)
class Component:
    """One part of a pipeline. `variant` is the middle of its weights' name: "fp16" of model.fp16.safetensors."""

    name: str
    library: str
    class_name: str
    variant: str | None = None


def pipeline_kind(folder: Path) -> Literal["class", "text"]:
    """What the pipeline in a folder is asked with: "class" (an index, DiT) or "text" (a prompt, everything else).

    Raises:
        ModelError: no readable model_index.json.
    """
    return "class" if _class_name(folder) == "DiTPipeline" else "text"


def class_names(folder: Path) -> tuple[str, ...] | None:
    """The names of a class-conditional pipeline's classes in order ("tench, Tinca tinca", ...); None where not said.

    They are `id2label` in model_index.json; `save_pretrained` leaves it out, the published folders have it.

    Raises:
        ModelError: no readable model_index.json, or an `id2label` whose keys are not 0, 1, 2, ...
    """
    named = read_json(folder / _INDEX).get("id2label")
    if not named:
        return None
    if not isinstance(named, dict) or sorted(named) != sorted(str(index) for index in range(len(named))):
        raise ModelError("id2label must name the classes 0, 1, 2, ... each once", where=str(folder / _INDEX))
    return tuple(str(named[str(index)]) for index in range(len(named)))


def class_count(folder: Path) -> int:
    """How many classes a class-conditional pipeline has, without its null class.

    Raises:
        ModelError: the transformer's config.json is missing or does not say.
    """
    at = folder / "transformer" / "config.json"
    count = read_json(at).get("num_embeds_ada_norm")
    if not isinstance(count, int) or count < 1:
        raise ModelError(f"num_embeds_ada_norm must be the number of classes, not {count!r}", where=str(at))
    return count


def check_folder(folder: Path) -> tuple[Component, ...]:
    """The components of a pipeline, of which every weights file is whole as far as its size and header tell.

    See `folder.check_weights`; here also: nothing that would run code of the folder's own.

    Raises:
        ModelError: a missing or unreadable part, the folder's own code, only pickles, a truncated file, a lost shard.
    """
    _class_name(folder)
    check_weights(folder, "diffusion")
    found = []
    for name, entry in read_json(folder / _INDEX).items():
        if not isinstance(entry, list) or entry[:1] == [None]:
            continue
        match entry:
            case [str(library), str(class_name)] if name.isidentifier():
                found.append(_component(folder / name, name, library, class_name))
            case _:
                raise ModelError(f"model_index.json's {name!r} is no [library, class]", where=str(folder / _INDEX))
    return tuple(found)


def check_safetensors(path: Path) -> list[str]:
    """The names of the tensors in a safetensors file whose size is what its header says; no tensor is read.

    Raises:
        ModelError: not a safetensors file, or a truncated one.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as opened:
            return list(opened.keys())
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path.name} is no whole safetensors file: {error}", where=str(path), hint="download or copy it again"
        ) from error


def check_lora(file: Path) -> list[str]:
    """The names of the LoRA matrices in a safetensors file.

    Raises:
        ModelError: it is missing, no whole safetensors file, or of a kind that diffusers would only half apply.
    """
    if not file.is_file():
        raise ModelError("the LoRA weights are missing", where=str(file), hint="a .safetensors file")
    if file.suffix != ".safetensors":
        raise ModelError("LoRA weights are read from .safetensors files only", where=str(file))
    keys = check_safetensors(file)
    if any("dora_scale" in key for key in keys):
        raise ModelError("these are DoRA weights, of which diffusers would leave a part out", where=str(file))
    return [key for key in keys if "lora" in key and not key.endswith("alpha")]


def check_prompt(pipeline: Any, prompt: str) -> None:
    """Refuse a prompt that no text encoder of a loaded pipeline would see whole.

    Raises:
        ModelError: it has more tokens than the longest-reading tokenizer takes.
    """
    accepted = inspect.signature(type(pipeline).__call__).parameters.get("max_sequence_length")
    longest = accepted.default if accepted is not None else None
    room = []
    for name in ("tokenizer", "tokenizer_2", "tokenizer_3"):
        tokenizer = getattr(pipeline, name, None)
        if tokenizer is None:
            continue
        limit = int(tokenizer.model_max_length)
        if isinstance(longest, int) and "CLIP" not in type(tokenizer).__name__:
            limit = min(limit, longest)
        room.append((limit, len(tokenizer(prompt, verbose=False).input_ids)))
    if room and all(length > limit for limit, length in room):
        limit, length = max(room)
        raise ModelError(
            f"the prompt {prompt!r} has {length} tokens, the pipeline reads {limit}",
            hint="shorten `prompts` or `words`",
        )


def _component(folder: Path, name: str, library: str, class_name: str) -> Component:
    if (folder / f"{library}.py").exists():
        raise ModelError(f"{name} is code of its own, which is never run", where=str(folder / f"{library}.py"))
    if _WEIGHTLESS.search(class_name):
        return Component(name, library, class_name)
    variants = {named["variant"] for file in folder.iterdir() if (named := _WEIGHTS.fullmatch(file.name))}
    if not variants:
        raise ModelError(
            f"{name} has no weights under a name that diffusers knows", where=str(folder),
            hint="diffusion_pytorch_model.safetensors or model.safetensors",
        )  # fmt: skip
    return Component(name, library, class_name, None if None in variants else min(variants))


def _class_name(folder: Path) -> str:
    found = read_json(folder / _INDEX).get("_class_name")
    if not isinstance(found, str):
        raise ModelError(
            f"_class_name {found!r} is no class of diffusers; a pipeline's own code is never run", where=str(folder)
        )
    return found
