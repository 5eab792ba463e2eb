"""The `replaygen` command. Each command is thin: it parses, calls the library, prints."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point: runs a command; errors made on purpose end in two or three lines and exit code 1."""
    from replaygen.errors import ReplaygenError

    try:
        from replaygen.cli.app import app

        app()
    except ReplaygenError as error:
        _tell(error)
        sys.exit(1)


def _tell(error: Exception) -> None:
    from replaygen.errors import ReplaygenError

    assert isinstance(error, ReplaygenError)
    if "--json" in sys.argv:
        import json

        told = {"error": {"kind": type(error).__name__, "what": error.what, "where": error.where, "hint": error.hint}}
        print(json.dumps(told, ensure_ascii=False))
    else:
        print(f"error: {error}", file=sys.stderr)
