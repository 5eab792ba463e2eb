"""Where in a TOML file a key stands, for messages that name the line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_HEADER = re.compile(r"^\s*\[(\[?)\s*([^\]]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"^\s*([A-Za-z0-9_.\"'-]+?)\s*=")


def line_of(text: str, location: list[Any]) -> int | None:
    """The 1-based line where a dotted location stands, its nearest enclosing table otherwise."""
    best: tuple[int, int] | None = None
    for number, path in _lines(text):
        depth = 0
        for mine, wanted in zip(path, location, strict=False):
            if mine != str(wanted):
                break
            depth += 1
        if depth and (best is None or depth > best[0]) and depth == len(path):
            best = (depth, number)
    return best[1] if best else None


def _lines(text: str) -> Iterator[tuple[int, list[str]]]:
    table: list[str] = []
    rows: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        header = _HEADER.match(line)
        if header:
            table = [part.strip().strip("\"'") for part in header[2].split(".")]
            if header[1]:
                rows[header[2]] = rows.get(header[2], -1) + 1
                table = [*table, str(rows[header[2]])]
            yield number, table
            continue
        key = _KEY.match(line)
        if key:
            yield number, [*table, *(part.strip("\"'") for part in key[1].split("."))]
