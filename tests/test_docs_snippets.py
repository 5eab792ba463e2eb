"""Every command and snippet of README and docs is run, in a small workspace; what cannot be is parsed, and says why.

A comment before a block, `<!-- parsed only: REASON -->`, keeps it from being run; `<!-- parsed only [A, B]: REASON -->`
keeps those of its commands that hold one of the words. Their options must exist all the same.
"""

from __future__ import annotations

import grp
import os
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import REPOSITORY

from replaygen.cli.app import app
from replaygen.plan.recipe import check_recipe

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
SHELL = ("", "bash", "sh", "console")
_MARK = re.compile(r"<!-- parsed only(?: \[(?P<words>.+?)\])?: (?P<reason>.+?) -->")

DIGITS = """
name = "digits"
shard = 32
[data]
kind = "digits"
path = "data/digits"
options = { train = 60, val = 12, photos = 24 }
[scenario]
task = "5-5"
[network]
kind = "small"
widths = [16, 24]
[views]
size = 32
[replay.photos]
source = "folder"
path = "{data}/photos"
count = 8
[replay.gan]
source = "biggan"
path = "{pipelines}/weights/digits-gan"
count = 4
[train.fit]
iterations = 4
batch = 4
optimizer = "adamw"
background_weight = 0.05
[train.base]
iterations = 60
batch = 16
lr = 0.02
[[method]]
name = "finetune"
trainer = "finetune"
[[method]]
name = "recall"
trainer = "recall"
replay = "photos"
[[method]]
name = "recall_gan"
trainer = "recall"
replay = "gan"
[[method]]
name = "joint"
trainer = "joint"
"""
"""The demo's recipe with its rows, small enough for seconds; a workspace's own file wins over the installed one."""

AROUND: dict[str, Any] = {
    "name": "docs",
    "data": {"path": "data"},
    "scenario": {"task": "1-1"},
    "network": {"kind": "small"},
    "replay": {"photos": {"source": "folder", "path": "photos"}},
}
"""What a part of a recipe needs around it, where it does not say it itself."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page. only: words of commands that are not run, () for all of them, None where all are."""

    page: str
    line: int
    info: str
    text: str
    only: tuple[str, ...] | None

    def runs(self, command: str) -> bool:
        """Whether a command of it is run."""
        return self.only is None or (self.only != () and not any(word in command for word in self.only))


def blocks_of(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    lines = page.read_text(encoding="utf-8").splitlines()
    before, start, fence = "", 0, ""
    for number, line in enumerate(lines, 1):
        found = re.match(r"(`{3,})(\w*)", line)
        if not fence and found:
            fence, start, info = found[1], number, found[2]
        elif fence and line.strip() == fence:
            mark = _MARK.search(before)
            words = mark["words"] if mark else None
            only = tuple(re.split(r",\s*", words)) if words else (() if mark else None)
            yield Block(page.name, start, info, "\n".join(lines[start : number - 1]), only)
            fence = before = ""
        elif not fence and line.strip():
            before = line


def commands_of(block: Block) -> list[list[str]]:
    """The commands of a shell block, as words: continued lines joined, prompts, comments and redirections left out."""
    if block.info not in SHELL:
        return []
    text = re.sub(r"\\\n\s*", " ", block.text)
    found = []
    for line in text.splitlines():
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        try:
            words = list(lexer)
        except ValueError:  # a drawing, not a command
            return []
        if not words or (block.info == "" and not re.fullmatch(r"[\w./=-]+", words[0])):
            continue
        one: list[str] = []
        for word in [*words, "&&"]:
            if word in ("&&", ";", "|"):
                found.append(one[: one.index(">")] if ">" in one else one)
                one = []
            else:
                one.append(word)
    known = {"replaygen", "make", "pip"}
    return found if block.info or any(words[0] in known for words in found) else []


def check_command(words: list[str]) -> None:
    """Parse a command without running it: sub-commands, arguments and options must exist and fit."""
    command: Any = typer.main.get_command(app)
    context, rest = None, words[1:]
    while True:
        context = command.make_context(command.name or "replaygen", list(rest), parent=context)
        if not hasattr(command, "commands"):
            return
        left = [*context._protected_args, *context.args]
        _, inner, rest = command.resolve_command(context, left)
        assert inner is not None
        command = inner


def run_command(words: list[str]) -> None:
    """Run a command in this process, in the current folder; it must end well."""
    try:
        code = typer.main.get_command(app).main(words[1:], prog_name="replaygen", standalone_mode=False)
    except SystemExit as ended:
        code = ended.code
    assert not isinstance(code, int) or not code, f"exit code {code}"


def check_other(words: list[str]) -> None:
    """`make TARGET` and `pip install 'replaygen[EXTRA]'` name what is there; other programs are not ours."""
    if words[0] == "make":
        makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
        for target in words[1:]:
            assert re.search(rf"^{target.partition('-')[0]}[\w%-]*:", makefile, re.MULTILINE), target
    if words[:2] == ["pip", "install"]:
        extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for asked in re.findall(r"replaygen\[(.+?)\]", " ".join(words)):
            assert set(asked.split(",")) <= set(extras), asked


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which the small demo was run once."""
    root = tmp_path_factory.mktemp("docs") / "work"
    (root / "pipelines").mkdir(parents=True)
    (root / "pipelines" / "digits.toml").write_text(DIGITS)
    here = Path.cwd()
    os.chdir(root)
    try:
        run_command(["replaygen", "run", "digits", "--json"])
    finally:
        os.chdir(here)
    return root


@pytest.fixture
def place(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that workspace as the current folder, and a state folder that is nobody else's."""
    root = shutil.copytree(finished, tmp_path / "work", symlinks=True)
    monkeypatch.chdir(root)
    monkeypatch.setenv("REPLAYGEN_STATE", str(tmp_path / "state"))
    return root


def stand_ins(place: Path) -> dict[str, str]:
    """Word of the docs -> what stands for it here."""
    key = next((path.stem for path in sorted((place / "cache" / "records").rglob("*.json"))), "")
    others = shutil.copytree(place / "cache", place.parent / "theirs", dirs_exist_ok=True)
    return {
        "KEY": key, "/their/cache": str(others), "/group/cache": str(place.parent / "group"),
        "/big/disk/store": str(place.parent / "big"), "lab": grp.getgrgid(os.getgid()).gr_name,
    }  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_python_of_a_page_run(page: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the order of the page, in one workspace: commands end well, Python raises nothing, options exist."""
    names: dict[str, Any] = {"__name__": "snippet"}
    instead: dict[str, str] = {}
    for block in blocks_of(page):
        at = f"{block.page}:{block.line}"
        if block.info == "python":
            code = compile(block.text, at, "exec")
            if block.only is None:
                exec(code, names)
        for words in commands_of(block):
            told = f"{at}: {shlex.join(words)}"
            if words[0] != "replaygen":
                check_other(words)
                assert words[0] in ("make", "pip") or not block.runs(" ".join(words)), f"{told}: say why it is not run"
                assert not block.runs(" ".join(words)) or words[0] == "make", f"{told}: say why it is not run"
                continue
            instead = instead or stand_ins(place)
            given = [instead.get(word, word) for word in words]
            try:
                if not block.runs(" ".join(words)):
                    check_command(given)
                    continue
                if "my.toml" in words and "cp" not in words and not Path("pipelines/my.toml").exists():
                    shutil.copyfile("pipelines/digits.toml", "pipelines/my.toml")
                run_command(given)
            except Exception as error:
                raise AssertionError(f"{told}: {error}") from error
        capsys.readouterr()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_toml_of_a_page_is_a_recipe(page: Path) -> None:
    """Each TOML block is a recipe, or a part of one."""
    for block in blocks_of(page):
        if block.info == "toml":
            check_recipe({**AROUND, **tomllib.loads(block.text)}, where=f"{page.name}:{block.line}", text=block.text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_within_the_text_exist(page: Path) -> None:
    """`replaygen cache du --json` in a sentence: the command is there and has the option."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for text in re.findall(r"`replaygen ([^`\n]+)`", prose):
        for command, rest in _meant(typer.main.get_command(app), text.split()):
            known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
            asked = {word.strip("[]").partition("=")[0] for word in rest if word.strip("[]").startswith("--")}
            assert asked <= known | {"--help"}, f"{page.name}: replaygen {text}"


def _meant(command: Any, words: list[str]) -> Iterator[tuple[Any, list[str]]]:
    """The commands that a text names (`cache ls|du` and `cluster script | certificates` name two), and what follows."""
    words = re.sub(r" ?\| ?", "|", " ".join(words)).split()
    while words and words[0] == "--log":
        words = words[2:]
    if not hasattr(command, "commands") or not words or words[0].startswith("--") or words[0] in ("COMMAND", "..."):
        yield command, words
        return
    for name in words[0].split("|"):
        assert name in command.commands, f"replaygen has no command {' '.join(words)!r}"
        yield from _meant(command.commands[name], words[1:])


def test_a_wrong_command_or_option_is_found() -> None:
    """The checks above can fail."""
    with pytest.raises(Exception, match="No such option: --no-such"):
        check_command(["replaygen", "cache", "du", "--no-such"])
    with pytest.raises(Exception, match="No such command 'no-such'"):
        check_command(["replaygen", "cache", "no-such"])
    with pytest.raises(AssertionError, match="no command"):
        list(_meant(typer.main.get_command(app), ["cache", "ls|no-such"]))
    block = Block(
        "page", 1, "", "# note\nreplaygen plan x \\\n  --tasks  # why\nreplaygen cache verify && make demo > log", None
    )
    assert commands_of(block) == [
        ["replaygen", "plan", "x", "--tasks"], ["replaygen", "cache", "verify"], ["make", "demo"]
    ]  # fmt: skip
