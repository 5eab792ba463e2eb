"""Whether each planned task is cached, and why it would run. Reads records, runs nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from replaygen.stages.base import Task
from replaygen.store import Record, Store


@dataclass(frozen=True, slots=True)
class Status:
    """state: "cached" or "to run"; reason: why it would run, empty where it is cached."""

    state: str
    reason: str = ""

    @property
    def cached(self) -> bool:
        return self.state == "cached"


CACHED = Status("cached")


def statuses(store: Store, tasks: Mapping[str, Task], previous: Mapping[str, str] | None = None) -> dict[str, Status]:
    """The status of every task, in one pass.

    Args:
        store: where records are looked for.
        tasks: key -> task, each behind its inputs.
        previous: slot -> key of the recipe's last run, to say what changed.
    """
    found = store.statuses(tasks)
    result: dict[str, Status] = {}
    for key, task in tasks.items():
        cache = found[key]
        if cache.state == "cached":
            result[key] = CACHED
        elif cache.changed:
            source = store.get(cache.changed[0])
            result[key] = Status("to run", f"input was rebuilt differently: {source.slot if source else 'gone'}")
        elif cache.state == "damaged":
            result[key] = Status("to run", f"damaged: {cache.detail}")
        else:
            result[key] = Status("to run", _reason(store, task, tasks, previous or {}))
    return result


def _reason(store: Store, task: Task, tasks: Mapping[str, Task], previous: Mapping[str, str]) -> str:
    old_key = previous.get(task.slot)
    if old_key is None or old_key == task.key:
        return "missing"
    old = store.get(old_key)
    if old is None:
        return "missing"
    if old.version != task.version:
        return f"stage {task.stage} changed: version {old.version} → {task.version}"
    changes = list(differences(old.params, task.params))
    if changes:
        return "changed: " + ", ".join(changes[:3]) + (f" and {len(changes) - 3} more" if len(changes) > 3 else "")
    if old.seed != task.seed:
        return f"changed: seed {old.seed} → {task.seed}"
    return _upstream(old, task, tasks)


def _upstream(old: Record, task: Task, tasks: Mapping[str, Task]) -> str:
    before = {key for _, key in old.inputs}
    fresh = [key for _, key in task.inputs if key not in before]
    if not fresh:
        return "upstream changed: fewer inputs"
    slots = [tasks[key].slot for key in fresh if key in tasks]
    more = f" and {len(fresh) - 1} more" if len(fresh) > 1 else ""
    return f"upstream changed: {slots[0] if slots else fresh[0][:12]}{more}"


def differences(old: Any, new: Any, name: str = "") -> Iterable[str]:
    """Human words for what differs between two parameter values: `fit.lr 0.01 → 0.02`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            label = f"{name}.{key}" if name else str(key)
            if key not in old:
                yield f"{label} added"
            elif key not in new:
                yield f"{label} removed"
            else:
                yield from differences(old[key], new[key], label)
        return
    old_plain, new_plain = _plain(old), _plain(new)
    if old_plain != new_plain:
        yield f"{name} {_short(old_plain)} → {_short(new_plain)}"


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > 4:
        return f"[{len(value)} items]"
    text = str(value)
    return text[:10] + "…" if len(text) == 64 and text.isalnum() else text
