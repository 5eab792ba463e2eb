"""Recipe -> plan: every task with its key, its status and why. Nothing runs here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from replaygen.classes import nearest_hint
from replaygen.errors import RecipeError
from replaygen.plan.build import Built, Opened, build
from replaygen.plan.estimate import Estimate, estimate
from replaygen.plan.open import open_all
from replaygen.plan.recipe import RecipeTable, parse_recipe
from replaygen.plan.rows import check_field_rows, resolve_rows
from replaygen.plan.status import Status, statuses
from replaygen.plan.workspace import expand_path, find_recipe, workspace_of
from replaygen.shown import Printer, notebook_html
from replaygen.stages.base import Task
from replaygen.store import Store

__all__ = ["Plan", "Recipe", "Status", "Task"]


@dataclass(frozen=True)
class Recipe:
    """A checked recipe: what to make, and how."""

    table: RecipeTable
    path: Path
    workspace: Path

    @classmethod
    def load(cls, path: str | Path, changes: Mapping[str, Any] | None = None) -> Recipe:
        """Read a recipe by path or by name.

        Args:
            path: a TOML file, or the name of a recipe of this workspace or of the installation.
            changes: dotted key -> value laid over the file, such as {"train.seeds": [0, 1, 2]}.

        Raises:
            RecipeError: names file, line and the nearest valid key.
        """
        found = find_recipe(str(path))
        recipe = cls(parse_recipe(found, changes), found, workspace_of(found))
        resolve_rows(recipe.table, workspace=recipe.workspace, where=str(found))
        check_field_rows(recipe.table, workspace=recipe.workspace, where=str(found))
        return recipe

    partial: bool = False
    """Only some of the file's rows or seeds: what the others made stays reachable."""

    @property
    def name(self) -> str:
        return self.table.name

    def narrowed(self, *, methods: Sequence[str] | None = None, seeds: Sequence[int] | None = None) -> Recipe:
        """The same recipe with some of its rows and seeds.

        Raises:
            RecipeError: a row that the recipe does not have.
        """
        rows = {row.name: row for row in self.table.method}
        for name in methods or ():
            if name not in rows:
                raise RecipeError(f"no method row {name!r}", where=str(self.path), hint=nearest_hint(name, rows))
        chosen = tuple(row for row in self.table.method if not methods or row.name in methods)
        train = self.table.train.model_copy(update={"seeds": tuple(seeds)} if seeds else {})
        return replace(self, table=self.table.model_copy(update={"method": chosen, "train": train}), partial=True)

    def store(self) -> Store:
        """The store that `[run] store` names, or the workspace's own, `cache/`."""
        return Store(self.store_address())

    def store_address(self) -> str:
        """What opens `store`: a bucket's address, or a folder; a relative one lies in the workspace.

        Raises:
            RecipeError: it names an environment variable that is not set.
        """
        told = self.table.run.store
        if told is not None and "://" in told:
            return told
        return str(expand_path(told or "cache", workspace=self.workspace, where=str(self.path)))

    def open(self, store: Store) -> Opened:
        """Open and check everything the recipe names."""
        return open_all(self.table, path=self.path, workspace=self.workspace, store=store)

    def plan(self, store: Store) -> Plan:
        """Every task of the recipe with its key; nothing runs."""
        opened = self.open(store)
        return Plan(self, store, opened, build(self.table, opened))


@dataclass(frozen=True)
class Plan:
    """A recipe's tasks with their keys, each `cached` or `to run`, and why."""

    recipe: Recipe
    store: Store
    opened: Opened
    built: Built = field(repr=False)

    @property
    def tasks(self) -> dict[str, Task]:
        """key -> task, each behind its inputs."""
        return self.built.tasks

    @property
    def slots(self) -> dict[str, str]:
        """slot -> key; several slots may share one task."""
        return self.built.slots

    @cached_property
    def status(self) -> dict[str, Status]:
        """key -> status when the plan was first asked."""
        last = self.store.read_ref(self.recipe.name, "plan") or {}
        return statuses(self.store, self.tasks, last.get("slots"))

    def to_run(self) -> list[Task]:
        """The tasks that are not cached, in order."""
        return [task for key, task in self.tasks.items() if not self.status[key].cached]

    @cached_property
    def estimate(self) -> Estimate:
        """Time, disk and API calls to expect of what is to run."""
        return estimate(self.to_run(), self.store, self.recipe.table.run.workers)

    def summary(self) -> list[tuple[str, int, int, str]]:
        """Per stage: name, tasks, to run, and the most frequent reason."""
        rows = []
        for stage in dict.fromkeys(task.stage for task in self.tasks.values()):
            keys = [key for key, task in self.tasks.items() if task.stage == stage]
            waiting = [self.status[key].reason for key in keys if not self.status[key].cached]
            reason = Counter(waiting).most_common(1)[0][0] if waiting else ""
            rows.append((stage, len(keys), len(waiting), reason))
        return rows

    def notes(self) -> list[str]:
        """What was left out before any task, by source and class: nothing vanishes silently."""
        notes = []
        for slot, key in self.slots.items():
            record = self.store.get(key) if slot.startswith("fetch/") else None
            if record is not None and record.counts.failed:
                told = ", ".join(f"{reason} {count}" for reason, count in sorted(record.counts.failed.items()))
                notes.append(f"{slot}: not fetched: {told}; `replaygen crawl fetch --only-failed` asks again")
        for source, photos in self.opened.photos.items():
            if not any(slot.startswith(f"photos/{source}/") for slot in self.slots):
                continue
            table = self.recipe.table.replay[source]
            for name in self.opened.scenario.names[1:]:
                folder = table.folders.get(name, name)
                if (table.only is not None and name not in table.only) or folder not in photos.folders:
                    continue
                left = photos.left_out(folder)
                if left:
                    told = ", ".join(f"{count} {reason}" for reason, count in sorted(left.items()))
                    notes.append(f"{source}: of the files of {name!r} {told} left out")
        return notes

    def __str__(self) -> str:
        to_run = self.to_run()
        head = f"{len(self.tasks)} tasks: {len(self.tasks) - len(to_run)} cached, {len(to_run)} to run"
        lines = [head + (f"; {self.estimate}" if to_run else "")]
        for stage, total, waiting, reason in self.summary():
            lines.append(f"  {stage:<18}{total:>7} tasks {total - waiting:>7} cached {waiting:>7} to run   {reason}")
        return "\n".join([*lines, *(f"  {note}" for note in self.notes())])

    def _repr_html_(self) -> str | None:
        return notebook_html("plan", self)

    def _repr_pretty_(self, printer: Printer, cycle: bool) -> None:
        printer.text(str(self))

    def as_json(self) -> dict[str, Any]:
        """The plan as plain data with stable keys."""
        return {
            "recipe": self.recipe.name,
            "tasks": [
                {
                    "key": key, "stage": task.stage, "slot": task.slot, "requested": task.requested,
                    "state": self.status[key].state, "reason": self.status[key].reason,
                }
                for key, task in self.tasks.items()
            ],
            "estimate": self.estimate.as_json(),
            "notes": self.notes(),
        }  # fmt: skip
