"""What a shell offers after Tab: recipes, trainers, rows of a recipe, runs, jobs.

Shells evaluate what they are offered, so only plain names pass. Nothing here may fail, or say anything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import typer

_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+/-]*")


def _offered(names: Callable[[], Iterable[str]], incomplete: str) -> list[str]:
    try:
        return sorted({name for name in names() if name.startswith(incomplete) and _PLAIN.fullmatch(name)})
    except Exception:  # a recipe or a store that cannot be read offers nothing
        return []


def recipes(incomplete: str) -> list[str]:
    """Names of recipes in reach; none where a path is begun, so that the shell offers files."""
    from replaygen.plan.workspace import list_recipes

    return _offered(lambda: (path.stem for path in list_recipes()), incomplete)


def recipes_and_trainers(incomplete: str) -> list[str]:
    """Names of what `recipes cp` copies."""
    from replaygen.plan.workspace import list_trainers

    return sorted(
        {*recipes(incomplete), *_offered(lambda: (one.stem for one in list_trainers(Path.cwd())), incomplete)}
    )


def rows(ctx: typer.Context, incomplete: str) -> list[str]:
    """Rows, `[[method]]`, of the recipe that was named before."""
    from replaygen.cli.options import load_recipe

    return _offered(lambda: (row.name for row in load_recipe(_recipe(ctx), None).table.method), incomplete)


def sources(ctx: typer.Context, incomplete: str) -> list[str]:
    """Replay sources, `[replay.NAME]`, of the recipe that was named before."""
    from replaygen.cli.options import load_recipe

    return _offered(lambda: load_recipe(_recipe(ctx), None).table.replay, incomplete)


def run_ids(ctx: typer.Context, incomplete: str) -> list[str]:
    """Runs of the store, and `last`."""
    from replaygen.runs.ledger import Ledger

    def ids() -> Iterable[str]:
        return ("last", *(row.id for row in Ledger(_store(ctx), readonly=True).runs(50)))

    return _offered(ids, incomplete)


def jobs(ctx: typer.Context, incomplete: str) -> list[str]:
    """Jobs of the store's schedule."""
    from replaygen.runs.ledger import Ledger
    from replaygen.schedule import Jobs

    return _offered(lambda: (job.name for job in Jobs(Ledger(_store(ctx), readonly=True)).all()), incomplete)


def words(*known: str) -> Callable[[str], list[str]]:
    """Some of a few words."""
    return lambda incomplete: _offered(lambda: known, incomplete)


def _recipe(ctx: typer.Context) -> str:
    """The recipe that was named before; a line that cannot be parsed yet has it among what is left of it."""
    return _given(ctx, "recipe") or next(word for word in ctx.args if not word.startswith("-"))


def _given(ctx: typer.Context, name: str) -> str:
    value: Any = ctx.params.get(name)
    return str(value or "")


def _store(ctx: typer.Context) -> Path:
    """The local store that `--cache` names; a missing one, or one in a bucket, offers nothing."""
    root = Path(_given(ctx, "root") or "cache")
    if not (root / "format").is_file():
        raise FileNotFoundError(root)
    return root.absolute()
