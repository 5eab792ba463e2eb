"""The reduce stage that says how good the generated images of a class are, beside the real ones of its step."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from replaygen.stages.base import DATA_MODULES, NETWORK_MODULES, Inputs, Out, Stage
from replaygen.stages.context import device_of, open_current, open_model

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from replaygen.learn import SegNet
    from replaygen.sample import Image8

    Floats = npt.NDArray[np.float32]
    Small = npt.NDArray[np.uint8]

FEWEST = 10
"""Images of a set below which nothing is said about it."""

FEWEST_SNAPSHOTS = 4
"""Images of a snapshot below which it is no point of the curve."""

PAIRS = 6
"""How many of the generated images that are closest to a training image are named."""

_BATCH = 16


@dataclass(frozen=True)
class QualityParams:
    """ids: the real images that features are compared with; size: side in pixels of what the encoder sees.

    Copies are looked for among all images of step `step` that show the class, whatever `ids` are.
    """

    dataset: str
    scenario: str
    class_name: str
    channel: int
    step: int
    ids: tuple[str, ...]
    size: int
    threads: int


class QualityStage(Stage[QualityParams]):
    """Image shards, label shards and the step-0 model -> quality.json. Of real images only ids and numbers are kept.

    Inputs: "images", "labels", "model"; perhaps "fit", whose snapshots become a curve, and "photos", image shards that
    the generator was fitted on.
    """

    name = "quality"
    version = 1
    modules = (
        "replaygen.generators.quality",
        "replaygen.generators.pictures",
        "replaygen.learn.checkpoint",
        *NETWORK_MODULES,
        *DATA_MODULES,
    )
    seconds_per_sample = 0.05
    bytes_per_sample = 10
    heavy = True
    Params = QualityParams

    def run(self, params: QualityParams, inputs: Inputs, out: Out) -> None:
        """Look at every image once; where a set is too small, its numbers are null."""
        net, _ = open_model(inputs, inputs.record("model"))
        seed = int(inputs.seed or 0)
        made = _look(net, _pictures(inputs, "images"), params.size)
        real, real_area = _real(net, params, inputs)
        shares = list(_accepted(inputs))
        count = len(made.ids)
        told: dict[str, Any] = {
            "class": params.class_name, "generated": count, "accepted": len(shares), "real": len(real),
            "found_share": len(shares) / count if count else None, "area": _mean(shares), "real_area": real_area,
        }  # fmt: skip
        enough = min(count, len(real)) >= FEWEST
        told |= _features(made.features, real, seed) if enough else dict.fromkeys(_FEATURE_NUMBERS)
        told |= _pixels(made, _trained(params, inputs), device_of(inputs.where))
        told["curve"] = _curve(net, params, inputs, real, seed) if len(real) >= FEWEST else []
        out.accept(count)
        out.put_json("quality.json", _finite(told))


@dataclass(frozen=True)
class _Looked:
    """The generated images as they are compared.

    Attributes:
        features: float32 [n, D].
        small: uint8 [n, SIDE, SIDE, 3].
        side: the shortest side of any, in pixels, SIDE at most.
    """

    ids: tuple[str, ...]
    features: Floats
    small: Small
    side: int


def _look(net: SegNet, images: Iterable[tuple[str, Image8]], size: int) -> _Looked:
    from replaygen.generators.quality import SIDE, small

    ids, smalls, side = [], [], SIDE

    def passing() -> Iterator[Image8]:
        nonlocal side
        for sample, image in images:
            ids.append(sample)
            smalls.append(small(image))
            side = min(side, *image.shape[:2])
            yield image

    features = pooled(net, passing(), size)
    return _Looked(tuple(ids), features, _stacked(smalls), side)


def _stacked(smalls: Sequence[Small]) -> Small:
    import numpy as np

    from replaygen.generators.quality import SIDE

    return np.stack(smalls) if smalls else np.empty((0, SIDE, SIDE, 3), np.uint8)


def pooled(net: SegNet, images: Iterable[Image8], size: int) -> Floats:
    """The encoder's deepest map, averaged over the whole image, of each image squeezed to a square.

    Always `_BATCH` images at a time, the last ones filled up with black: an image's row does not depend on the others.
    (On a GPU fewer where its memory is short.)

    Args:
        net: put into evaluation mode.
        images: uint8 [H, W, 3] each.
        size: side of the square in pixels.

    Returns:
        float32 [n, D].
    """
    import numpy as np
    import torch

    from replaygen.learn import ViewSpec, apply_view
    from replaygen.learn.samples import stack_images
    from replaygen.portions import portions_of

    net.eval()
    spec, device = ViewSpec(size=size), next(net.parameters()).device

    def forward(squares: Sequence[Image8]) -> Floats:
        with torch.inference_mode():
            deepest: Floats = net.encode(stack_images(squares).to(device))[-1].float().mean((-2, -1)).cpu().numpy()
        return deepest

    rows = []
    left = iter(images)
    while group := list(islice(left, _BATCH)):
        squares = [apply_view(image, None, "", 0, spec)[0] for image in group]
        squares += [np.zeros_like(squares[0])] * (_BATCH - len(squares))
        done = [part for part, _ in portions_of(net, _BATCH, device).over(squares, forward)]
        rows.append(np.concatenate(done)[: len(group)])
    return np.concatenate(rows) if rows else np.empty((0, 0), np.float32)


def _pictures(inputs: Inputs, role: str) -> Iterator[tuple[str, Image8]]:
    from replaygen.sample import decode_image

    for record in inputs.records(role):
        for sample, members in inputs.shard(record, "images"):
            yield sample, decode_image(members["png"] if "png" in members else members["jpg"], where=sample)


def _accepted(inputs: Inputs) -> Iterator[float]:
    for record in inputs.records("labels"):
        shard = inputs.shard(record, "labels")
        for sample in shard.ids:
            yield float(json.loads(shard.read(sample, "label.json"))["scores"]["share"])


def _real(net: SegNet, params: QualityParams, inputs: Inputs) -> tuple[Floats, float | None]:
    """Features of the real images, and the mean share of the class in them."""
    dataset, scenario = open_current(inputs.where, params.dataset, params.scenario)
    table = scenario.step_table(params.step)
    shares = [float((scenario.apply(table, dataset.mask(key)) == params.channel).mean()) for key in params.ids]
    return pooled(net, map(dataset.image, params.ids), params.size), _mean(shares)


@dataclass(frozen=True)
class _Trained:
    """What the generator may have copied: images of the step and photos, and crops of them; `ids[owners[i]]` is i's."""

    ids: tuple[str, ...]
    owners: tuple[int, ...]
    small: Small


def _trained(params: QualityParams, inputs: Inputs) -> _Trained:
    from replaygen.generators.pictures import around
    from replaygen.generators.quality import small

    dataset, scenario = open_current(inputs.where, params.dataset, params.scenario)
    step, raw = scenario.step(params.step).ids, scenario.raw[params.channel - 1]
    present, context = dataset.present(step), _context(inputs)
    ids: list[str] = []
    owners: list[int] = []
    smalls: list[Small] = []
    for key in (key for key in step if raw in present[key]):
        image = dataset.image(key)
        held = dataset.mask(key) == raw if context is not None else None
        views = [image] if held is None or context is None else [image, around(image, held, context)]
        smalls += [small(view) for view in views]
        owners += [len(ids)] * len(views)
        ids.append(key)
    for sample, image in _pictures(inputs, "photos"):
        smalls.append(small(image))
        owners.append(len(ids))
        ids.append(sample)
    return _Trained(tuple(ids), tuple(owners), _stacked(smalls))


def _context(inputs: Inputs) -> float | None:
    """How wide the crops around objects were that the generator was fitted on; None where it saw whole images only."""
    fits = [record.params["fit"] for record in inputs.records("fit")]
    return next((float(fit["context"]) for fit in fits if fit["focus"] > 0), None)


_FEATURE_NUMBERS = (
    "diversity", "real_diversity", "precision", "recall", "density", "coverage", "kid", "kid_std", "kid_floor",
)  # fmt: skip
_PIXEL_NUMBERS = ("memorised_share", "real_memorised_share", "nearest_ratio", "threshold")


def _features(fake: Floats, real: Floats, seed: int) -> dict[str, float]:
    from replaygen.generators.quality import diversity, kid, kid_floor, manifolds, scale_of

    scale = scale_of(real)
    fake, real = fake / scale, real / scale
    lies = manifolds(real, fake, seed=seed)
    mean, deviation = kid(real, fake, seed=seed)
    values = (diversity(fake), diversity(real), lies.precision, lies.recall, lies.density, lies.coverage,
              mean, deviation, kid_floor(real, len(fake), seed=seed))  # fmt: skip
    return dict(zip(_FEATURE_NUMBERS, values, strict=True))


def _pixels(made: _Looked, trained: _Trained, device: str) -> dict[str, Any]:
    from replaygen.generators.quality import copies

    if min(len(made.ids), len(trained.ids)) < FEWEST:
        return {**dict.fromkeys(_PIXEL_NUMBERS), "pairs": []}
    found = copies(made.small, trained.small, resolution=made.side, owners=trained.owners, device=device)
    pairs = [
        {
            "generated": made.ids[i], "real": trained.ids[trained.owners[found.nearest[i]]],
            "distance": float(found.distance[i]), "memorised": bool(found.memorised[i]),
        }
        for i in found.closest(PAIRS)
    ]  # fmt: skip
    values = (found.share, found.among_real, found.ratio, found.threshold)
    return {**dict(zip(_PIXEL_NUMBERS, values, strict=True)), "pairs": pairs}


def _curve(net: SegNet, params: QualityParams, inputs: Inputs, real: Floats, seed: int) -> list[dict[str, Any]]:
    """KID of a fit's snapshots of the class, by iteration."""
    from replaygen.generators.quality import kid, scale_of
    from replaygen.sample import decode_image

    drawn: dict[int, list[Image8]] = {}
    for record in inputs.records("fit"):
        shard = inputs.shard(record, "snapshots")
        for sample in shard.ids:
            about = json.loads(shard.read(sample, "json"))
            if about["class"] == params.class_name:
                image = decode_image(shard.read(sample, "png"), where=sample)
                drawn.setdefault(int(about["iteration"]), []).append(image)
    points = {iteration: images for iteration, images in sorted(drawn.items()) if len(images) >= FEWEST_SNAPSHOTS}
    features = pooled(net, chain.from_iterable(points.values()), params.size)
    scale, start, curve = scale_of(real), 0, []
    for iteration, images in points.items():
        part = features[start : start + len(images)]
        start += len(images)
        size = min(len(images), len(real))
        curve.append({"iteration": iteration, "images": len(images),
                      "kid": kid(real / scale, part / scale, size=size, seed=seed)[0]})  # fmt: skip
    return curve


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _finite(value: Any) -> Any:
    """The same with floats of six significant digits, and null where one is not finite."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
