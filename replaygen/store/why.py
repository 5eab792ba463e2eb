"""why: what a key is made of, and how it differs from the nearest record of the same stage."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from replaygen.errors import StoreError
from replaygen.store.records import Record
from replaygen.store.shelf import Records

ABSENT = "(absent)"
"""Stands in a difference for a parameter that one side does not have."""


@dataclass(frozen=True)
class WhyReport:
    """A key's ingredients, and the difference to its nearest neighbour.

    `differences` maps "version", "seed", a parameter ("count", "crop.size") or "input <role>" to
    [this key's value, the neighbour's value]. Without another record of the stage, `nearest` is None.
    """

    key: str
    stage: str
    version: int
    params: dict[str, Any]
    seed: int | None
    inputs: tuple[tuple[str, str], ...]
    slot: str
    nearest: str | None
    nearest_slot: str
    differences: dict[str, list[Any]]


def why(records: Records, prefix: str) -> WhyReport:
    """Explain the record whose key begins with `prefix`.

    Args:
        records: the store's records.
        prefix: at least 6 hex digits that begin one key only.

    Raises:
        StoreError: no record, more than one, or a prefix that is too short.
    """
    prefix = prefix.strip().lower()
    if not re.fullmatch(r"[0-9a-f]{6,64}", prefix):
        raise StoreError(f"{prefix[:80]!r} is no key", hint="give at least 6 of its hex digits")
    keys = [key for key, _ in records.keys() if key]  # noqa: SIM118
    found = [key for key in keys if key.startswith(prefix)]
    if len(found) != 1:
        what = "no record" if not found else f"{len(found)} records"
        raise StoreError(
            f"{what} begins with {prefix}" if not found else f"{what} begin with {prefix}",
            hint="`replaygen plan --tasks` shows the keys; a task that has not run has no record"
            if not found
            else "give more digits: " + ", ".join(key[: len(prefix) + 6] for key in found[:5]),
        )
    record = records.get(found[0])
    if record is None:
        raise StoreError(f"record {found[0]} was damaged and is now in quarantine", hint="run its recipe again")
    return explain(record, _same_stage(records, record, keys))


def explain(record: Record, others: Iterable[Record]) -> WhyReport:
    """The report on `record` among `others` of its stage: same slot first, then fewest differences, then least key."""
    mine = ingredients(record)
    best: tuple[tuple[bool, int, str], Record, dict[str, list[Any]]] | None = None
    for other in others:
        found = differences(mine, ingredients(other))
        rank = (not record.slot or other.slot != record.slot, len(found), other.key)
        if best is None or rank < best[0]:
            best = (rank, other, found)
    return WhyReport(
        key=record.key,
        stage=record.stage,
        version=record.version,
        params=record.params,
        seed=record.seed,
        inputs=record.inputs,
        slot=record.slot,
        nearest=best[1].key if best else None,
        nearest_slot=best[1].slot if best else "",
        differences=best[2] if best else {},
    )


def ingredients(record: Record) -> dict[str, Any]:
    """A record's ingredients, flat: version, seed, "input <role>", and parameters by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in _flat(record.params, ""):
        flat[f"params.{name}" if name in {"version", "seed"} else name] = value
    flat |= {"version": record.version, "seed": record.seed}
    roles = [role for role, _ in record.inputs]
    for position, (role, key) in enumerate(record.inputs):
        number = f" {roles[:position].count(role)}" if roles.count(role) > 1 else ""
        flat[f"input {role}{number}"] = key
    return flat


def differences(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, list[Any]]:
    """name → [my value, their value] for each ingredient that differs."""
    found = {}
    for name in sorted({*mine, *theirs}):
        pair = [mine.get(name, ABSENT), theirs.get(name, ABSENT)]
        if pair[0] != pair[1] or type(pair[0]) is not type(pair[1]):
            found[name] = pair
    return found


def _flat(params: Mapping[str, Any], head: str) -> Iterable[tuple[str, Any]]:
    for name, value in params.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{head}{name}.")
        else:
            yield f"{head}{name}", value


def _same_stage(records: Records, record: Record, keys: Iterable[str]) -> Iterable[Record]:
    for key in keys:
        if key != record.key:
            try:
                other = records.look(key)
            except StoreError:
                continue
            if other is not None and other.stage == record.stage:
                yield other
