"""The reduce stage that evaluates one model: full images, all seen classes, one confusion matrix over the set.

After the last step, a few images behind the largest confusions are kept small, for the report to open.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from replaygen.sample import IGNORE
from replaygen.stages.base import DATA_MODULES, NETWORK_MODULES, Inputs, Out, Stage
from replaygen.stages.context import Features, open_current, open_model

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from replaygen.datasets import SegmentationDataset
    from replaygen.sample import Image8, Mask8
    from replaygen.scenario import Scenario

EXAMPLES = 12
"""How many predictions are kept to look at."""

CELLS, CELL_IMAGES, CELL_SHARE = 24, 4, 0.005
"""Confusions whose images are kept: how many, how many images each, and the least share of the true class's pixels."""

SMALL_SIDE = 320
"""The longer side of those images in pixels, at most."""


@dataclass(frozen=True)
class EvaluateParams:
    """step: whose model and whose seen classes; holdout: evaluate on the scenario's held-out part of train instead."""

    dataset: str
    scenario: str
    step: int
    split: str
    holdout: bool
    flip: bool
    protocol: Literal["background", "ignore"]
    size: int
    threads: int


class EvaluateStage(Stage[EvaluateParams]):
    """A model -> result.json (metrics, confusion), and a few predictions in examples.tar."""

    name = "evaluate"
    version = 2
    modules = (
        "replaygen.learn.metrics",
        "replaygen.learn.predict",
        "replaygen.learn.checkpoint",
        *NETWORK_MODULES,
        *DATA_MODULES,
    )
    seconds_per_sample = 0.03
    bytes_per_sample = 500
    heavy = True
    Params = EvaluateParams

    def run(self, params: EvaluateParams, inputs: Inputs, out: Out) -> None:
        """Predict every image at its full size; never a crop, never a checkpoint chosen on this split."""
        from replaygen.datasets import sample_id
        from replaygen.learn import Confusion, predict_probabilities, summarise
        from replaygen.sample import encode_png

        dataset, scenario = open_current(inputs.where, params.dataset, params.scenario)
        net, info = open_model(inputs, inputs.record("model"))
        step = scenario.step(params.step)
        names = scenario.names[: 1 + len(step.seen)]
        table = scenario.eval_table(params.step, params.protocol)
        ids = scenario.holdout_ids if params.holdout else dataset.split(params.split)
        features = Features.of(inputs)
        shown = choose_examples(dataset, scenario, ids)
        confusion, behind, examples = Confusion(len(names)), Behind(len(names)), []

        def looked_at(key: str) -> tuple[Image8, Mask8, Mask8]:
            image, truth = dataset.image(key), scenario.apply(table, dataset.mask(key))
            seen = features.read(sample_id(key), 0) if features else image
            likely = predict_probabilities(net, seen, params.size, shape=image.shape[:2], flip=params.flip)
            return image, truth, likely.argmax(0).astype("uint8")

        last = params.step == len(scenario.steps) - 1
        for key in ids:
            image, truth, predicted = looked_at(key)
            confusion.update(predicted, truth)
            if last:
                behind.take(key, predicted, truth)
            out.accept()
            if key in shown:
                members = {"png": encode_png(image), "true.png": encode_png(truth), "pred.png": encode_png(predicted)}
                examples.append((sample_id(key), members))
        joint = bool(info.get("all_data"))
        out.put_json(
            "result.json",
            {
                "names": list(names), "step": params.step, "new": list(step.new), "old": list(step.old),
                "metrics": summarise(confusion.matrix, step, names), "matrix": confusion.matrix.tolist(),
                "images": len(ids), "split": "holdout" if params.holdout else params.split,
                "trained_together": joint,
            },
        )  # fmt: skip
        out.shard("examples", examples)
        if last:
            cells, chosen = behind.choose(confusion.matrix)
            out.put_json("confused.json", {"cells": [cell.as_json(sample_id) for cell in cells]})
            out.shard("confused", ((sample_id(key), small(*looked_at(key))) for key in sorted(chosen, key=sample_id)))


@dataclass(frozen=True)
class Cell:
    """A confusion and the images behind it.

    Attributes:
        true, predicted: channels.
        pixels: of the whole set.
        images: how many have any of them.
        shown: (image, pixels), most pixels first.
    """

    true: int
    predicted: int
    pixels: int
    images: int
    shown: tuple[tuple[str, int], ...]

    def as_json(self, name: Callable[[str], str]) -> dict[str, Any]:
        """Plain data; name: the sample id of an image."""
        shown = [{"id": name(key), "pixels": pixels} for key, pixels in self.shown]
        return {"true": self.true, "predicted": self.predicted, "pixels": self.pixels, "images": self.images,
                "shown": shown}  # fmt: skip


class Behind:
    """Counts which image has how many pixels in which cell of the confusion matrix; no picture is held."""

    def __init__(self, channels: int) -> None:
        self._channels = channels
        self._images: dict[int, list[tuple[int, str]]] = {}

    def take(self, key: str, predicted: Mask8, truth: Mask8) -> None:
        """Add one image: uint8 [H, W] each; pixels whose truth is 255 are left out."""
        import numpy as np

        wrong = (truth != IGNORE) & (truth != predicted)
        places = truth[wrong].astype(np.int64) * self._channels + predicted[wrong]
        for place, pixels in zip(*np.unique(places, return_counts=True), strict=True):
            self._images.setdefault(int(place), []).append((int(pixels), key))

    def choose(self, matrix: npt.NDArray[np.int64]) -> tuple[list[Cell], set[str]]:
        """The cells with the largest shares of their true class, each with the images that have most of it.

        Args:
            matrix: int64 [C, C], true by predicted, of the same images.

        Returns:
            cells, largest share first, and the images of all of them; ties are broken by a hash of the image.
        """
        totals = matrix.sum(1)
        shares = {place: matrix.flat[place] / totals[place // self._channels] for place in self._images}
        order = sorted((place for place in shares if shares[place] >= CELL_SHARE), key=lambda one: (-shares[one], one))
        cells = []
        for place in order[:CELLS]:
            found = sorted(self._images[place], key=lambda one: (-one[0], hashlib.sha256(one[1].encode()).digest()))
            shown = tuple((key, pixels) for pixels, key in found[:CELL_IMAGES])
            cells.append(Cell(*divmod(place, self._channels), int(matrix.flat[place]), len(found), shown))
        return cells, {key for cell in cells for key, _ in cell.shown}


def small(image: Image8, truth: Mask8, predicted: Mask8) -> dict[str, bytes]:
    """The members of a kept confusion: image, truth and prediction with sides of `SMALL_SIDE` pixels at most."""
    import numpy as np
    from PIL import Image

    from replaygen.sample import encode_jpeg, encode_png

    def shrunk(array: Image8 | Mask8, way: Image.Resampling) -> Image8 | Mask8:
        picture = Image.fromarray(array)
        picture.thumbnail((SMALL_SIDE, SMALL_SIDE), way)
        return np.asarray(picture)

    return {
        "jpg": encode_jpeg(shrunk(image, Image.Resampling.LANCZOS)),
        "true.png": encode_png(shrunk(truth, Image.Resampling.NEAREST)),
        "pred.png": encode_png(shrunk(predicted, Image.Resampling.NEAREST)),
    }


def choose_examples(dataset: SegmentationDataset, scenario: Scenario, ids: Sequence[str]) -> set[str]:
    """The images whose predictions are kept: many classes first, ties broken by a hash; the same for every model."""
    raw = set(scenario.raw)
    present = dataset.present(ids)
    order = sorted(ids, key=lambda key: (-len(raw & present[key]), hashlib.sha256(key.encode()).digest()))
    return set(order[:EXAMPLES])
