"""The `replaygen` command. Each command is thin: it parses, calls the library, prints."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from replaygen.errors import ReplaygenError


def main() -> None:
    """Entry point: runs a command; errors made on purpose end in two or three lines and exit code 1."""
    from replaygen.errors import ReplaygenError

    try:
        from replaygen.cli.app import app
        from replaygen.logs import start

        start()
        app()
    except ReplaygenError as error:
        _tell(error)
        sys.exit(1)


def _tell(error: ReplaygenError) -> None:
    from replaygen.logs import in_json, say

    told = {"kind": type(error).__name__, "what": error.what, "where": error.where, "hint": error.hint}
    if "--json" in sys.argv:
        import json

        print(json.dumps({"error": told}, ensure_ascii=False))
    if in_json():
        say(error.what, grave=True, **told)
    elif "--json" not in sys.argv:
        say(f"error: {error}")
