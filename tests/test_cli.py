"""The command: instant, plain errors, plain data on request."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import BUILD_ONLY, TRAINING, Workspace

HEAVY = ("torch", "numpy", "dask", "distributed", "transformers", "diffusers", "sklearn", "PIL", "matplotlib", "jinja2")


def _run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "replaygen", *arguments], cwd=cwd, capture_output=True, text=True)


def _loaded(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}


@pytest.mark.parametrize(
    "statement",
    [
        "import replaygen",
        "import replaygen.cli.app",
        "import sys; sys.argv = ['replaygen', '--help']\ntry:\n    import replaygen.cli; replaygen.cli.main()\n"
        "except SystemExit: pass",
    ],
)
def test_nothing_heavy_is_imported(statement: str) -> None:
    """`import replaygen` and `--help` load no torch, no dask, no numpy."""
    assert not _loaded(statement) & set(HEAVY)


def test_planning_needs_neither_torch_nor_dask(workspace: Workspace) -> None:
    """A plan reads files and hashes; it runs no network."""
    recipe = workspace.recipe(TRAINING)
    _run("plan", str(recipe), cwd=workspace.root)  # masks are scanned once
    loaded = _loaded(
        f"import replaygen as rg\nr = rg.Recipe.load({str(recipe)!r})\nprint(len(r.plan(r.store()).to_run()))"
    )
    assert not loaded & {"torch", "dask", "distributed", "transformers", "sklearn", "matplotlib"}


def test_an_error_is_two_lines_and_exit_code_1(workspace: Workspace) -> None:
    """A typo ends without a traceback, with file, line and the nearest key."""
    recipe = workspace.recipe(BUILD_ONLY.replace("count = 10", "cuont = 10"))
    done = _run("plan", str(recipe), cwd=workspace.root)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"{recipe}:" in done.stderr
    assert "'count'" in done.stderr


def test_json_errors_are_json(workspace: Workspace) -> None:
    """With --json an error is one JSON object on standard output."""
    done = _run("run", "no-such-recipe", "--json", cwd=workspace.root)
    assert done.returncode == 1
    told = json.loads(done.stdout)["error"]
    assert told["kind"] == "RecipeError"
    assert told["what"] == "no recipe 'no-such-recipe'"


def test_run_plan_why_verify_gc_and_show(workspace: Workspace) -> None:
    """The life of a store through the command: run, re-run, why, du, ls, verify, gc, show."""
    recipe = str(workspace.recipe(BUILD_ONLY))
    where = ("--cache", str(workspace.root / "cache"))
    first = json.loads(_run("run", recipe, *where, "--json", cwd=workspace.root).stdout)
    assert first["tally"]["made"] == 59
    plan = json.loads(_run("plan", recipe, *where, "--json", cwd=workspace.root).stdout)
    assert {task["state"] for task in plan["tasks"]} == {"cached"}
    key = next(task["key"] for task in plan["tasks"] if task["stage"] == "replay")
    told = json.loads(_run("cache", "why", key[:10], *where, "--json", cwd=workspace.root).stdout)
    assert told["key"] == key
    assert "class_name" in told["differences"]
    assert json.loads(_run("cache", "verify", *where, "--json", cwd=workspace.root).stdout)["ok"]
    assert json.loads(_run("cache", "ls", *where, "--json", cwd=workspace.root).stdout)["refs"][0]["standing"] == 59
    assert json.loads(_run("cache", "du", *where, "--json", cwd=workspace.root).stdout)["unreferenced"] == 0
    changed = json.loads(
        _run("run", recipe, *where, "--json", "--set", "replay.kept.count=4", cwd=workspace.root).stdout
    )
    assert changed["tally"]["made"] == 20
    dry = json.loads(_run("cache", "gc", "--dry-run", *where, "--json", cwd=workspace.root).stdout)
    done = json.loads(_run("cache", "gc", *where, "--json", cwd=workspace.root).stdout)
    assert len(done["records"]) == len(dry["records"]) == 29
    shown = json.loads(
        _run("show", recipe, "zero", *where, "--json", "--set", "replay.kept.count=4", cwd=workspace.root).stdout
    )
    assert shown["replay"] == [{"slot": "replay/kept/zero", "samples": 4, "wanted": 4, "shortfall": 0}]


def test_a_damaged_store_makes_verify_fail(workspace: Workspace) -> None:
    """`cache verify` finds a flipped byte, says what to do, and exits with 1."""
    recipe = str(workspace.recipe(BUILD_ONLY))
    _run("run", recipe, cwd=workspace.root)
    objects = workspace.root / "cache" / "objects"
    victim = max((path for path in objects.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 3] ^= 64
    victim.chmod(0o644)
    victim.write_bytes(data)
    done = _run("cache", "verify", cwd=workspace.root)
    assert done.returncode == 1
    assert victim.name[:12] in done.stdout
    assert _run("run", recipe, cwd=workspace.root).returncode == 0
    assert _run("cache", "verify", cwd=workspace.root).returncode == 0


def test_a_workspace_of_its_own(tmp_path: Path) -> None:
    """init makes the three rooms; a copied recipe and trainer win over the installed ones; nothing is overwritten."""
    assert _run("init", cwd=tmp_path).returncode == 0
    assert {path.name for path in tmp_path.iterdir()} >= {"pipelines", "trainers", "cache"}
    assert _run("recipes", "cp", "digits", "mine.toml", cwd=tmp_path).returncode == 0
    assert _run("recipes", "cp", "recall", "mine.py", cwd=tmp_path).returncode == 0
    assert _run("recipes", "cp", "digits", "mine.toml", cwd=tmp_path).returncode == 1
    told = json.loads(_run("recipes", "ls", "--json", cwd=tmp_path).stdout)
    assert {"digits", "mine"} <= {row["name"] for row in told["recipes"]}
    assert {"recall", "mine"} <= {row["name"] for row in told["trainers"]}


def test_doctor_tells_what_is_there(tmp_path: Path) -> None:
    """doctor names every optional package and how to get what is missing."""
    told = json.loads(_run("doctor", "--json", cwd=tmp_path).stdout)
    assert told["packages"]["torch"] is True
    assert told["cores"] >= 1


def test_ctrl_c_says_what_is_kept(workspace: Workspace) -> None:
    """An interrupted run exits with 130 and a sentence, and the same command goes on."""
    import os
    import signal
    import time

    recipe = str(workspace.recipe(TRAINING.replace("iterations = 80", "iterations = 4000")))
    process = subprocess.Popen(
        [sys.executable, "-m", "replaygen", "run", recipe], cwd=workspace.root, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a test run in the background ignores it
    )  # fmt: skip
    partial = workspace.root / "cache" / "partial"
    waited = time.monotonic() + 120
    while not (partial.is_dir() and any(partial.iterdir())) and time.monotonic() < waited:
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command to go on" in stderr
    assert "Traceback" not in stderr
