"""The systemd unit that serves a schedule."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from replaygen.schedule.times import ScheduleError

_PLAIN = re.compile(r"[A-Za-z0-9_./:@=+,-]+")


def unit(command: Sequence[str], folder: Path, environment: Path | None = None) -> str:
    """A unit for `systemctl --user`, or with `User=` added for the system.

    Args:
        command: the daemon's, with the interpreter's whole path.
        folder: where it runs.
        environment: a file of NAME=VALUE lines, only its owner should read it; secrets belong there and nowhere else.

    Raises:
        ScheduleError: a path that a unit cannot hold.
    """
    secrets = [f"EnvironmentFile={_path(environment)}"] if environment is not None else []
    lines = [
        "[Unit]", "Description=replaygen schedule", "After=network-online.target", "Wants=network-online.target", "",
        "[Service]", f"ExecStart={' '.join(_word(part) for part in command)}", f"WorkingDirectory={_path(folder)}",
        *secrets, "Restart=on-failure", "RestartSec=10", "KillMode=mixed", "TimeoutStopSec=20",
        "OOMPolicy=continue",  # a run that takes all memory is killed alone, and begun again
        "NoNewPrivileges=yes", "", "[Install]", "WantedBy=default.target",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _word(text: str) -> str:
    """A word of a command line: quoted where it must be; `%` and `$` stand for themselves."""
    _one_line(text)
    text = text.replace("%", "%%").replace("$", "$$")
    if _PLAIN.fullmatch(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _path(path: Path) -> str:
    """A path as a value: not quoted, with `%` for itself."""
    return _one_line(str(path.absolute())).replace("%", "%%")


def _one_line(text: str) -> str:
    if any(ord(sign) < 32 for sign in text):
        raise ScheduleError("a unit cannot hold this path", where=ascii(text), hint="use a folder with a plain name")
    return text
