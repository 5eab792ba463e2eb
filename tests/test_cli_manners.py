"""The command's manners: plain data everywhere, hints, exit codes, completion, bars and colours where they belong."""

from __future__ import annotations

import json
import os
import pty
import re
import select
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

    return answer


def _given_images(folder: Path) -> None:
    """Two images with masks, and what the values in these are."""
    from PIL import Image

    for name in ("a", "b"):
        for kind, mode in (("images", "RGB"), ("masks", "L")):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.new(mode, (32, 32), 1 if mode == "L" else (9, 9, 9)).save(folder / kind / f"{name}.png")
    (folder / "classes.txt").write_text("0 background\n1 zero\n")


def _calls(workspace: Workspace, answer: Answer) -> dict[str, Any]:
    """Every command that can be asked here -> its object; what changes the store comes last."""
    key = next(task["key"] for task in answer("plan", "tiny")["tasks"] if task["stage"] == "replay")
    store, other = str(workspace.root / "cache"), str(workspace.root / "other")
    calls: list[tuple[str, Sequence[str]]] = [
        ("init", ["new"]), ("doctor", []), ("plan", ["tiny"]), ("run", ["tiny"]),
        ("train", ["tiny", "--method", "recall"]), ("report", ["tiny"]), ("show", ["tiny", "--rejected"]),
        ("export", ["folders", "tiny", "--out", "exported"]),
        ("import", ["given/images", "--masks", "given/masks", "--classes", "given/classes.txt", "--out", "taken"]),
        ("recipes ls", []), ("recipes cp", ["tiny", "copy.toml"]),
        ("bench methods", ["tiny", "--only", "finetune", "--seeds", "1"]),
        ("cluster certificates", ["keys"]),
        ("cluster script", ["tiny", "--cluster", "slurm", "--workers", "2", "--set", "run.memory=\"1GB\""]),
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
    _given_images(ran.root / "given")
    told = _calls(ran, _answers(ran))
    told["crawl local-flickr"] = _first_line("crawl", "local-flickr", str(ran.data / "photos"), cwd=ran.root)
    told["schedule serve"] = _first_line("schedule", "serve", cwd=ran.root)
    told["runs logs"] = json.loads(_run("runs", "logs", "--json", cwd=ran.root).stdout.splitlines()[0])
    if os.environ.get("REPLAYGEN_SHOW_KEYS"):
        print("\n".join(f"{name}: {sorted(one)}" for name, one in told.items()))
    documented = _documented()
    assert documented["runs logs"] <= set(told.pop("runs logs"))
    assert {name: sorted(one) for name, one in told.items()} == {name: sorted(documented[name]) for name in told}
    assert {*told, *ELSEWHERE, "runs logs"} == set(COMMANDS)


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


WRONG = {
    "no command": (["foo"], 2, "no such command: replaygen foo", "replaygen --help"),
    "nearly a command": (["cache", "gcc"], 2, "no such command: replaygen cache gcc", "did you mean gc?"),
    "nearly an option": (["run", "tiny", "--worker", "3"], 2, "no such option: --worker", "did you mean --workers?"),
    "no recipe given": (["run"], 2, "missing argument 'recipe'", "replaygen run --help"),
    "a bad number": (["run", "tiny", "--workers", "x"], 2, "invalid value for '--workers'", "replaygen run --help"),
    "nearly a recipe": (["plan", "tinny"], 1, "no recipe 'tinny'", "did you mean 'tiny'?"),
    "no store": (["cache", "ls", "--cache", "nowhere"], 1, "no store here", "run a recipe first"),
    "no such run": (["runs", "show", "2020"], 1, "no run", ""),
    "no hint of its own": (["plan", "tiny", "--set", "method.lr=1"], 1, "cannot set 'method.lr'", "checks a recipe"),
    "no such format": (["export", "cocoo", "tiny", "--out", "x"], 2, "'cocoo' is none of webdataset", "mean coco?"),
    "a file is in the way": (["init", "pipelines/tiny.toml"], 1, "Not a directory", "not a folder"),
    "a folder with other files": (["run", "tiny", "--cache", "pipelines"], 1, "holds other files", "empty"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_an_error_has_a_place_a_hint_and_a_code(
    case: str, ran: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In text on standard error, and with --json as one object on standard output: the same words and code."""
    arguments, code, what, hint = WRONG[case]
    assert _ended(arguments, ran, monkeypatch) == code
    text = capsys.readouterr()
    assert text.out == ""
    lines = text.err.splitlines()
    assert lines[0].startswith("error: ")
    assert what in lines[0]
    assert lines[-1].startswith("  hint:  ")
    assert hint in lines[-1]
    assert _ended([*arguments, "--json"], ran, monkeypatch) == code
    told = capsys.readouterr()
    error = json.loads(told.out)["error"]
    assert set(error) == {"kind", "what", "where", "hint"}
    assert lines[0] == f"error: {error['what'].splitlines()[0]}"
    assert lines[-1] == f"  hint:  {error['hint']}"
    assert told.err == ""


def test_json_before_the_command(
    ran: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--json belongs behind the command; the error says so, in JSON."""
    assert _ended(["--json", "plan", "tiny"], ran, monkeypatch) == 2
    assert "comes after the command" in json.loads(capsys.readouterr().out)["error"]["hint"]


def _ended(arguments: Sequence[str], workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of the whole command, run in this process."""
    from replaygen.cli import main

    monkeypatch.chdir(workspace.root)
    monkeypatch.setattr(sys, "argv", ["replaygen", *arguments])
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with pytest.raises(SystemExit) as ended:
        main()
    from replaygen.logs import stop

    stop()
    return int(ended.value.code or 0)


def test_a_folder_with_other_files_is_left_as_it_is(ran: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """No store is laid out among somebody's files; a workspace's own cache/, README and all, becomes one."""
    assert _ended(["run", "tiny", "--cache", "pipelines"], ran, monkeypatch) == 1
    assert {path.suffix for path in (ran.root / "pipelines").iterdir()} == {".toml"}
    assert _ended(["init", "fresh"], ran, monkeypatch) == 0
    (ran.root / "fresh" / "cache" / ".nfs0001").touch()
    assert _ended(["plan", "tiny", "--cache", "fresh/cache"], ran, monkeypatch) == 0
    assert (ran.root / "fresh" / "cache" / "format").is_file()


def test_a_fault_of_the_program_is_told_without_secrets(
    ran: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An error that was not foreseen: its traceback on standard error, exit code 70, and no value of a secret."""
    from replaygen.store import Store

    def dies(self: object) -> None:
        raise KeyError("canary-in-a-traceback")

    monkeypatch.setenv("FLICKR_API_SECRET", "canary-in-a-traceback")
    monkeypatch.setattr(Store, "du", dies)
    assert _ended(["cache", "du", "--json"], ran, monkeypatch) == 70
    told = capsys.readouterr()
    error = json.loads(told.out)["error"]
    assert error["kind"] == "KeyError"
    assert "report it" in error["hint"]
    assert "Traceback" in told.err
    assert "canary" not in told.out + told.err


def test_a_secret_with_a_quote_stays_out_of_plain_data(
    ran: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What JSON writes in another way is a secret too, in an error and in a log of JSON lines."""
    monkeypatch.setenv("CANARY_TOKEN", 'ab"cde\\fgh')
    assert _ended(["plan", 'no-ab"cde\\fgh', "--json"], ran, monkeypatch) == 1
    told = capsys.readouterr()
    assert "[CANARY_TOKEN]" in json.loads(told.out)["error"]["what"]
    assert _ended(["--log", "json", "plan", 'no-ab"cde\\fgh'], ran, monkeypatch) == 1
    logged = capsys.readouterr()
    assert "[CANARY_TOKEN]" in logged.err
    assert "cde" not in told.out + told.err + logged.out + logged.err


def test_a_missing_package_is_told_with_its_extra(
    ran: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where a package is not installed: which one, and how to get it."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in [name for name in sys.modules if name.startswith(("matplotlib.", "replaygen.report."))]:
        monkeypatch.delitem(sys.modules, name)
    assert _ended(["report", "tiny", "--out", "again.html"], ran, monkeypatch) == 1
    assert "pip install 'replaygen[report]'" in capsys.readouterr().err


def test_control_characters_stay_out_of_the_terminal(
    ran: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An error that quotes what came from outside shows it without escapes."""
    assert _ended(["cache", "ls", "--cache", "no\x1b[31mred\x07"], ran, monkeypatch) == 1
    told = capsys.readouterr().err
    assert "where: nored" in told
    assert "\x1b" not in told


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_ends_a_command_in_silence(ran: Workspace, unbuffered: str) -> None:
    """`replaygen plan --tasks | head -1`: exit code 141, and nothing said."""
    command = f"{sys.executable} -m replaygen recipes ls | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=ran.root, capture_output=True, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (141, "")


def test_the_version(ran: Workspace) -> None:
    """--version prints one line."""
    from importlib.metadata import version

    assert _run("--version", cwd=ran.root).stdout == f"replaygen {version('replaygen')}\n"


COLOUR = re.compile(rb"\x1b\[[0-9;]*[34]\d[0-9;]*m")
BAR = re.compile("[\u2501\u2578\u257a\u2588]|\\d+%\\|".encode())


def _in_a_terminal(arguments: Sequence[str], cwd: Path, **environment: str) -> bytes:
    """What a command shows in a terminal of 100 columns; its exit code must be 0."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        told = {"COLUMNS": "100", "TERM": "xterm-256color", **environment}
        plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
        os.execve(sys.executable, [sys.executable, "-m", "replaygen", *arguments], plain | told)
    shown, deadline = b"", time.monotonic() + 240
    while time.monotonic() < deadline:
        if select.select([terminal], [], [], 1.0)[0]:
            try:
                read = os.read(terminal, 65536)
            except OSError:  # the other end is closed
                break
            shown += read
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, shown[-2000:]
    return shown


@pytest.fixture(scope="module")
def building(ran: Workspace) -> Path:
    """A recipe that is quick to run."""
    return ran.recipe(BUILD_ONLY, "build")


def test_bars_in_a_terminal_and_nowhere_else(building: Path, ran: Workspace) -> None:
    """A terminal gets bars in colour; NO_COLOR takes the colours away and leaves the bars; a pipe gets plain lines."""
    coloured = _in_a_terminal(["run", str(building), "--cache", "one"], ran.root)
    assert BAR.search(coloured)
    assert COLOUR.search(coloured)
    plain = _in_a_terminal(["run", str(building), "--cache", "two"], ran.root, NO_COLOR="1")
    assert BAR.search(plain)
    assert not COLOUR.search(plain)
    piped = _run("run", str(building), "--cache", "three", cwd=ran.root)
    assert piped.returncode == 0
    assert not BAR.search((piped.stdout + piped.stderr).encode())
    assert "\x1b" not in piped.stdout + piped.stderr
    assert "\r" not in piped.stdout + piped.stderr
