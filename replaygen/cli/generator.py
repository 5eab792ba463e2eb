"""The commands about generators: which class is which, how good a generated set is, take a fitted one away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from replaygen.plan import Plan

app = typer.Typer(no_args_is_help=True, help="Class maps, quality and weights of a recipe's generators.")

RecipeName = Annotated[str, typer.Argument(help="a recipe's file, or its name in pipelines/")]
Json = Annotated[bool, typer.Option("--json", help="print plain data with stable keys")]
Cache = Annotated[Path | None, typer.Option("--cache", help="the store; default: cache/ of the recipe's workspace")]
Set = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE laid over the recipe, VALUE in TOML")]


def _plan(recipe: str, changes: list[str] | None, cache_root: Path | None) -> Plan:
    from replaygen.cli.app import open_recipe

    found, store = open_recipe(recipe, changes, cache_root)
    return found.plan(store)


@app.command("map")
def class_map(recipe: RecipeName, changes: Set = None, cache_root: Cache = None, as_json: Json = False) -> None:
    """Print which of a generator's classes stands for each class, and how sure that is. Measures what a run would."""
    from replaygen.errors import RecipeError
    from replaygen.generators.classmap import ClassMap
    from replaygen.runs.execute import execute, root_of

    planned = _plan(recipe, changes, cache_root)
    told: dict[str, Any] = {}
    for name, table in planned.recipe.table.replay.items():
        at = planned.opened.generators.get(name)
        if at is None or at.prompted:
            continue
        told[name] = {"given": {one: index for one, index in at.labels.items() if index is not None}, "measured": []}
        for slot, key in planned.slots.items():
            if slot.startswith(f"classmap/{name}/"):
                execute(root_of(planned.store), planned.tasks[key])
                record = planned.store.get(key)
                assert record is not None
                told[name]["measured"].append(planned.store.read(record.output("classmap.json").digest))
        if not as_json:
            print(f"{name}: {table.source}, {at.folder}")
            for one, index in told[name]["given"].items():
                print(f"  {one:<16} {index:>5}")
            for measured in told[name]["measured"]:
                print(ClassMap.from_json(measured).as_text())
    if not told:
        raise RecipeError(
            "no source of this recipe draws by class",
            where=planned.recipe.name,
            hint="biggan and DiT sources have classes",
        )
    if as_json:
        plain = {
            one: {**found, "measured": [json.loads(data) for data in found["measured"]]} for one, found in told.items()
        }
        print(json.dumps(plain, ensure_ascii=False))


@app.command()
def quality(recipe: RecipeName, changes: Set = None, cache_root: Cache = None, as_json: Json = False) -> None:
    """Print how good each generated set of a run is: found, diversity, KID, memorised."""
    from dataclasses import asdict

    from replaygen.errors import DataError
    from replaygen.report.quality import qualities, quality_text

    planned = _plan(recipe, changes, cache_root)
    found = [one for seed in planned.recipe.table.train.seeds for one in qualities(planned, seed)]
    if not found:
        raise DataError("no generated set was measured yet", where=recipe, hint=f"run it first: replaygen run {recipe}")
    print(json.dumps([asdict(one) for one in found]) if as_json else quality_text(found))


@app.command()
def save(
    recipe: RecipeName,
    source: Annotated[str, typer.Argument(help="the [replay.NAME] whose generator to save")],
    folder: Annotated[Path, typer.Argument(help="where to; made if it is not there")],
    step: Annotated[int | None, typer.Option("--step", help="of which step; default: the last one there is")] = None,
    changes: Set = None,
    cache_root: Cache = None,
    as_json: Json = False,
) -> None:
    """Copy a fitted generator's weights out of the store: model.safetensors and config.json."""
    from replaygen.errors import DataError

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
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads(planned.store.read(record.output("generator.json").digest))
    (folder / "model.safetensors").write_bytes(planned.store.read(record.output("generator.safetensors").digest))
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    told = {"folder": str(folder), "slot": record.slot, "key": record.key, "classes": config["classes"]}
    print(json.dumps(told) if as_json else f"saved {record.slot} ({', '.join(config['classes'])}) to {folder}")
