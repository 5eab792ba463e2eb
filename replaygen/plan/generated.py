"""Tasks of generated replay: fit a generator or map its classes, draw, and say how good what was drawn is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from replaygen.errors import DataError
from replaygen.generators import imagenet
from replaygen.generators.draws import seeds_of
from replaygen.generators.specs import LEAST, FitSpec
from replaygen.plan.recipe import ReplayTable
from replaygen.sources.exemplar import choose
from replaygen.stages.base import Task
from replaygen.stages.fit import FitGeneratorStage
from replaygen.stages.generate import BigGanStage, ClassMapStage, DiffusionStage, FittedStage
from replaygen.stages.quality import QualityStage

if TYPE_CHECKING:
    from replaygen.plan.build import Builder
    from replaygen.scenario import Step

GENERATED = ("biggan", "diffusion", "fitted")
_MOST_REAL = 200
"""Real images of a class that a set's quality is measured against, at most."""


class GeneratedTasks:
    """What `build` asks for a generated source."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder
        self.recipe = builder.recipe
        self.opened = builder.opened
        self.scenario = builder.scenario
        self.built = builder.built
        self.fits: dict[tuple[str, int | None], str] = {}

    def images(self, source: str, table: ReplayTable, step: Step, channel: int) -> list[str]:
        """Image shards of a class: its seeds, slice by slice."""
        name = self.scenario.names[channel]
        seeds = seeds_of(name, count=_count(table), seed=table.seed)
        params: dict[str, Any] = {"class_name": name, "label": None, "prompts": [], "weights": {},
                                  "threads": self.recipe.threads}  # fmt: skip
        where: dict[str, Any] = {"device": self.opened.where["device"]}
        inputs: list[tuple[str, str]] = []
        texts: list[str] = []
        if table.source == "fitted":
            fitted = self._fit(source, table, step)
            classes = self.built.tasks[fitted].params["classes"]
            own = table.drawn()
            assert isinstance(own, FitSpec)
            if name not in classes:
                raise DataError(
                    f"replay.{source} is fitted on replay.{own.on}, which leaves {name!r} out",
                    hint=f"leave it out of replay.{source} too, with `only`",
                )
            params |= {"label": list(classes).index(name), "spec": own.drawn_by()}
            inputs.append(("generator", fitted))
        else:
            at = self.opened.generators[source]
            where |= {"folder": str(at.folder), "cache_dir": self.opened.where["data"]["cache_dir"]}
            spec = table.drawn().model_dump(mode="json")
            if at.lora is not None:
                where["lora"] = str(at.lora)
            for how in ("lora", "prompts", "words"):
                spec.pop(how, None)
            params |= {"label": at.labels.get(name), "spec": spec, "weights": at.weights}
            if at.prompted:
                texts = _prompts(table, name, len(seeds))
            elif at.classifier is not None and at.labels.get(name) is None:
                inputs.append(("classmap", self._map(source, table, step)))
        stage = {"biggan": BigGanStage, "diffusion": DiffusionStage, "fitted": FittedStage}[table.source]
        keys = []
        for i, start in enumerate(range(0, len(seeds), self.recipe.shard)):
            part = slice(start, start + self.recipe.shard)
            task = stage.task(
                {**params, "seeds": seeds[part], "prompts": texts[part]}, inputs=inputs,
                slot=f"images/{source}/{name}/{i:04d}", where=where, requested=len(seeds[part]),
            )  # fmt: skip
            keys.append(self.built.add(task))
        return keys

    def _fit(self, source: str, table: ReplayTable, step: Step) -> str:
        spec = table.drawn()
        assert isinstance(spec, FitSpec)
        place = step.index if spec.on == "step" else None
        if (source, place) in self.fits:
            return self.fits[source, place]
        before: list[tuple[str, str]] = []
        if place is None:
            on, learnt = self.recipe.replay[spec.on], []
            steps = self.scenario.steps[:-1] if self.opened.rows.rows else self.scenario.steps
            for earlier in steps:  # nothing replays the classes of the last step
                for channel in self.builder.channels(table, earlier):
                    if channel in self.builder.channels(on, earlier):
                        learnt.append(channel)
                        before += [("images", key) for key in self.builder.images(spec.on, on, earlier, channel)]
            slot = f"generator/{source}"
        else:
            learnt = self.builder.channels(table, step)
            self._enough(source, step, learnt)
            if spec.warm and (source, place - 1) in self.fits:
                before = [("previous", self.fits[source, place - 1])]
            slot = f"generator/{source}/step{place}"
        warm = bool(before) and place is not None
        params = {
            "dataset": self.opened.dataset.digest if place is not None else "",
            "scenario": self.scenario.digest if place is not None else "",
            "step": place, "classes": [self.scenario.names[channel] for channel in learnt], "channels": learnt,
            "fit": spec.fitted_by(warm=warm), "threads": self.recipe.threads,
        }  # fmt: skip
        task = FitGeneratorStage.task(
            params, inputs=before, seed=table.seed, slot=slot, where=self.builder.current_where,
            requested=spec.length(warm=warm),
        )  # fmt: skip
        self.fits[source, place] = self.built.add(task)
        return self.fits[source, place]

    def _enough(self, source: str, step: Step, channels: Sequence[int]) -> None:
        for channel in channels:
            count = len(self._holding(step, channel, LEAST, 0))
            if count < LEAST:
                name = self.scenario.names[channel]
                raise DataError(
                    f"replay.{source} is fitted on step {step.index}, which has {count} image of {name!r}",
                    hint=f"a fit needs {LEAST}; leave the class out with `only`, or use another source",
                )  # fmt: skip

    def _map(self, source: str, table: ReplayTable, step: Step) -> str:
        at = self.opened.generators[source]
        assert at.classifier is not None
        assert table.map is not None
        channels = [c for c in self.builder.channels(table, step) if at.labels.get(self.scenario.names[c]) is None]
        ids = [self._holding(step, channel, table.map.images, table.seed) for channel in channels]
        assert table.map is not None
        known = {
            imagenet.normalised(name): asdict(entry)
            for name, entry in (imagenet.table_for(self.scenario.names[1:]) or {}).items()
        }
        names = [self.scenario.names[channel] for channel in channels]
        reviewed = {name: known[imagenet.normalised(name)] for name in names if imagenet.normalised(name) in known}
        params = {
            "dataset": self.opened.dataset.digest, "scenario": self.scenario.digest,
            "classes": names, "ids": ids,
            "classifier": at.classifier[1], "minimum": table.map.minimum, "threads": self.recipe.threads,
            "names": None if at.names is None else list(at.names), "count": at.count, "reviewed": reviewed,
        }  # fmt: skip
        where = {**self.builder.current_where, "classifier": str(at.classifier[0])}
        task = ClassMapStage.task(
            params, slot=f"classmap/{source}/step{step.index}", where=where, requested=sum(map(len, ids))
        )
        return self.built.add(task)

    def _holding(self, step: Step, channel: int, most: int, seed: int) -> list[str]:
        raw = self.opened.dataset.classes.by_name(self.scenario.names[channel]).id
        return choose(step.ids, self.opened.dataset.present(step.ids), raw, count=most, seed=seed)

    def quality(
        self, source: str, table: ReplayTable, step: Step, channel: int, seed: int, model: str,
        images: Sequence[str], labels: Sequence[str],
    ) -> None:  # fmt: skip
        """Measure a class's generated set against the step's own images, once a seed."""
        slot = f"quality/{source}/seed{seed}/{self.scenario.names[channel]}"
        if slot in self.built.slots:
            return
        ids = self._holding(step, channel, _MOST_REAL, 0)
        params = {
            "dataset": self.opened.dataset.digest, "scenario": self.scenario.digest,
            "class_name": self.scenario.names[channel], "channel": channel, "step": step.index, "ids": ids,
            "size": self.recipe.views.size, "threads": self.recipe.threads,
        }  # fmt: skip
        inputs = [("images", key) for key in images] + [("labels", key) for key in labels] + [("model", model)]
        place = step.index if (source, step.index) in self.fits else None
        if (source, place) in self.fits:
            inputs.append(("fit", self.fits[source, place]))
            fitted_on = self.built.tasks[self.fits[source, place]].inputs
            inputs += [
                ("photos", key)
                for role, key in fitted_on
                if role == "images" and self.built.tasks[key].params["class_name"] == self.scenario.names[channel]
            ]
        requested = sum(self.built.tasks[key].requested for key in images)
        where = self.builder.current_where
        task: Task = QualityStage.task(params, inputs=inputs, slot=slot, where=where, requested=requested)
        self.built.add(task)


def _count(table: ReplayTable) -> int:
    import math

    return math.ceil(table.count * table.oversample)


def _prompts(table: ReplayTable, name: str, count: int) -> list[str]:
    from replaygen.generators.diffusion import prompts_of
    from replaygen.generators.specs import DiffusionSpec

    spec = table.drawn()
    assert isinstance(spec, DiffusionSpec)
    return prompts_of(spec, name, count)
