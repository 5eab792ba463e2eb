"""Stages that erase: from replay images what their labels hide, and from current images the objects of old classes.

An erased image is stored as PNG whatever it was before: JPEG would change the pixels that stay.

A record is for good, and an inpainter's bad minute is not. A picture that got no answer in time, that ended the server,
or to which it said HTTP 5xx, is tried once more; whatever is wrong with it then is counted. Where no hole of a task was
filled, or more than a fifth of them are still lost so, it is the inpainter that is not well: the task fails, nothing is
published, and a later run does all of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from replaygen.errors import DataError, ModelError
from replaygen.stages.base import DATA_MODULES, NETWORK_MODULES, Inputs, Out, Stage
from replaygen.stages.context import Features, device_of, open_current, open_model
from replaygen.stages.screen import SELECTION

if TYPE_CHECKING:
    from replaygen.inpainters.base import Failure, Inpainter
    from replaygen.inpainters.regions import Erasure
    from replaygen.sample import Image8, Mask8
    from replaygen.store import Record, Shard

    Members = dict[str, bytes]

_AT_ONCE = 16
"""Images that are held decoded at a time."""

_MOST_LOST = 0.2
"""Of a task's holes, the share that may be lost for a reason that passes."""

_PICTURES = ("png", "jpg", "webp")

_MODULES = (
    "replaygen.inpainters.regions",
    "replaygen.inpainters.base",
    "replaygen.inpainters.answers",
    "replaygen.inpainters.opencv",
    "replaygen.inpainters.lama_wire",
    "replaygen.inpainters.lama_child",
)


@dataclass(frozen=True)
class EraseParams:
    """erase: `EraseSpec.identity()`; inpainter: `inpainters.base.identity_of` it."""

    erase: dict[str, Any]
    inpainter: dict[str, Any]
    threads: int


class EraseStage(Stage[EraseParams]):
    """Image shard i and its label shard -> images and labels without what the labels hide, the same ids or fewer.

    Inputs: "images"; "labels", whose `erase.png` says what else is in the picture; "trusted", the selections of the
    samples to take, where there are any. Samples with nothing to erase keep their bytes. Not `heavy`, which a class is
    or is not: this process holds no network, and OpenCV needs no torch. LaMa may be on a GPU, but in a process of its
    own; its libraries are in the record's provenance.

    Raises:
        ModelError: the inpainter does not start, is not as planned, or is not well; see above. DataError: sizes differ.
    """

    name = "erase"
    version = 1
    modules = (*_MODULES, "replaygen.screens.text")
    seconds_per_sample = 0.03
    bytes_per_sample = 30_000
    Params = EraseParams

    def run(self, params: EraseParams, inputs: Inputs, out: Out) -> None:
        """Find the region, fill it, tell of it in both side-cars; what failed or lost too much is counted."""
        source = inputs.record("images")
        images = inputs.shard(source, "images")
        labels = inputs.shard(inputs.record("labels"), "labels")
        new_images, new_labels = {}, {}
        with _Eraser(params, inputs.where) as eraser:
            for job in eraser.done(_replay_jobs(params.erase, images, labels, _trusted(inputs), out), out):
                sample = job.sample
                if job.erasure.region.any():
                    about = json.loads(images.read(sample, "json"))
                    new_images[sample] = _image_members(job, about, {"shard": source.key, "id": sample})
                    new_labels[sample] = _label_members(job, json.loads(labels.read(sample, "label.json")))
                else:
                    new_images[sample] = {kind: images.read(sample, kind) for kind in images.extensions(sample)}
                    new_labels[sample] = {kind: labels.read(sample, kind) for kind in ("mask.png", "label.json")}
            out.provenance = eraser.provenance()
        out.shard("images", new_images.items())
        out.shard("labels", new_labels.items())


@dataclass(frozen=True)
class RemoveParams:
    """ids: the data set's ids of the slice of step `step`; unsure: background whose winner is less probable than this
    becomes 255 where it is not erased; the views as `RelabelParams`; the rest as `EraseParams`."""

    dataset: str
    scenario: str
    step: int
    ids: tuple[str, ...]
    unsure: float
    flip: bool
    looks: int
    views: dict[str, Any]
    erase: dict[str, Any]
    inpainter: dict[str, Any]
    threads: int


class RemoveStage(Stage[RemoveParams]):
    """Slice i of a step's current images -> label shard i, and image shard i of those that lost something.

    The reverse of background inpainting: what the previous model sees in the background is not written into the label
    but taken out of the picture. Where an old class stays, too small to erase, the label says 255. Images that are
    refused or fail are in neither shard: a reader has their own pixels and labels.

    Raises:
        ModelError, DataError: as `EraseStage`.
    """

    name = "remove"
    version = 1
    modules = (
        *_MODULES,
        "replaygen.stages.predicting",
        "replaygen.learn.predict",
        "replaygen.learn.checkpoint",
        *NETWORK_MODULES,
        *DATA_MODULES,
    )
    seconds_per_sample = 0.08
    bytes_per_sample = 60_000
    heavy = True
    Params = RemoveParams

    def run(self, params: RemoveParams, inputs: Inputs, out: Out) -> None:
        """Predict, find what is old, fill it, and label what is left."""
        from replaygen.datasets import sample_id

        model = inputs.record("model")
        new_images, new_labels = {}, {}
        names = {sample_id(image_id): image_id for image_id in params.ids}
        with _Eraser(params, inputs.where) as eraser:
            for job in eraser.done(_current_jobs(params, inputs, model), out):
                image_id, visible = names[job.sample], list(job.visible)
                if job.erasure.region.any():
                    about = _about_current(image_id, job.image)
                    new_images[job.sample] = _image_members(job, about, {"shard": params.dataset, "id": image_id})
                told = {"visible": visible, "scores": {}, "labeler": model.key, "id": image_id}
                new_labels[job.sample] = _label_members(job, told)
            out.provenance = eraser.provenance()
        out.shard("images", new_images.items())
        out.shard("labels", new_labels.items())


@dataclass(frozen=True)
class _Job:
    """One image on its way: uint8 [H, W, 3], its label uint8 [H, W] as it was before, and what has to go."""

    sample: str
    image: Image8
    mask: Mask8
    erasure: Erasure
    backend: str
    visible: tuple[int, ...] = ()


class _Eraser:
    """The inpainter of one task, opened when the first hole comes. A server of our own goes on for the next task where
    this one came to its end; everything else is closed."""

    def __init__(self, params: EraseParams | RemoveParams, where: Mapping[str, Any]) -> None:
        self._spec = {**params.erase, "threads": params.threads}
        self._identity = dict(params.inpainter)
        self._where = dict(where)
        if self._spec["backend"] != "opencv":
            self._where["device"] = device_of(self._where)
        self._name = json.dumps([self._spec, self._identity, self._where], sort_keys=True)
        self._open: Inpainter | None = None
        self._filled = self._lost = self._failed = 0
        self._why = ""

    def __enter__(self) -> _Eraser:
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        if self._open is None:
            return
        if kind is None and self._where.get("weights"):
            from replaygen.inpainters.shelf import SHELF

            SHELF.put(self._name, self._open)
        else:
            self._open.close()

    def done(self, jobs: Iterable[_Job], out: Out) -> Iterator[_Job]:
        """The jobs that came to an end, with their images filled; each is counted, whatever became of it.

        Raises:
            ModelError: too few holes were filled, and it is not the pictures.
        """
        waiting: list[_Job] = []
        for job in jobs:
            if job.erasure.refused is not None:
                out.reject(job.sample, job.erasure.refused, share=round(job.erasure.share, 5))
            elif job.erasure.region.any():
                waiting.append(job)
            else:
                out.accept()
                yield job
            if len(waiting) == _AT_ONCE:
                yield from self._fill(waiting, out)
                waiting = []
        if waiting:
            yield from self._fill(waiting, out)
        if self._lost > _MOST_LOST * (self._filled + self._failed) or (self._lost and not self._filled):
            self._give_up()

    def _fill(self, jobs: Sequence[_Job], out: Out) -> Iterator[_Job]:
        from replaygen.inpainters.base import Failure

        answers = self._answers(jobs)
        again = [i for i, answer in enumerate(answers) if isinstance(answer, Failure) and answer.passing]
        for i, answer in zip(again, self._answers([jobs[i] for i in again]), strict=True):
            answers[i] = answer
        for job, answer in zip(jobs, answers, strict=True):
            if isinstance(answer, Failure):
                self._failed += 1
                if answer.passing:
                    self._lost, self._why = self._lost + 1, str(answer)
                out.fail(job.sample, answer.reason)
            else:
                self._filled += 1
                out.accept()
                yield replace(job, image=answer)
        if self._lost == self._failed > 0 == self._filled:  # the next pictures would wait in vain
            self._give_up()

    def _answers(self, jobs: Sequence[_Job]) -> list[Image8 | Failure]:
        return self._opened().fill_many([job.image for job in jobs], [job.erasure.region for job in jobs])

    def _give_up(self) -> None:
        holes = self._filled + self._failed
        raise ModelError(
            f"the inpainter is not well: {self._lost} of {holes} holes got no answer, twice (the last: {self._why})",
            where=str(self._where.get("server") or self._where.get("weights") or self._spec["backend"]),
            hint="nothing was published: run again when it is well; if it is only slow, with a larger timeout",
        )  # fmt: skip

    def provenance(self) -> dict[str, Any]:
        """The libraries that filled, where anything was."""
        return {} if self._open is None else {"inpainter": self._open.versions()}

    def _opened(self) -> Inpainter:
        from replaygen.inpainters.base import open_inpainter
        from replaygen.inpainters.shelf import SHELF

        if self._open is None:
            self._open = SHELF.take(self._name)
        if self._open is None:
            self._open = open_inpainter(self._spec, self._where)
            if self._open.identity() != self._identity:
                raise ModelError(
                    "the inpainter is not the one that the plan was made for",
                    where=f"planned {self._identity}, found {self._open.identity()}", hint="run the recipe again",
                )  # fmt: skip
        return self._open


def _replay_jobs(
    erase: Mapping[str, Any], images: Shard, labels: Shard, trusted: frozenset[str] | None, out: Out
) -> Iterator[_Job]:
    """What each labelled replay image must lose."""
    from replaygen.inpainters.regions import find_erasure
    from replaygen.sample import decode_image, decode_mask
    from replaygen.screens.text import text_pixels

    for sample, label in labels:
        if trusted is not None and sample not in trusted:
            out.reject(sample, "untrusted")
            continue
        kind = next(ending for ending in _PICTURES if ending in images.extensions(sample))
        image = decode_image(images.read(sample, kind), where=sample)
        mask = decode_mask(label["mask.png"], where=sample)
        marks = decode_mask(label["erase.png"], where=sample) if "erase.png" in label else None
        if mask.shape != image.shape[:2]:
            raise DataError("image and label differ in size", where=sample)
        text = text_pixels(image) if erase["text"] else None
        yield _Job(sample, image, mask, find_erasure(erase, mask, marks, text), str(erase["backend"]))


def _current_jobs(params: RemoveParams, inputs: Inputs, model: Record) -> Iterator[_Job]:
    """What each current image must lose, and its label: 255 where something old would stay in sight."""
    import numpy as np

    from replaygen.datasets import sample_id
    from replaygen.inpainters.regions import find_old
    from replaygen.sample import IGNORE
    from replaygen.stages.predicting import predict

    dataset, scenario = open_current(inputs.where, params.dataset, params.scenario)
    step, table = scenario.step(params.step), scenario.step_table(params.step)
    chosen = np.array((0, *step.old), dtype=np.uint8)
    net, _ = open_model(inputs, model)
    features = Features.of(inputs)
    for image_id in params.ids:
        sample, image = sample_id(image_id), dataset.image(image_id)
        current = scenario.apply(table, dataset.mask(image_id))
        if current.shape != image.shape[:2]:
            raise DataError("image and mask differ in size", where=f"{dataset.root}: {image_id}")
        scores = predict(
            net, image, sample, features, views=params.views, looks=params.looks, flip=params.flip
        )[chosen]  # fmt: skip
        winner, sure = chosen[scores.argmax(axis=0)], scores.max(axis=0) >= params.unsure
        erasure = find_old(params.erase, current, np.where(sure, winner, 0).astype(np.uint8))
        hidden = (current == 0) & ((winner > 0) | ~sure)
        mask = np.where(hidden, IGNORE, current).astype(np.uint8)
        yield _Job(sample, image, mask, erasure, str(params.erase["backend"]), step.seen)


def _about_current(image_id: str, image: Image8) -> dict[str, Any]:
    return {
        "class": None, "source": "current", "file": image_id, "licence": None, "parent": None,
        "height": int(image.shape[0]), "width": int(image.shape[1]),
    }  # fmt: skip


def _image_members(job: _Job, about: dict[str, Any], parent: dict[str, str]) -> Members:
    from replaygen.sample import encode_png

    told = {**about, "parent": parent, "erased": job.erasure.as_json(job.backend)}
    return {"png": encode_png(job.image), "json": json.dumps(told, sort_keys=True).encode()}


def _label_members(job: _Job, told: dict[str, Any]) -> Members:
    """The label; what was erased is background now, whatever it was before."""
    import numpy as np

    from replaygen.sample import encode_png

    mask = np.where(job.erasure.region, 0, job.mask).astype(np.uint8)
    if job.erasure.region.any():
        told = {**told, "erased": job.erasure.as_json(job.backend)}
    return {"mask.png": encode_png(mask), "label.json": json.dumps(told, sort_keys=True).encode()}


def _trusted(inputs: Inputs) -> frozenset[str] | None:
    """The samples that the label screens keep; None where there are none, and all are kept."""
    records = inputs.records("trusted")
    if not records:
        return None
    return frozenset(sample for record in records for sample in inputs.read_json(record, SELECTION)["kept"])
