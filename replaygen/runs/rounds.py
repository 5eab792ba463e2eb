"""A plan's tasks given to an executor in a good order, and taken back, until all that can be done is done."""

from __future__ import annotations

import heapq
import logging
from collections import Counter
from collections.abc import Mapping

from replaygen.errors import StoreError, TaskError
from replaygen.plan import Plan, Task
from replaygen.plan.estimate import read_statistics, seconds_of
from replaygen.plan.status import Status, statuses
from replaygen.runs.executors import Executor
from replaygen.runs.progress import Progress
from replaygen.runs.retry import ends_its_workers, stops_the_run, worth_retrying
from replaygen.runs.tally import Tally
from replaygen.stages import stage_of
from replaygen.store import Store

log = logging.getLogger("replaygen.runs")

MOST_REBUILDS = 5
"""How often a run starts over because an input turned out to be damaged."""

Kind = tuple[str, bool]
"""What workers a task needs: its stage's resource, and whether it trains."""

Place = tuple[float, int]
"""Where a task stands in the queue; the least is first."""


def do_all(plan: Plan, executor: Executor, progress: Progress, tally: Tally, now: Mapping[str, Status]) -> None:
    """Do what is to do of a plan.

    Args:
        now: the status of every task, as just asked under the run's lease.

    Raises:
        TaskError: tasks failed for good; everything else that could be done was done.
        StoreError: inputs were damaged again and again.
    """
    progress.start(plan)
    try:
        for attempt in range(MOST_REBUILDS):
            if _Round(plan, executor, progress, tally, attempt, now).run():
                return
            log.warning("an input was damaged; rebuilding it")
            now = statuses(plan.store, plan.tasks)
        raise StoreError(
            f"inputs were found damaged {MOST_REBUILDS} times", where=str(plan.store.root),
            hint="`replaygen cache verify`; is the disk failing?",
        )  # fmt: skip
    finally:
        progress.close()


class _Queue:
    """Tasks that can be done now, by kind, each kind in the order of its places."""

    def __init__(self) -> None:
        self._kinds: dict[Kind, list[tuple[Place, str]]] = {}

    def push(self, kind: Kind, place: Place, key: str) -> None:
        heapq.heappush(self._kinds.setdefault(kind, []), (place, key))

    def heads(self) -> list[tuple[Place, str, Kind]]:
        """The first of each kind, the first of all first."""
        return sorted((heap[0][0], heap[0][1], kind) for kind, heap in self._kinds.items() if heap)

    def pop(self, kind: Kind) -> None:
        heapq.heappop(self._kinds[kind])


class _Round:
    """One pass over the plan: submit what is ready, take what is done, until nothing is left or an input is damaged."""

    def __init__(
        self, plan: Plan, executor: Executor, progress: Progress, tally: Tally, number: int, now: Mapping[str, Status]
    ) -> None:
        self.plan, self.executor, self.progress, self.tally = plan, executor, progress, tally
        self.number = number
        self.cached = {key for key, status in now.items() if status.cached}
        self.place = _places(plan, together=executor.slots > 1)
        self.tries: Counter[str] = Counter()
        self.failures: dict[str, BaseException] = {}
        self.suspects: dict[str, None] = {}
        self.alone: str | None = None
        self.in_flight: Counter[Kind] = Counter()
        self.damaged = False
        self.stopped = False
        self.dependents: dict[str, list[str]] = {}
        self.missing: dict[str, int] = {}
        self.ready = _Queue()

    def run(self) -> bool:
        """True when every task that can be done is done; False when an input must be rebuilt first."""
        self._find_ready()
        while True:
            while self._submit_next():
                pass
            if not self.in_flight.total() and not self._submit_suspect():
                break
            self._take()
        if self.failures:
            self._raise()
        return not self.damaged

    def _find_ready(self) -> None:
        unsettled: set[str] = set()
        for key, task in self.plan.tasks.items():
            waits = [source for source in {source for _, source in task.inputs} if source in unsettled]
            if key in self.cached and not waits:
                continue
            unsettled.add(key)
            self.missing[key] = len(waits)
            for source in waits:
                self.dependents.setdefault(source, []).append(key)
            if not waits:
                self._push(key)

    def _push(self, key: str) -> None:
        self.ready.push(_kind(self.plan.tasks[key]), self.place[key], key)

    def _submit_next(self) -> bool:
        """Give the executor the first task that it has room for; False where there is none."""
        if self.damaged or self.stopped or self.alone is not None:
            return False
        for _, key, kind in self.ready.heads():
            if key in self.cached and self.plan.store.status(key).state == "cached":
                self.ready.pop(kind)
                self._settle(key)
                return True
            task = self.plan.tasks[key]
            if self._has_room(kind) and self.executor.takes(task):
                self.ready.pop(kind)
                self._submit(task, kind)
                return True
        return False

    def _has_room(self, kind: Kind) -> bool:
        """The executor knows how much room each kind has; and a worker trains one model at a time, none waits there."""
        return not kind[1] or self.in_flight[kind] < max(1, self.executor.slots // 2)

    def _submit(self, task: Task, kind: Kind) -> None:
        self.in_flight[kind] += 1
        self.executor.submit(task, self.number * 100 + self.tries[task.key])

    def _submit_suspect(self) -> bool:
        """Give the executor, alone, a task that was with workers when they died: now it is known whose fault it is."""
        if self.damaged or self.stopped or not self.suspects:
            return False
        self.alone = next(iter(self.suspects))
        task = self.plan.tasks[self.alone]
        self._submit(task, _kind(task))
        return True

    def _take(self) -> None:
        task, outcome = self.executor.next_done()
        self.in_flight[_kind(task)] -= 1
        if isinstance(outcome, BaseException):
            self._failed(task, outcome)
        elif outcome.state == "input-damaged":
            log.warning("%s: %s", task.slot, outcome.message)
            self.damaged = True
        elif not _stands(self.plan.store, task.key):
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
        if task.key == self.alone:
            self.alone = None
            del self.suspects[task.key]

    def _settle(self, key: str) -> None:
        for dependent in self.dependents.get(key, ()):
            self.missing[dependent] -= 1
            if self.missing[dependent] == 0:
                self._push(dependent)

    def _failed(self, task: Task, error: BaseException) -> None:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise error
        self.tries[task.key] += 1
        suspect = ends_its_workers(error) and task.key != self.alone
        again = suspect or (
            worth_retrying(error) and self.tries[task.key] <= self.plan.recipe.table.run.retries
        )  # fmt: skip
        self.progress.failed(task, error, again)
        if suspect:
            log.warning("%s was with workers that died; it is tried alone, once the others are done", task.slot)
            self.suspects[task.key] = None
        elif again:
            log.warning("%s failed (%s), trying again", task.slot, error)
            self._push(task.key)
        else:
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


def _kind(task: Task) -> Kind:
    return stage_of(task.stage).resource, task.stage == "train"


def _stands(store: Store, key: str) -> bool:
    """Whether a record that was just published is to be seen here: one stat where it is, one read elsewhere."""
    return (store.root / "records" / key[:2] / f"{key}.json").exists() or store.get(key) is not None


def _places(plan: Plan, *, together: bool) -> dict[str, Place]:
    """Key -> place in the queue: plan order; where tasks run together, those with the longest way to the end first."""
    order = {key: i for i, key in enumerate(plan.tasks)}
    if not together:
        return {key: (0.0, i) for key, i in order.items()}
    measured = read_statistics(plan.store.root)
    way: dict[str, float] = {}
    for key, task in reversed(plan.tasks.items()):
        way[key] = way.get(key, 0.0) + seconds_of(task, measured)
        for _, source in task.inputs:
            way[source] = max(way.get(source, 0.0), way[key])
    return {key: (-way[key], i) for key, i in order.items()}
