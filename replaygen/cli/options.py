"""What the commands share: their options, and the recipe and store that these name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from replaygen.plan import Recipe
    from replaygen.store import Store

RecipeName = Annotated[str, typer.Argument(help="a recipe's file, or its name in pipelines/")]
Json = Annotated[bool, typer.Option("--json", help="print plain data with stable keys")]
Cache = Annotated[Path | None, typer.Option("--cache", help="the store; default: cache/ of the recipe's workspace")]
Set = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE laid over the recipe, VALUE in TOML")]
Workers = Annotated[int | None, typer.Option("--workers", min=0, help="Dask worker processes; 0: this process")]
Scheduler = Annotated[str | None, typer.Option(help="tcp:// or tls:// address of a running Dask cluster")]


def open_recipe(
    name: str, changes: list[str] | None, cache_root: Path | None, extra: dict[str, Any] | None = None
) -> tuple[Recipe, Store]:
    """The recipe with `--set` laid over it, and the store to use."""
    import tomllib

    from replaygen.errors import RecipeError
    from replaygen.plan import Recipe
    from replaygen.store import Store

    laid = dict(extra or {})
    for change in changes or []:
        key, equals, value = change.partition("=")
        try:
            laid[key.strip()] = tomllib.loads(f"x = {value}")["x"] if equals else True
        except tomllib.TOMLDecodeError:
            raise RecipeError(
                f"--set {change!r}: the value is no TOML", hint="quote text: --set 'data.path=\"photos\"'"
            ) from None
    recipe = Recipe.load(name, laid)
    return recipe, Store(cache_root) if cache_root is not None else recipe.store()
