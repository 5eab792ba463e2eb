"""The command: instant, plain errors, plain data on request."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
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


def _interrupted(workspace: Workspace, told: Callable[[int], None], *arguments: str) -> tuple[int, str, bool]:
    """A run that is told to stop while it trains: its exit code, what it said, whether it left processes behind."""
    training = TRAINING.replace("iterations = 80", "iterations = 100000\ncheckpoint_every = 20")
    command = [sys.executable, "-m", "replaygen", "run", str(workspace.recipe(training)), *arguments]
    process = subprocess.Popen(
        command, cwd=workspace.root, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a test run in the background ignores it
    )  # fmt: skip
    left = True
    try:
        partial, deadline = workspace.root / "cache" / "partial", time.monotonic() + 240
        while not any(path.is_file() for path in partial.rglob("*")):  # the first checkpoint
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        told(process.pid)
        _, stderr = process.communicate(timeout=120)
        left = _stands(process.pid)
        return process.returncode, stderr, left
    finally:
        if left:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _stands(group: int) -> bool:
    """Whether a process group still has members after some seconds; what nobody has waited for yet does not count."""
    import psutil

    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        members = 0
        for process in psutil.process_iter():
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                members += os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
        if not members:
            return False
        time.sleep(0.1)
    return True


KEPT = "interrupted; what was made is kept, run the same command to go on\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_says_what_is_kept(workspace: Workspace, number: int, code: int) -> None:
    """An interrupted run exits with 130, a terminated one with 143, and a sentence; the same command goes on."""
    ended, stderr, left = _interrupted(workspace, lambda pid: os.kill(pid, number))
    assert (ended, left) == (code, False)
    assert stderr.endswith(KEPT)
    assert "Traceback" not in stderr


def test_ctrl_c_in_a_terminal_stops_the_workers(workspace: Workspace) -> None:
    """A terminal sends Ctrl-C to the workers too: the run stops them, and none is left or complains."""
    ended, stderr, left = _interrupted(workspace, lambda pid: os.killpg(pid, signal.SIGINT), "--workers", "1")
    assert (ended, left) == (130, False)
    assert KEPT in stderr
    assert "KeyboardInterrupt" not in stderr


def _stopped(tmp_path: Path, body: str, sigint: str = "signal.default_int_handler") -> tuple[int, str, str]:
    """Code within `resumable`, in a process of its own: exit code, standard output, standard error."""
    code = (
        "import os, signal, sys, time\nsys.path.insert(0, '.')\nfrom replaygen.cli.stopping import resumable\n"
        "import typer\napp = typer.Typer(pretty_exceptions_enable=False)\n"
        "def send(number):\n    os.kill(os.getpid(), number)\n    time.sleep(0.01)\n"
        f"signal.signal(signal.SIGINT, {sigint})\n"
        "@app.command()\ndef main():\n    with resumable():\n" + textwrap.indent(textwrap.dedent(body), " " * 8)
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\napp()"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    return done.returncode, done.stdout, done.stderr


def test_a_library_cannot_lose_ctrl_c(tmp_path: Path) -> None:
    """An interrupt that is swallowed comes again."""
    body = """
        try:
            send(signal.SIGINT)
        except BaseException:
            print("lost")
        time.sleep(600)
    """
    assert _stopped(tmp_path, body) == (130, "lost\n", KEPT)


def test_ctrl_c_waits_for_an_import(tmp_path: Path) -> None:
    """Python makes another error of an interrupt in a class that is being made, as torch's are on import."""
    (tmp_path / "loses.py").write_text(
        "import os, signal, time\nclass Field:\n    def __set_name__(self, owner, name):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n        time.sleep(0.01)\nclass Owner:\n    field = Field()\n"
    )
    body = """
        try:
            import loses
        except RuntimeError:
            print("another error")
        print("imported")
        time.sleep(600)
    """
    assert _stopped(tmp_path, body) == (130, "imported\n", KEPT)


def test_putting_away_is_not_interrupted(tmp_path: Path) -> None:
    """What cleans up after a stop is left alone, though the interrupt is sent until the command is out."""
    body = """
        try:
            send(signal.SIGTERM)
        finally:
            time.sleep(1.5)
            print("tidy")
    """
    assert _stopped(tmp_path, body) == (143, "tidy\n", KEPT)


def test_a_background_job_keeps_ignoring_ctrl_c(tmp_path: Path) -> None:
    """Where SIGINT was ignored from the start it stays so; SIGTERM ends the run as Ctrl-C would."""
    body = """
        send(signal.SIGINT)
        print("goes on")
        send(signal.SIGTERM)
        time.sleep(600)
    """
    assert _stopped(tmp_path, body, "signal.SIG_IGN") == (143, "goes on\n", KEPT)


def test_an_error_made_of_ctrl_c_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that died of an interrupt in disguise is not tried again: the run stops."""
    from replaygen.runs import executors

    def dies(root: str, task: object) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as interrupt:
            raise RuntimeError("Error calling __set_name__") from interrupt

    monkeypatch.setattr(executors, "execute", dies)
    inline = executors.Inline("nowhere")
    inline.submit(None, 0)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        inline.next_done()
