"""Many tasks: no kind waits for another's workers, statuses are asked once, and only names go through a scheduler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from replaygen.plan import Task
from replaygen.plan.status import statuses
from replaygen.runs import Tally, run
from replaygen.runs.execute import Outcome, execute
from replaygen.runs.progress import Quiet
from replaygen.runs.rounds import do_all
from replaygen.stages.source import PhotoStage
from replaygen.store import CacheStatus, Store
from replaygen.testing import toys


@pytest.fixture(autouse=True)
def _toys() -> Iterator[None]:
    with toys.registered():
        yield


class FewForSome:
    """Four workers, one of which has IO: it takes two such tasks, and eight of any other kind; last in, first done."""

    slots = 8

    def __init__(self, root: Path) -> None:
        self.root = root
        self.here: list[Task] = []
        self.order: list[str] = []
        self.most: Counter[str] = Counter()
        self.together = 0

    def takes(self, task: Task) -> bool:
        """Room by kind."""
        mine = sum(one.stage == task.stage for one in self.here)
        return mine < (2 if task.stage == "toy-read" else 8)

    def submit(self, task: Task, attempt: int) -> None:
        """Keep it."""
        assert self.takes(task)
        self.here.append(task)
        self.order.append(task.stage)
        count = Counter(one.stage for one in self.here)
        self.most |= count
        self.together = max(self.together, min(count["toy-read"], count["toy-nothing"]))

    def next_done(self) -> tuple[Task, Outcome | BaseException]:
        """Do the last."""
        task = self.here.pop()
        return task, execute(str(self.root), task)


def test_a_kind_that_has_no_room_holds_up_nobody(tmp_path: Path) -> None:
    """Tasks for the one worker with IO come first in the plan and are many: the others run beside them, and all run."""
    read = [toys.toy(toys.ReadStage, number, samples=1, bytes=1) for number in range(12)]
    rest = [toys.toy(toys.NothingStage, number) for number in range(12)]
    plan = toys.toy_plan(Store(tmp_path), [*read, *rest])
    executor, tally = FewForSome(tmp_path), Tally()
    do_all(plan, executor, Quiet(), tally, statuses(plan.store, plan.tasks))
    assert tally.made == 24
    assert executor.most == {"toy-read": 2, "toy-nothing": 8}
    assert executor.together == 2, "they never ran side by side"


class Asked(Store):
    """Counts how many keys it was asked about."""

    asked = 0

    def statuses(self, keys: Iterable[str]) -> dict[str, CacheStatus]:
        """As a store does."""
        found = super().statuses(keys)
        Asked.asked += len(found)
        return found


def test_statuses_are_asked_once(tmp_path: Path) -> None:
    """A cold run asks for each task's status once, beside what each task asks for itself under its lock."""
    tasks = [toys.toy(toys.NothingStage, number) for number in range(300)]
    store = Asked(tmp_path)
    assert run(toys.toy_plan(store, tasks)).tally.made == 300
    assert Asked.asked == 300
    assert run(toys.toy_plan(store, tasks)).tally.cached == 300
    assert Asked.asked == 600


def test_a_task_of_64_photos_is_small(tmp_path: Path) -> None:
    """What goes through a scheduler twice, to it and on to a worker: less than a tenth of a photo's usual size."""
    import cloudpickle

    files = [[f"class100/{number:05d}.jpg", f"{number:064x}"] for number in range(64)]
    task = PhotoStage.task(
        {"class_name": "class100", "files": files, "max_side": None}, slot="photos/web/class100/0000",
        where={"root": str(tmp_path)}, requested=64,
    )  # fmt: skip
    assert len(cloudpickle.dumps((execute, str(tmp_path), task))) < 10_000
