"""What a recipe says about networks, views and fitting. No torch here: a plan reads these."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from replaygen.errors import ModelError

When = Literal["never", "after_base", "always"]
_SMALL_FIELDS = ("kind", "widths", "freeze", "freeze_bn")
HOW = ("log_every", "checkpoint_every", "checkpoint_seconds", "loaders", "tensorboard")
_DILATED = 2
"""How strides of transformers' encoders become dilation; 1 gave MobileNetV2 none."""
FARTHEST = 4.0
"""The largest side of a view, in sides of the picture."""
_NOT_IDENTITY = {"weights", "sha256"}
_PAPERS: dict[str, dict[str, Any]] = {
    "deeplabv3": {"rates": (6, 12, 18), "width": 256},
    "deeplabv3plus": {"rates": (6, 12, 18), "width": 256},
    "segformer": {"output_stride": 32, "width": 256, "dropout": 0.1},
}
"""Head -> what the paper sets where the recipe says nothing."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NetworkSpec(_Table):
    """`[network]`: what the network is, and where its weights are found.

    `weights` is only where; `identity()` names the files by their sha256 instead.
    """

    kind: Literal["small", "deeplab"] = Field(
        default="small", description="a network for pictures of a few dozen pixels, or any encoder with any head"
    )
    widths: tuple[int, ...] = Field(default=(24, 48, 64), description="small: channels at strides 2, 4, 8, ...")
    encoder: Literal["oplist", "transformers", "module"] = Field(
        default="oplist", description="deeplab: a graph in a JSON file, a model of `transformers`, or your own module"
    )
    weights: str | None = Field(
        default=None,
        description="oplist: its JSON file, tensors beside it (.safetensors or .pt); transformers: a folder; "
        "module: an optional .safetensors or .pt file",
    )
    hub: str | None = Field(default=None, description="transformers: a hub name instead of a folder; needs `revision`")
    revision: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$", description="the hub commit, 40 digits")
    pretrained: bool = Field(default=True, description="false: only the architecture is read, weights are random")
    factory: str | None = Field(default=None, description='module: "package.module:function"')
    sha256: dict[str, str] = Field(default_factory=dict, description="pins: role (graph, config, tensors) -> sha256")
    preprocess: Literal["auto", "unit", "symmetric", "imagenet"] = Field(
        default="auto", description="pixels as 0..1, -1..1, or by ImageNet's mean and deviation; auto: as trained"
    )
    output_stride: Literal[8, 16, 32] = Field(default=16, description="strides beyond it become dilation")
    taps: tuple[str, ...] = Field(default=(), description="encoder maps for the head: strides, or oplist keys")
    project: int = Field(
        default=0, ge=0, description="oplist: keep the last tap's first n directions of the list's own classifier"
    )
    head: Literal["deeplabv2", "deeplabv3", "deeplabv3plus", "segformer", "light", "aspp"] = Field(
        default="light", description="deeplab: the decoder; what the recipe leaves out is its paper's"
    )
    rates: tuple[int, ...] = Field(
        default=(6, 12, 18, 24), description="atrous rates of deeplab* and aspp; deeplabv3 and deeplabv3plus: 6, 12, 18"
    )
    width: int = Field(default=96, ge=4, description="channels of the head's maps; deeplabv3* and segformer: 256")
    convs: int = Field(default=2, ge=1, le=8, description="light: convolutions after the taps are joined")
    separable: bool = Field(default=True, description="light: depthwise-separable convolutions, else plain 3x3")
    image_pooling: bool = Field(default=False, description="light: add the mean of the deepest tap everywhere")
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0, description="in the head; segformer: 0.1")
    freeze: When = Field(default="never", description="when the encoder stops learning")
    freeze_bn: When = Field(default="never", description="when batch-norm statistics stop moving")

    @model_validator(mode="before")
    @classmethod
    def _as_in_the_paper(cls, told: Any) -> Any:
        if isinstance(told, dict) and told.get("kind") == "deeplab" and isinstance(told.get("head"), str):
            return {**_PAPERS.get(told["head"], {}), **told}
        return told

    @model_validator(mode="after")
    def _fits_together(self) -> NetworkSpec:
        if any(width < 1 for width in self.widths) or len(self.widths) < 2:
            raise ValueError("`widths` needs two or more positive numbers")
        if self.kind == "small":
            given = {name for name in self.model_fields_set if getattr(self, name) != _default(type(self), name)}
            strangers = sorted(given - set(_SMALL_FIELDS))
            if strangers:
                raise ValueError(f"kind 'small' takes no {', '.join(strangers)}; use kind = \"deeplab\"")
            if self.freeze == "always":
                raise ValueError("kind 'small' starts random: freeze = \"always\" would never train its encoder")
            return self
        if self.encoder == "oplist" and self.weights is None:
            raise ValueError("encoder 'oplist' needs `weights`, the op list's JSON file")
        if self.project and self.encoder != "oplist":
            raise ValueError(f"`project` reads an op list's classifier; encoder {self.encoder!r} has none")
        if self.encoder == "module" and (self.factory is None or self.factory.count(":") != 1):
            raise ValueError("encoder 'module' needs factory = \"package.module:function\"")
        if self.encoder == "transformers":
            if (self.weights is None) == (self.hub is None):
                raise ValueError("encoder 'transformers' needs either `weights` (a folder) or `hub` (a name)")
            if self.hub is not None and self.revision is None:
                raise ValueError("`hub` needs `revision`, the commit that fixes the files")
            if self.hub is not None and self.sha256:
                raise ValueError("sha256 pins go with `weights`; `revision` fixes a hub's files")
        for role, digest in self.sha256.items():
            if role not in ("graph", "config", "tensors", "code") or len(digest) != 64:
                raise ValueError(f"sha256.{role}: roles are graph, config, tensors, code; values 64 hexadecimal digits")
        return self

    def files(self) -> dict[str, Path]:
        """Role -> file this network is read from; empty where nothing is read.

        Raises:
            ModelError: a file is missing.
        """
        if self.kind == "small":
            return {}
        if self.encoder == "module":
            found = {"code": _code_of(self.factory or "")}
            if self.weights is not None:
                found["tensors"] = Path(self.weights)
        elif self.weights is None:
            return {}
        elif self.encoder == "oplist":
            graph = Path(self.weights)
            beside = [graph.with_suffix(ending) for ending in (".safetensors", ".pt")]
            found = {"graph": graph, "tensors": next((path for path in beside if path.is_file()), beside[1])}
        else:
            found = {"config": Path(self.weights) / "config.json"}
            if self.pretrained:
                found["tensors"] = Path(self.weights) / "model.safetensors"
        for role, path in found.items():
            if not path.is_file():
                raise ModelError(
                    f"the network's {role} file is missing", where=str(path), hint="check network.weights"
                )  # fmt: skip
        return found

    def file_digests(self) -> dict[str, str]:
        """Role -> sha256 of every file, the pinned one where there is a pin (checked when the network is built)."""
        return {role: self.sha256.get(role) or file_sha256(path) for role, path in self.files().items()}

    def pinned(self) -> NetworkSpec:
        """This specification with the present sha256 of every file, so that later changes are refused on building."""
        digests = self.file_digests()
        return self.model_copy(update={"sha256": digests}) if digests else self

    @property
    def used_taps(self) -> tuple[str, ...]:
        """`taps`, or the head's default.

        The deepest map; "light" and "deeplabv3plus" also take stride 4, "aspp" stride 8, "segformer" all from 4 on.
        """
        deepest = str(self.output_stride)
        if self.head == "segformer":
            return self.taps or tuple(stride for stride in ("4", "8", "16", "32") if int(stride) <= self.output_stride)
        finest = {"light": ("4",), "deeplabv3plus": ("4",), "aspp": ("8",)}.get(self.head, ())
        return self.taps or (*finest, deepest)

    def encoder_identity(self) -> dict[str, Any]:
        """What the features of a frozen encoder depend on: for the key of cached features, whatever the head."""
        told = self.identity()
        kept = (
            "kind",
            "encoder",
            "hub",
            "revision",
            "pretrained",
            "factory",
            "preprocess",
            "output_stride",
            "taps",
            "project",
            "files",
        )
        return {name: told[name] for name in (*kept, "dilated") if name in told}

    def identity(self) -> dict[str, Any]:
        """What the network is, for a task's key: no paths, files by sha256.

        Raises:
            ModelError: a file that is not pinned is missing.
        """
        if self.kind == "small":
            return self.model_dump(mode="json", include=set(_SMALL_FIELDS))
        told = self.model_dump(mode="json", exclude=_NOT_IDENTITY | {"widths"})
        complete = {"oplist": {"graph", "tensors"}, "module": {"code"}, "transformers": {"config"}}[self.encoder]
        if self.encoder == "transformers" and self.pretrained:
            complete = complete | {"tensors"}
        if self.encoder == "module" and self.weights is not None:
            complete = complete | {"tensors"}
        told["taps"] = list(self.used_taps)
        told["files"] = dict(self.sha256) if set(self.sha256) >= complete else self.file_digests()
        if self.encoder == "transformers":
            told["dilated"] = _DILATED
        return told


class ViewSpec(_Table):
    """How an image becomes a square: view 0 is the whole image, views 1.. are seeded crops.

    size: side in pixels; count: fixed views a sample (0..count-1); crop: side share of a crop, beyond 1 the picture
    is seen from afar, surrounded by its mirror images; flip: mirror half of
    the crops; fresh: every draw is a new crop instead of one of the fixed views (not for cached features).
    """

    size: int = Field(default=64, ge=8, le=4096, description="side of a view in pixels")
    count: int = Field(default=1, ge=1, le=1024, description="fixed views a sample: the whole image, then crops")
    crop: tuple[float, float] = Field(default=(0.6, 1.0), description="least and largest side of a crop, as shares")
    flip: bool = Field(default=True, description="mirror half of the crops")
    fresh: bool = Field(default=False, description="a new crop at every draw; not for cached features")
    jitter: float = Field(default=0.0, ge=0, lt=1, description="largest change of a crop's brightness and contrast")
    label_size: int | None = Field(default=None, ge=4, description="side of the masks in training; default: size")

    @property
    def mask_size(self) -> int:
        """Side of a view's mask, and of the logits that it is compared with."""
        return self.label_size or self.size

    @model_validator(mode="after")
    def _crop_is_range(self) -> ViewSpec:
        low, high = self.crop
        if not 0.05 <= low <= high <= FARTHEST:
            raise ValueError(f"crop = [{low}, {high}] must be two shares, 0.05 <= lo <= hi <= {FARTHEST:g}")
        return self

    def zoomed(self, zoom: float) -> ViewSpec:
        """The same views with crops of up to `zoom` times the picture's sides; 1 or less changes nothing."""
        return self if zoom <= 1 else self.model_copy(update={"crop": (self.crop[0], zoom)})


class FitOptions(_Table):
    """How a network is fitted. What changes no number on the CPU (`HOW`) is in no key, and left out of `identity()`."""

    iterations: int = Field(default=500, ge=1, description="mini-batches a step")
    batch: int = Field(default=8, ge=1, description="images a mini-batch, current and replay together")
    lr: float = Field(default=0.01, gt=0, allow_inf_nan=False, description="learning rate after warm-up")
    lr_end: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="the rate that the schedule ends at")
    head_lr: float = Field(default=1.0, ge=0, allow_inf_nan=False, description="the head's rate as a multiple of lr")
    optimizer: Literal["sgd", "adamw"] = Field(default="sgd", description="of all parameters")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="sgd's momentum")
    nesterov: bool = Field(default=False, description="sgd with Nesterov's momentum")
    weight_decay: float = Field(default=1e-4, ge=0, allow_inf_nan=False, description="the optimizer's")
    schedule: Literal["poly", "cosine", "constant"] = Field(default="poly", description="how the rate goes to lr_end")
    power: float = Field(default=0.9, gt=0, description="poly's power")
    warmup: int = Field(default=0, ge=0, description="iterations of linear warm-up")
    background_weight: float = Field(default=1.0, gt=0, description="weight of background pixels in the loss")
    background_weight_end: float | None = Field(default=None, gt=0, description="that it moves to, linearly")
    new_weight: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="weight of new classes' pixels, where old ones are known"
    )
    shift: int = Field(default=0, ge=0, description="images only: largest cyclic shift of a whole batch, in pixels")
    clip: float = Field(default=0.0, ge=0, description="largest gradient norm; 0: no clipping")
    average: float = Field(default=0.0, ge=0, lt=1, description="decay of the averaged weights; 0: none")
    precision: Literal["float32", "bf16", "fp16"] = Field(
        default="float32", description="of forward passes on CUDA, fp16 with a loss scale; the CPU takes float32 always"
    )
    accumulate: int = Field(
        default=1, ge=1, description="cut each batch into so many parts, whose gradients are averaged; losses and "
        "batch-norm statistics see one part at a time",
    )  # fmt: skip
    compile: bool = Field(default=False, description="torch.compile of encoder and head; numbers differ slightly")
    log_every: int = Field(default=50, ge=1, description="iterations between points of the loss curve")
    checkpoint_every: int = Field(default=200, ge=0, description="iterations between checkpoints; 0: by time only")
    checkpoint_seconds: float = Field(default=60.0, ge=0, description="seconds between checkpoints; 0: never by time")
    loaders: int | None = Field(
        default=None, ge=0, description="threads that load samples ahead; default: 4 on CUDA, 1 on the CPU; 0: no"
    )
    tensorboard: str | None = Field(default=None, description="a folder for TensorBoard; [run] tensorboard sets it")

    @model_validator(mode="after")
    def _rates_are_ordered(self) -> FitOptions:
        if self.lr_end > self.lr:
            raise ValueError(f"lr_end = {self.lr_end} is above lr = {self.lr}")
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise ValueError('nesterov needs optimizer = "sgd" and a momentum')
        if self.batch % self.accumulate:
            raise ValueError(f"a batch of {self.batch} cannot be cut into accumulate = {self.accumulate} equal parts")
        return self

    def identity(self) -> dict[str, Any]:
        """What decides the numbers, for a task's key."""
        told = self.model_dump(mode="json", exclude=set(HOW))
        if self.new_weight is None:  # younger than many a store: what does not weigh new classes keeps its keys
            del told["new_weight"]
        return told


def file_sha256(path: Path) -> str:
    """The sha256 of a file, 64 hexadecimal digits; a ModelError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"cannot read: {error.strerror}", where=str(path)) from None


def _default(model: type[BaseModel], name: str) -> Any:
    return model.model_fields[name].get_default(call_default_factory=True)


def _code_of(factory: str) -> Path:
    """The source file of "package.module:function", found without importing anything."""
    import importlib.machinery
    import sys

    path: list[str] | None = list(sys.path)
    origin: str | None = None
    for depth, _ in enumerate(parts := factory.partition(":")[0].split("."), start=1):
        found = importlib.machinery.PathFinder.find_spec(".".join(parts[:depth]), path)
        if found is None:
            raise ModelError(f"no module for the network's factory {factory!r}", hint="is it on the Python path?")
        origin, locations = found.origin, found.submodule_search_locations
        path = list(locations) if locations is not None else []
    if origin is None or not Path(origin).is_file():
        raise ModelError(f"the factory {factory!r} has no source file", hint="name a module, not a namespace package")
    return Path(origin)
