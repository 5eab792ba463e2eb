"""Image classifiers for class maps: a folder of `transformers`, or an op list of `replaygen.learn`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaygen.errors import ModelError
from replaygen.generators import imagenet
from replaygen.generators.imagenet import normalised
from replaygen.learn.specs import file_sha256
from replaygen.portions import Portions, memory_of

if TYPE_CHECKING:
    from torch import Tensor

    from replaygen.generators.classmap import Classifier, Float2
    from replaygen.sample import Image8


def identity(path: Path) -> dict[str, str]:
    """File -> sha256 of all that decides a classifier: an op list with what lies beside it, or a folder's parts.

    Raises:
        ModelError: nothing is there.
    """
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in (".json", ".safetensors"))
    else:
        beside = [path, *(path.with_suffix(ending) for ending in (".safetensors", ".pt"))]
        beside += [path.with_name(f"{path.stem}_labels.txt"), path.with_name("imagenet_labels.txt")]
        files = [file for file in beside if file.is_file()]
    if not files:
        hint = "a folder of transformers, or an op list (.json)"
        raise ModelError("no classifier is here", where=str(path), hint=hint)
    return {file.name: file_sha256(file) for file in files}


def open_classifier(path: Path, device: str, *, batch: int = 8) -> Classifier:
    """An image classifier from a folder of `transformers`, or from an op list (.json) of `replaygen.learn`.

    A folder has config.json, preprocessor_config.json and model.safetensors; code in it is never run, pickles are never
    read. An op list has its tensors beside it, its names in NAME_labels.txt or imagenet_labels.txt, and sees the whole
    image, scaled to its own size and to -1..1. Where the first of 1001 classes is "background" it is left out, so that
    the others have the usual indices; the rest of a row then sums to less than 1.

    Args:
        path: the folder or the .json file.
        device: where it runs, "cpu" or "cuda".
        batch: images of one forward pass; always exactly so many, so that no image's result depends on the others (on a
            GPU fewer where its memory is short).

    Raises:
        ModelError: missing, damaged, not a classifier, or with other outputs than names.
    """
    return (_from_oplist if path.suffix == ".json" else _from_folder)(path, device, batch)


@dataclass(frozen=True)
class _Network:
    """A classifier made of what prepares one image, float [3, H, W], and what gives probabilities, float [B, K]."""

    names: tuple[str, ...]
    prepare: Callable[[Image8], Tensor]
    run: Callable[[Tensor], Tensor]
    device: str
    portions: Portions

    @property
    def labels(self) -> tuple[str, ...]:
        first = normalised(self.names[0]) == "background" and len(self.names) == imagenet.COUNT + 1
        return self.names[1:] if first else self.names

    def __call__(self, images: Sequence[Image8]) -> Float2:
        import numpy as np

        found = np.empty((len(images), len(self.labels)), np.float32)
        done, full = 0, self.portions.most
        for start in range(0, len(images), full):
            prepared = [self.prepare(image) for image in images[start : start + full]]
            if len({image.shape for image in prepared}) > 1:
                raise ModelError("the classifier's processor makes images of unlike sizes", hint="set do_resize in it")
            for rows, count in self.portions.over(prepared, self._forward):
                found[done : done + count] = rows[:count]
                done += count
        return found

    def _forward(self, prepared: Sequence[Tensor]) -> Float2:
        import torch

        with torch.inference_mode():
            rows = self.run(torch.stack(list(prepared)).to(self.device))
        if rows.shape[1] != len(self.names):
            raise ModelError(f"the classifier has {rows.shape[1]} outputs but {len(self.names)} names")
        told: Float2 = rows[:, -len(self.labels) :].float().cpu().numpy()
        return told


def _from_oplist(path: Path, device: str, batch: int) -> Classifier:
    import numpy as np
    import torch
    from PIL import Image

    from replaygen.learn.oplist import OpListNet, read_oplist

    graph, tensors = read_oplist(path)
    last = next(op.kind for op in reversed(graph.ops) if op.out == graph.output)
    if last not in ("conv", "mean_hw", "softmax"):
        raise ModelError(f"the op list ends in {last}, not in the scores of an image's classes", where=str(path))
    beside = [path.with_name(name) for name in (f"{path.stem}_labels.txt", "imagenet_labels.txt")]
    file = next((file for file in beside if file.is_file()), beside[0])
    try:
        names = tuple(file.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"cannot read the classes' names ({type(error).__name__})", where=str(file)) from None
    network = OpListNet(graph, tensors).to(device).eval()
    height, width = graph.input_hw

    def prepare(image: Image8) -> Tensor:
        scaled = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(scaled)).permute(2, 0, 1).float() / 127.5 - 1.0

    def run(images: Tensor) -> Tensor:
        scores: Tensor = network(images)[0].flatten(1)
        return scores if last == "softmax" else scores.softmax(1)

    return _Network(names, prepare, run, device, Portions(batch, memory_of(device)))


def _from_folder(path: Path, device: str, batch: int) -> Classifier:
    from replaygen.learn.encoders import quiet_transformers

    hint = "a folder with config.json, preprocessor_config.json and model.safetensors of an image classifier"
    if not any(path.glob("*.safetensors")):
        raise ModelError("no .safetensors file in it; pickles (.bin, .pt) are never read", where=str(path), hint=hint)
    try:
        with quiet_transformers():
            model, processor = _load(path)
    except Exception as error:  # transformers, safetensors and json raise many kinds; each means the same to us
        first = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise ModelError(f"transformers cannot open this classifier: {first}", where=str(path), hint=hint) from None
    model = model.to(device).eval()
    names = tuple(str(model.config.id2label.get(index, index)) for index in range(model.config.num_labels))

    def prepare(image: Image8) -> Tensor:
        made = processor(images=[image], return_tensors="pt", input_data_format="channels_last")
        pixels: Tensor = made["pixel_values"][0]
        return pixels

    def run(images: Tensor) -> Tensor:
        scores: Tensor = model(images).logits.float().softmax(1)
        return scores

    return _Network(names, prepare, run, device, Portions(batch, memory_of(device)))


def _load(path: Path) -> tuple[Any, Any]:
    import torch
    import transformers

    library: Any = transformers
    where: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    processor = library.AutoImageProcessor.from_pretrained(path, backend="pil", **where)
    model, told = library.AutoModelForImageClassification.from_pretrained(
        path, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **where
    )
    if told["missing_keys"]:
        raise ValueError(f"the weights lack {min(told['missing_keys'])!r}")
    return model, processor
