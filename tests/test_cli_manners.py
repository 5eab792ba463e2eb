"""The command's manners: plain data everywhere, hints, exit codes, completion, no bars and colours where none belong."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import BUILD_ONLY, REPOSITORY, TRAINING, Workspace
from typer.testing import CliRunner

from replaygen.cli.app import app

PAGE = REPOSITORY / "docs" / "commands.md"
SMALL = TRAINING.split("[[method]]\nname = \"web\"")[0].replace("iterations = 80", "iterations = 4").replace(
    "[replay.photos]\nsource = \"folder\"\npath = \"{{data}}/photos\"\ncount = 8\n", ""
)  # fmt: skip
ELSEWHERE = {
    "crawl fetch": "test_crawl_end_to_end.py", "crawl attribution": "test_crawl_end_to_end.py",
    "crawl revalidate": "test_crawl_revalidate.py",
    "generator map": "test_cli_generator.py", "generator quality": "test_cli_generator.py",
    "generator save": "test_generated_replay.py", "demo": "the keys are those of run, which make the same object",
}  # fmt: skip
"""Commands whose plain data other tests read: they need a server or generators, or train for minutes."""


def _leaves(command: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for name, one in command.commands.items():
        if one.hidden:
            continue
        if hasattr(one, "commands"):
            yield from _leaves(one, f"{path}{name} ")
        else:
            yield path + name, one


COMMANDS = dict(_leaves(typer.main.get_command(app)))


def _documented() -> dict[str, set[str]]:
    """Command -> the keys of its object, from the page's table; `[]` where it is a list."""
    rows = re.findall(r"^\| `([a-z -]+)` \|.*\| ([^|]*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: set(re.findall(r"`([A-Za-z_\[\]]+)`", keys)) for name, keys in rows}


def _run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "replaygen", *arguments], cwd=cwd, capture_output=True, text=True, timeout=120,
        env={**os.environ, **environment},
    )  # fmt: skip


def test_every_command_is_on_the_page_and_takes_json() -> None:
    """docs/commands.md lists the commands that there are, no other ones, and each has --json."""
    assert set(_documented()) == set(COMMANDS)
    assert [name for name, one in COMMANDS.items() if "--json" not in [o for p in one.params for o in p.opts]] == []


def test_every_command_and_option_says_what_it_is() -> None:
    """No command, no option and no argument without words, but those that a name says whole."""
    silent = [name for name, one in COMMANDS.items() if not one.help]
    silent += [
        f"{name} {param.name}" for name, one in COMMANDS.items() for param in one.params
        if not getattr(param, "help", None) and param.name not in ("help", "reason")
    ]  # fmt: skip
    assert silent == []


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, tiny_digits: Path) -> Workspace:
    """A workspace with a recipe that was run."""
    workspace = Workspace(tmp_path_factory.mktemp("manners") / "work", tiny_digits)
    recipe = workspace.recipe(SMALL, "tiny")
    done = _run("run", str(recipe), "--json", cwd=workspace.root)
    assert done.returncode == 0, done.stderr
    return workspace


Answer = Callable[..., Any]


def _answers(workspace: Workspace) -> Answer:
    def answer(*arguments: str) -> Any:
        done = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    os.chdir(workspace.root)
    return answer


def _calls(workspace: Workspace, answer: Answer) -> dict[str, Any]:
    """Every command that can be asked here -> its object; what changes the store comes last."""
    key = next(task["key"] for task in answer("plan", "tiny")["tasks"] if task["stage"] == "replay")
    store, other = str(workspace.root / "cache"), str(workspace.root / "other")
    calls: list[tuple[str, Sequence[str]]] = [
        ("init", ["new"]), ("doctor", []), ("plan", ["tiny"]), ("run", ["tiny"]),
        ("train", ["tiny", "--method", "recall"]), ("report", ["tiny"]), ("show", ["tiny", "--rejected"]),
        ("export", ["folders", "tiny", "--out", "exported"]),
        ("recipes ls", []), ("recipes cp", ["tiny", "copy.toml"]),
        ("bench methods", ["tiny", "--only", "finetune", "--seeds", "1"]),
        ("cluster certificates", ["keys"]),
        ("cluster script", ["tiny", "--cluster", "slurm"]),
        ("runs ls", []), ("runs show", []), ("schedule add", ["weekly", "tiny", "--cron", "0 3 * * 0"]),
        ("schedule ls", []), ("schedule pause", ["weekly"]), ("schedule resume", ["weekly"]),
        ("schedule run-now", ["weekly"]), ("schedule history", []), ("schedule unit", []),
        ("schedule rm", ["weekly"]), ("cache ls", []), ("cache du", []), ("cache why", [key]), ("cache verify", []),
        ("cache share", []), ("cache bring", ["tiny", "--from", store, "--cache", other]),
        ("cache tombstones", []), ("cache purge", ["--dry-run"]), ("cache gc", []),
    ]  # fmt: skip
    return {name: answer(*name.split(), *arguments) for name, arguments in calls}


def test_plain_data_has_the_keys_of_the_page(ran: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --json every command prints one object, with the very keys that docs/commands.md lists."""
    monkeypatch.chdir(ran.root)
    told = _calls(ran, _answers(ran))
    told["crawl local-flickr"] = _first_line("crawl", "local-flickr", str(ran.data / "photos"), cwd=ran.root)
    told["schedule serve"] = _first_line("schedule", "serve", cwd=ran.root)
    told["runs logs"] = json.loads(_run("runs", "logs", "--json", cwd=ran.root).stdout.splitlines()[0])
    if os.environ.get("REPLAYGEN_SHOW_KEYS"):
        print("\n".join(f"{name}: {sorted(one)}" for name, one in told.items()))
    documented = _documented()
    assert {name: sorted(one) for name, one in told.items()} == {name: sorted(documented[name]) for name in told}
    assert set(told) | set(ELSEWHERE) == set(COMMANDS)


def _first_line(*arguments: str, cwd: Path) -> Any:
    """What a command that serves says first; then it is told to stop, and stops."""
    command = [sys.executable, "-u", "-m", "replaygen", *arguments, "--json"]
    with subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            return json.loads(process.stdout.readline())
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=60)
