"""The commands about generators: which class is which, how good a generated set is, take a fitted one away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from replaygen.cli import completing
from replaygen.cli.options import Cache, Json, RecipeName, Set, open_recipe

if TYPE_CHECKING:
    from replaygen.plan import Plan

app = typer.Typer(no_args_is_help=True, help="Class maps, quality and weights of a recipe's generators.")


def _plan(recipe: str, changes: list[str] | None, cache_root: str | None) -> Plan:
    found, store = open_recipe(recipe, changes, cache_root, reads=True)
    return found.plan(store)


@app.command("map")
def class_map(recipe: RecipeName, changes: Set = None, cache_root: Cache = None, as_json: Json = False) -> None:
    """Print which of a generator's classes stands for each class, and how sure that is. Measures what a run would."""
    from dataclasses import asdict

    from replaygen.errors import RecipeError
    from replaygen.generators.classmap import ClassMap

    planned = _plan(recipe, changes, cache_root)
    told: dict[str, Any] = {}
    for name, table in planned.recipe.table.replay.items():
        at = planned.opened.generators.get(name)
        if at is None or at.prompted or at.found is None:
            continue
        maps = [ClassMap.from_json(data) for data in _measured(planned, name)]
        told[name] = {
            "given": {one: index for one, index in at.labels.items() if index is not None},
            "matches": [asdict(match) for match in at.found.matches],
            "measured": [asdict(one) for one in maps],
        }
        if not as_json:
            print(f"{name}: {table.source}, {at.folder}\n{at.found.as_text()}")
            for one in maps:
                print(f"measured:\n{one.as_text()}")
    if not told:
        raise RecipeError(
            "no source of this recipe draws by class",
            where=planned.recipe.name,
            hint="biggan and DiT sources have classes",
        )
    if as_json:
        print(json.dumps(told, ensure_ascii=False))


def _measured(planned: Plan, source: str) -> list[bytes]:
    """The class maps of a source that a run measures, measured now where they are not in the store."""
    from replaygen.runs.execute import execute

    maps = []
    for slot, key in planned.slots.items():
        if slot.startswith(f"classmap/{source}/"):
            execute(planned.store.address, planned.tasks[key])
            record = planned.store.get(key)
            assert record is not None
            maps.append(planned.store.read(record.output("classmap.json").digest))
    return maps


@app.command()
def quality(recipe: RecipeName, changes: Set = None, cache_root: Cache = None, as_json: Json = False) -> None:
    """Print how good each generated set of a run is: found, diversity, KID, memorised."""
    from replaygen.errors import DataError
    from replaygen.report.quality import qualities, quality_rows, quality_text

    planned = _plan(recipe, changes, cache_root)
    found = [one for seed in planned.recipe.table.train.seeds for one in qualities(planned, seed)]
    if not found:
        hint = f"run it first: replaygen run {recipe}"
        if not planned.recipe.table.method:
            hint = "without a [[method]] no model labels the images, so nothing is measured"
        raise DataError("no generated set was measured yet", where=recipe, hint=hint)
    print(json.dumps(quality_rows(found)) if as_json else quality_text(found))


@app.command()
def save(
    recipe: RecipeName,
    source: Annotated[
        str, typer.Argument(help="the [replay.NAME] whose generator to save", autocompletion=completing.sources)
    ],
    folder: Annotated[Path, typer.Argument(help="where to; made if it is not there")],
    step: Annotated[int | None, typer.Option("--step", help="of which step; default: the last one there is")] = None,
    changes: Set = None,
    cache_root: Cache = None,
    as_json: Json = False,
) -> None:
    """Copy a fitted generator's weights out of the store: model.safetensors and config.json."""
    from replaygen.errors import DataError, StoreError
    from replaygen.store.fsops import replace_file

    planned = _plan(recipe, changes, cache_root)
    wanted = f"generator/{source}" + (f"/step{step}" if step is not None else "")
    slots = [slot for slot in planned.slots if slot == wanted or (step is None and slot.startswith(f"{wanted}/"))]
    records = [record for slot in slots if (record := planned.store.get(planned.slots[slot])) is not None]
    if not records:
        raise DataError(
            f"no fitted generator {wanted!r} is in the store", where=str(planned.store.root),
            hint=f"run it first: replaygen run {recipe}; fitted sources: "
            + (", ".join(n for n, t in planned.recipe.table.replay.items() if t.source == "fitted") or "none"),
        )  # fmt: skip
    record = records[-1]
    config = json.loads(planned.store.read(record.output("generator.json").digest))
    weights = planned.store.read(record.output("generator.safetensors").digest)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / "model.safetensors", weights)
        replace_file(folder / "config.json", f"{json.dumps(config, indent=1)}\n".encode())
    except OSError as error:
        raise StoreError(
            f"the generator cannot be saved: {error.strerror or error}",
            where=str(error.filename2 or error.filename or folder), hint="give a folder that can be written",
        ) from None  # fmt: skip
    told = {"folder": str(folder), "slot": record.slot, "key": record.key, "classes": config["classes"]}
    print(json.dumps(told) if as_json else f"saved {record.slot} ({', '.join(config['classes'])}) to {folder}")
