"""Helper decoders: whose labels they see, what stays frozen, resuming, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Workspace
from PIL import Image
from safetensors.torch import load

from replaygen.errors import DataError, ModelError
from replaygen.learn import NetworkSpec, build_network, load_network, save_checkpoint
from replaygen.learn.heads import Classifier
from replaygen.plan import Plan, Recipe
from replaygen.runs.execute import execute, parameters
from replaygen.sample import IGNORE
from replaygen.stages import STAGES, Inputs, Out, Stage, Task
from replaygen.stages.helper import FEWEST, HelperStage, fold_of, own_labels
from replaygen.stages.knowledge import KnowledgeStage
from replaygen.stages.label import LabelStage
from replaygen.stages.trust import StandardsStage
from replaygen.store import Record, Store, task_key

WHEN = "2026-01-01T00:00:00+00:00"

RECIPE = """
name = "helpers"
shard = 32
[data]
kind = "digits"
path = "{data}"
options = {{ train = 60, val = 12, photos = 24 }}
[scenario]
task = "6-2"
[network]
kind = "small"
widths = [8, 16]
[views]
size = 32
[replay.photos]
source = "folder"
path = "{{data}}/photos"
count = 4
labeler = "helper"
[replay.photos.trust]
[train.fit]
iterations = 6
batch = 4
optimizer = "adamw"
background_weight = 0.05
[train.base]
iterations = 20
[train.helper]
iterations = 10
lr = 0.01
[[method]]
name = "web"
trainer = "recall"
replay = "photos"
"""


class World:
    """A planned recipe whose step-0 model is made, and its helpers one by one."""

    def __init__(self, root: Path, data: Path, text: str = RECIPE) -> None:
        self.workspace = Workspace(root / "work", data)
        path = self.workspace.recipe(text)
        self.plan: Plan = Recipe.load(path).plan(Store(root / "cache"))
        self.store = self.plan.store
        self.scenario, self.dataset = self.plan.opened.scenario, self.plan.opened.dataset
        for method in self.plan.opened.rows.methods().values():
            self.store.put(method.source)
        self.base = self.made("train/base/seed0/step0")

    def made(self, slot: str) -> Record:
        """The record of a slot; its inputs are made first."""
        for _, key in self.plan.tasks[self.plan.slots[slot]].inputs:
            if self.store.get(key) is None:
                self.made(self.plan.tasks[key].slot)
        task = self.plan.tasks[self.plan.slots[slot]]
        assert execute(str(self.store.root), task).state in ("made", "adopted")
        record = self.store.get(task.key)
        assert record is not None
        return record

    def tensors(self, record: Record) -> dict[str, torch.Tensor]:
        """Name -> tensor of a model."""
        return load(self.store.read(record.output("model.safetensors").digest))

    def info(self, record: Record) -> dict[str, Any]:
        """What is told of a model."""
        told: dict[str, Any] = json.loads(self.store.read(record.output("model.json").digest))
        return told

    def do(self, task: Task) -> Record:
        """Run a task's stage here, without what is around it, and publish its record."""
        stage: Stage[Any] = STAGES[task.stage]()
        inputs, out = Inputs(self.store, task), Out(self.store, task)
        stage.run(parameters(stage, task.params), inputs, out)
        return self.store.publish(out.record(inputs, {}, WHEN, 0.0))

    def helper_by_hand(self, channels: tuple[int, ...], *, spoil: bool = False, **told: Any) -> Record:
        """A random helper of some channels, perhaps with NaN weights."""
        from safetensors.torch import save

        spec = NetworkSpec.model_validate(self.plan.opened.where["network"])
        net = build_network(spec, 1 + len(channels), seed=5 + len(told.get("channels_of", ())))
        info = {"names": ["background", *map(str, channels)], "step": 1, "network": spec.identity(), **told}
        made = save_checkpoint(net, info)
        tensors = made.tensors
        if spoil:
            loaded = load(tensors)
            loaded[sorted(loaded)[-1]].view(-1)[0] = float("nan")
            tensors = save(loaded)
        params = {"channels": list(channels), "spoil": spoil, **{name: str(value) for name, value in told.items()}}
        task = Task(task_key("helper", 1, params, None, ()), "helper", 1, params, None, (), "helper/by-hand")
        inputs, out = Inputs(self.store, task), Out(self.store, task)
        out.put("model.safetensors", tensors)
        out.put_json("model.json", made.info)
        return self.store.publish(out.record(inputs, {}, WHEN, 0.0))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_digits: Path) -> World:
    """The recipe above with its step-0 model."""
    return World(tmp_path_factory.mktemp("helper"), tiny_digits)


def test_folds_cover_all_images_once() -> None:
    """Every image is in exactly one fold, by its id alone, and folds are about as large."""
    ids = [f"image-{i}" for i in range(2000)]
    for folds in (1, 2, 3, 5):
        parts = [{name for name in ids if fold_of(name, folds) == fold} for fold in range(folds)]
        assert sum(map(len, parts)) == len(ids) == len(set().union(*parts))
        assert all(0.8 < len(part) * folds / len(ids) < 1.2 for part in parts)
    assert [fold_of(name, 2) for name in ids] == [fold_of(name, 2) for name in ids]


def test_a_helper_knows_background_and_its_own_classes(world: World) -> None:
    """Labels: classes of the step as 1, 2, ..., what other steps know as background, void as void."""
    for k in (0, 1):
        table, step = own_labels(world.scenario, k), world.scenario.step(k)
        own = {world.scenario.raw[channel - 1]: place for place, channel in enumerate(step.new, start=1)}
        assert {raw: int(table[raw]) for raw in own} == own
        others = set(range(255)) - set(own)
        assert set(table[sorted(others)].tolist()) == {0}
        assert table[IGNORE] == IGNORE


def test_channels_are_told(world: World) -> None:
    """D^H_k has 1 + |C_k| channels, and says which of the scenario's they are, and which fold it did not see."""
    record = world.made("helper/seed0/step1")
    info, step = world.info(record), world.scenario.step(1)
    assert info["channels_of"] == list(step.new) == [7, 8]
    assert info["names"] == ["background", *(world.scenario.names[channel] for channel in step.new)]
    assert (info["channels"], info["step"], info["fold"]) == (3, 1, None)
    assert record.counts.accepted == 10 * 4
    assert record.provenance == {"current": len(step.ids)}
    folds = [world.made(f"helper/seed0/step0/without{fold}") for fold in (0, 1)]
    assert [world.info(one)["fold"] for one in folds] == [0, 1]
    assert sum(one.provenance["current"] for one in folds) == len(world.scenario.step(0).ids)


def test_the_encoder_stays_and_the_head_learns(world: World) -> None:
    """Whatever the recipe freezes, a helper's encoder is the step-0 model's, statistics included."""
    before = world.tensors(world.base)
    for slot in ("helper/seed0/step1", "helper/seed0/step0/without0"):
        after = world.tensors(world.made(slot))
        encoder = [name for name in after if name.startswith("encoder.")]
        assert encoder
        assert all(torch.equal(before[name], after[name]) for name in encoder)
        assert any(
            before[name].shape != after[name].shape or not torch.equal(before[name], after[name])
            for name in after
            if name.startswith("head.")
        )


def test_a_head_is_all_new_or_keeps_its_body(world: World) -> None:
    """`renewed`: classifiers are always new, the layers between stay with `keep`, and the seed alone decides."""
    spec = NetworkSpec.model_validate(world.plan.opened.where["network"])
    read = world.store.read(world.base.output("model.safetensors").digest), world.info(world.base)

    def renewed(seed: int, *, keep: bool) -> dict[str, torch.Tensor]:
        net = load_network(*read, spec, step=0).renewed(3, seed, keep=keep)
        assert net.channels == 3
        assert net(torch.zeros(1, 3, 16, 16)).shape[1] == 3
        assert all(module.weight.shape[0] == 3 for module in net.head.modules() if isinstance(module, Classifier))
        return net.head.state_dict()

    old = load_network(*read, spec, step=0)
    leaves = {name: module for name, module in old.head.named_modules() if not list(module.children()) and name}
    body = [
        f"{name}.{tensor}" for name, module in leaves.items() if not isinstance(module, Classifier)
        for tensor in module.state_dict()
    ]  # fmt: skip
    classifiers = [name for name, module in leaves.items() if isinstance(module, Classifier)]
    before, kept, fresh = old.head.state_dict(), renewed(1, keep=True), renewed(1, keep=False)
    assert body
    assert all(torch.equal(before[name], kept[name]) for name in body)
    assert any(not torch.equal(before[name], fresh[name]) for name in body)
    for name in classifiers:
        assert not torch.equal(before[f"{name}.weight"][:3], kept[f"{name}.weight"])
    again, other = renewed(1, keep=False), renewed(2, keep=False)
    assert all(torch.equal(fresh[name], again[name]) for name in fresh)
    assert any(not torch.equal(fresh[name], other[name]) for name in fresh)


def test_a_network_built_by_hand_cannot_make_a_head() -> None:
    """Nobody knows what its head is made of."""
    from replaygen.learn import SegNet

    net = SegNet(torch.nn.Identity(), torch.nn.Conv2d(3, 2, 1), 2)
    with pytest.raises(ModelError, match="cannot make another head"):
        net.renewed(3)


@pytest.mark.parametrize(("step", "fold"), [(0, 0), (1, 1)])
def test_a_fold_helper_never_sees_its_fold(tmp_path: Path, tiny_digits: Path, step: int, fold: int) -> None:
    """With other pictures and masks in the fold its helper keeps its bytes; with others outside of it, it does not."""
    base = World(tmp_path / "plain", tiny_digits)
    slot = f"helper/seed0/step{step}/without{fold}"
    plain = _digest(base, slot, base)
    for inside in (True, False):
        changed = _changed(tmp_path / f"data{inside}", tiny_digits, base, step, fold, inside=inside)
        other = World.__new__(World)
        _plan_only(other, tmp_path / f"changed{inside}", changed)
        assert other.plan.opened.dataset.digest != base.plan.opened.dataset.digest
        assert other.scenario.step(step).ids == base.scenario.step(step).ids
        assert (_digest(other, slot, base) == plain) is inside


def _plan_only(world: World, root: Path, data: Path) -> None:
    world.workspace = Workspace(root / "work", data)
    world.plan = Recipe.load(world.workspace.recipe(RECIPE)).plan(Store(root / "cache"))
    world.store = world.plan.store
    world.scenario, world.dataset = world.plan.opened.scenario, world.plan.opened.dataset


def _digest(world: World, slot: str, base: World) -> str:
    """The weights of a helper on the step-0 model of `base`."""
    task = world.plan.tasks[world.plan.slots[slot]]
    store = world.store
    record = base.base
    if store.get(record.key) is None:
        given = Task(record.key, "train", record.version, record.params, record.seed, (), record.slot)
        inputs, out = Inputs(store, given), Out(store, given)
        for one in ("model.safetensors", "model.json"):
            out.put(one, base.store.read(record.output(one).digest))
        store.publish(out.record(inputs, {}, WHEN, 0.0))
    inputs = [(role, record.key if role == "base" else key) for role, key in task.inputs]
    made = world.do(HelperStage.task(task.params, inputs=inputs, seed=task.seed, slot=task.slot, where=task.where))
    return made.output("model.safetensors").digest


def _changed(target: Path, data: Path, world: World, step: int, fold: int, *, inside: bool) -> Path:
    """A copy of the data where a step's images in a fold (or outside of it) look otherwise; their classes stay."""
    shutil.copytree(data, target)
    ids = [key for key in world.scenario.step(step).ids if (fold_of(key, 2) == fold) is inside]
    assert ids
    for key in ids:
        for folder, shift in (("images", 7), ("masks", 13)):
            path = target / folder / f"{key}.png"
            picture = Image.open(path)
            array = np.roll(np.asarray(picture), shift, axis=1)
            changed = Image.fromarray(255 - array if folder == "images" else array)
            if picture.mode == "P":
                changed = changed.convert("L")
                changed.putpalette(picture.getpalette() or [])
            changed.save(path)
    return target


def test_a_killed_fit_goes_on_to_the_same_bytes(
    world: World, tmp_path: Path, tiny_digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fit that dies in the middle leaves a checkpoint; done again it ends in the weights of one that was let be."""
    text = RECIPE.replace("[train.base]", "checkpoint_every = 2\n[train.base]")
    there = World(tmp_path, tiny_digits, text)
    slot = "helper/seed0/step1"
    assert there.plan.slots[slot] == world.plan.slots[slot]
    task = there.plan.tasks[there.plan.slots[slot]]
    steps = {"left": 5}
    plain = torch.optim.AdamW.step

    def step(self: Any, *args: Any, **more: Any) -> Any:
        steps["left"] -= 1
        if steps["left"] < 0:
            raise KeyboardInterrupt
        return plain(self, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        with pytest.raises(KeyboardInterrupt):
            there.do(task)
    assert any(path.is_file() for path in Out(there.store, task).partial().rglob("*"))
    counted = {"steps": 0}

    def counting(self: Any, *args: Any, **more: Any) -> Any:
        counted["steps"] += 1
        return plain(self, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", counting)
        record = there.do(task)
    assert 0 < counted["steps"] < 10
    assert record.output("model.safetensors").digest == world.made(slot).output("model.safetensors").digest


def test_too_few_images_are_refused(world: World, tmp_path: Path, tiny_digits: Path) -> None:
    """By the plan before any work, and by the stage itself where it is asked all the same."""
    data = tmp_path / "few"
    shutil.copytree(tiny_digits, data)
    split = next(path for path in (data / "splits").iterdir() if path.stem == "train")
    shows = world.dataset.present(world.scenario.step(1).ids)
    few = {next(key for key in sorted(shows) if raw in shows[key]) for raw in (7, 8)}
    few |= set([key for key in sorted(shows) if key not in few][: FEWEST - 1 - len(few)])
    kept = [key for key in split.read_text().split() if key not in shows or key in few]
    text = RECIPE.replace("[replay.photos.trust]", "")
    split.write_text("\n".join(kept) + "\n")
    with pytest.raises(DataError, match="helper of step 1 would be fitted on 3 images") as caught:
        World(tmp_path, data, text)
    assert "it needs 4" in str(caught.value.hint)
    task = world.plan.tasks[world.plan.slots["helper/seed0/step1"]]
    everything = HelperStage.task(
        {**task.params, "folds": 1, "fold": 0}, inputs=task.inputs, seed=0, slot="few", where=task.where
    )
    with pytest.raises(DataError, match="would be fitted on 0 images"):
        world.do(everything)


# what must be refused before any work (RELIABILITY 18)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"channels": (1, 2)}, "asked for"),
        ({"channels": (7, 8), "channels_of": None}, "not a helper decoder"),
        ({"channels": (7, 8), "channels_of": [7]}, "not a helper decoder"),
        ({"channels": (7, 8), "channels_of": [7, 8], "spoil": True}, "NaN"),
    ],
)
def test_wrong_helpers_label_nothing(world: World, fault: dict[str, Any], said: str) -> None:
    """A helper of another step's classes, one that is none, one with NaN weights: no photo is labelled."""
    told = {"channels_of": list(fault["channels"]), **fault}
    if told["channels_of"] is None:
        del told["channels_of"]
    helper = world.helper_by_hand(**told)
    slot = next(slot for slot in world.plan.slots if slot.startswith("label/photos/helpers/seed0/"))
    planned = world.plan.tasks[world.plan.slots[slot]]
    for role, key in planned.inputs:
        if role != "helper" and world.store.get(key) is None:
            world.made(world.plan.tasks[key].slot)
    inputs = [(role, helper.key if role == "helper" else key) for role, key in planned.inputs]
    task = LabelStage.task(planned.params, inputs=inputs, slot="label/wrong", where=planned.where)
    with pytest.raises(ModelError, match=said):
        world.do(task)
    assert world.store.get(task.key) is None


def test_wrong_helpers_set_no_standards(world: World) -> None:
    """Helpers of another step, or in the order of other folds than the images', measure nothing."""
    planned = world.plan.tasks[world.plan.slots["standards/photos/seed0/step1"]]
    right = [world.made(f"helper/seed0/step1/without{fold}").key for fold in (0, 1)]
    wrong = [world.made(f"helper/seed0/step0/without{fold}").key for fold in (0, 1)]
    others = [(role, key) for role, key in planned.inputs if role != "helper"]
    for keys, said in ((wrong, "asked for"), (right[::-1], "fold"), (right[:1], "fold")):
        inputs = [*(("helper", key) for key in keys), *others]
        task = StandardsStage.task(planned.params, inputs=inputs, slot="standards/wrong", where=planned.where)
        with pytest.raises(ModelError, match=said):
            world.do(task)


def test_a_stale_base_is_refused(world: World) -> None:
    """A helper stands on the step-0 model; another step's, or one with NaN weights, is refused before the fit."""
    task = world.plan.tasks[world.plan.slots["helper/seed0/step1"]]
    stale = world.made("helper/seed0/step1")
    for record, said in ((stale, "of step 1, expected step 0"), (_spoilt(world), "NaN")):
        inputs = [("base", record.key)]
        again = HelperStage.task(task.params, inputs=inputs, seed=0, slot="helper/stale", where=task.where)
        with pytest.raises(ModelError, match=said):
            world.do(again)


def _spoilt(world: World) -> Record:
    from safetensors.torch import save

    tensors = world.tensors(world.base)
    tensors[sorted(tensors)[-1]].view(-1)[0] = float("inf")
    task = Task(task_key("train", 1, {"spoilt": 1}, None, ()), "train", 1, {"spoilt": 1}, None, (), "spoilt")
    inputs, out = Inputs(world.store, task), Out(world.store, task)
    out.put("model.safetensors", save(tensors))
    out.put_json("model.json", world.info(world.base))
    return world.store.publish(out.record(inputs, {}, WHEN, 0.0))


def test_knowledge_asks_the_helper_of_its_step(world: World) -> None:
    """A helper of older classes cannot fill in the newer ones."""
    slot = next(slot for slot in world.plan.slots if slot.startswith("label/photos/base/seed0/"))
    labels = world.made(slot)
    images = dict(world.plan.tasks[labels.key].inputs)["images"]
    params = {
        "class_name": "zero", "step": 2, "channels": [9, 10], "unsure": 0.5, "flip": False, "looks": 1,
        "views": {"size": 32}, "threads": 1,
    }  # fmt: skip
    helper = world.made("helper/seed0/step1")
    task = KnowledgeStage.task(
        params, inputs=[("labels", labels.key), ("images", images), ("helper", helper.key)], slot="knowledge/stale",
        where=world.plan.tasks[labels.key].where,
    )  # fmt: skip
    with pytest.raises(ModelError, match=r"knows channels \[7, 8\], step 2 learns \[9, 10\]"):
        world.do(task)


# a frozen encoder with cached features


@pytest.fixture
def oplist(tmp_path: Path) -> Path:
    """A tiny op list with strides 2, 4 and 8, and random weights beside it."""
    from safetensors.torch import save_file

    shapes = {"a": [6, 3, 3, 3], "b": [8, 6, 3, 3], "c": [8, 8, 3, 3]}
    ops = [
        {"op": "conv", "inp": [at], "out": at + 1, "key": key, "shape": shapes[key], "stride": 2, "dilation": 1,
         "pad": "same", "act": "relu6"}
        for at, key in enumerate("abc")
    ]  # fmt: skip
    path = tmp_path / "net.json"
    path.write_text(json.dumps({"input": 0, "output": 3, "ops": ops}))
    torch.manual_seed(0)
    tensors = {f"{key}.weight": torch.randn(shape) * 0.3 for key, shape in shapes.items()}
    tensors |= {f"{key}.bias": torch.randn(shape[0]) * 0.1 for key, shape in shapes.items()}
    save_file(tensors, str(path.with_suffix(".safetensors")))
    return path


def test_a_helper_on_cached_features(tmp_path: Path, tiny_digits: Path, oplist: Path) -> None:
    """With an always-frozen encoder helpers read features, leave the encoder out, and label by features too."""
    network = f"""
kind = "deeplab"
encoder = "oplist"
weights = "{oplist}"
output_stride = 8
taps = ["4", "8"]
head = "light"
width = 8
convs = 1
freeze = "always"
"""
    text = RECIPE.replace('\nkind = "small"\nwidths = [8, 16]\n', network)
    there = World(tmp_path, tiny_digits, text)
    task = there.plan.tasks[there.plan.slots["helper/seed0/step1"]]
    assert {role for role, _ in task.inputs} == {"base", "features"}
    record = there.made("helper/seed0/step1")
    assert not [name for name in there.tensors(record) if name.startswith("encoder.")]
    standards = there.made("standards/photos/seed0/step1")
    assert "encoder" not in {role for role, _ in there.plan.tasks[standards.key].inputs}
    told = json.loads(there.store.read(standards.output("standards.json").digest))
    assert set(told) == {"7", "8"}
    vectors = load(there.store.read(standards.output("vectors.safetensors").digest))
    assert {tuple(one.shape[1:]) for one in vectors.values()} == {(2, 8)}
