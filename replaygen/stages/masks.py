"""The stage that takes masks which came with the images for their labels: nobody labels, everything is checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaygen.errors import DataError
from replaygen.stages.base import NETWORK_MODULES, Inputs, Out, Stage
from replaygen.stages.context import Features, open_model
from replaygen.stages.label import VECTORS, deepest_map, vector_bytes
from replaygen.stages.screen import selected

if TYPE_CHECKING:
    from replaygen.sample import Image8, Mask8

GIVEN = "given"
"""The labeler of such labels, and the word in the name of their chain."""


@dataclass(frozen=True)
class GivenLabelParams:
    """channel: the queried class; table: [value in masks, channel] of every value that may be there.

    masks: [sample, name, sha256] of the slice's masks; keep: channels that stay, all others become background; ignore:
    the value that says nothing; min_share, marks, vectors, views: as `LabelParams`.
    """

    class_name: str
    channel: int
    masks: tuple[tuple[str, str, str], ...]
    table: tuple[tuple[int, int], ...]
    ignore: int
    keep: tuple[int, ...]
    min_share: float
    marks: bool
    vectors: bool
    views: dict[str, Any]
    threads: int


class GivenLabelStage(Stage[GivenLabelParams]):
    """Image shard i -> label shard i, of masks in a folder.

    Inputs: "images"; "encoder", whose features are pooled where `vectors` are asked for and none are cached; perhaps
    "features" and "selection". Visible is what of `keep` the masks know.
    """

    name = "given-labels"
    version = 1
    modules = ("replaygen.labelers.vectors", "replaygen.stages.label", *NETWORK_MODULES)
    seconds_per_sample = 0.004
    bytes_per_sample = 1500
    Params = GivenLabelParams

    def run(self, params: GivenLabelParams, inputs: Inputs, out: Out) -> None:
        """Read each mask, check it against the planned sha256, map its values, refuse where it does not fit."""
        from replaygen.sample import decode_image

        masks = {sample: (name, sha256) for sample, name, sha256 in params.masks}
        pool, kept = _Pool(inputs, params) if params.vectors else None, selected(inputs)
        items, vectors = [], {}
        for sample, members in inputs.shard(inputs.record("images"), "images"):
            if kept is not None and sample not in kept:
                out.reject(sample, "screened")
                continue
            if sample not in masks:
                out.reject(sample, "no-mask")
                continue
            data = _read(Path(inputs.where["root"]), *masks[sample])
            image = decode_image(members["png"] if "png" in members else members["jpg"], where=sample)
            full, reason = _mapped(data, image, params)
            if full is None:
                out.reject(sample, reason)
                continue
            share = float((full == params.channel).mean())
            if share == 0:
                out.reject(sample, "class-absent")
                continue
            if share < params.min_share:
                out.reject(sample, "area-too-small", share=round(share, 5), limit=params.min_share)
                continue
            items.append((sample, _members(full, share, params)))
            if pool is not None:
                vectors[sample] = pool(image, sample, full)
            out.accept()
        out.shard("labels", items)
        if params.vectors:
            out.put(VECTORS, vector_bytes(vectors), samples=len(vectors))


def _read(root: Path, name: str, sha256: str) -> bytes:
    try:
        data = (root / name).read_bytes()
    except OSError as error:
        raise DataError(
            f"a mask cannot be read: {error.strerror}", where=str(root / name),
            hint="is the folder mounted here? else run the recipe again",
        ) from None  # fmt: skip
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DataError("a mask changed after the plan was made", where=str(root / name), hint="run the plan again")
    return data


def _mapped(data: bytes, image: Image8, params: GivenLabelParams) -> tuple[Mask8 | None, str]:
    """A mask in channels, of the size of its image, all classes of the scenario in it; or None and why not."""
    import numpy as np

    from replaygen.sample import IGNORE, decode_mask, mask_size

    height, width = image.shape[:2]
    try:
        if not _fits(*mask_size(data), width, height):
            return None, "mask-of-another-size"
        raw = decode_mask(data)
    except DataError:
        return None, "mask-unreadable"
    table = np.zeros(256, np.uint8)
    for value, channel in params.table:
        table[value] = channel
    table[[params.ignore, IGNORE]] = IGNORE
    if set(np.unique(raw).tolist()) - {value for value, _ in params.table} - {params.ignore, IGNORE}:
        return None, "mask-unknown-value"
    return table[_shrunk(raw, width, height)], ""


def _fits(wide: int, high: int, width: int, height: int) -> bool:
    """Whether a mask of `wide` x `high` pixels is of the image's size, or of that before the image was made smaller."""
    scale = max(width, height) / max(wide, high)
    return scale <= 1 and (max(1, round(wide * scale)), max(1, round(high * scale))) == (width, height)


def _shrunk(raw: Mask8, width: int, height: int) -> Mask8:
    """A mask as small as its image was made, nearest neighbours."""
    import numpy as np
    from PIL import Image

    if raw.shape == (height, width):
        return raw
    return np.array(Image.fromarray(raw).resize((width, height), Image.Resampling.NEAREST))


def _members(full: Mask8, share: float, params: GivenLabelParams) -> dict[str, bytes]:
    import numpy as np

    from replaygen.labelers.photo import OTHER
    from replaygen.sample import IGNORE, encode_png

    mask = np.where(np.isin(full, (*params.keep, IGNORE)), full, 0).astype(np.uint8)
    other = (full != 0) & (full != IGNORE) & (mask == 0)
    told = {
        "visible": sorted(set(params.keep) & {channel for _, channel in params.table}),
        "scores": {"share": round(share, 5), "confidence": 1.0, "agreement": 1.0, "other": 0.0}, "labeler": GIVEN,
    }  # fmt: skip
    made = {"mask.png": encode_png(mask), "label.json": json.dumps(told, sort_keys=True).encode()}
    return {**made, "erase.png": encode_png(np.where(other, OTHER, 0).astype(np.uint8))} if params.marks else made


class _Pool:
    """Mean features of the given regions, as labelers leave them for the screens on labels."""

    def __init__(self, inputs: Inputs, params: GivenLabelParams) -> None:
        self.channel = params.channel
        self.views: Mapping[str, Any] = params.views
        self.features = Features.of(inputs)
        encoders = [open_model(inputs, record)[0] for record in inputs.records("encoder")]
        self.encoder = encoders[0] if encoders else None

    def __call__(self, image: Image8, sample: str, full: Mask8) -> Any:
        """float32 [2, D] of the region and of the whole."""
        import numpy as np

        from replaygen.labelers.vectors import region_vectors

        deepest = deepest_map(self.encoder, image, sample, self.features, self.views)
        return region_vectors(deepest, (full == self.channel).astype(np.float32))
