"""The reference of recipes in Markdown, written from the tables that check them: `python -m replaygen.plan.reference`.

With the path of a page as its argument it renews what stands there between `<!-- reference -->` and its end mark.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from replaygen.plan.method import read_method
from replaygen.plan.recipe import RecipeTable
from replaygen.plan.workspace import shipped

BEGIN, END = "<!-- reference -->", "<!-- /reference -->"
_WORDS = {int: "number", float: "number", str: "text", bool: "true, false", Any: "any value"}
_LIMITS = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
_NAMES = {"replay": "NAME", "query": "CLASS"}
"""What stands for the name that a recipe chooses, in tables of tables."""


def tables(model: type[BaseModel] = RecipeTable, path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Every table of a recipe: its heading ("[replay.NAME.trust]") and its model, in the order of a file."""
    yield "(top)" if not path else path if path.startswith("[[") else f"[{path}]", model
    for name, field in model.model_fields.items():
        for inner in dict.fromkeys(_models(field.annotation)):
            parts = [*([path] if path else []), name]
            if get_origin(field.annotation) is dict:
                parts.append(_NAMES[name])
            heading = ".".join(parts)
            yield from tables(inner, f"[[{heading}]]" if get_origin(field.annotation) is tuple else heading)


def reference() -> str:
    """Markdown: a section for every table of a recipe, then the options of every method that comes with replaygen."""
    first: dict[type[BaseModel], str] = {}
    sections = [_section(heading, model, first.setdefault(model, heading)) for heading, model in tables()]
    return "\n\n".join([*sections, _trainers()]) + "\n"


def renew(page: Path) -> str:
    """The text of a page with the reference between its two marks written anew."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"{page} lacks {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n\n{reference()}\n{END}{after}"


def default_of(field: FieldInfo) -> str:
    """A field's default as a recipe would write it; empty where there is none, or where it is a table or nothing."""
    if field.is_required():
        return "needed"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or value is None or isinstance(value, BaseModel) or value in ((), {}, ""):
        return ""
    return f"`{_toml(value)}`"


def values_of(field: FieldInfo) -> str:
    """What a field takes, in words: "number, ≥ 0, < 1"."""
    kinds = dict.fromkeys(_kinds(field.annotation))
    metadata = field.metadata
    limits = [f"{sign} {getattr(one, name):g}" for one in metadata for name, sign in _LIMITS if hasattr(one, name)]
    return ", ".join([*kinds, *limits])


def _section(heading: str, model: type[BaseModel], first: str) -> str:
    title = "At the top" if heading == "(top)" else f"`{heading}`"
    if first != heading:
        return f"### {title}\n\nThe keys of `{first}`."
    rows = [
        f"| `{name}` | {default_of(field)} | {_cell(values_of(field))} | {_cell(field.description or '')} |"
        for name, field in model.model_fields.items()
        if not any(True for _ in _models(field.annotation))
    ]
    words = (model.__doc__ or "").strip().splitlines()[0].split("]`: ")[-1]
    words = words[:1].upper() + words[1:]
    return "\n".join(
        [f"### {title}", "", words, "", "| key | default | takes | meaning |", "| --- | --- | --- | --- |", *rows]
    )


def _trainers() -> str:
    rows = []
    for path in sorted((shipped() / "trainers").glob("*.py")):
        method = read_method(path)
        told = ", ".join(f"`{name}` = {_toml(value)}" for name, value in method.options.items())
        rows.append(f"| `{path.stem}` | {told} | {_cell(_option_words(path))} |")
    head = ["### Options of the methods", "", "A `[[method]]` row may also set these, by its trainer.", ""]
    return "\n".join([*head, "| trainer | options | meaning |", "| --- | --- | --- |", *rows])


def _option_words(path: Path) -> str:
    """The docstring of a method file's `Options` without its first line, as one line."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == "Options":
            return " ".join((ast.get_docstring(node) or "").partition("\n")[2].split())
    return ""


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def _kinds(annotation: Any) -> Iterator[str]:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        yield from (f"`{_toml(value)}`" for value in inner)
    elif origin in (Union, UnionType):
        for one in inner:
            yield from _kinds(one)
    elif origin is tuple:
        kind = next(_kinds(inner[0]))
        yield f"list of {kind}s" if inner[-1] is Ellipsis else f"list of {len(inner)} {kind}s"
    elif origin is dict:
        yield "table"
    elif annotation is not NoneType:
        yield _WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_toml(one) for one in value) + "]"
    return str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(renew(Path(sys.argv[1])), encoding="utf-8")
    else:
        print(reference(), end="")
