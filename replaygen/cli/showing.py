"""The command that shows replay sets: counts, what was rejected and why, contact sheets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from replaygen.cli.options import Cache, Json, RecipeName, Set, open_recipe

if TYPE_CHECKING:
    from replaygen.plan import Recipe
    from replaygen.report.labels import Judged, Judgement
    from replaygen.report.sheets import Sheet, Told
    from replaygen.runs.replay import ReplaySet
    from replaygen.store import Store

MOST_ROWS = 40
"""Rejected samples of a set in the terminal, unless another number is asked for."""


def show(
    recipe: RecipeName,
    class_name: Annotated[str | None, typer.Argument(metavar="[CLASS]", help="a class of the recipe")] = None,
    rejected: Annotated[bool, typer.Option("--rejected", help="what was refused, why, and by which score")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="write the contact sheets to this HTML file")] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="samples shown of a set; many sets show fewer")
    ] = None,
    changes: Set = None,
    cache_root: Cache = None,
    as_json: Json = False,
) -> None:
    """Show the replay sets of a run: how many samples, from where, how good, what was refused; a sheet with `--out`."""
    from replaygen.logs import say

    found, store = open_recipe(recipe, changes, cache_root, reads=True)
    sets = _chosen(found, store, recipe, class_name)
    rows = [
        {"slot": slot, "samples": len(one), "wanted": one.manifest["wanted"], "shortfall": one.manifest["shortfall"]}
        for slot, one in sets.items()
    ]
    judged = _judged(sets) if rejected else {}
    if as_json:
        told: dict[str, Any] = {"replay": rows}
        if rejected:
            told["judged"] = [_as_json(slot, one, limit) for slot, one in judged.items()]
        print(json.dumps(told, ensure_ascii=False))
    else:
        for row in rows:
            print(f"{row['samples']:>6} of {row['wanted']:<6} {row['slot']}")
        for slot, one in judged.items() if out is None else ():
            print("\n" + "\n".join(_lines(slot, one, MOST_ROWS if limit is None else limit)))
    if out is not None:
        _write(out, sets, judged, limit)
        say(f"wrote {out}", page=str(out))


def _chosen(found: Recipe, store: Store, recipe: str, class_name: str | None) -> dict[str, ReplaySet]:
    """Slot -> replay set, of one class where one is named; DataError where there is none."""
    from replaygen.classes import nearest_hint
    from replaygen.errors import DataError
    from replaygen.runs import replay_sets

    sets = replay_sets(found.plan(store))
    if not sets:
        hint = f"run it first: replaygen run {recipe}, with the same --set"
        if not found.table.method:
            hint = "without a [[method]] no model labels the photos; only exemplars become replay sets"
        raise DataError("no replay set was made", where=str(store.root), hint=hint)
    if class_name is None:
        return sets
    chosen = {slot: one for slot, one in sets.items() if one.record.params["class_name"] == class_name}
    if not chosen:
        known = {one.record.params["class_name"] for one in sets.values()}
        raise DataError(f"no replay of {class_name!r} was made", hint=nearest_hint(class_name, known))
    return chosen


def _judged(sets: Mapping[str, ReplaySet]) -> dict[str, Judgement]:
    """Slot -> what became of every sample; sets that differ only in what later steps added are told once, the last."""
    from replaygen.report.labels import judge
    from replaygen.report.sheets import told_once

    return {one.slot: judge(one.replay_set, one.chains[0]) for one in told_once(sets)}


def _write(out: Path, sets: Mapping[str, ReplaySet], judged: Mapping[str, Judgement], limit: int | None) -> None:
    """A page with a sheet of every set, in the order of their classes; with what was rejected where that is asked."""
    from replaygen.report.sheets import (
        PAGE_SAMPLES,
        SHEET_SAMPLES,
        below_each_other,
        fair,
        in_order,
        save_sheets,
        sheets_of,
        told_once,
    )

    found = in_order(told_once(sets))
    if not judged:
        save_sheets(sheets_of(found, fair(PAGE_SAMPLES, len(found), SHEET_SAMPLES) if limit is None else limit), out)
        return
    from replaygen.report.strips import MOST_REJECTED, PAGE_TILES, judged_sheet

    most = fair(PAGE_TILES, len(found), MOST_REJECTED) if limit is None else limit

    def draw(one: Told, flickr: int) -> Sheet:
        return judged_sheet(judged[one.slot], most, labelled=one.labelled(), flickr=flickr)

    save_sheets(below_each_other(found, draw), out)


def _as_json(slot: str, one: Judgement, limit: int | None) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "slot": slot, "class": one.name, "source": one.source, "labelled": one.labelled, "looked_at": one.looked,
        "reasons": [asdict(reason) for reason in one.reasons], "kept": [sample.as_json() for sample in one.kept],
        "rejected": [sample.as_json() for sample in one.by_score()[:limit]],
    }  # fmt: skip


def _lines(slot: str, one: Judgement, most: int) -> list[str]:
    """A table of rejected samples, best score first, and how many there are of each reason."""
    from replaygen.report.text import plain

    lines = [f"{plain(slot)}: {len(one.kept)} kept, {one.looked - len(one.kept)} refused"]
    shown = one.by_score()[:most]
    if shown:
        lines += _table([("id", "reason", "at", "score", "value", "limit"), *map(_cells, shown)])
    if len(shown) < len(one.rejected):
        lines.append(f"… and {len(one.rejected) - len(shown)} more (--limit {len(one.rejected)})")
    counts = [(str(reason.samples), plain(reason.reason), f"({reason.at})") for reason in one.reasons]
    widths = [max(map(len, column)) for column in zip(*counts, strict=True)] if counts else []
    return [*lines, *(f"{count:>{widths[0]}}  {reason:<{widths[1]}}  {at}" for count, reason, at in counts)]


def _cells(sample: Judged) -> tuple[str, ...]:
    from replaygen.report.reasons import measured, shown
    from replaygen.report.text import number, plain

    value = "–" if sample.value is None else measured(sample.value)
    return (plain(sample.id), plain(sample.reason), sample.at, number(sample.score, 2), value, shown(sample.limit))


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) if i < 3 else cell.rjust(width)
                  for i, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in rows
    ]  # fmt: skip
