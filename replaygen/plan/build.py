"""Recipe -> tasks with keys. Pure: it reads no image, makes no file, and the same recipe gives the same keys.

The walk, per seed and method, for each step k: features (of a frozen encoder) and labels of the step's images; train;
evaluate; then, while a later step is to come, photos of the classes just learnt are labelled by that model, once, and
closed into one replay set per class, which every later training of the chain reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from replaygen.errors import DataError
from replaygen.learn.specs import HOW
from replaygen.plan.crawled import CRAWLED, CrawledTasks, Purged
from replaygen.plan.generated import GENERATED, GeneratedTasks
from replaygen.plan.recipe import RecipeTable, ReplayTable
from replaygen.plan.rows import Row, Rows
from replaygen.sources.exemplar import choose
from replaygen.sources.folder import candidates, photo_id
from replaygen.stages.base import Task
from replaygen.stages.evaluate import EvaluateStage
from replaygen.stages.features import CurrentFeatureStage, ReplayFeatureStage
from replaygen.stages.given import GivenParams, GivenStage
from replaygen.stages.label import LabelStage, RelabelStage
from replaygen.stages.replay import ReplayStage
from replaygen.stages.source import ExemplarStage, PhotoStage
from replaygen.stages.train import TrainStage

if TYPE_CHECKING:
    from pathlib import Path

    from replaygen.datasets import FolderPhotos, SegmentationDataset
    from replaygen.plan.generators import GeneratorAt
    from replaygen.scenario import Scenario, Step

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
    purged: Purged = field(default_factory=Purged)


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
        replay_sets: list[str] = []
        chain = f"{row.name}/seed{seed}"
        for k in range(1, len(steps)):
            if row.replay is not None:
                labeled_by = chain if k > 1 else f"base/seed{seed}"
                replay_sets += self._replay(row.replay, steps[k - 1], model, labeled_by, seed)
            relabelled = self._relabel(k, model, chain) if row.inpaint else []
            model = self._train(k, row, seed, chain, model, relabelled, replay_sets)
            self._evaluate(k, model, chain)

    def _base(self, seed: int) -> str:
        if self.opened.given is None:
            return self._train(0, self.opened.rows.base, seed, f"base/seed{seed}", None, [], [])
        folder, params = self.opened.given
        where = {"folder": str(folder), "network": self.opened.where["network"], "device": self.opened.where["device"]}
        told = {**asdict(params), "names": list(params.names)}
        return self.built.add(GivenStage.task(told, slot=f"train/base/seed{seed}/step0", where=where))

    def _joint(self, row: Row, seed: int) -> None:
        last = len(self.scenario.steps) - 1
        chain = f"{row.name}/seed{seed}"
        model = self._train(last, row, seed, chain, None, [], [])
        self._evaluate(last, model, chain)

    def _train(
        self, k: int, row: Row, seed: int, chain: str, previous: str | None, relabelled: Sequence[str],
        replay_sets: Sequence[str],
    ) -> str:  # fmt: skip
        opened, recipe, method = self.opened, self.recipe, row.method
        steps = range(len(self.scenario.steps)) if method.all_data else (k,)
        inputs: Inputs = [("previous", previous)] if previous is not None else []
        for step in steps:
            inputs += self._step_features(step)
        inputs += [("labels", key) for key in relabelled] + [("replay", key) for key in replay_sets]
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
                    if table.source == "exemplar":
                        kept = self._exemplars(source, table, step, channel)
                        self._close(source, table, channel, f"replay/{source}", kept, kept)
                    else:
                        images = self.images(source, table, step, channel)
                        self.crawled.selection(source, table, channel, images)

    # current data

    def slices(self, ids: Sequence[str]) -> Iterator[tuple[int, tuple[str, ...]]]:
        """(i, the i-th shard's part) of some ids."""
        for i, start in enumerate(range(0, len(ids), self.recipe.shard)):
            yield i, tuple(ids[start : start + self.recipe.shard])

    def _step_features(self, k: int) -> Inputs:
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
                    "views": _seen(views), "threads": self.recipe.threads,
                }  # fmt: skip
                task = CurrentFeatureStage.task(
                    params, slot=f"features/{name}/{i:04d}", where=self.current_where, requested=len(part)
                )
                self.features[name].append(("features", self.built.add(task)))
        return self.features[name]

    def _relabel(self, k: int, model: str, chain: str) -> list[str]:
        keys: list[str] = []
        if not set(self.scenario.steps[k].old) - set(self.scenario.visible(k)):
            return keys  # the step's own labels show the old classes: nothing hides in their background
        for i, ids in self.slices(self.scenario.steps[k].ids):
            params = {
                "dataset": self.opened.dataset.digest, "scenario": self.scenario.digest, "step": k, "ids": list(ids),
                "unsure": self.recipe.relabel.unsure, "flip": self.recipe.relabel.flip, "views": self.views,
                "looks": min(self.recipe.relabel.looks, self.recipe.views.count), "threads": self.recipe.threads,
            }  # fmt: skip
            features = self._step_features(k)[i : i + 1]
            task = RelabelStage.task(
                params, inputs=[("model", model), *features], slot=f"relabel/{chain}/step{k}/{i:04d}",
                where=self.current_where, requested=len(ids),
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

    def _replay(self, source: str, step: Step, model: str, labeled_by: str, seed: int) -> list[str]:
        table = self.recipe.replay[source]
        keys = []
        for channel in self.channels(table, step):
            if table.source == "exemplar":
                images = labels = self._exemplars(source, table, step, channel)
                slot = f"replay/{source}"
            else:
                images = self.images(source, table, step, channel)
                labels = self._labels(source, table, step, channel, model, labeled_by, images)
                slot = f"replay/{source}/{labeled_by}"
            if table.source in GENERATED:
                base = self.built.slots[f"train/base/seed{seed}/step0"]
                self.generated.quality(source, table, step, channel, seed, base, images, labels)
            keys.append(self._close(source, table, channel, slot, images, labels))
        return keys

    def _close(
        self, source: str, table: ReplayTable, channel: int, slot: str, images: Sequence[str], labels: Sequence[str]
    ) -> str:
        name = self.scenario.names[channel]
        features = self._replay_features(source, table, channel, images) if self.opened.rows.rows else []
        roles = (("images", images), ("labels", labels), ("features", features))
        task = ReplayStage.task(
            {"class_name": name, "channel": channel, "wanted": table.count},
            inputs=[(role, key) for role, keys in roles for key in keys], slot=f"{slot}/{name}",
            requested=sum(self.built.tasks[key].requested for key in labels),
        )  # fmt: skip
        return self.built.add(task)

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

    def _exemplars(self, source: str, table: ReplayTable, step: Step, channel: int) -> list[str]:
        name = self.scenario.names[channel]
        raw = self.opened.dataset.classes.by_name(name).id
        ids = choose(step.ids, self.opened.dataset.present(step.ids), raw, count=table.count, seed=table.seed)
        keys = []
        for i, part in self.slices(ids):
            params = {
                "dataset": self.opened.dataset.digest, "scenario": self.scenario.digest, "class_name": name,
                "step": step.index, "ids": list(part),
            }  # fmt: skip
            task = ExemplarStage.task(
                params, slot=f"exemplars/{source}/{name}/{i:04d}", where=self.current_where, requested=len(part)
            )
            keys.append(self.built.add(task))
        return keys

    def _labels(
        self, source: str, table: ReplayTable, step: Step, channel: int, model: str, labeled_by: str,
        images: Sequence[str],
    ) -> list[str]:  # fmt: skip
        name = self.scenario.names[channel]
        params = {
            "class_name": name, "channel": channel, "restrict": table.label, "unsure": table.unsure,
            "min_share": table.min_share, "flip": table.flip, "views": self.views,
            "looks": min(table.looks, self.recipe.views.count),
            "threads": self.recipe.threads,
        }  # fmt: skip
        where = {"network": self.opened.where["network"], "device": self.opened.where["device"]}
        features = [("features", key) for key in self._replay_features(source, table, channel, images)]
        selection = self._selection(source, table, channel, images)
        keys = []
        for i, image in enumerate(images):
            task = LabelStage.task(
                params, inputs=[("images", image), ("model", model), *features[i : i + 1], *selection], where=where,
                slot=f"label/{source}/{labeled_by}/{name}/{i:04d}", requested=self.built.tasks[image].requested,
            )  # fmt: skip
            keys.append(self.built.add(task))
        return keys

    def _selection(self, source: str, table: ReplayTable, channel: int, images: Sequence[str]) -> Inputs:
        key = self.crawled.selection(source, table, channel, images)
        return [("selection", key)] if key is not None else []

    def _replay_features(self, source: str, table: ReplayTable, channel: int, images: Sequence[str]) -> list[str]:
        if not self.cached:
            return []
        name, selection = self.scenario.names[channel], self._selection(source, table, channel, images)
        params = {"network": self.encoder, "views": _seen(self.views), "threads": self.recipe.threads}
        where = {"network": self.opened.where["network"], "device": self.opened.where["device"]}
        keys = []
        for i, image in enumerate(images):
            task = ReplayFeatureStage.task(
                params, inputs=[("images", image), *selection], where=where, slot=f"features/{source}/{name}/{i:04d}",
                requested=self.built.tasks[image].requested,
            )  # fmt: skip
            keys.append(self.built.add(task))
        return keys


def _seen(views: Mapping[str, Any]) -> dict[str, Any]:
    """What an encoder's features depend on of the views: not the size of the masks."""
    return {name: value for name, value in views.items() if name != "label_size"}
