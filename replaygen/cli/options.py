"""What the commands share: their options, and the recipe and store that these name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from replaygen.cli import completing

if TYPE_CHECKING:
    from replaygen.plan import Recipe
    from replaygen.store import Store

RecipeName = Annotated[
    str, typer.Argument(help="a recipe's file, or its name in pipelines/", autocompletion=completing.recipes)
]
Json = Annotated[bool, typer.Option("--json", help="print plain data with stable keys")]
Cache = Annotated[
    str | None,
    typer.Option("--cache", help="the store: a folder or s3://bucket/prefix; default: the recipe's, or its cache/"),
]
Set = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE laid over the recipe, VALUE in TOML")]
Workers = Annotated[int | None, typer.Option("--workers", min=0, help="Dask worker processes; 0: this process")]
Cluster = Annotated[
    str | None,
    typer.Option(
        "--cluster", help="local, slurm and its kin, or a Dask cluster's tcp:// or tls:// address",
        autocompletion=completing.words("local", "slurm", "pbs", "sge", "lsf", "moab", "oar", "htcondor"),
    ),
]  # fmt: skip


Root = Annotated[str, typer.Option("--cache", help="the store: a folder or s3://bucket/prefix")]


def load_recipe(name: str, changes: list[str] | None, extra: dict[str, Any] | None = None) -> Recipe:
    """The recipe with `--set` laid over it; no store is opened.

    Args:
        name: a recipe's file or name.
        changes: KEY=VALUE, each VALUE in TOML.
        extra: further changes, dotted key -> value, below `changes`.
    """
    from replaygen.plan import Recipe
    from replaygen.plan.changes import changes_of

    return Recipe.load(name, {**(extra or {}), **changes_of(changes or [])})


def open_recipe(
    name: str, changes: list[str] | None, cache_root: str | None, extra: dict[str, Any] | None = None,
    *, reads: bool = False,
) -> tuple[Recipe, Store]:  # fmt: skip
    """The recipe of `load_recipe`, and the store to use.

    Args:
        cache_root: the store's address; None: the recipe's.
        reads: the command only reads: a store that this user cannot write is opened read-only.
    """
    from replaygen.errors import StoreError
    from replaygen.store import Store

    recipe = load_recipe(name, changes, extra)
    address = cache_root if cache_root is not None else recipe.store_address()
    if not reads and not may_write(str(address)):
        raise StoreError(
            "you cannot write to this store", where=str(address),
            hint=f"copy what is there to one of yours: replaygen cache bring {name} --from {address} --cache YOURS",
        )  # fmt: skip
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
