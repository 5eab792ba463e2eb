"""Execute a plan: skip what is cached, make what is missing, rebuild what is damaged. Resume is re-running."""

from __future__ import annotations

import heapq
import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from replaygen.errors import StoreError, TaskError
from replaygen.plan import Plan, Task
from replaygen.plan.estimate import read_statistics, seconds_of, write_statistics
from replaygen.plan.status import statuses
from replaygen.runs.execute import Outcome, root_of
from replaygen.runs.executors import Executor, Inline, OnDask, local_client, remote_client
from replaygen.runs.progress import Progress, Quiet
from replaygen.runs.results import RunResult, read_result
from replaygen.runs.retry import stops_the_run, worth_retrying
from replaygen.store.fsops import replace_file

if TYPE_CHECKING:
    from pathlib import Path

    from distributed import Client

    from replaygen.runs.replay import ReplaySet

log = logging.getLogger("replaygen.runs")

MOST_REBUILDS = 5
"""How often a run starts over because an input turned out to be damaged."""


@dataclass
class Tally:
    """What a run did: tasks by what became of them, samples by stage, seconds inside stages."""

    cached: int = 0
    made: int = 0
    adopted: int = 0
    failed: int = 0
    seconds: float = 0.0
    stages: dict[str, StageTally] = field(default_factory=dict)

    def take(self, task: Task, outcome: Outcome) -> None:
        """Count one outcome."""
        if outcome.state == "made":
            self.made += 1
        else:
            self.adopted += 1
        stage = self.stages.setdefault(task.stage, StageTally())
        stage.tasks += 1
        stage.planned += task.requested
        stage.accepted += outcome.accepted
        stage.rejected.update(outcome.rejected)
        stage.rejected.update(outcome.failed)
        stage.seconds += outcome.seconds
        stage.bytes += outcome.bytes
        self.seconds += outcome.seconds


@dataclass
class StageTally:
    """One stage's part of a run."""

    tasks: int = 0
    planned: int = 0
    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    bytes: int = 0


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


def run(plan: Plan, client: Client | None = None, *, progress: Progress | None = None) -> Run:
    """Execute a plan.

    Args:
        plan: from `Recipe.plan`.
        client: a Dask client; without one the recipe's `[run]` decides (a cluster's address, worker processes, or
            this process).
        progress: shown while it runs; silent by default.

    Raises:
        TaskError: tasks failed for good; everything else that could be done was done, and is kept.
    """
    started = time.perf_counter()
    store, tally = plan.store, Tally()
    progress = progress or Quiet()
    with store.lease(plan.recipe.name, plan.tasks):
        kept = (store.read_ref(plan.recipe.name, "plan") or {}).get("slots", {}) if plan.recipe.partial else {}
        store.write_ref(plan.recipe.name, "plan", {"slots": {**kept, **plan.slots}})
        for method in plan.opened.rows.methods().values():
            store.put(method.source)
        now = statuses(store, plan.tasks)
        waiting = {key for key, status in now.items() if not status.cached}
        tally.cached = len(plan.tasks) - len(waiting)
        if waiting:
            _drive(plan, client, progress, tally)
            _remember(plan, tally)
    return Run(plan, tally, time.perf_counter() - started)


def _drive(plan: Plan, client: Client | None, progress: Progress, tally: Tally) -> None:
    table = plan.recipe.table.run
    root = root_of(plan.store)
    if client is not None:
        _rounds(plan, OnDask(root, client), progress, tally)
    elif table.scheduler is not None:
        with remote_client(table.scheduler) as remote:
            _rounds(plan, OnDask(root, remote), progress, tally)
    elif table.workers > 0:
        with local_client(table.workers) as local:
            _rounds(plan, OnDask(root, local), progress, tally)
    else:
        _rounds(plan, Inline(root), progress, tally)


def _rounds(plan: Plan, executor: Executor, progress: Progress, tally: Tally) -> None:
    progress.start(plan)
    try:
        for attempt in range(MOST_REBUILDS):
            done = _Round(plan, executor, progress, tally, attempt).run()
            if done:
                return
            log.warning("an input was damaged; rebuilding it")
        raise StoreError(
            f"inputs were found damaged {MOST_REBUILDS} times", where=str(plan.store.root),
            hint="`replaygen cache verify`; is the disk failing?",
        )  # fmt: skip
    finally:
        progress.close()


class _Round:
    """One pass over the plan: submit what is ready, take what is done, until nothing is left or an input is damaged."""

    def __init__(self, plan: Plan, executor: Executor, progress: Progress, tally: Tally, number: int) -> None:
        self.plan, self.executor, self.progress, self.tally = plan, executor, progress, tally
        self.number = number
        self.order = _order(plan, together=executor.slots > 1)
        self.status = statuses(plan.store, plan.tasks)
        self.tries: Counter[str] = Counter()
        self.failures: dict[str, BaseException] = {}
        self.heavy_in_flight = 0
        self.in_flight = 0
        self.damaged = False
        self.stopped = False
        self.dependents: dict[str, list[str]] = {}
        self.missing: dict[str, int] = {}
        self.ready: list[tuple[tuple[float, int], str]] = []
        self.held: list[tuple[tuple[float, int], str]] = []

    def run(self) -> bool:
        """True when every task that can be done is done; False when an input must be rebuilt first."""
        self._find_ready()
        while True:
            while not (self.damaged or self.stopped) and self._submit_next():
                pass
            if self.in_flight == 0:
                break
            self._take()
        if self.failures:
            self._raise()
        return not self.damaged

    def _find_ready(self) -> None:
        unsettled: set[str] = set()
        for key, task in self.plan.tasks.items():
            waits = [source for source in {source for _, source in task.inputs} if source in unsettled]
            if self.status[key].cached and not waits:
                continue
            unsettled.add(key)
            self.missing[key] = len(waits)
            for source in waits:
                self.dependents.setdefault(source, []).append(key)
            if not waits:
                heapq.heappush(self.ready, (self.order[key], key))

    def _submit_next(self) -> bool:
        if self.in_flight >= self.executor.slots:
            return False
        while self.ready:
            position, key = heapq.heappop(self.ready)
            task = self.plan.tasks[key]
            if self.status[key].cached and self.plan.store.status(key).state == "cached":
                self._settle(key)
                continue
            if task.stage == "train" and self.heavy_in_flight >= max(1, self.executor.slots // 2):
                self.held.append((position, key))
                continue
            self.heavy_in_flight += task.stage == "train"
            self.in_flight += 1
            self.executor.submit(task, self.number * 100 + self.tries[key])
            return True
        return False

    def _take(self) -> None:
        task, outcome = self.executor.next_done()
        self.in_flight -= 1
        self.heavy_in_flight -= task.stage == "train"
        while self.held:
            heapq.heappush(self.ready, self.held.pop())
        if isinstance(outcome, BaseException):
            self._failed(task, outcome)
        elif outcome.state == "input-damaged":
            log.warning("%s: %s", task.slot, outcome.message)
            self.damaged = True
        elif self.plan.store.get(task.key) is None:
            self._failed(
                task,
                StoreError(
                    "the worker's store is not this one", where=str(self.plan.store.root),
                    hint="workers must see the store at the same path",
                ),
            )  # fmt: skip
        else:
            self.tally.take(task, outcome)
            self.progress.done(task, outcome)
            self._settle(task.key)

    def _settle(self, key: str) -> None:
        for dependent in self.dependents.get(key, ()):
            self.missing[dependent] -= 1
            if self.missing[dependent] == 0:
                heapq.heappush(self.ready, (self.order[dependent], dependent))

    def _failed(self, task: Task, error: BaseException) -> None:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise error
        self.tries[task.key] += 1
        if worth_retrying(error) and self.tries[task.key] <= self.plan.recipe.table.run.retries:
            log.warning("%s failed (%s), trying again", task.slot, error)
            heapq.heappush(self.ready, (self.order[task.key], task.key))
            return
        log.error("%s failed: %s", task.slot, error)
        self.tally.failed += 1
        self.failures[task.key] = error
        self.stopped = self.stopped or stops_the_run(error)

    def _raise(self) -> None:
        key, error = next(iter(self.failures.items()))
        task = self.plan.tasks[key]
        more = f" (and {len(self.failures) - 1} more)" if len(self.failures) > 1 else ""
        raise TaskError(
            f"{task.slot} failed{more}: {error}", where=f"key {key[:16]} in {self.plan.store.root}",
            hint="what was made is kept; mend the cause and run the recipe again",
        ) from error  # fmt: skip


def _order(plan: Plan, *, together: bool) -> dict[str, tuple[float, int]]:
    """Key -> place in the queue: plan order; where tasks run together, those with the longest way to the end first."""
    place = {key: i for i, key in enumerate(plan.tasks)}
    if not together:
        return {key: (0.0, i) for key, i in place.items()}
    measured = read_statistics(plan.store.root)
    way: dict[str, float] = {}
    for key, task in reversed(plan.tasks.items()):
        way[key] = way.get(key, 0.0) + seconds_of(task, measured)
        for _, source in task.inputs:
            way[source] = max(way.get(source, 0.0), way[key])
    return {key: (-way[key], i) for key, i in place.items()}


def _remember(plan: Plan, tally: Tally) -> None:
    """Keep what each stage took, for the next plan's estimate; a cache, so nothing depends on it."""
    told = {
        name: {"seconds": stage.seconds / stage.planned, "bytes": stage.bytes / stage.planned}
        for name, stage in tally.stages.items()
        if stage.planned
    }
    write_statistics(plan.store, told)
