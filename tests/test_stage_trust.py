"""Standards and trust on digit scenes, and all that labels go through, from recipe to training."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Workspace
from safetensors.numpy import load

import replaygen as rg
from replaygen.datasets import sample_id
from replaygen.datasets.digits import build_digit_scenes
from replaygen.labelers.photo import Opinion, label_by_all
from replaygen.learn import NetworkSpec, ViewSpec, load_network, predict_over_views
from replaygen.plan import Plan, Recipe
from replaygen.runs import Run, replay_sets, run
from replaygen.runs.execute import parameters
from replaygen.sample import IGNORE, decode_image, decode_mask
from replaygen.screens.specs import TrustSpec
from replaygen.screens.trust import FEWEST, Candidates, Standards, judge
from replaygen.stages import STAGES, Inputs, Out, Task
from replaygen.stages.helper import fold_of
from replaygen.stages.replay import ReplayStage
from replaygen.stages.trust import TrustStage
from replaygen.store import Record, Shard, Store, task_key

WHEN = "2026-01-01T00:00:00+00:00"

RECIPE = """
name = "trusted"
shard = 16
[data]
kind = "digits"
path = "{data}"
options = {{ train = 120, val = 8, photos = 24 }}
[scenario]
task = "4-3"
[network]
kind = "small"
widths = [12, 24]
[views]
size = 32
[replay.web]
source = "folder"
path = "{{data}}/photos"
count = 9
oversample = 3
labeler = "helper"
label = "step"
flip = true
only = ["zero", "one", "four", "five"]
[replay.web.trust]
confidence = 0.05
keep = 0.6
[replay.web.erase]
backend = "opencv"
unsure = true
[replay.both]
source = "folder"
path = "{{data}}/photos"
count = 6
oversample = 2
labeler = "both"
only = ["zero", "four"]
[replay.both.trust]
area = 0
confidence = 0.02
typical = 0
split = false
agreement = 0.02
duplicates = 0.99
best = true
[replay.kept]
source = "exemplar"
count = 4
complete = true
[relabel]
unsure = 0.6
[knowledge]
unsure = 0.5
[train.fit]
iterations = 6
batch = 4
optimizer = "adamw"
background_weight = 0.05
[train.base]
iterations = 250
batch = 12
lr = 0.02
[train.helper]
iterations = 80
batch = 8
lr = 0.02
[[method]]
name = "web"
trainer = "recall"
replay = "web"
inpaint = "confidence"
knowledge = true
[[method]]
name = "plain"
trainer = "recall"
replay = "web"
inpaint = "entropy"
[[method]]
name = "two"
trainer = "recall"
replay = "both"
inpaint = "pixels"
knowledge = true
[[method]]
name = "kept"
trainer = "recall"
replay = "kept"
inpaint = "entropy"
knowledge = true
"""


class Made:
    """A run recipe."""

    def __init__(self, root: Path, data: Path) -> None:
        self.workspace = Workspace(root / "work", data)
        path = self.workspace.recipe(RECIPE)
        self.plan: Plan = Recipe.load(path).plan(Store(root / "cache"))
        self.store = self.plan.store
        self.done: Run = run(self.plan)
        self.scenario = self.plan.opened.scenario

    def record(self, slot: str) -> Record:
        """The record of a slot."""
        found = self.store.get(self.plan.slots[slot])
        assert found is not None, slot
        return found

    def records(self, prefix: str) -> dict[str, Record]:
        """Slot -> record of all slots under a prefix."""
        return {slot: self.record(slot) for slot in self.plan.slots if slot.startswith(prefix)}

    def told(self, record: Record, name: str) -> Any:
        """A JSON output."""
        return json.loads(self.store.read(record.output(name).digest))

    def shard(self, record: Record, name: str = "labels") -> Shard:
        """A shard of a record."""
        return Shard(*(self.store.read(record.output(f"{name}.{end}").digest) for end in ("tar", "index.json")))

    def inputs(self, record: Record, role: str) -> list[Record]:
        """The records that play a role."""
        found = [self.store.get(key) for name, key in record.inputs if name == role]
        assert None not in found
        return [one for one in found if one is not None]

    def labels(self, trust: Record) -> dict[str, dict[str, Any]]:
        """Sample -> label.json of all that a trust task judged."""
        return {
            sample: json.loads(members["label.json"])
            for record in self.inputs(trust, "labels") for sample, members in self.shard(record)
        }  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The recipe above, run once, on a data set of its own with real images enough."""
    root = tmp_path_factory.mktemp("trust")
    return Made(root, build_digit_scenes(root / "digits", train=120, val=8, photos=24))


# standards


def test_standards_measure_every_real_image_of_a_class(made: Made) -> None:
    """For each class of the step: as many as show it, their true shares, and scores of those where it was found."""
    dataset = made.plan.opened.dataset
    for k in (0, 1):
        record = made.record(f"standards/web/seed0/step{k}")
        step, table = made.scenario.step(k), made.scenario.step_table(k)
        told, vectors = (
            made.told(record, "standards.json"),
            load(made.store.read(record.output("vectors.safetensors").digest)),
        )
        assert set(told) == set(vectors) == {str(channel) for channel in step.new}
        assert record.counts.accepted == len(step.ids)
        for channel in step.new:
            one = told[str(channel)]
            truths = [made.scenario.apply(table, dataset.mask(key)) == channel for key in step.ids]
            areas = [float(truth.mean()) for truth in truths if truth.any()]
            np.testing.assert_allclose(one["area"], areas, atol=1e-6)
            assert one["images"] == len(areas) == len(vectors[str(channel)])
            found = len(one["confidence"])
            assert {len(one[name]) for name in ("agreement", "typical", "iou")} == {found}
            assert 0 < found <= one["images"]
            assert all(0 <= value <= 1 for name in ("confidence", "agreement", "iou") for value in one[name])
            assert vectors[str(channel)].shape == (one["images"], 2, 24)
            assert np.isfinite(vectors[str(channel)]).all()


def test_an_image_is_measured_by_the_helper_that_never_saw_it(made: Made) -> None:
    """The confidences are those of the fold's helper, asked the way photos are."""
    record = made.record("standards/web/seed0/step0")
    spec = NetworkSpec.model_validate(made.plan.opened.where["network"])
    nets = []
    for helper in made.inputs(record, "helper"):
        info = made.told(helper, "model.json")
        nets.append((load_network(made.store.read(helper.output("model.safetensors").digest), info, spec), info))
    assert [info["fold"] for _, info in nets] == [0, 1]
    dataset, table, step = made.plan.opened.dataset, made.scenario.step_table(0), made.scenario.step(0)
    expected, by_the_other = [], []
    for key in step.ids:
        if not (made.scenario.apply(table, dataset.mask(key)) == 1).any():
            continue
        for sums, fold in ((expected, fold_of(key, 2)), (by_the_other, 1 - fold_of(key, 2))):
            net, info = nets[fold]
            image = dataset.image(key)
            looks = [
                predict_over_views(net, image, sample_id(key), ViewSpec(size=32), views=1, flip=flip)
                for flip in (True, False)
            ]
            label = label_by_all(
                [Opinion(looks[0], (0, *info["channels_of"]), looks[1])], 1, restrict="step", step_channels=step.new
            )
            if label.share > 0:
                sums.append(label.confidence)
    told = made.told(record, "standards.json")["1"]["confidence"]
    np.testing.assert_allclose(told, expected, atol=2e-6)
    assert len(told) != len(by_the_other) or not np.allclose(told, by_the_other, atol=1e-3)


# trust


def test_a_selection_accounts_for_every_label(made: Made) -> None:
    """Kept and rejected are the labelled, once each; everyone has scores; counts agree; reasons carry their limits."""
    seen = set()
    trusted = made.records("trust/")
    assert {slot for slot in trusted if "/web/" in slot} == {
        "trust/web/base/seed0/zero", "trust/web/base/seed0/one", "trust/web/helpers/seed0/four",
        "trust/web/helpers/seed0/five",
    }  # fmt: skip
    for record in trusted.values():
        told, labels = made.told(record, "selection.json"), made.labels(record)
        assert set(told) == {"kept", "rejected", "scores", "order"}
        assert told["order"] == ("best" if "/both/" in record.slot else "ids")
        refused = [one["id"] for one in told["rejected"]]
        assert sorted([*told["kept"], *refused]) == sorted(labels)
        assert set(told["scores"]) == set(labels)
        assert (record.counts.accepted, sum(record.counts.rejected.values())) == (len(told["kept"]), len(refused))
        trust = [told["scores"][name]["trust"] for name in told["kept"]]
        assert trust == sorted(trust, reverse=True)
        for name, label in labels.items():
            mine = told["scores"][name]
            assert {key: mine[key] for key in ("share", "confidence", "agreement")} == {
                key: label["scores"][key] for key in ("share", "confidence", "agreement")
            }
        for one in told["rejected"]:
            assert set(one) == {"id", "reason", "value", "limit"}
            seen.add(one["reason"])
    assert len(seen) > 1


def test_the_stage_judges_as_the_screen_does(made: Made) -> None:
    """The selection is `judge` of the labels' scores and vectors against the class's standards, and always the same."""
    record = made.record("trust/web/base/seed0/zero")
    labels, vectors = made.labels(record), {}
    for shard in made.inputs(record, "labels"):
        vectors |= load(made.store.read(shard.output("vectors.safetensors").digest))
    ids = sorted(labels)
    scores = [np.array([labels[name]["scores"][key] for name in ids]) for key in ("share", "confidence", "agreement")]
    (standards,) = made.inputs(record, "standards")
    real = made.told(standards, "standards.json")["1"]
    known = load(made.store.read(standards.output("vectors.safetensors").digest))["1"]
    arrays = [np.array(real[key]) for key in ("area", "confidence", "agreement", "typical")]
    assert len(real["confidence"]) >= FEWEST
    spec = TrustSpec(**{name: record.params[name] for name in TrustSpec.model_fields})
    verdict = judge(
        Candidates(tuple(ids), *scores, vectors=np.stack([vectors[name] for name in ids])),
        Standards(*arrays, vectors=known), spec,
    )  # fmt: skip
    told = made.told(record, "selection.json")
    assert (told["kept"], told["rejected"], told["scores"]) == (verdict.kept, verdict.rejected, verdict.scores)
    task = made.plan.tasks[record.key]
    inputs, out = Inputs(made.store, task), Out(made.store, task)
    TrustStage().run(parameters(TrustStage(), task.params), inputs, out)
    assert out.record(inputs, {}, WHEN, 0.0).outputs_digest == record.outputs_digest


def test_labels_tell_what_they_are_trusted_for(made: Made) -> None:
    """Masks hold background, the class and void; scores and labelers are told; a helper and a model are two voters."""
    counts = {"helpers": set(), "base": set(), "two": set()}
    for slot, record in made.records("label/").items():
        channel = record.params["channel"]
        for _, members in made.shard(record):
            told = json.loads(members["label.json"])
            assert told["visible"] == [channel]
            assert set(np.unique(decode_mask(members["mask.png"]))) <= {0, channel, IGNORE}
            assert set(told["scores"]) == {"share", "confidence", "agreement", "other"}
            assert set(np.unique(decode_mask(members["erase.png"]))) <= {0, 1, 2}
            counts[slot.split("/")[2]].add((slot.split("/")[1], len(told["labeler"].split())))
    assert counts["helpers"] == {("web", 1)}
    assert counts["base"] == {("web", 1), ("both", 2)}
    assert counts["two"] == {("both", 2)}


# replay


def in_sets(made: Made, prefix: str) -> Iterator[tuple[str, Any, Record]]:
    """Slot, replay set and record of the sets under a prefix."""
    for slot, found in replay_sets(made.plan).items():
        if slot.startswith(prefix):
            yield slot, found, made.record(slot)


def test_replay_is_of_the_trusted(made: Made) -> None:
    """The manifest names the first `wanted` of those kept that are still there, the best where that is asked for.

    Readers read exactly those.
    """
    views, checked = ViewSpec(size=32), 0
    for source in ("web", "both"):
        for _, found, record in in_sets(made, f"replay/{source}/"):
            (selection,) = made.inputs(record, "trusted")
            ranked = made.told(selection, "selection.json")["kept"]
            ranked = ranked if source == "both" else sorted(ranked)
            there = {name for one in made.inputs(record, "labels") for name in made.shard(one).ids}
            best = [name for name in ranked if name in there][: record.params["wanted"]]
            manifest = found.manifest
            kept = [name for shard in manifest["shards"] for name in shard["kept"]]
            assert sorted(kept) == sorted(best)
            assert [len(shard["kept"]) for shard in manifest["shards"]] == [
                shard["samples"] for shard in manifest["shards"]
            ]
            assert manifest["samples"] == len(best) == record.counts.accepted
            assert manifest["shortfall"] == record.params["wanted"] - len(best)
            assert [sample.id for sample in found] == kept
            if best:
                buffer = rg.ReplayBuffer(found.shards(), views=views)
                assert len(buffer) == len(best)
                names = [item.id.split("-", 2)[2] for item in buffer.samples.items]
                assert names == kept
                checked += 1
    assert checked > 4


def test_training_reads_what_was_trusted(made: Made) -> None:
    """The train stage counts as many replay samples as the manifests name."""
    record = made.record("train/web/seed0/step2")
    manifests = [made.told(one, "manifest.json") for one in made.inputs(record, "replay")]
    assert [one["class"] for one in manifests] == ["zero", "one", "four", "five"]
    assert record.provenance["replay"] == sum(one["samples"] for one in manifests)


@pytest.mark.parametrize(
    ("order", "wanted", "expected"),
    [
        ("best", 4, [["a", "c"], [], ["e", "f"]]), ("best", 2, [["c"], [], ["f"]]),
        ("best", 9, [["a", "b", "c"], [], ["e", "f"]]), ("ids", 4, [["a", "b", "c"], [], ["e"]]),
        ("ids", 1, [["a"], [], []]), ("ids", 9, [["a", "b", "c"], [], ["e", "f"]]),
    ],
)  # fmt: skip
def test_replay_takes_so_many_of_several_shards(
    tmp_path: Path, order: str, wanted: int, expected: list[list[str]]
) -> None:
    """By hand: of the trusted the first `wanted` that have labels, by trust or by id, told shard by shard."""
    store = Store(tmp_path / "cache")

    def put(stage: str, number: int, names: list[str]) -> str:
        params = {"number": number}
        task = Task(task_key(stage, 1, params, None, ()), stage, 1, params, None, (), f"{stage}/{number}")
        inputs, out = Inputs(store, task), Out(store, task)
        if stage == "trust":
            out.put_json("selection.json", {"kept": names, "rejected": [], "scores": {}, "order": order})
        else:
            out.shard(stage, [(name, {"x": name.encode()}) for name in names])
        return store.publish(out.record(inputs, {}, WHEN, 0.0)).key

    parts = [["a", "b", "c"], ["d"], ["e", "f"]]
    inputs = [("images", put("images", i, part)) for i, part in enumerate(parts)]
    inputs += [("labels", put("labels", i, part)) for i, part in enumerate(parts)]
    inputs += [("trusted", put("trust", 0, ["f", "gone", "c", "a", "e", "b"]))]
    params = {"class_name": "cow", "channel": 1, "wanted": wanted}
    task = ReplayStage.task(params, inputs=inputs, slot=f"replay/x/{wanted}")
    read, out = Inputs(store, task), Out(store, task)
    ReplayStage().run(parameters(ReplayStage(), task.params), read, out)
    record = store.publish(out.record(read, {}, WHEN, 0.0))
    told = json.loads(store.read(record.output("manifest.json").digest))
    assert [shard["kept"] for shard in told["shards"]] == expected
    assert [shard["samples"] for shard in told["shards"]] == [len(part) for part in expected]
    assert told["samples"] == record.counts.accepted == sum(map(len, expected))
    assert told["shortfall"] == max(0, wanted - told["samples"])


# the rest of the walk


def test_erased_replay_is_labelled_and_trusted(made: Made) -> None:
    """Erased shards hold trusted samples only; what changed says from what, and outside of it no pixel did."""
    changed = 0
    for record in made.records("erase/web/").values():
        (labels,), (images,) = made.inputs(record, "labels"), made.inputs(record, "images")
        (selection,) = made.inputs(record, "trusted")
        kept = set(made.told(selection, "selection.json")["kept"])
        after, before = made.shard(record, "images"), made.shard(images, "images")
        assert after.ids == made.shard(record).ids
        assert set(after.ids) <= kept & set(made.shard(labels).ids)
        for sample, members in after:
            told = json.loads(members["json"])
            if "erased" not in told:
                assert members["json"] == before.read(sample, "json")
                continue
            changed += 1
            assert told["parent"] == {"shard": images.key, "id": sample}
            old, new = decode_image(before.read(sample, "png")), decode_image(members["png"])
            differs = (old != new).any(axis=2)
            assert differs.mean() <= told["erased"]["share"] + 1e-5
            mask = decode_mask(made.shard(record).read(sample, "mask.png"))
            assert not (mask[differs] > 0).any()
    assert changed


def test_older_labels_receive_the_classes_learnt_now(made: Made) -> None:
    """At step k rows with knowledge train on labels that are trusted for C_k too; others' labels stay as they were."""
    at_two = [json.loads(members["label.json"]) for _, members in _labels_at(made, "web", 2, "zero")]
    assert at_two
    assert all(one["visible"] == [1, 5, 6, 7, 8, 9, 10] and len(one["also"]) == 2 for one in at_two)
    assert {one["visible"][0] for one in at_two} == {1}
    later = [json.loads(members["label.json"]) for _, members in _labels_at(made, "web", 2, "four")]
    assert all(one["visible"] == [5, 8, 9, 10] for one in later)
    plain = [json.loads(members["label.json"]) for _, members in _labels_at(made, "plain", 2, "zero")]
    assert {tuple(one["visible"]) for one in plain} == {(1,)}
    for _, members in _labels_at(made, "web", 2, "four"):
        assert set(np.unique(decode_mask(members["mask.png"]))) <= {0, 5, 8, 9, 10, IGNORE}


def _labels_at(made: Made, row: str, step: int, name: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    for replay in made.inputs(made.record(f"train/{row}/seed0/step{step}"), "replay"):
        if replay.params["class_name"] == name:
            for record in made.inputs(replay, "labels"):
                yield from made.shard(record)


def test_exemplars_keep_inpainted_labels(made: Made) -> None:
    """`complete`: exemplars of step 1 have the label that step 1 trained on, and are trusted for as many classes."""
    own: dict[str, dict[str, bytes]] = {}
    for record in made.inputs(made.record("train/kept/seed0/step1"), "labels"):
        own |= dict(made.shard(record))
    before = made.record("replay/kept/kept/seed0/five")
    checked = 0
    for record in made.inputs(before, "labels"):
        for sample, members in made.shard(record):
            about = json.loads(made.shard(record, "images").read(sample, "json"))
            assert members == {name: own[sample_id(about["file"])][name] for name in ("mask.png", "label.json")}
            assert tuple(json.loads(members["label.json"])["visible"]) == tuple(made.scenario.step(1).seen)
            checked += 1
    assert checked
    filled = [json.loads(members["label.json"]) for _, members in _labels_at(made, "kept", 2, "five")]
    assert {tuple(one["visible"]) for one in filled} == {tuple(range(1, 11))}


def test_every_mode_trains_on_what_it_made(made: Made) -> None:
    """confidence and entropy give labels, pixels gives labels and images; every row ends with a result."""
    roles = {}
    for row in ("web", "plain", "two"):
        record = made.record(f"train/{row}/seed0/step1")
        roles[row] = {role for role, _ in record.inputs}
        stages = {one.stage for one in made.inputs(record, "labels")}
        assert stages == ({"remove"} if row == "two" else {"relabel"})
    assert roles["web"] == roles["plain"] == {"previous", "labels", "replay"}
    assert roles["two"] == {"previous", "labels", "pixels", "replay"}
    assert {record.params["mode"] for record in made.records("relabel/web/").values()} == {"confidence"}
    assert {record.params["mode"] for record in made.records("relabel/plain/").values()} == {"entropy"}
    for row in ("web", "plain", "two", "kept"):
        assert len(made.done.result.of(row, 0)) == 3
    again = Recipe.load(made.workspace.root / "pipelines" / "recipe.toml").plan(made.store)
    assert not again.to_run()


def test_accepted_and_refused_are_all(made: Made) -> None:
    """In every record of the walk, what was asked for is accepted, refused or failed."""
    for prefix in ("label/", "trust/", "erase/", "knowledge/", "remove/", "relabel/", "standards/"):
        records = made.records(prefix)
        assert records
        for record in records.values():
            counts = record.counts
            total = counts.accepted + sum(counts.rejected.values()) + sum(counts.failed.values())
            assert counts.requested == total
            if prefix in ("trust/", "knowledge/", "erase/"):
                assert total == sum(len(made.shard(one).ids) for one in made.inputs(record, "labels"))
    assert set(STAGES) >= {"helper", "label", "standards", "trust", "erase", "knowledge", "replay"}
