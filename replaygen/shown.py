"""How a plan, a run or replay shows itself in a notebook: drawn by `report`, a room above those that hold them."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Protocol


class Printer(Protocol):
    """What IPython hands to `_repr_pretty_`, which says a thing's text where no HTML is shown."""

    def text(self, obj: str) -> None: ...


def notebook_html(kind: str, thing: object) -> str | None:
    """HTML of a thing by `replaygen.report.notebook.<kind>`; it stands alone and asks for nothing outside itself.

    None where the packages for pages are not installed: a notebook then prints the thing's text. The one way up from a
    lower room, taken by name when a notebook asks, so that nothing is imported for it before.
    """
    if any(find_spec(package) is None for package in ("jinja2", "matplotlib")):
        return None
    html: str = getattr(import_module("replaygen.report.notebook"), kind)(thing)
    return html
