"""Generated replay from recipe to training: fitted and BigGAN sources, counts, resume, data dropped, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_DATA, Workspace
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from replaygen.cli.app import app
from replaygen.errors import DataError, ModelError, RecipeError
from replaygen.generators.draws import Draw, fault, image_id, seeds_of, to_uint8, truncated_normals
from replaygen.plan import Plan, Recipe
from replaygen.portions import Portions, memory_of
from replaygen.runs import Run, run
from replaygen.runs.execute import parameters
from replaygen.stages import Inputs
from replaygen.stages.fit import FitGeneratorStage, _step_pictures
from replaygen.store import Shard, Store

GENERATED = (
    """
name = "generated"
shard = 5
"""
    + TINY_DATA
    + """
[scenario]
task = "8-1"
[network]
kind = "small"
widths = [16, 24]
[views]
size = 32
[replay.fitted]
source = "fitted"
count = 7
label = "seen"
only = ["zero", "one", "eight"]
[replay.fitted.fit]
size = 16
width = 4
critic_width = 8
latent = 8
iterations = 30
warm_iterations = 3
batch = 8
snapshots = 2
draw_batch = 4
focus = 0.5
[train.fit]
iterations = 6
batch = 4
optimizer = "adamw"
background_weight = 0.05
[train.base]
iterations = 80
batch = 16
lr = 0.02
[[method]]
name = "recall"
trainer = "recall"
replay = "fitted"
merged = true
"""
)


def _run(workspace: Workspace, text: str, name: str = "recipe") -> tuple[Run, Plan]:
    plan = Recipe.load(str(workspace.recipe(text, name))).plan(Store(workspace.root / "cache"))
    return run(plan), plan


def _counts(plan: Plan, prefix: str) -> dict[str, tuple[int, int, dict[str, int]]]:
    found = {}
    for slot, key in plan.slots.items():
        if slot.startswith(prefix):
            record = plan.store.get(key)
            assert record is not None
            found[slot] = (record.counts.requested, record.counts.accepted, dict(record.counts.rejected))
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_digits: Path) -> tuple[Workspace, Run, Plan]:
    """The recipe above, run once, and its GAN of step 0 saved to the workspace's `weights`."""
    workspace = Workspace(tmp_path_factory.mktemp("generated") / "work", tiny_digits)
    done, plan = _run(workspace, GENERATED)
    saved = _save(workspace, "weights")
    assert json.loads(saved)["classes"] == ["zero", "one"]
    return workspace, done, plan


def _save(workspace: Workspace, folder: str) -> str:
    recipe, target = str(workspace.root / "pipelines" / "recipe.toml"), str(workspace.root / folder)
    saved = CliRunner().invoke(app, ["generator", "save", recipe, "fitted", target, "--step", "0", "--json"])
    assert saved.exit_code == 0, saved.output
    return saved.output


def _drawing(lines: str, folder: str = "weights", only: str = '"zero", "one"') -> str:
    """A recipe that only draws, from the saved weights."""
    head = GENERATED.split("[replay.fitted]")[0]
    return head + f'[replay.gan]\nsource = "biggan"\npath = "{folder}"\ncount = 7\nonly = [{only}]\n{lines}\n'


def test_fitted_generators_are_fitted_drawn_from_and_measured(made: tuple[Workspace, Run, Plan]) -> None:
    workspace, done, plan = made
    counts = _counts(plan, "images/fitted/zero/")
    assert [requested for requested, _, _ in counts.values()] == [5, 2]
    fits = {slot for slot in plan.slots if slot.startswith("generator/")}
    assert {"generator/fitted/step0", "generator/fitted/step1"} <= fits
    later = plan.tasks[plan.slots["generator/fitted/step1"]]
    assert dict(later.inputs)["previous"] == plan.slots["generator/fitted/step0"]
    assert later.requested == 3
    qualities = _counts(plan, "quality/fitted/seed0/")
    assert len(qualities) == 3
    told = json.loads(
        plan.store.read(plan.store.get(plan.slots["quality/fitted/seed0/zero"]).output("quality.json").digest)
    )  # type: ignore[union-attr]
    assert told["generated"] == sum(accepted for _, accepted, _ in counts.values())
    assert {"found_share", "diversity", "kid", "memorised_share", "curve"} <= set(told)
    assert done.result.steps
    again = Recipe.load(str(workspace.root / "pipelines" / "recipe.toml")).plan(plan.store)
    assert not again.to_run()


def test_a_fit_sees_the_images_of_its_own_step_only(made: tuple[Workspace, Run, Plan]) -> None:
    _, _, plan = made
    scenario = plan.opened.scenario
    for k in (0, 1):
        task = plan.tasks[plan.slots[f"generator/fitted/step{k}"]]
        free = FitGeneratorStage.task(
            {**task.params}, slot=task.slot, seed=task.seed, where=task.where, requested=task.requested
        )
        params = parameters(FitGeneratorStage(), free.params)
        seen = list(_step_pictures(params, Inputs(plan.store, free)))
        own = [plan.opened.dataset.image(i) for i in scenario.steps[k].ids]
        assert seen
        assert all(any(np.array_equal(one.image, image) for image in own) for one in seen)
        assert {one.label for one in seen} == set(range(len(params.classes)))


def test_a_fitted_gan_is_saved_and_drawn_from_as_a_biggan(made: tuple[Workspace, Run, Plan]) -> None:
    workspace, _, plan = made
    _, drawn = _run(workspace, _drawing("[replay.gan.biggan]\nbatch = 4"), "drawn")
    for i in range(2):
        pixels = [
            {name: members["png"] for name, members in _shard(one, f"images/{source}/zero/{i:04d}")}
            for source, one in (("fitted", plan), ("gan", drawn))
        ]
        assert pixels[0]
        assert pixels[0] == pixels[1]
    shown = CliRunner().invoke(app, ["generator", "map", str(workspace.root / "pipelines" / "drawn.toml"), "--json"])
    assert json.loads(shown.output)["gan"]["given"] == {"zero": 0, "one": 1}
    told = CliRunner().invoke(app, ["generator", "quality", str(workspace.root / "pipelines" / "recipe.toml")])
    assert "zero" in told.output


def test_a_fitted_diffusion_model_is_drawn_from(workspace: Workspace) -> None:
    text = GENERATED.split("[replay.fitted]")[0] + (
        '[replay.tiny]\nsource = "fitted"\ncount = 3\nonly = ["zero"]\n[replay.tiny.fit]\n'
        'kind = "diffusion"\nsize = 16\n'
        "width = 8\niterations = 4\nbatch = 4\nsteps = 2\nsnapshots = 1\ndraw_batch = 2\n"
    )
    _, plan = _run(workspace, text)
    assert list(_counts(plan, "images/tiny/zero/").values()) == [(3, 3, {})]


def _shard(plan: Plan, slot: str) -> list[tuple[str, dict[str, bytes]]]:
    record = plan.store.get(plan.slots[slot])
    assert record is not None
    tar, index = (plan.store.read(record.output(f"images.{end}").digest) for end in ("tar", "index.json"))
    return list(Shard(tar, index))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("[replay.gan.classes]\nzero = 99", ["99"]),
        ('[replay.gan.classes]\nzero = "zebra"', ["zebra"]),
        ("[replay.gan.classes]\nzerro = 1", ["zerro", "zero"]),
        ("[replay.gan.fit]\nsize = 16", ["fit", "fitted"]),
        ("[replay.gan.biggan]\ntruncation = 0.05", ["truncation"]),
    ],
)
def test_wrong_generators_are_refused_before_any_work(
    made: tuple[Workspace, Run, Plan], change: str, words: list[str]
) -> None:
    workspace, _, _ = made
    path = workspace.recipe(_drawing(change), "wrong")
    store = Store(workspace.root / "cache")
    with pytest.raises((RecipeError, ModelError)) as refused:
        Recipe.load(str(path)).plan(store)
    for word in words:
        assert word in str(refused.value)


def test_a_class_that_nothing_stands_for_is_said_so(made: tuple[Workspace, Run, Plan]) -> None:
    workspace, _, _ = made
    path = workspace.recipe(_drawing("", only='"zero", "eight", "nine"'), "lacking")
    store = Store(workspace.root / "cache")
    with pytest.raises(RecipeError, match="stands for eight, nine"):
        Recipe.load(str(path)).plan(store)


@pytest.mark.parametrize(("reason", "bias"), [("black", -20.0), ("blank", 0.0)])
def test_broken_images_are_counted_and_never_in_a_shard(
    made: tuple[Workspace, Run, Plan], reason: str, bias: float
) -> None:
    workspace, _, _ = made
    folder = workspace.root / reason
    _save(workspace, reason)
    tensors = load_file(folder / "model.safetensors")
    for name in ("generator.bn.weight", "generator.bn.bias"):
        tensors[name].fill_(0.0)
    tensors["generator.conv_to_rgb.bias"].fill_(bias)
    save_file(tensors, folder / "model.safetensors")
    _, plan = _run(workspace, _drawing("", folder=reason, only='"zero"'), reason)
    assert list(_counts(plan, "images/gan/zero/").values()) == [(5, 0, {reason: 5}), (2, 0, {reason: 2})]


def test_seeds_ids_and_batches() -> None:
    assert seeds_of("cow", count=5, seed=0)[:3] == seeds_of("cow", count=3, seed=0)
    assert set(seeds_of("cow", count=9, seed=0)).isdisjoint(seeds_of("sheep", count=9, seed=0))
    assert image_id("potted plant", 255).startswith("potted")
    values = truncated_normals(7, 20_000)
    assert abs(values).max() <= 2
    assert abs(float(values.std()) - 0.8796) < 0.02  # of a standard normal cut at 2
    parts = list(Portions(4, memory_of("cpu")).over([Draw(i) for i in range(5)], list))
    assert [len(part) for part, _ in parts] == [4, 4]
    assert [count for _, count in parts] == [4, 1]
    image = np.full((4, 4, 3), 0.5, np.float32)
    assert fault(image) == "blank"
    image[0, 0] = 1.0
    assert fault(image) is None
    assert to_uint8(image)[0, 0, 0] == 255
    image[1, 1, 1] = np.nan
    assert fault(image) == "not-finite"
    assert fault(np.zeros((4, 4, 3), np.float32)) == "black"


def test_a_recipe_copies_with_its_weights_found(workspace: Workspace, repository: Path) -> None:
    """`{pipelines}` finds what is shipped beside the recipes, wherever the recipe is copied to."""
    from replaygen.plan.workspace import expand_path

    (workspace.root / "pipelines").mkdir(exist_ok=True)
    shipped = expand_path("{pipelines}/digits.toml", workspace=workspace.root, where="")
    assert shipped.is_file()
    shutil.copy(shipped, workspace.root / "pipelines" / "digits.toml")
    own = expand_path("{pipelines}/digits.toml", workspace=workspace.root, where="")
    assert own == workspace.root / "pipelines" / "digits.toml"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny transformers classifier of two classes that is nearly sure of the second, whatever it sees."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", num_labels=2,
        id2label={0: "zero", 1: "one"}, label2id={"zero": 0, "one": 1},
    )  # fmt: skip
    model = transformers.ResNetForImageClassification(config)
    model.classifier[1].weight.data.zero_()
    model.classifier[1].bias.data.copy_(torch.tensor([0.0, 4.0]))
    path = tmp_path_factory.mktemp("classifier")
    model.save_pretrained(path)
    processor = {"feature_extractor_type": "ConvNextFeatureExtractor", "do_resize": True, "size": 32, "resample": 3}
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return path


def test_a_classifier_maps_classes_that_no_name_fits(made: tuple[Workspace, Run, Plan], classifier: Path) -> None:
    """Measured on the step's real images, cached, printed; below the minimum every draw is refused, and counted."""
    workspace, _, _ = made
    lines = f'[replay.gan.map]\nclassifier = "{classifier}"\nimages = 3\n'
    _, plan = _run(workspace, _drawing(lines, only='"zero", "nine"'), "mapped")
    record = plan.store.get(plan.slots["classmap/gan/step2"])
    assert record is not None
    match = json.loads(plan.store.read(record.output("classmap.json").digest))["matches"][0]
    assert (match["class_name"], match["index"], match["label"]) == ("nine", 1, "one")
    assert match["confidence"] > 0.9
    assert 1 <= record.counts.accepted <= 3
    assert "classmap/gan/step0" not in plan.slots  # "zero" has the generator's own name
    nine = dict(_shard(plan, "images/gan/nine/0000"))
    assert {json.loads(members["json"])["label"] for members in nine.values()} == {1}
    printed = CliRunner().invoke(app, ["generator", "map", str(workspace.root / "pipelines" / "mapped.toml")])
    assert "nine" in printed.output
    assert "98" in printed.output
    _, unsure = _run(workspace, _drawing(lines + "minimum = 0.999\n", only='"nine"'), "unsure")
    assert list(_counts(unsure, "images/gan/nine/").values()) == [
        (5, 0, {"no-class-match": 5}),
        (2, 0, {"no-class-match": 2}),
    ]
    (classifier / "config.json").write_text((classifier / "config.json").read_text() + "\n")
    again = Recipe.load(str(workspace.root / "pipelines" / "mapped.toml")).plan(plan.store)
    assert {task.stage for task in again.to_run()} == {"class-map", "biggan"}


def test_fits_keep_to_what_decides_them(workspace: Workspace) -> None:
    """Names, the drawing and the later steps' settings are in no key of a fit; photos' `only` is respected."""
    text = GENERATED.split("[train.fit]")[0].replace('only = ["zero", "one", "eight"]\n', "")

    def fits(changed: str) -> dict[str, str]:
        plan = Recipe.load(str(workspace.recipe(changed))).plan(Store(workspace.root / "cache"))
        return {slot: key for slot, key in plan.slots.items() if slot.startswith("generator/")}

    plain = fits(text)
    assert fits(text.replace("draw_batch = 4", "draw_batch = 5\ntruncation = 0.5")) == plain
    later = fits(text.replace("warm_iterations = 3", "warm_iterations = 4"))
    assert later["generator/fitted/step0"] == plain["generator/fitted/step0"]
    assert later["generator/fitted/step1"] != plain["generator/fitted/step1"]
    photos = '[replay.{name}]\nsource = "folder"\npath = "{{data}}/photos"\ncount = 4\nonly = ["zero", "two"]\n'
    on = text.replace("size = 16", 'on = "{name}"\nsize = 16').replace(
        "[replay.fitted]\n", '[replay.fitted]\nonly = ["two"]\n'
    )
    head, tail = on.split("[replay.fitted]")
    one, other = (fits((head + photos + "[replay.fitted]" + tail).replace("{name}", name)) for name in ("web", "other"))
    assert one == other
    assert list(one) == ["generator/fitted"]
    with pytest.raises(DataError, match="leaves 'one' out"):
        fits((head + photos + "[replay.fitted]" + tail.replace('["two"]', '["one", "two"]')).replace("{name}", "web"))
