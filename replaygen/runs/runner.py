"""Execute a plan: skip what is cached, make what is missing, rebuild what is damaged. Resume is re-running."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from replaygen.plan import Plan
from replaygen.plan.estimate import write_statistics
from replaygen.plan.status import statuses
from replaygen.runs.clusters import executor_for
from replaygen.runs.executors import Executor
from replaygen.runs.progress import Progress, Quiet
from replaygen.runs.results import RunResult, read_result, table
from replaygen.runs.rounds import do_all
from replaygen.runs.tally import StageTally, Tally
from replaygen.shown import Printer, notebook_html
from replaygen.store.fsops import replace_file

if TYPE_CHECKING:
    from pathlib import Path

    from distributed import Client

    from replaygen.runs.replay import ReplaySet

__all__ = ["Run", "StageTally", "Tally", "run"]


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        plan: what was run.
        tally: what was done, and what was already there.
        seconds: wall time.
    """

    plan: Plan
    tally: Tally
    seconds: float

    def lines(self) -> list[str]:
        """The final summary: tasks by what became of them, and per stage the samples, with rejections by reason."""
        tally = self.tally
        lines = [f"{tally.made + tally.adopted} tasks done, {tally.cached} were cached, {tally.failed} failed"]
        for name, stage in tally.stages.items():
            refused = ", ".join(f"{reason} {count}" for reason, count in sorted(stage.rejected.items()))
            lines.append(
                f"  {name:<18}{stage.tasks:>5} tasks {stage.accepted:>7} accepted {sum(stage.rejected.values()):>5} "
                f"refused{f' ({refused})' if refused else ''} in {stage.seconds:.0f} s"
            )
        return lines

    def _repr_html_(self) -> str | None:
        return notebook_html("run", self)

    def _repr_pretty_(self, printer: Printer, cycle: bool) -> None:
        printer.text("\n".join([*self.lines(), table(self.result)]))

    def as_json(self) -> dict[str, Any]:
        """The tally as plain data with stable keys."""
        return {
            "made": self.tally.made, "adopted": self.tally.adopted, "cached": self.tally.cached,
            "failed": self.tally.failed, "seconds": round(self.seconds, 3),
            "seconds_in_stages": round(self.tally.seconds, 3),
            "stages": {
                name: {
                    "tasks": stage.tasks, "planned": stage.planned, "accepted": stage.accepted,
                    "rejected": dict(stage.rejected), "seconds": round(stage.seconds, 3), "bytes": stage.bytes,
                }
                for name, stage in self.tally.stages.items()
            },
        }  # fmt: skip

    def save_models(self, folder: Path) -> list[Path]:
        """Copy every row's last model, and the shared ones of step 0, to `folder/<row>-seed<n>-step<k>/`.

        Each holds model.safetensors and model.json; one of step 0 can be a recipe's `train.base_model`.
        """
        steps = len(self.plan.opened.scenario.steps)
        saved = []
        for slot, key in self.plan.slots.items():
            kind, _, rest = slot.partition("/")
            if kind != "train" or not rest.endswith(("/step0", f"/step{steps - 1}")):
                continue
            record = self.plan.store.get(key)
            if record is None:
                continue
            target = folder / rest.replace("/", "-")
            target.mkdir(parents=True, exist_ok=True)
            for name in ("model.safetensors", "model.json"):
                replace_file(target / name, self.plan.store.read(record.output(name).digest))
            saved.append(target)
        return saved

    @property
    def result(self) -> RunResult:
        """Metrics of every method, seed and step."""
        return read_result(self.plan)

    @property
    def replay(self) -> Mapping[str, ReplaySet]:
        """Replay sets by class name, of the first replay source, method and seed; see `replay_sets` for all."""
        from replaygen.runs.replay import first_sets

        return first_sets(self.plan)


def run(
    plan: Plan, client: Client | None = None, *, progress: Progress | None = None, folder: Path | None = None
) -> Run:
    """Execute a plan.

    Args:
        plan: from `Recipe.plan`.
        client: a Dask client; without one the recipe's `[run]` decides (a cluster, worker processes, or this process).
        progress: shown while it runs; silent by default.
        folder: where this run's own files go (Dask's performance report); none are kept without it.

    Raises:
        TaskError: tasks failed for good; everything else that could be done was done, and is kept.
    """
    started = time.perf_counter()
    store, tally = plan.store, Tally()
    told = progress or Quiet()
    with store.lease(plan.recipe.name, plan.tasks):
        kept = (store.read_ref(plan.recipe.name, "plan") or {}).get("slots", {}) if plan.recipe.partial else {}
        store.write_ref(plan.recipe.name, "plan", {"slots": {**kept, **plan.slots}})
        for method in plan.opened.rows.methods().values():
            store.put(method.source)
        now = statuses(store, plan.tasks)
        tally.cached = sum(status.cached for status in now.values())
        if tally.cached < len(plan.tasks):
            _drive(plan, client, told, lambda executor: do_all(plan, executor, told, tally, now), folder)
            _remember(plan, tally)
    return Run(plan, tally, time.perf_counter() - started)


def _drive(
    plan: Plan, client: Client | None, progress: Progress, work: Callable[[Executor], None], folder: Path | None
) -> None:
    with executor_for(plan, client, progress, folder) as executor:
        work(executor)


def _remember(plan: Plan, tally: Tally) -> None:
    """Keep what each stage took, for the next plan's estimate; a cache, so nothing depends on it."""
    told = {
        name: {"seconds": stage.seconds / stage.planned, "bytes": stage.bytes / stage.planned}
        for name, stage in tally.stages.items()
        if stage.planned
    }
    write_statistics(plan.store, told)
