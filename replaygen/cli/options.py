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
Cache = Annotated[
    str | None,
    typer.Option("--cache", help="the store: a folder or s3://bucket/prefix; default: the recipe's, or its cache/"),
]
Set = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE laid over the recipe, VALUE in TOML")]
Workers = Annotated[int | None, typer.Option("--workers", min=0, help="Dask worker processes; 0: this process")]
Cluster = Annotated[
    str | None, typer.Option("--cluster", help="local, slurm and its kin, or a Dask cluster's tcp:// or tls:// address")
]


Root = Annotated[str, typer.Option("--cache", help="the store: a folder or s3://bucket/prefix")]


def open_recipe(
    name: str, changes: list[str] | None, cache_root: str | None, extra: dict[str, Any] | None = None,
    *, reads: bool = False,
) -> tuple[Recipe, Store]:  # fmt: skip
    """The recipe with `--set` laid over it, and the store to use.

    Args:
        name: a recipe's file or name.
        changes: KEY=VALUE, each VALUE in TOML.
        cache_root: the store's address; None: the recipe's.
        extra: further changes, dotted key -> value, below `changes`.
        reads: the command only reads: a store that this user cannot write is opened read-only.
    """
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
    if cache_root is not None:
        return recipe, Store(cache_root, readonly=reads and not may_write(cache_root))
    store = recipe.store()
    if reads and not may_write(str(store.root)):
        store = Store(store.address, readonly=True)
    return recipe, store


def open_store(address: str, *, readonly: bool = False, reads: bool = False) -> Store:
    """A store that is there; `reads`: read-only where this user cannot write it.

    Raises:
        StoreError: no store there.
    """
    from replaygen.errors import StoreError
    from replaygen.store import Store

    if "://" not in address and not (Path(address) / "format").is_file():
        raise StoreError("no store here", where=address, hint="run a recipe first, or name the store with --cache")
    return Store(address, readonly=readonly or (reads and not may_write(address)))


def may_write(address: str) -> bool:
    """Whether this user may write into a store that is there; one in a bucket tells when it is tried."""
    import os

    folder = Path(address)
    return "://" in address or not (folder / "format").is_file() or os.access(folder, os.W_OK)


def asked() -> str:
    """The command that was given, as people type it."""
    import shlex
    import sys

    return shlex.join(["replaygen", *sys.argv[1:]])[:2000]
