"""Which replay sets an export takes: what one row of a recipe trained its last step on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from replaygen.classes import nearest_hint
from replaygen.errors import DataError
from replaygen.plan import Plan
from replaygen.runs.replay import ReplaySet, replay_sets


@dataclass(frozen=True)
class Chosen:
    """The sets of one row and seed, by channel.

    Attributes:
        method: the recipe's row, "" where the recipe trains nothing.
        sets: (slot, set) in the order of channels.
    """

    method: str
    seed: int
    sets: tuple[tuple[str, ReplaySet], ...]


def choose(
    plan: Plan, *, classes: Sequence[str] = (), method: str | None = None, seed: int | None = None
) -> Chosen:  # fmt: skip
    """The replay sets that a row's last step was trained on; those of the first source where nothing is trained.

    Args:
        classes: only these; all by default.
        method: a row of the recipe; by default the first one with replay.
        seed: by default the recipe's first.

    Raises:
        DataError: an unknown class, row or seed, a row without replay, or sets that are not made yet.
    """
    seeds = plan.recipe.table.train.seeds
    if seed is not None and seed not in seeds:
        raise DataError(f"the recipe has no seed {seed}", where=plan.recipe.name, hint=f"its seeds: {_listed(seeds)}")
    seed = seeds[0] if seed is None else seed
    name, keys = _row(plan, method, seed)
    slots = {key: slot for slot, key in plan.slots.items() if slot.startswith("replay/")}
    if not plan.recipe.table.method:
        first = next(iter(slots.values()), "").split("/")[1:2]
        keys = [key for key, slot in slots.items() if slot.split("/")[1:2] == first]
    made = replay_sets(plan)
    missing = [slots[key] for key in keys if slots[key] not in made or not plan.status[key].cached]
    if missing or not keys:
        what = f"{len(missing)} of {len(keys)} replay sets are not made" if keys else "the recipe makes no replay set"
        hint = "finish the run first: replaygen run" if keys else "only exemplars are replay sets without a [[method]]"
        raise DataError(what, where=missing[0] if missing else plan.recipe.name, hint=hint)
    sets = sorted(((slots[key], made[slots[key]]) for key in keys), key=lambda one: int(one[1].manifest["channel"]))
    return Chosen(name, seed, tuple(_named(sets, classes)))


def _row(plan: Plan, method: str | None, seed: int) -> tuple[str, list[str]]:
    """A row's name, and the keys of the sets that its last step was trained on."""
    rows = {row.name: row for row in plan.recipe.table.method}
    with_replay = [name for name, row in rows.items() if row.replay is not None]
    if method is None and with_replay:
        method = with_replay[0]
    if method is None:
        if rows:
            raise DataError("no row of the recipe trains on replay", where=plan.recipe.name, hint="give one `replay`")
        return "", []
    if method not in rows:
        raise DataError(f"no method row {method!r}", where=plan.recipe.name, hint=nearest_hint(method, rows))
    if method not in with_replay:
        hint = f"rows with replay: {_listed(with_replay) or 'none'}"
        raise DataError(f"the row {method!r} trains on no replay", where=plan.recipe.name, hint=hint)
    last = len(plan.opened.scenario.steps) - 1
    task = plan.tasks[plan.slots[f"train/{method}/seed{seed}/step{last}"]]
    return method, [key for role, key in task.inputs if role == "replay"]


def _named(sets: Sequence[tuple[str, ReplaySet]], classes: Sequence[str]) -> list[tuple[str, ReplaySet]]:
    there = {str(one.manifest["class"]): (slot, one) for slot, one in sets}
    for name in classes:
        if name not in there:
            raise DataError(f"no replay of {name!r} was made", hint=nearest_hint(name, there))
    return [found for name, found in there.items() if not classes or name in classes]


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))
