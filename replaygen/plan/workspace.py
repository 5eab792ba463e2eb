"""A workspace: any folder with `pipelines/`, `trainers/` and `cache/`. Its own files win over the installed ones."""

from __future__ import annotations

import os
import re
from pathlib import Path

from replaygen.classes import nearest_hint
from replaygen.errors import RecipeError


def shipped() -> Path:
    """The folder that holds the `pipelines/` and `trainers/` that came with this installation."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "_workspace"
    return installed if installed.is_dir() else package.parent


def workspace_of(recipe: Path) -> Path:
    """The workspace a recipe belongs to: the folder above its `pipelines/`, else the current folder.

    A recipe that came with the installation is run in the current folder.
    """
    recipe = recipe.resolve()
    if recipe.parent == (shipped() / "pipelines") and shipped().name == "_workspace":
        return Path.cwd()
    return recipe.parent.parent if recipe.parent.name == "pipelines" else Path.cwd()


def find_recipe(name: str) -> Path:
    """A recipe by path, or by name in the workspace's `pipelines/`, or among the installed ones."""
    direct = Path(name)
    if direct.suffix == ".toml" and direct.is_file():
        return direct
    folders = [Path.cwd() / "pipelines", shipped() / "pipelines"]
    for folder in folders:
        for candidate in (folder / direct.name, folder / f"{name}.toml"):
            if candidate.is_file() and candidate.suffix == ".toml":
                return candidate
    known = {path.stem for folder in folders if folder.is_dir() for path in folder.glob("*.toml")}
    raise RecipeError(f"no recipe {name!r}", where=str(folders[0]), hint=nearest_hint(direct.stem, known))


def list_recipes() -> list[Path]:
    """Every recipe in reach, the workspace's own before the installed ones of the same name."""
    found: dict[str, Path] = {}
    for folder in (Path.cwd() / "pipelines", shipped() / "pipelines"):
        for path in sorted(folder.glob("*.toml")) if folder.is_dir() else []:
            found.setdefault(path.stem, path)
    return [found[name] for name in sorted(found)]


def find_trainer(name: str, workspace: Path) -> Path:
    """A method's file: by path, or by name in the workspace's `trainers/`, or among the installed ones."""
    if name.endswith(".py"):
        path = Path(name) if Path(name).is_absolute() else workspace / name
        if path.is_file():
            return path
        raise RecipeError(f"no trainer file {name!r}", where=str(path))
    folders = [workspace / "trainers", shipped() / "trainers"]
    for folder in folders:
        if (folder / f"{name}.py").is_file():
            return folder / f"{name}.py"
    known = {path.stem for folder in folders if folder.is_dir() for path in folder.glob("*.py")}
    raise RecipeError(f"no trainer {name!r}", where=str(folders[0]), hint=nearest_hint(name, known))


def list_trainers(workspace: Path) -> list[Path]:
    """Every method file in reach, the workspace's own before the installed ones of the same name."""
    found: dict[str, Path] = {}
    for folder in (workspace / "trainers", shipped() / "trainers"):
        for path in sorted(folder.glob("*.py")) if folder.is_dir() else []:
            found.setdefault(path.stem, path)
    return [found[name] for name in sorted(found)]


_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def expand_path(text: str, *, workspace: Path, where: str, data_root: Path | None = None) -> Path:
    """A path of a recipe: `${NAME}` from the environment, `{data}` the data set's root, else relative to the workspace.

    `{pipelines}` is the workspace's `pipelines/`, or the installed one where that does not hold the rest of the path.

    Raises:
        RecipeError: a variable that is not set.
    """

    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match[1])
        if not found:
            raise RecipeError(
                f"{text!r} needs the environment variable {match[1]}",
                where=where, hint=f"export {match[1]}=/folder/with/the/data",
            )  # fmt: skip
        return found

    expanded = _VARIABLE.sub(value, text)
    if data_root is not None:
        expanded = expanded.replace("{data}", str(data_root))
    if expanded.startswith("{pipelines}/"):
        rest = expanded.removeprefix("{pipelines}/")
        folders = [workspace / "pipelines", shipped() / "pipelines"]
        return next((folder / rest for folder in folders if (folder / rest).exists()), folders[0] / rest)
    path = Path(expanded).expanduser()
    return path if path.is_absolute() else (workspace / path)
