"""Tasks that turn images of a class into replay: helper decoders, labels, trust, erasing, knowledge, the closed set.

The walk is forward only. After step k: helpers are fitted on step k's data; images of its classes are labelled; what
real data look like to the labelers sets the standards that decide whom to trust; what must not be in a picture is
erased; the set is closed. At each later step its labels may receive the classes that are learnt then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from replaygen.errors import DataError
from replaygen.inpainters.base import identity_of
from replaygen.plan.generated import GENERATED
from replaygen.plan.masks import given_labels
from replaygen.plan.recipe import ReplayTable
from replaygen.sources.exemplar import choose
from replaygen.stages.erase import EraseStage
from replaygen.stages.features import ReplayFeatureStage
from replaygen.stages.helper import FEWEST, HelperStage, fold_of
from replaygen.stages.knowledge import KnowledgeStage
from replaygen.stages.label import LabelStage
from replaygen.stages.masks import GIVEN
from replaygen.stages.replay import ReplayStage
from replaygen.stages.source import ExemplarStage
from replaygen.stages.trust import StandardsStage, TrustStage

if TYPE_CHECKING:
    from replaygen.labelers.specs import TeacherSpec
    from replaygen.plan.build import Builder
    from replaygen.plan.rows import Row
    from replaygen.scenario import Step

Inputs = list[tuple[str, str]]
_CHAINS = {"helper": "helpers", "teacher": "teachers", GIVEN: GIVEN}
"""Who labels apart from the row's models, and the chain that their labels are of."""

FOLDS = 2
"""Parts of a step's data; what is measured on one was fitted on the others."""


@dataclass(frozen=True)
class Held:
    """Replay of one class, as the steps after its own find it: the keys of its shards, and of what was trusted.

    `zoomed`: features of the views that are trained on, where those are not the ones that are labelled from.
    """

    source: str
    channel: int
    slot: str
    images: tuple[str, ...]
    labels: tuple[str, ...]
    features: tuple[str, ...]
    trusted: tuple[str, ...] = ()
    zoomed: tuple[str, ...] = ()


class LabelledTasks:
    """Adds a recipe's labels to a plan; made by `plan.build.Builder`."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder
        self.recipe, self.opened, self.scenario = builder.recipe, builder.opened, builder.scenario
        self.built = builder.built
        self.helpers: dict[tuple[int, int, int | None], str] = {}
        self.model_where = {name: builder.opened.where[name] for name in ("network", "device")}

    def held(
        self, source: str, step: Step, model: str, labeled_by: str, seed: int, inpainted: Sequence[str] = ()
    ) -> list[Held]:
        """Replay of a step's classes, labelled by its model and helpers: one set a class, closed.

        `inpainted`: label shards of the step's own images, which exemplars may keep.
        """
        table = self.recipe.replay[source]
        made = []
        for channel in self.builder.channels(table, step):
            if table.source == "exemplar":
                kept = tuple(inpainted) if table.complete else ()
                by = f"{source}/{labeled_by}" if kept else source
                shards = tuple(self.exemplars(by, table, step, channel, kept))
                one = Held(source, channel, f"replay/{by}", shards, shards, ())
                name = self.scenario.names[channel]
                one = replace(one, features=tuple(self.encode(shards, f"features/{by}/{name}")))
            else:
                one = self._labelled(source, table, step, channel, model, labeled_by, seed)
            one = self._zoomed(one, table)
            self.close(one, f"{one.slot}/{self.scenario.names[channel]}")
            made.append(one)
        return made

    def at_step(self, one: Held, k: int, row: Row, seed: int, chain: str) -> tuple[Held, str]:
        """A held set as step k trains on it, with what step k learns in its labels' background if the row says so."""
        name = self.scenario.names[one.channel]
        if not row.knowledge or one.channel in self.scenario.steps[k].new:
            return one, self.close(one, f"{one.slot}/{name}")
        spec = self.recipe.knowledge
        helper = self.helper(self.scenario.steps[k], seed, None)
        params = {
            "class_name": name, "step": k, "channels": list(self.scenario.steps[k].new), "unsure": spec.unsure,
            "flip": spec.flip, "looks": min(spec.looks, self.recipe.views.count), "views": self.builder.views,
            "threads": self.recipe.threads,
        }  # fmt: skip
        trusted = [("trusted", key) for key in one.trusted]
        labels = []
        for i, (image, label) in enumerate(zip(one.images, one.labels, strict=True)):
            features = [("features", key) for key in one.features[i : i + 1]]
            task = KnowledgeStage.task(
                params, inputs=[("labels", label), ("images", image), ("helper", helper), *features, *trusted],
                where=self.model_where, slot=f"knowledge/{one.source}/{chain}/step{k}/{name}/{i:04d}",
                requested=self.built.tasks[label].requested,
            )  # fmt: skip
            labels.append(self.built.add(task))
        one = replace(one, labels=tuple(labels))
        return one, self.close(one, f"replay/{one.source}/{chain}/step{k}/{name}")

    def close(self, one: Held, slot: str) -> str:
        """The manifest of a set."""
        table = self.recipe.replay[one.source]
        features = one.zoomed or one.features
        roles = (("images", one.images), ("labels", one.labels), ("features", features), ("trusted", one.trusted))
        params = {
            "class_name": self.scenario.names[one.channel], "channel": one.channel, "wanted": table.count,
            "zoom": table.zoom,
        }  # fmt: skip
        task = ReplayStage.task(
            params, inputs=[(role, key) for role, keys in roles for key in keys], slot=slot,
            requested=sum(self.built.tasks[key].requested for key in one.labels),
        )  # fmt: skip
        return self.built.add(task)

    def _zoomed(self, one: Held, table: ReplayTable) -> Held:
        """A set with features of the farther views that it is trained on, where its source asks for them."""
        if table.zoom <= 1:
            return one
        views = self.recipe.views.zoomed(table.zoom).model_dump(mode="json")
        place = f"features/zoomed/{one.slot.removeprefix('replay/')}/{self.scenario.names[one.channel]}"
        return replace(one, zoomed=tuple(self.encode(one.images, place, views=views)))

    # one class

    def _labelled(
        self, source: str, table: ReplayTable, step: Step, channel: int, model: str, labeled_by: str, seed: int
    ) -> Held:
        name = self.scenario.names[channel]
        images = tuple(self.builder.images(source, table, step, channel))
        alone = table.labeler in ("teacher", GIVEN) or (table.labeler == "helper" and step.index > 0)
        by = f"{_CHAINS[table.labeler]}/seed{seed}" if alone else labeled_by
        labels = tuple(self._labels(source, table, step, channel, model, by, images, seed))
        features = tuple(self.features(source, channel, images))
        if table.source in GENERATED:
            base = self.built.slots[f"train/base/seed{seed}/step0"]
            self.builder.generated.quality(source, table, step, channel, seed, base, images, labels)
        one = Held(source, channel, f"replay/{source}/{by}", images, labels, features)
        if table.trust is not None:
            one = replace(one, trusted=(self._trust(one, table, step, by, seed),))
        if table.erase is not None:
            one = self._erased(one, f"{source}/{by}/{name}")
        return one

    def _voters(self, table: ReplayTable, step: Step, model: str, seed: int) -> Inputs:
        """Who labels: RECALL's helper of step 0 is the step-0 model itself."""
        if table.labeler == "teacher":
            return []
        helper = step.index > 0 or table.labeler == "both"
        asked = [] if table.labeler == "helper" and helper else [("model", model)]
        if table.labeler in ("helper", "both") and helper:
            asked.append(("helper", self.helper(step, seed, None)))
        return asked

    def _labels(
        self, source: str, table: ReplayTable, step: Step, channel: int, model: str, by: str,
        images: Sequence[str], seed: int,
    ) -> list[str]:  # fmt: skip
        if table.labeler == GIVEN:
            return self._given(source, table, step, channel, by, images, seed)
        name = self.scenario.names[channel]
        # all or nothing, so that sets which differ in what is done with their labels share the labels
        judged = table.trust is not None or table.erase is not None or table.labeler == "helper"
        teacher = self._teacher(source, step) if table.labeler == "teacher" else None
        params = {
            "class_name": name, "channel": channel, "step": list(step.new), **self._asked(table),
            "min_share": table.min_share, "marks": judged, "vectors": judged,
            "teacher": None if teacher is None else teacher.identity(),
        }  # fmt: skip
        where = dict(self.model_where)
        if teacher is not None:
            names = [self.scenario.names[one] for one in step.new]
            where["teacher"] = {"spec": teacher.model_dump(mode="json"), "names": names}
        features = [("features", key) for key in self.features(source, channel, images)]
        inputs = [*self._voters(table, step, model, seed), *self._selection(source, table, channel, images)]
        if judged and not features:
            inputs.append(("encoder", self.built.slots[f"train/base/seed{seed}/step0"]))
        keys = []
        for i, image in enumerate(images):
            task = LabelStage.task(
                params, inputs=[("images", image), *inputs, *features[i : i + 1]], where=where,
                slot=f"label/{source}/{by}/{name}/{i:04d}", requested=self.built.tasks[image].requested,
            )  # fmt: skip
            keys.append(self.built.add(task))
        return keys

    def _given(
        self, source: str, table: ReplayTable, step: Step, channel: int, by: str, images: Sequence[str], seed: int
    ) -> list[str]:
        """Labels that came with the images."""
        judged = table.trust is not None or table.erase is not None
        features = [("features", key) for key in self.features(source, channel, images)] if judged else []
        inputs = self._selection(source, table, channel, images)
        if judged and not features:
            inputs.append(("encoder", self.built.slots[f"train/base/seed{seed}/step0"]))
        return given_labels(self.builder, source, step, channel, by, images, inputs, features, judged=judged)

    def _teacher(self, source: str, step: Step) -> TeacherSpec:
        """The teacher as a step asks it: what it tells from the rest decides labels, so it is in the key."""
        spec = self.opened.teachers[source]
        names = [self.scenario.names[one] for one in step.new]
        return spec.model_copy(update={"classes": {name: spec.classes.get(name, name) for name in names}})

    def _asked(self, table: ReplayTable) -> dict[str, Any]:
        """How labelers are asked; the same for photos and for the real images that set the standards."""
        return {
            "restrict": table.label, "unsure": table.unsure, "refine": table.refine, "flip": table.flip,
            "views": self.builder.views, "looks": min(table.looks, self.recipe.views.count),
            "threads": self.recipe.threads,
        }  # fmt: skip

    def _trust(self, one: Held, table: ReplayTable, step: Step, by: str, seed: int) -> str:
        assert table.trust is not None
        name = self.scenario.names[one.channel]
        spec = table.trust if table.trust.split else table.trust.model_copy(update={"keep": 0.5})  # it is of `split`
        task = TrustStage.task(
            {"class_name": name, "channel": one.channel, **spec.model_dump(mode="json")},
            inputs=[("standards", self._standards(one.source, table, step, seed)),
                    *(("labels", key) for key in one.labels)],
            slot=f"trust/{one.source}/{by}/{name}",
            requested=sum(self.built.tasks[key].requested for key in one.labels),
        )  # fmt: skip
        return self.built.add(task)

    def _standards(self, source: str, table: ReplayTable, step: Step, seed: int) -> str:
        """What a step's real images look like to labelers that were not fitted on them; shared by its classes."""
        params = {
            "dataset": self.opened.dataset.digest, "scenario": self.scenario.digest, "step": step.index,
            "folds": FOLDS, **self._asked(table),
        }  # fmt: skip
        inputs = [("helper", self.helper(step, seed, fold)) for fold in range(FOLDS)]
        features = self.builder.step_features(step.index)
        if not features:
            inputs.append(("encoder", self.built.slots[f"train/base/seed{seed}/step0"]))
        task = StandardsStage.task(
            params, inputs=[*inputs, *features], slot=f"standards/{source}/seed{seed}/step{step.index}",
            where=self.builder.current_where, requested=len(step.ids),
        )  # fmt: skip
        return self.built.add(task)

    def _erased(self, one: Held, place: str) -> Held:
        spec = self.opened.erasers[f"replay.{one.source}"]
        params = {"erase": spec.identity(), "inpainter": identity_of(spec.identity()), "threads": self.recipe.threads}
        where = {**spec.where(), "device": self.opened.where["device"]}
        trusted = [("trusted", key) for key in one.trusted]
        keys = []
        for i, (image, label) in enumerate(zip(one.images, one.labels, strict=True)):
            task = EraseStage.task(
                params, inputs=[("images", image), ("labels", label), *trusted], slot=f"erase/{place}/{i:04d}",
                where=where, requested=self.built.tasks[label].requested,
            )  # fmt: skip
            keys.append(self.built.add(task))
        shards = tuple(keys)
        features = tuple(self.encode(shards, f"features/erased/{place}"))
        return replace(one, images=shards, labels=shards, features=features)

    # what labels stand on

    def helper(self, step: Step, seed: int, fold: int | None) -> str:
        """D^H_k of a step; with `fold` fitted without that part of the step's images."""
        place = (step.index, seed, fold)
        if place in self.helpers:
            return self.helpers[place]
        used = sum(fold is None or fold_of(key, FOLDS) != fold for key in step.ids)
        if used < FEWEST:
            raise DataError(
                f"a helper of step {step.index} would be fitted on {used} images",
                hint=f"it needs {FEWEST}; use labeler = \"model\", no [replay.NAME.trust] and no `knowledge`",
            )  # fmt: skip
        fit = self.opened.rows.helper
        params = {
            "dataset": self.opened.dataset.digest, "scenario": self.scenario.digest, "step": step.index, "fit": fit,
            "network": self.opened.network, "views": self.builder.views, "folds": FOLDS if fold is not None else 1,
            "fold": fold, "threads": self.recipe.threads,
        }  # fmt: skip
        base = self.built.slots[f"train/base/seed{seed}/step0"]
        slot = f"helper/seed{seed}/step{step.index}" + ("" if fold is None else f"/without{fold}")
        task = HelperStage.task(
            params, inputs=[("base", base), *self.builder.step_features(step.index)], seed=seed, slot=slot,
            where={**self.builder.current_where, "fit": self.builder.fit_where},
            requested=fit["iterations"] * fit["batch"],
        )  # fmt: skip
        self.helpers[place] = self.built.add(task)
        return self.helpers[place]

    def exemplars(
        self, place: str, table: ReplayTable, step: Step, channel: int, inpainted: Sequence[str]
    ) -> list[str]:
        """Real images of a class, kept."""
        name = self.scenario.names[channel]
        raw = self.opened.dataset.classes.by_name(name).id
        ids = choose(step.ids, self.opened.dataset.present(step.ids), raw, count=table.count, seed=table.seed)
        keys = []
        for i, part in self.builder.slices(ids):
            params = {
                "dataset": self.opened.dataset.digest, "scenario": self.scenario.digest, "class_name": name,
                "step": step.index, "ids": list(part),
            }  # fmt: skip
            task = ExemplarStage.task(
                params, inputs=[("labels", key) for key in inpainted], slot=f"exemplars/{place}/{name}/{i:04d}",
                where=self.builder.current_where, requested=len(part),
            )  # fmt: skip
            keys.append(self.built.add(task))
        return keys

    def features(self, source: str, channel: int, images: Sequence[str]) -> list[str]:
        """Cached features of a class's image shards; none where the encoder learns."""
        table, name = self.recipe.replay[source], self.scenario.names[channel]
        return self.encode(images, f"features/{source}/{name}", self._selection(source, table, channel, images))

    def encode(
        self, images: Sequence[str], slot: str, selection: Sequence[tuple[str, str]] = (),
        views: dict[str, Any] | None = None,
    ) -> list[str]:  # fmt: skip
        """Cached features of some image shards, of the recipe's views where no others are given."""
        if not self.builder.cached or not self.opened.rows.rows:
            return []
        params = {
            "network": self.builder.encoder, "views": seen(views or self.builder.views),
            "threads": self.recipe.threads,
        }  # fmt: skip
        keys = []
        for i, image in enumerate(images):
            task = ReplayFeatureStage.task(
                params, inputs=[("images", image), *selection], where=self.model_where, slot=f"{slot}/{i:04d}",
                requested=self.built.tasks[image].requested,
            )  # fmt: skip
            keys.append(self.built.add(task))
        return keys

    def _selection(self, source: str, table: ReplayTable, channel: int, images: Sequence[str]) -> Inputs:
        key = self.builder.crawled.selection(source, table, channel, images)
        return [("selection", key)] if key is not None else []


def seen(views: Any) -> dict[str, Any]:
    """What an encoder's features depend on of the views: not the size of the masks."""
    return {name: value for name, value in views.items() if name != "label_size"}
