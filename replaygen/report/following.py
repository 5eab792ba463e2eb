"""What a run that goes on in another process has said: read from the ledger and its events, and nothing written."""

from __future__ import annotations

import contextlib
import json
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaygen.canonical import digest_of
from replaygen.errors import StoreError
from replaygen.plan.estimate import read_statistics, seconds_of
from replaygen.report.text import cut, duration
from replaygen.runs.ledger import Ledger, RunRow
from replaygen.runs.recorder import EVENTS

if TYPE_CHECKING:
    from replaygen.plan import Plan, Task

MOST_NOTES = 12
"""The last things a run said that are shown."""

LOOKED_AT = 50
"""The newest runs of the ledger among which the recipe's is looked for."""

ENOUGH = 3
"""Tasks after which a run's own pace is believed."""


@dataclass(frozen=True)
class Note:
    """Something a run said: its time of day in UTC, and the words; grave: something failed."""

    time: str
    text: str
    grave: bool = False


class Followed:
    """A recipe's newest run, read again and again; each event once.

    Attributes:
        row: as the ledger tells it; None where the recipe was never run here.
        other: the run's recipe has other settings than the plan that is watched.
    """

    def __init__(self, plan: Plan) -> None:
        self._recipe = plan.recipe.name
        self._root = Path(plan.store.root)
        self._hash = digest_of(plan.recipe.table.model_dump(mode="json", exclude={"run"}))
        self.row: RunRow | None = None
        self.other = False
        self._forget()

    def _forget(self) -> None:
        self._read = 0
        self._notes: deque[Note] = deque(maxlen=MOST_NOTES)
        self._seconds: Counter[str] = Counter()
        self._samples: Counter[str] = Counter()
        self._tasks = 0
        self._first = self._last = ""

    def look(self) -> None:
        """Read what is new; a ledger that cannot be read is as one that is not there."""
        try:
            rows = Ledger(self._root, readonly=True).runs(LOOKED_AT)
        except StoreError:
            rows = []
        own = [row for row in rows if row.recipe == self._recipe]
        row = next((row for row in own if row.state == "running"), own[0] if own else None)
        if row is None or self.row is None or row.id != self.row.id:
            self._forget()
        self.row = row
        self.other = row is not None and row.recipe_hash != self._hash
        if row is not None:
            self._take(row.folder / EVENTS)

    @property
    def running(self) -> bool:
        """Whether it goes on."""
        return self.row is not None and self.row.state == "running"

    def notes(self) -> list[Note]:
        """The last things it said, the newest first."""
        return list(reversed(self._notes))

    def left(self, tasks: Iterable[Task]) -> float:
        """Seconds to expect of tasks that are to run, at this run's own pace where it has one."""
        measured = {stage: dict(told) for stage, told in read_statistics(self._root).items()}
        for stage, samples in self._samples.items():
            measured.setdefault(stage, {})["seconds"] = self._seconds[stage] / max(1, samples)
        return sum(seconds_of(task, measured) for task in tasks) / self._at_once()

    def _at_once(self) -> float:
        """How many tasks were done at the same time, by the clock."""
        if self._tasks < ENOUGH or not self._first:
            return 1.0
        passed = (datetime.fromisoformat(self._last) - datetime.fromisoformat(self._first)).total_seconds()
        return max(1.0, sum(self._seconds.values()) / passed) if passed > 0 else 1.0

    def _take(self, path: Path) -> None:
        """Read the whole lines that came since; one that is no event is left out."""
        try:
            with path.open("rb") as file:
                file.seek(self._read)
                data = file.read()
        except OSError:
            return
        data = data[: data.rfind(b"\n") + 1]
        self._read += len(data)
        for line in data.splitlines():
            with contextlib.suppress(ValueError, TypeError):
                event = json.loads(line)
                if isinstance(event, dict):
                    self._event(event)

    def _event(self, event: dict[str, Any]) -> None:
        kind, time = event.get("event"), str(event.get("time", ""))
        if kind == "start":
            self._first = time
        elif kind == "task":
            seconds, stage = float(event.get("seconds") or 0.0), str(event.get("stage"))
            samples = int(event.get("requested") or 0)
            self._last = time
            self._tasks += 1
            self._seconds[stage] += seconds  # type: ignore[assignment]
            self._samples[stage] += samples
        text, grave = _said(event)
        if text:
            self._notes.append(Note(time[11:19], cut(text), grave))


def _said(event: dict[str, Any]) -> tuple[str, bool]:
    """An event in words, "" where there is nothing to say; and whether something went wrong."""
    kind, slot = event.get("event"), event.get("slot")
    if kind == "note":
        return str(event.get("message", "")), False
    if kind == "failed":
        return f"{slot} failed{', tried again' if event.get('again') else ''}: {event.get('error')}", True
    if kind == "task" and event.get("stage") in ("train", "fit-generator", "helper"):
        return f"{slot} in {duration(float(event.get('seconds') or 0.0))}", False
    if kind == "end" and event.get("state") != "done":
        return f"{event.get('state')}: {event.get('error') or ''}", True
    return ("begun", False) if kind == "begin" else ("done", False) if kind == "end" else ("", False)
