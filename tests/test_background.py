"""Background inpainting: what the previous model puts into current labels, where it is sure enough, in three ways."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TRAINING, Workspace
from hypothesis import given, settings
from hypothesis import strategies as st

from replaygen.datasets import sample_id
from replaygen.errors import DataError
from replaygen.labelers.background import (
    BINS,
    accepted_share,
    count_uncertainty,
    entropy_limits,
    inpaint_sure,
    restricted,
    uncertainty,
)
from replaygen.labelers.model import inpaint_background
from replaygen.learn import NetworkSpec, build_network, save_checkpoint
from replaygen.plan import Plan, Recipe
from replaygen.runs.execute import parameters
from replaygen.sample import IGNORE, decode_mask
from replaygen.stages.base import Inputs, Out, Stage, Task
from replaygen.stages.relabel import UNCERTAINTY, RelabelStage, UncertaintyStage
from replaygen.store import Record, Shard, Store, task_key

OLD = (1, 2)
THREE = np.array([[[0.5, 1 / 3, 1.0]], [[0.25, 1 / 3, 0.0]], [[0.25, 1 / 3, 0.0]]], np.float32)
"""Probabilities of three pixels: entropy 1.5 log 2, log 3, 0."""


def test_uncertainty_is_the_entropy_of_what_it_can_be_at_most() -> None:
    """(1/2, 1/4, 1/4) has entropy 1.5 log 2 of at most log 3; equal parts have all of it, certainty has none."""
    np.testing.assert_allclose(uncertainty(THREE)[0], [1.5 * math.log(2) / math.log(3), 1, 0], atol=1e-6)


def test_only_background_and_the_old_classes_count() -> None:
    """A channel of no old class is left out, and the rest is scaled to 1."""
    q = restricted(np.array([[[0.2]], [[0.2]], [[0.5]], [[0.1]]], np.float32), (1, 3))
    np.testing.assert_allclose(q[:, 0, 0], [0.4, 0.4, 0.2], rtol=1e-6)
    assert restricted(np.array([[[0.0]], [[0.0]], [[1.0]]], np.float32), (1,)).ravel().tolist() == [0.5, 0.5]


def test_only_hidden_pixels_are_counted_under_what_the_model_says() -> None:
    """Pixels of a class of the step, or void, take no part; the others count for their argmax, in their bin of u."""
    probabilities = np.concatenate([THREE, THREE[:, :, :1]], axis=2)
    counts = count_uncertainty(probabilities, np.array([[0, 7, 0, IGNORE]], np.uint8), old=OLD)
    assert counts.dtype == np.uint64
    assert counts.sum() == 2
    u = 1.5 * math.log(2) / math.log(3)
    assert counts[0, int(math.sqrt(u) * BINS)] == 1
    assert counts[0, 0] == 1
    full = count_uncertainty(THREE[:, :, 1:2], np.zeros((1, 1), np.uint8), old=OLD)
    assert full[0, BINS - 1] == 1


def test_limits_by_hand() -> None:
    """Four pixels in bin 100 and four in bin 300: the median ends bin 100; the floor holds where the median is less."""
    counts = np.zeros((4, BINS), np.uint64)
    counts[0, 100] = counts[0, 300] = 4
    counts[1, 200] = 3
    counts[2, 1] = 5
    limits = entropy_limits(counts, 0.02)
    np.testing.assert_allclose(limits, [(101 / 512) ** 2, (200.5 / 512) ** 2, 0.02, 0.02])


def test_the_step_of_three_pixels_by_hand() -> None:
    """u is 0.946, 1 and 0: only what is strictly below its class's limit is taken."""
    current = np.zeros((1, 3), np.uint8)
    made = [
        inpaint_sure(THREE, current, old=OLD, limits=np.array([limit, 0, 0])).tolist() for limit in (0.5, 0.95, 1.1)
    ]
    assert made == [[[255, 255, 0]], [[0, 255, 0]], [[0, 0, 0]]]
    likes_two = THREE[[1, 2, 0]]
    assert inpaint_sure(likes_two, current, old=OLD, limits=np.array([1.1, 0, 0.95])).tolist() == [[2, 0, 2]]


def test_the_accepted_share_by_hand() -> None:
    """Of three background pixels one became 255; classes and void do not count; without background it is 1."""
    current = np.array([[0, 0, 0, 5, 255]], np.uint8)
    assert accepted_share(np.array([[0, 2, 255, 5, 255]], np.uint8), current) == pytest.approx(2 / 3)
    assert accepted_share(current[:, 3:], current[:, 3:]) == 1.0


shapes = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**32 - 1))


def drawn(shape: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """Probabilities of bg + n old classes, now sure and now not, and labels of a step that learns channel n + 1."""
    n, height, width, seed = shape
    random = np.random.default_rng(seed)
    logits = random.normal(size=(1 + n, height, width)) * random.choice([0.1, 2.0, 30.0])
    odds = np.exp(logits - logits.max(0))
    current = random.choice([0, 0, n + 1, IGNORE], size=(height, width)).astype(np.uint8)
    return (odds / odds.sum(0)).astype(np.float32), current, tuple(range(1, n + 1))


@settings(max_examples=60, deadline=None)
@given(shapes)
def test_what_is_labelled_or_void_stays(shape: tuple[int, int, int, int]) -> None:
    """Every variant leaves the step's own classes and void alone, and puts only old classes, background or 255."""
    probabilities, current, old = drawn(shape)
    limits = entropy_limits(count_uncertainty(probabilities, current, old=old), 0.01)
    for mask in (
        inpaint_background(probabilities, current, old=old),
        inpaint_background(probabilities, current, old=old, unsure=0.7),
        inpaint_sure(probabilities, current, old=old, limits=limits),
    ):
        assert mask.dtype == np.uint8
        assert (mask[current != 0] == current[current != 0]).all()
        assert set(mask[current == 0].tolist()) <= {0, IGNORE, *old}


@settings(max_examples=60, deadline=None)
@given(shapes)
def test_unsure_variants_only_take_away(shape: tuple[int, int, int, int]) -> None:
    """Where confidence or entropy give a label, it is the argmax; with a limit beyond 1 they are the argmax."""
    probabilities, current, old = drawn(shape)
    plain = inpaint_background(probabilities, current, old=old)
    limits = entropy_limits(count_uncertainty(probabilities, current, old=old), 0.01)
    sure = inpaint_sure(probabilities, current, old=old, limits=limits)
    confident = inpaint_background(probabilities, current, old=old, unsure=0.6)
    for mask in (sure, confident):
        assert ((mask == plain) | (mask == IGNORE)).all()
    everything = inpaint_sure(probabilities, current, old=old, limits=np.full(1 + len(old), 1.5))
    np.testing.assert_array_equal(everything, plain)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=40))
def test_the_limit_is_a_median(values: list[float]) -> None:
    """At least half of the pixels lie at or below the limit's bin, and no more than half below that bin."""
    u = np.array(values)
    bins = np.minimum((np.sqrt(u) * BINS).astype(int), BINS - 1)
    counts = np.bincount(bins, minlength=BINS).astype(np.uint64)[None]
    at = math.sqrt(entropy_limits(counts, 0.0)[0]) * BINS
    assert (bins <= at).sum() * 2 >= len(values)
    assert (bins < math.ceil(at) - 1).sum() * 2 <= len(values)


@settings(max_examples=30, deadline=None)
@given(st.lists(shapes, min_size=2, max_size=4))
def test_merged_histograms_are_those_of_all_pixels(parts: list[tuple[int, int, int, int]]) -> None:
    """Counting image by image and adding is counting all at once."""
    images = [drawn((2, 3, 3, seed)) for _, _, _, seed in parts]
    added = sum((count_uncertainty(p, c, old=OLD) for p, c, _ in images), np.zeros((3, BINS), np.uint64))
    p, c = np.concatenate([one[0] for one in images], axis=1), np.concatenate([one[1] for one in images])
    np.testing.assert_array_equal(added, count_uncertainty(p, c, old=OLD))


# the stages, on digit scenes


@dataclass
class World:
    """A store with a model of step 0 over the tiny digits, and the slices of step 1 ("8-1": channels 1..8, then 9)."""

    store: Store
    plan: Plan
    model: str
    slices: tuple[tuple[str, ...], ...]

    def do(self, stage: type[Stage[Any]], params: dict[str, Any], inputs: list[tuple[str, str]]) -> Record:
        """Run a stage on the store as a worker would, without what is around it."""
        views = {"size": 32}
        shared = {
            "dataset": self.plan.opened.dataset.digest, "scenario": self.plan.opened.scenario.digest, "step": 1,
            "flip": True, "looks": 1, "views": views, "threads": 1,
        }  # fmt: skip
        slot = f"{stage.name}/{json.dumps(params, sort_keys=True)}"
        where = {**self.plan.opened.where, "device": "cpu"}
        task = stage.task({**shared, **params}, inputs=[("model", self.model), *inputs], slot=slot, where=where)
        return done(self.store, task, stage())

    def labels(self, ids: tuple[str, ...], mode: str, inputs: list[tuple[str, str]], **more: float) -> Record:
        """The label shard of a slice."""
        params = {"ids": list(ids), "mode": mode, "unsure": 0.0, "floor": 0.0, **more}
        return self.do(RelabelStage, params, inputs)

    def masks(self, record: Record) -> dict[str, np.ndarray]:
        """Sample -> mask of a label shard."""
        return {sample: decode_mask(members["mask.png"]) for sample, members in shard_of(self.store, record)}


def shard_of(store: Store, record: Record) -> Shard:
    """A record's label shard."""
    return Shard(*(store.read(record.output(f"labels.{end}").digest) for end in ("tar", "index.json")))


def done(store: Store, task: Task, stage: Stage[Any]) -> Record:
    """A task's record, published."""
    inputs, out = Inputs(store, task), Out(store, task)
    stage.run(parameters(stage, task.params), inputs, out)
    return store.publish(out.record(inputs, {}, "2026-01-01T00:00:00+00:00", 0.0))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_digits: Path) -> World:
    """A random but opinionated model of step 0, in a store."""
    import torch

    workspace = Workspace(tmp_path_factory.mktemp("relabel") / "work", tiny_digits)
    plan = Recipe.load(workspace.recipe(TRAINING)).plan(Store(workspace.root / "cache"))
    scenario, spec = plan.opened.scenario, NetworkSpec.model_validate(plan.opened.where["network"])
    net = build_network(spec, 9, seed=3)
    with torch.no_grad():
        net.head.get_parameter(sorted(name for name, _ in net.head.named_parameters())[-1]).mul_(3)
        for parameter in net.head.parameters():
            parameter.mul_(2)
    made = save_checkpoint(net, {"names": list(scenario.names[:9]), "step": 0, "network": spec.identity()})
    task = Task(task_key("train", 1, {}, 0, ()), "train", 1, {}, 0, (), "train/base/seed0/step0")
    inputs, out = Inputs(plan.store, task), Out(plan.store, task)
    out.put("model.safetensors", made.tensors)
    out.put_json("model.json", made.info)
    record = plan.store.publish(out.record(inputs, {}, "2026-01-01T00:00:00+00:00", 0.0))
    ids = scenario.steps[1].ids
    return World(plan.store, plan, record.key, (ids[:5], ids[5:]))


def test_argmax_fills_all_background_with_what_the_model_sees(world: World) -> None:
    """Every background pixel gets an old class or background; classes of the step and void are the step's own."""
    ids = world.slices[0]
    record = world.labels(ids, "argmax", [], unsure=0.9)
    scenario, dataset = world.plan.opened.scenario, world.plan.opened.dataset
    table = scenario.step_table(1)
    masks = world.masks(record)
    assert sorted(masks) == sorted(sample_id(one) for one in ids)
    for image_id in ids:
        mask, current = masks[sample_id(image_id)], scenario.apply(table, dataset.mask(image_id))
        assert (mask[current != 0] == current[current != 0]).all()
        assert set(mask[current == 0].tolist()) <= set(range(9))
    seen = set(np.concatenate([mask.ravel() for mask in masks.values()]).tolist())
    assert len(seen & set(range(9))) > 1
    _, members = next(iter(shard_of(world.store, record)))
    told = json.loads(members["label.json"])
    assert told["visible"] == list(range(1, 10))
    assert told["labeler"] == world.model
    assert told["scores"] == {"accepted": 1.0}


def test_confidence_leaves_unsure_pixels_open(world: World) -> None:
    """Where the winner has less than `unsure`, the pixel is 255; elsewhere the label is that of argmax."""
    ids = world.slices[0]
    plain = world.masks(world.labels(ids, "argmax", []))
    record = world.labels(ids, "confidence", [], unsure=0.6)
    masks = world.masks(record)
    assert any((masks[one] != plain[one]).any() for one in plain)
    for one, mask in masks.items():
        assert ((mask == plain[one]) | (mask == IGNORE)).all()
        told = json.loads(shard_of(world.store, record).read(one, "label.json"))
        assert told["visible"] == list(range(1, 10))
        assert told["scores"]["accepted"] <= 1
    zero = world.masks(world.labels(ids, "confidence", [], unsure=0.0))
    assert all((zero[one] == plain[one]).all() for one in plain)


def test_entropy_takes_the_surer_half_of_each_class(world: World) -> None:
    """Over all slices of the step, half of a class's pixels are accepted, to within a bin."""
    records = [world.do(UncertaintyStage, {"ids": list(ids)}, []) for ids in world.slices]
    told = [json.loads(world.store.read(record.output(UNCERTAINTY).digest)) for record in records]
    assert [one["channels"] for one in told] == [list(range(9))] * 2
    assert [record.counts.accepted for record in records] == [len(ids) for ids in world.slices]
    counts = np.array([one["counts"] for one in told]).sum(0)
    inputs = [("uncertainty", record.key) for record in records]
    plain, sure = {}, {}
    for ids in world.slices:
        plain |= world.masks(world.labels(ids, "argmax", []))
        record = world.labels(ids, "entropy", inputs)
        sure |= world.masks(record)
        assert set(record.provenance["limits"]) == {str(channel) for channel in range(9)}
    scenario, dataset = world.plan.opened.scenario, world.plan.opened.dataset
    table = scenario.step_table(1)
    accepted, predicted = np.zeros(9), np.zeros(9)
    for image_id in (one for ids in world.slices for one in ids):
        one = sample_id(image_id)
        hidden = scenario.apply(table, dataset.mask(image_id)) == 0
        predicted += np.bincount(plain[one][hidden], minlength=9)
        accepted += np.bincount(sure[one][hidden & (sure[one] != IGNORE)], minlength=9)
    np.testing.assert_array_equal(predicted, counts.sum(1))
    halves = np.array([int(np.searchsorted(row.cumsum(), row.sum() / 2)) for row in counts])
    assert (np.abs(accepted - predicted / 2) <= counts[range(9), halves]).all()
    assert 0.3 < accepted.sum() / predicted.sum() < 0.7
    every = world.masks(world.labels(world.slices[0], "entropy", inputs, floor=1.5))
    assert all((every[one] == plain[one]).all() for one in every)


def test_entropy_without_or_with_foreign_uncertainty_is_refused(world: World) -> None:
    """The medians are of this step's classes, or there are none."""
    with pytest.raises(DataError, match="needs the step's uncertainty"):
        world.labels(world.slices[1], "entropy", [])
    task = Task(task_key("uncertainty", 1, {"odd": 1}, None, ()), "uncertainty", 1, {"odd": 1}, None, (), "odd")
    inputs, out = Inputs(world.store, task), Out(world.store, task)
    out.put_json(UNCERTAINTY, {"channels": [0, 1], "counts": [[0] * BINS] * 2})
    odd = world.store.publish(out.record(inputs, {}, "2026-01-01T00:00:00+00:00", 0.0))
    with pytest.raises(DataError, match="of other classes"):
        world.labels(world.slices[1], "entropy", [("uncertainty", odd.key)])


def test_the_same_task_gives_the_same_bytes(world: World) -> None:
    """Run twice, in stores of their own or not, the label shard is the same."""
    one = world.labels(world.slices[1], "confidence", [], unsure=0.55)
    task = Task(one.key, "relabel", RelabelStage.version, one.params, None, one.inputs, "again",
                {**world.plan.opened.where, "device": "cpu"})  # fmt: skip
    inputs, out = Inputs(world.store, task), Out(world.store, task)
    RelabelStage().run(parameters(RelabelStage(), task.params), inputs, out)
    again = out.record(inputs, {}, "2026-01-01T00:00:00+00:00", 0.0)
    assert again.outputs_digest == one.outputs_digest
