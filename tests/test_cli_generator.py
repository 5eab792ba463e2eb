"""The commands about generators: maps with their reasons, weights saved whole or not at all, what to do next."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_DATA, Workspace
from safetensors.torch import save
from typer.testing import CliRunner

from replaygen.cli.app import app
from replaygen.errors import DataError, ReplaygenError, StoreError
from replaygen.generators.classmap import ClassMap, Match
from replaygen.plan import Plan, Recipe
from replaygen.stages import Inputs, Out
from replaygen.store import Store

HEAD = 'name = "made"\n' + TINY_DATA + '[scenario]\ntask = "8-1"\n[network]\nkind = "small"\n'
FITTED = HEAD + (
    '[replay.own]\nsource = "fitted"\ncount = 2\nlabel = "seen"\nonly = ["one"]\n[replay.own.fit]\nsize = 16\n'
    '[[method]]\nname = "recall"\ntrainer = "recall"\nreplay = "own"\nmerged = true\n'
)
WEIGHTS = save({"w": torch.arange(4.0)})


def _run(*arguments: object) -> str:
    """What a command prints; its error is raised."""
    done = CliRunner().invoke(app, ["generator", *map(str, arguments)])
    if done.exception is not None:
        raise done.exception
    return done.output


def _put(plan: Plan, slot: str, files: Mapping[str, bytes]) -> None:
    """Publish a task's outputs without doing it."""
    task = plan.tasks[plan.slots[slot]]
    out = Out(plan.store, task)
    for name, data in files.items():
        out.put(name, data)
    plan.store.publish(out.record(Inputs(plan.store, task), {}, "2026-03-01T10:00:00+00:00", 1.0))


@pytest.fixture
def fitted(workspace: Workspace) -> Path:
    """A recipe with a fitted source whose weights are in the store; put there, not fitted."""
    path = workspace.recipe(FITTED)
    plan = Recipe.load(str(path)).plan(Store(workspace.root / "cache"))
    _put(plan, "generator/own/step0", {"generator.safetensors": WEIGHTS, "generator.json": b'{"classes": ["one"]}'})
    return path


def test_saving_replaces_whole_files(fitted: Path, tmp_path: Path) -> None:
    """Both files are there and nothing else; what was there keeps its bytes for who has it open."""
    folder = tmp_path / "new" / "weights"
    told = json.loads(_run("save", fitted, "own", folder, "--json"))
    assert told["classes"] == ["one"]
    os.link(folder / "model.safetensors", tmp_path / "open")
    (tmp_path / "open").write_bytes(b"older")
    _run("save", fitted, "own", folder)
    assert (tmp_path / "open").read_bytes() == b"older"
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert json.loads((folder / "config.json").read_text()) == {"classes": ["one"]}
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("taken", "folder", "left"),
    [("weights", "weights", []), ("weights", "weights/in", []),
     ("weights/config.json/x", "weights", ["config.json", "model.safetensors"]),
     ("weights/model.safetensors/x", "weights", ["model.safetensors"])],
)  # fmt: skip
def test_what_cannot_be_saved_is_an_error(
    fitted: Path, tmp_path: Path, taken: str, folder: str, left: Sequence[str]
) -> None:
    """A file where a folder should be, or the other way round: what and where, no traceback, no half-written file."""
    (tmp_path / taken).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / taken).write_text("mine")
    with pytest.raises(StoreError, match="cannot be saved") as caught:
        _run("save", fitted, "own", tmp_path / folder)
    assert str(tmp_path / "weights") in caught.value.where
    assert caught.value.hint
    assert (tmp_path / taken).read_text() == "mine"
    assert not left or sorted(os.listdir(tmp_path / folder)) == left


def test_nothing_measured_is_told_with_the_way_out(fitted: Path, workspace: Workspace) -> None:
    """Run it, where a run would measure; without a method none would."""
    with pytest.raises(DataError) as caught:
        _run("quality", fitted)
    assert "run it first" in caught.value.hint
    with pytest.raises(DataError) as caught:
        _run("quality", workspace.recipe(FITTED.split("[[method]]")[0], "without"))
    assert "without a [[method]]" in caught.value.hint


@pytest.fixture
def source(workspace: Workspace) -> str:
    """A recipe that draws from a BigGAN of three classes."""
    pytest.importorskip("pytorch_pretrained_biggan")
    config: dict[str, Any] = {
        "output_dim": 32, "z_dim": 12, "class_embed_dim": 12, "channel_width": 16, "num_classes": 3, "eps": 1e-4,
        "layers": [[False, 16, 8], [True, 8, 4], [True, 4, 4], [False, 4, 2], [True, 2, 1]], "n_stats": 51,
        "attention_layer_position": 3, "classes": ["zero", "ace", "cow"],
    }  # fmt: skip
    folder = workspace.root / "weights"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    return HEAD + '[replay.gan]\nsource = "biggan"\npath = "weights"\ncount = 2\nonly = ["zero", "one"]\n'


def test_the_map_tells_every_class_and_why(workspace: Workspace, source: str) -> None:
    """All classes of the scenario with where the answer is from, given by hand, by name or not at all."""
    recipe = workspace.recipe(source + "[replay.gan.classes]\none = 1\n")
    told = json.loads(_run("map", recipe, "--json"))["gan"]
    assert (told["given"], told["measured"]) == ({"zero": 0, "one": 1}, [])
    origins = {match["class_name"]: match["origin"] for match in told["matches"]}
    assert len(origins) == 10
    assert [origins[name] for name in ("zero", "one", "two")] == ["name", "given", "none"]
    lines = _run("map", recipe).splitlines()
    assert [line.split()[:3] for line in lines[2:4]] == [["zero", "0", "zero"], ["one", "1", "ace"]]
    assert lines[4].split()[:4] == ["two", "-", "no", "decent"]
    with pytest.raises(ReplaygenError, match="two"):
        _run("map", workspace.recipe(source.replace('"one"', '"two"'), "lacking"))


def test_the_map_tells_what_was_measured(workspace: Workspace, source: str) -> None:
    """What a classifier found stands beside what was known before."""
    (workspace.root / "classifier").mkdir()
    (workspace.root / "classifier" / "config.json").write_text("{}")
    method = '[[method]]\nname = "recall"\ntrainer = "recall"\nreplay = "gan"\n'
    recipe = workspace.recipe(source + '[replay.gan.map]\nclassifier = "classifier"\n' + method)
    plan = Recipe.load(str(recipe)).plan(Store(workspace.root / "cache"))
    found = ClassMap((Match("one", 2, "cow", 0.5, images=9, origin="measured"),), 3)
    _put(plan, "classmap/gan/step0", {"classmap.json": found.to_json()})
    told = json.loads(_run("map", recipe, "--json"))["gan"]
    assert told["given"] == {"zero": 0}
    assert [told["measured"][0]["matches"][0][key] for key in ("class_name", "index", "images")] == ["one", 2, 9]
    assert _run("map", recipe).rstrip().endswith(found.as_text())
