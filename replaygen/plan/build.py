"""Recipe -> tasks with keys. Pure: it reads no image, makes no file, and the same recipe gives the same keys.

The walk, per seed and method, for each step k: features (of a frozen encoder) and labels of the step's images; train;
evaluate; then, while a later step is to come, photos of the classes just learnt are labelled, once, by that model or
its helper, and closed into one replay set per class, which every later training of the chain reads (`plan.labelled`).
A row that is `ahead` has its helpers label the photos before step k trains, and trains on them there already.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from replaygen.errors import DataError
from replaygen.inpainters.base import identity_of
from replaygen.learn.specs import HOW
from replaygen.plan.crawled import CRAWLED, CrawledTasks, Purged
from replaygen.plan.generated import GENERATED, GeneratedTasks
from replaygen.plan.labelled import Held, LabelledTasks, seen
from replaygen.plan.recipe import RecipeTable, ReplayTable
from replaygen.plan.rows import Row, Rows
from replaygen.sources.folder import candidates, photo_id
from replaygen.stages.base import Stage, Task
from replaygen.stages.erase import RemoveStage
from replaygen.stages.evaluate import EvaluateStage
from replaygen.stages.features import CurrentFeatureStage
from replaygen.stages.given import GivenParams, GivenStage
from replaygen.stages.relabel import RelabelStage, UncertaintyStage
from replaygen.stages.source import PhotoStage
from replaygen.stages.train import TrainStage

if TYPE_CHECKING:
    from pathlib import Path

    from replaygen.datasets import FolderPhotos, SegmentationDataset
    from replaygen.inpainters.specs import EraseSpec
    from replaygen.labelers.specs import TeacherSpec
    from replaygen.plan.generators import GeneratorAt
    from replaygen.scenario import Scenario, Step
    from replaygen.sources.masks import MaskPack

Inputs = list[tuple[str, str]]


@dataclass(frozen=True)
class Opened:
    """What the recipe names, opened: nothing here was computed.

    Attributes:
        network: the network's identity, weights by their sha256; encoder: the part that its features depend on.
        given: the folder of a user's own step-0 model and what it holds, or None.
        where: what workers need to open the same things, and no key knows.
        rows: the recipe's rows with their method files.
        lists: per source `web`, its list of addresses, or the folder with one a class.
        teachers: per source that a teacher labels, what it is, its files pinned.
        masks: per source whose labels are given, the pack that holds them.
        erasers: how pixels are erased, for "relabel" and for each "replay.NAME" that has it.
        purged: the photos that may never come back.
    """

    dataset: SegmentationDataset
    scenario: Scenario
    photos: Mapping[str, FolderPhotos]
    generators: Mapping[str, GeneratorAt]
    network: dict[str, Any]
    encoder: dict[str, Any]
    rows: Rows
    where: dict[str, Any]
    given: tuple[Path, GivenParams] | None = None
    lists: Mapping[str, Path] = field(default_factory=dict)
    teachers: Mapping[str, TeacherSpec] = field(default_factory=dict)
    masks: Mapping[str, MaskPack] = field(default_factory=dict)
    erasers: Mapping[str, EraseSpec] = field(default_factory=dict)
    purged: Purged = field(default_factory=Purged)


@dataclass(frozen=True)
class Current:
    """What a step trains on instead of its own: label shards, image shards that lost something, and their features."""

    labels: tuple[str, ...] = ()
    pixels: tuple[str, ...] = ()
    features: tuple[str, ...] = ()


@dataclass
class Built:
    """Tasks in an order in which each stands behind its inputs, and the slot names of each place in the recipe."""

    tasks: dict[str, Task] = field(default_factory=dict)
    slots: dict[str, str] = field(default_factory=dict)

    def add(self, task: Task) -> str:
        """Take a task in, once per key, and remember what it fills."""
        if task.slot in self.slots and self.slots[task.slot] != task.key:
            raise AssertionError(f"two tasks for slot {task.slot}")
        self.tasks.setdefault(task.key, task)
        self.slots[task.slot] = task.key
        return task.key


def build(recipe: RecipeTable, opened: Opened) -> Built:
    """Plan every task of a recipe, training of every step included.

    Raises:
        DataError: a class without any candidate photo.
    """
    return Builder(recipe, opened).build()


class Builder:
    """Plans one recipe."""

    def __init__(self, recipe: RecipeTable, opened: Opened) -> None:
        self.recipe = recipe
        self.opened = opened
        self.scenario = opened.scenario
        self.built = Built()
        self.cached = recipe.network.freeze == "always" and not recipe.views.fresh
        self.encoder = opened.encoder
        self.views = recipe.views.model_dump(mode="json")
        self.one_view = {**self.views, "count": 1}
        self.fit_where = {name: getattr(recipe.train.fit, name) for name in HOW}
        self.current_where = {name: opened.where[name] for name in ("data", "scenario", "network", "device")}
        self.features: dict[str, Inputs] = {}
        self.image_shards: dict[tuple[str, int], list[str]] = {}
        self.generated = GeneratedTasks(self)
        self.crawled = CrawledTasks(self)
        self.labelled = LabelledTasks(self)

    def build(self) -> Built:
        """All of it."""
        if not self.opened.rows.rows:
            self._images_only()
        for seed in self.recipe.train.seeds:
            for row in self.opened.rows.rows:
                if row.method.all_data:
                    self._joint(row, seed)
                else:
                    self._chain(row, seed)
        return self.built

    # chains

    def _chain(self, row: Row, seed: int) -> None:
        steps = self.scenario.steps
        model = self._base(seed)
        self._evaluate(0, model, f"base/seed{seed}")
        held: list[Held] = []
        current = Current()
        chain = f"{row.name}/seed{seed}"
        for k in range(1, len(steps)):
            replay_sets = []
            if row.replay is not None:
                labeled_by = chain if k > 1 else f"base/seed{seed}"
                if not (row.ahead and k > 1):
                    held += self.labelled.held(row.replay, steps[k - 1], model, labeled_by, seed, current.labels)
                if row.ahead:
                    held += self.labelled.held(row.replay, steps[k], "", "", seed)
                at_step = [self.labelled.at_step(one, k, row, seed, chain) for one in held]
                held, replay_sets = [one for one, _ in at_step], [key for _, key in at_step]
            current = self._current(k, model, chain, row.inpaint)
            model = self._train(k, row, seed, chain, model, current, replay_sets)
            self._evaluate(k, model, chain)

    def _base(self, seed: int) -> str:
        if self.opened.given is None:
            return self._train(0, self.opened.rows.base, seed, f"base/seed{seed}", None, Current(), [])
        folder, params = self.opened.given
        where = {"folder": str(folder), "network": self.opened.where["network"], "device": self.opened.where["device"]}
        told = {**asdict(params), "names": list(params.names)}
        return self.built.add(GivenStage.task(told, slot=f"train/base/seed{seed}/step0", where=where))

    def _joint(self, row: Row, seed: int) -> None:
        last = len(self.scenario.steps) - 1
        chain = f"{row.name}/seed{seed}"
        model = self._train(last, row, seed, chain, None, Current(), [])
        self._evaluate(last, model, chain)

    def _train(
        self, k: int, row: Row, seed: int, chain: str, previous: str | None, current: Current,
        replay_sets: Sequence[str],
    ) -> str:  # fmt: skip
        opened, recipe, method = self.opened, self.recipe, row.method
        steps = range(len(self.scenario.steps)) if method.all_data else (k,)
        inputs: Inputs = [("previous", previous)] if previous is not None else []
        for step in steps:
            inputs += self.step_features(step)
        roles = (("features", current.features), ("pixels", current.pixels), ("labels", current.labels))
        inputs += [(role, key) for role, keys in (*roles, ("replay", replay_sets)) for key in keys]
        params = {
            "method": method.digest, "options": row.own, "fit": row.fit, "step": k,
            "all_data": method.all_data, "dataset": opened.dataset.digest, "scenario": self.scenario.digest,
            "network": opened.network, "views": self.views, "threads": recipe.threads,
        }  # fmt: skip
        task = TrainStage.task(
            params, inputs=inputs, seed=seed, slot=f"train/{chain}/step{k}",
            where={**self.current_where, "fit": self.fit_where, "trainer": method.name},
            requested=row.fit["iterations"] * row.fit["batch"],
        )  # fmt: skip
        return self.built.add(task)

    def _evaluate(self, k: int, model: str, chain: str) -> None:
        ids = self.evaluation_ids()
        params = {
            "dataset": self.opened.dataset.digest, "scenario": self.scenario.digest, "step": k,
            "split": self.recipe.data.val, "holdout": bool(self.recipe.scenario.holdout), "flip": self.recipe.flip,
            "protocol": self.recipe.scenario.protocol, "size": self.recipe.views.size, "threads": self.recipe.threads,
        }  # fmt: skip
        self.built.add(
            EvaluateStage.task(
                params,
                inputs=[("model", model), *self._features_of("evaluated", ids, self.one_view)],
                slot=f"evaluate/{chain}/step{k}",
                where=self.current_where,
                requested=len(ids),
            )
        )

    def evaluation_ids(self) -> tuple[str, ...]:
        """The images that every step is evaluated on."""
        if self.recipe.scenario.holdout:
            return tuple(self.scenario.holdout_ids)
        return self.opened.dataset.split(self.recipe.data.val)

    def _images_only(self) -> None:
        for source, table in self.recipe.replay.items():
            for step in self.scenario.steps:
                for channel in self.channels(table, step):
                    bare = table.labeler == "given" and table.trust is None and table.erase is None
                    if table.source == "exemplar" or bare:
                        self.labelled.held(source, step, "", "", 0)
                        break  # that was every class of the step
                    else:
                        images = self.images(source, table, step, channel)
                        self.crawled.selection(source, table, channel, images)

    # current data

    def slices(self, ids: Sequence[str]) -> Iterator[tuple[int, tuple[str, ...]]]:
        """(i, the i-th shard's part) of some ids."""
        for i, start in enumerate(range(0, len(ids), self.recipe.shard)):
            yield i, tuple(ids[start : start + self.recipe.shard])

    def step_features(self, k: int) -> Inputs:
        """Cached features of a step's own images, one a slice; none where the encoder learns."""
        return self._features_of(f"current/step{k}", self.scenario.steps[k].ids, self.views)

    def _features_of(self, name: str, ids: Sequence[str], views: Mapping[str, Any]) -> Inputs:
        """Cached features of some of the data set's images, a task a slice; none where the encoder learns."""
        if not self.cached:
            return []
        if name not in self.features:
            self.features[name] = []
            for i, part in self.slices(ids):
                params = {
                    "dataset": self.opened.dataset.digest, "ids": list(part), "network": self.encoder,
                    "views": seen(views), "threads": self.recipe.threads,
                }  # fmt: skip
                task = CurrentFeatureStage.task(
                    params, slot=f"features/{name}/{i:04d}", where=self.current_where, requested=len(part)
                )
                self.features[name].append(("features", self.built.add(task)))
        return self.features[name]

    def _current(self, k: int, model: str, chain: str, mode: str | None) -> Current:
        """What becomes of a step's own labels and images, where old classes hide in their background."""
        if mode is None or not set(self.scenario.steps[k].old) - set(self.scenario.visible(k)):
            return Current()  # the step's own labels show the old classes: nothing hides in their background
        told = self.recipe.relabel
        asked = {
            "dataset": self.opened.dataset.digest, "scenario": self.scenario.digest, "step": k, "flip": told.flip,
            "looks": min(told.looks, self.recipe.views.count), "views": self.views, "threads": self.recipe.threads,
        }  # fmt: skip
        params: dict[str, Any] = {"unsure": told.unsure if mode == "confidence" else 0.0}
        where, before = self.current_where, []
        stage: type[Stage[Any]] = RelabelStage
        if mode == "pixels":
            eraser = self.opened.erasers["relabel"]
            params |= {"erase": eraser.identity(), "inpainter": identity_of(eraser.identity())}
            where, stage = {**where, **eraser.where()}, RemoveStage
        else:
            # PLOP's floor is for a mean over channels, the stage's for the entropy divided by log V
            floor = told.floor * (1 + len(self.scenario.steps[k].old)) if mode == "entropy" else 0.0
            params |= {"mode": mode, "floor": floor}
        if mode == "entropy":
            before = self._sliced(UncertaintyStage, k, model, f"uncertainty/{chain}/step{k}", asked, where, [])
        inputs = [("uncertainty", key) for key in before]
        slot = f"{stage.name}/{chain}/step{k}"
        labels = self._sliced(stage, k, model, slot, {**asked, **params}, where, inputs)
        if mode != "pixels":
            return Current(labels=tuple(labels))
        encoded = self.labelled.encode(labels, f"features/{slot}")
        return Current(tuple(labels), tuple(labels), tuple(encoded))

    def _sliced(
        self, stage: type[Stage[Any]], k: int, model: str, slot: str, params: Mapping[str, Any],
        where: dict[str, Any], inputs: Inputs,
    ) -> list[str]:  # fmt: skip
        """A task of a stage for each slice of a step's images, with the model and the slice's features."""
        keys = []
        for i, ids in self.slices(self.scenario.steps[k].ids):
            task = stage.task(
                {**params, "ids": list(ids)}, inputs=[("model", model), *self.step_features(k)[i : i + 1], *inputs],
                slot=f"{slot}/{i:04d}", where=where, requested=len(ids),
            )  # fmt: skip
            keys.append(self.built.add(task))
        return keys

    # replay

    def channels(self, table: ReplayTable, step: Step) -> list[int]:
        """The channels of a step that a source makes replay for."""
        return [channel for channel in step.new if table.only is None or self.scenario.names[channel] in table.only]

    def images(self, source: str, table: ReplayTable, step: Step, channel: int) -> list[str]:
        """The image shards of a class: photos of a folder or of other people, or what a generator makes."""
        if (source, channel) not in self.image_shards:
            if table.source in GENERATED:
                shards = self.generated.images(source, table, step, channel)
            elif table.source in CRAWLED:
                shards = self.crawled.images(source, table, channel)
            else:
                shards = self._photos(source, table, channel)
            self.image_shards[source, channel] = shards
        return self.image_shards[source, channel]

    def _photos(self, source: str, table: ReplayTable, channel: int) -> list[str]:
        name = self.scenario.names[channel]
        photos = self.opened.photos[source]
        files = candidates(
            photos.entries(table.folders.get(name, name)),
            count=table.count, oversample=table.oversample, seed=table.seed,
        )  # fmt: skip
        if not files:
            raise DataError(
                f"class {name!r} has no photos in replay source {source!r}", where=str(photos.root),
                hint="add photos, or leave the class out with `only`",
            )  # fmt: skip
        where = {"root": str(photos.root)}
        keys = []
        for i, start in enumerate(range(0, len(files), self.recipe.shard)):
            part = [file for file in files[start : start + self.recipe.shard] if not self._purged(name, file)]
            params = {"class_name": name, "files": part, "max_side": table.max_side}
            task = PhotoStage.task(params, slot=f"photos/{source}/{name}/{i:04d}", where=where, requested=len(part))
            keys.append(self.built.add(task))
        return keys

    def _purged(self, name: str, file: tuple[str, str]) -> bool:
        return photo_id(name, file[1]) in self.opened.purged.photos
