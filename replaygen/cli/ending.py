"""How a command ends: what it says of what went wrong, and its exit code.

Every error has a sentence, the place where there is one, and a hint; with `--json` it is one object on standard output,
where logs are JSON one line of them.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import typer
from typer.core import TyperGroup

DONE, FAILED, USAGE, UNFORESEEN, INTERRUPTED, READER_LEFT = 0, 1, 2, 70, 130, 141
"""Exit codes: see docs/commands.md."""

HINTS = {
    "RecipeError": "`replaygen plan RECIPE` checks a recipe, `replaygen recipes ls` lists those in reach",
    "DataError": "`replaygen doctor` tells what is set and installed here",
    "ScenarioError": "see [scenario] in docs/recipes.md",
    "ModelError": "give weights that were made for this; `replaygen plan RECIPE --tasks` tells what asks for them",
    "StoreError": "`replaygen cache verify` looks the whole store through",
    "TaskError": "`replaygen runs logs last` tells what was said",
    "ScheduleError": "`replaygen schedule --help`, or docs/schedule.md",
}
"""What to do about an error that has no hint of its own, by its kind."""

_OF_THE_SYSTEM = {
    errno.ENOENT: "is the path right?",
    errno.EACCES: "give a place that you may read and write",
    errno.EPERM: "give a place that you may read and write",
    errno.EROFS: "give a place that can be written",
    errno.ENOSPC: "make room on this disk; `replaygen cache gc --dry-run` tells what the store could do without",
    errno.EDQUOT: "make room in your quota; `replaygen cache gc --dry-run` tells what the store could do without",
    errno.ENOTDIR: "a part of this path is a file, not a folder",
    errno.EISDIR: "this is a folder; give a file",
}
_NO_COMMAND = re.compile(r"No such command '(.*?)'")
_NO_CHOICE = re.compile(r"(.*: )(?:Value error, )?'([^']*)' is not one of (.*)")


@dataclass(frozen=True)
class Told:
    """What is said of an error."""

    kind: str
    what: str
    where: str
    hint: str

    def __str__(self) -> str:
        where = f"\n  where: {self.where}" if self.where else ""
        return f"error: {self.what}{where}\n  hint:  {self.hint}"


class Commands(TyperGroup):
    """All commands; one whose output nobody reads any more ends in silence."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            if reader_left(error):
                raise typer.Exit(READER_LEFT) from None
            raise


def run_to_its_end(command: Callable[[], object]) -> int:
    """Run a command and tell what goes wrong; its exit code."""
    try:
        code = command()
        sys.stdout.flush()
        return code if isinstance(code, int) else DONE
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        return _ended_by(error)


def quiet_outside_a_terminal() -> None:
    """Where standard error is no terminal, other libraries draw no bars there; a letter it cannot show ends nothing."""
    if not sys.stderr.isatty():
        for name in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS"):
            os.environ.setdefault(name, "1")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure") and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _ended_by(error: Exception) -> int:
    from replaygen.errors import ReplaygenError

    usage, of_the_line = typer.BadParameter.__mro__[1:3]
    if reader_left(error):
        return READER_LEFT
    if isinstance(error, typer.Abort):
        return FAILED
    if isinstance(error, usage) and type(error).__name__ == "NoArgsIsHelpError":
        print(_message(error), file=sys.stderr)
        return USAGE
    if isinstance(error, of_the_line):
        _tell(_of_the_line(error))
        return USAGE
    if isinstance(error, ReplaygenError):
        kind = type(error).__name__
        hints = (HINTS[one.__name__] for one in type(error).__mro__ if one.__name__ in HINTS)
        _tell(Told(kind, error.what, error.where, error.hint or next(hints, "`replaygen --help`")))
        return FAILED
    told = _foreseen(error)
    if told is not None:
        _tell(told)
        return FAILED
    _tell(_unforeseen(error))
    return UNFORESEEN


def reader_left(error: Exception) -> bool:
    """Whether what reads standard output has ended, as `head` does; then nothing more is written there."""
    import select

    if not isinstance(error, BrokenPipeError):
        return False
    at = sys.stdout.fileno()
    look = select.poll()
    look.register(at, select.POLLOUT)
    if not any(state & select.POLLERR for _, state in look.poll(0)):
        return False  # another pipe or connection broke
    os.dup2(os.open(os.devnull, os.O_WRONLY), at)
    return True


def _tell(told: Told) -> None:
    from replaygen.logs import in_json, redacted, say
    from replaygen.report.text import plain

    if "--json" in sys.argv:
        import json

        fields = {name: redacted(text) for name, text in asdict(told).items()}
        print(json.dumps({"error": fields}, ensure_ascii=False), flush=True)
    if in_json():
        say(told.what, grave=True, **asdict(told))
    elif "--json" not in sys.argv:
        say("\n".join(plain(line) for line in str(told).splitlines()))


def _of_the_line(error: Exception) -> Told:
    """What is wrong with the words of the command line."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "replaygen"
    what = " ".join(_message(error).split()).rstrip(".")
    hint = f"{path} --help"
    if found := _NO_COMMAND.match(what):
        what, hint = f"no such command: {path} {found[1]}", _nearest(found[1], _commands_of(context), hint)
    elif option := getattr(error, "option_name", None) if type(error).__name__ == "NoSuchOption" else None:
        what, hint = f"no such option: {option}", _nearest(option, _options_of(context), hint)
        if option == "--json":
            hint = f"it comes after the command: {path} COMMAND --json"
    elif found := _NO_CHOICE.match(what):
        known = re.findall(r"'(.*?)'", found[3])
        what = f"{found[1][:1].lower()}{found[1][1:]}{found[2]!r} is none of {', '.join(known)}"
        hint = _nearest(found[2], known, hint)
    else:
        what = what[:1].lower() + what[1:]
    return Told("UsageError", what, path, hint)


def _message(error: Exception) -> str:
    return str(error.format_message())  # type: ignore[attr-defined]  # of every error about a command line


def _nearest(word: str, known: Iterable[str], otherwise: str) -> str:
    import difflib

    near = difflib.get_close_matches(word, list(known), n=2)
    return f"did you mean {' or '.join(near)}? see: {otherwise}" if near else otherwise


def _commands_of(context: object) -> list[str]:
    command = getattr(context, "command", None)
    commands = getattr(command, "commands", {})
    return [name for name, one in commands.items() if not one.hidden]


def _options_of(context: object) -> list[str]:
    params = getattr(getattr(context, "command", None), "params", ())
    return [name for param in params for name in param.opts if name.startswith("--")]


def _foreseen(error: Exception) -> Told | None:
    """An error of the machine that its user can mend: a package that is not installed, a path, a full disk."""
    if isinstance(error, ModuleNotFoundError):
        from replaygen.cli.places import PACKAGES

        package = (error.name or "").partition(".")[0]
        if package not in PACKAGES:
            return None
        ways = " or ".join(f"pip install 'replaygen[{extra}]'" for extra in PACKAGES[package].split())
        return Told("ModuleNotFoundError", f"this needs the package {package}, which is not installed", "", ways)
    if isinstance(error, OSError) and error.errno in _OF_THE_SYSTEM and error.filename is not None:
        where = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        return Told(type(error).__name__, error.strerror or str(error), where, _OF_THE_SYSTEM[error.errno])
    return None


def _unforeseen(error: Exception) -> Told:
    """A fault of the program: its traceback goes to standard error, without values of secrets."""
    import traceback

    from replaygen.logs import redacted

    print(redacted("".join(traceback.format_exception(error))), file=sys.stderr, end="", flush=True)
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return Told(
        type(error).__name__, f"unforeseen: {type(error).__name__}: {error}", where,
        "this is a fault of the program or of a package that it uses: report it, with the lines above",
    )  # fmt: skip
