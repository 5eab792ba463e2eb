"""What a plan must know of a method file, read without executing it."""

from __future__ import annotations

import ast
import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from replaygen.errors import RecipeError

ALLOWED_IMPORTS = {"replaygen", "torch", "numpy", "__future__"}


@dataclass(frozen=True)
class Method:
    """A trainer as the plan sees it.

    Attributes:
        source: the file's bytes; they enter the key by their sha256 and are stored with the run.
        replay: whether its step takes replay: it must have it, it may ("optional"), or it takes none.
        inpaint: whether its current labels are inpainted, knowledge: whether its replay's labels receive the classes
            being learnt; both unless the recipe says otherwise.
        all_data: whether it sees every class and image at once (joint training).
        options: its own options and their defaults.
        choices: the values that an option annotated `Literal[...]` takes.
    """

    name: str
    source: bytes
    digest: str
    replay: bool | Literal["optional"]
    inpaint: bool
    knowledge: bool
    all_data: bool
    options: dict[str, Any]
    choices: dict[str, tuple[Any, ...]]


def read_method(path: Path) -> Method:
    """Read a method's traits, options and imports from its syntax tree; nothing is executed.

    Raises:
        RecipeError: no valid Python, no `TRAITS`, no `step`, or an import that a worker may not have.
    """
    source = path.read_bytes()
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise RecipeError(f"not valid Python: {error.msg}", where=f"{path}:{error.lineno}") from None
    _check_imports(tree, path)
    traits = _literal(tree, "TRAITS", path)
    unknown = set(traits) - {"replay", "inpaint", "knowledge", "data"}
    if unknown:
        raise RecipeError(
            f"unknown trait {min(unknown)!r}", where=str(path), hint="TRAITS takes replay, inpaint, knowledge and data"
        )
    if traits.get("replay", False) not in (True, False, "optional"):
        raise RecipeError(f"trait replay = {traits['replay']!r}", where=str(path), hint='True, False or "optional"')
    if traits.get("data", "step") not in ("step", "all"):
        raise RecipeError(f"trait data = {traits['data']!r}", where=str(path), hint='"step" or "all"')
    if not any(isinstance(node, ast.FunctionDef) and node.name == "step" for node in tree.body):
        raise RecipeError("a method file needs `def step(k, current, buffer, previous, job)`", where=str(path))
    options, choices = _options(tree, path)
    return Method(
        name=path.stem,
        source=source,
        digest=hashlib.sha256(source).hexdigest(),
        replay=traits.get("replay", False),
        inpaint=bool(traits.get("inpaint", False)),
        knowledge=bool(traits.get("knowledge", False)),
        all_data=traits.get("data", "step") == "all",
        options=options,
        choices=choices,
    )


def _check_imports(tree: ast.Module, path: Path) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""] if node.level == 0 else ["."]
        else:
            continue
        for name in names:
            top = name.partition(".")[0]
            if top not in ALLOWED_IMPORTS and top not in sys.stdlib_module_names:
                raise RecipeError(
                    f"a method file may not import {name!r}",
                    where=f"{path}:{node.lineno}",
                    hint="its key is the digest of this one file: import only the standard library, torch, numpy "
                    "and replaygen",
                )


def _literal(tree: ast.Module, name: str, path: Path) -> dict[str, Any]:
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == name and getattr(node, "value", None) is not None:
            try:
                value = ast.literal_eval(node.value)  # type: ignore[attr-defined]
            except ValueError:
                break
            if isinstance(value, dict):
                return value
    raise RecipeError(
        f"a method file needs a literal `{name}`", where=str(path),
        hint='TRAITS = {"replay": True, "inpaint": False, "data": "step"}',
    )  # fmt: skip


def _options(tree: ast.Module, path: Path) -> tuple[dict[str, Any], dict[str, tuple[Any, ...]]]:
    options: dict[str, Any] = {}
    choices: dict[str, tuple[Any, ...]] = {}
    for node in tree.body:
        if not (isinstance(node, ast.ClassDef) and node.name == "Options"):
            continue
        for line in node.body:
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                if line.value is None:
                    raise RecipeError(f"option {line.target.id!r} needs a default", where=f"{path}:{line.lineno}")
                try:
                    options[line.target.id] = ast.literal_eval(line.value)
                except ValueError:
                    raise RecipeError(
                        f"the default of option {line.target.id!r} is no literal", where=f"{path}:{line.lineno}",
                        hint="write the value out: the plan reads it without executing the file",
                    ) from None  # fmt: skip
                kind = line.annotation
                if isinstance(kind, ast.Subscript) and isinstance(kind.value, ast.Name) and kind.value.id == "Literal":
                    told = ast.literal_eval(kind.slice)
                    choices[line.target.id] = told if isinstance(told, tuple) else (told,)
    return options, choices
