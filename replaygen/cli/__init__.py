"""The `replaygen` command. Each command is thin: it parses, calls the library, prints."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point: runs a command to its end; what goes wrong is told in a few lines, and by the exit code."""
    from replaygen.cli.ending import run_to_its_end

    sys.exit(run_to_its_end(_command))


def _command() -> object:
    import os

    from replaygen.cli.ending import quiet_outside_a_terminal
    from replaygen.logs import start

    quiet_outside_a_terminal()
    start()
    import typer

    from replaygen.cli.app import app

    color = False if os.environ.get("NO_COLOR") else None
    return typer.main.get_command(app).main(prog_name="replaygen", standalone_mode=False, color=color)
