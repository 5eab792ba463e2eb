"""What a run will take: from what the stages took before, or their first guesses."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replaygen.errors import StoreError
from replaygen.stages import stage_of
from replaygen.stages.base import Task
from replaygen.store import Store
from replaygen.store.fsops import replace_file

STATISTICS = "stage_statistics.json"
"""Seconds and bytes per requested sample of each stage, as last measured; a cache, safe to delete."""


@dataclass(frozen=True)
class Estimate:
    """seconds: wall time on the planned workers; bytes: disk; api_calls: requests to outside services.

    guessed: nothing like it was run here before, so the time is a rule of thumb.
    """

    seconds: float
    bytes: int
    api_calls: int
    guessed: bool = False

    def as_json(self) -> dict[str, Any]:
        """Plain data with stable keys."""
        return {"seconds": round(self.seconds, 1), "bytes": self.bytes, "api_calls": self.api_calls}

    def __str__(self) -> str:
        by = " by rule of thumb" if self.guessed else ""
        return f"about {duration(self.seconds)}{by}, {size(self.bytes)} of disk, {self.api_calls} API calls expected"


def estimate(tasks: Iterable[Task], store: Store, workers: int) -> Estimate:
    """Expected cost of tasks that are to run."""
    measured = read_statistics(Path(store.root))
    seconds, disk, calls, guessed = 0.0, 0.0, 0, True
    for task in tasks:
        guessed = guessed and task.stage not in measured
        seconds += seconds_of(task, measured)
        calls += stage_of(task.stage).api_calls(task)
        about = measured.get(task.stage, {})
        disk += task.requested * float(about.get("bytes", stage_of(task.stage).bytes_per_sample))
    return Estimate(seconds / max(1, workers), int(disk), calls, guessed)


def seconds_of(task: Task, measured: Mapping[str, Mapping[str, float]]) -> float:
    """Expected seconds of one task."""
    guess = stage_of(task.stage).seconds_per_sample
    return task.requested * float(measured.get(task.stage, {}).get("seconds", guess))


def read_statistics(root: Path) -> Mapping[str, Mapping[str, float]]:
    """The measured statistics; empty where there are none or they cannot be read."""
    try:
        found = json.loads((root / STATISTICS).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def duration(seconds: float) -> str:
    """A duration in words a person reads: `40 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def size(count: float) -> str:
    """A number of bytes in words: `3.2 MB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def write_statistics(store: Store, told: Mapping[str, Mapping[str, float]]) -> None:
    """Lay newly measured statistics over the old ones; silently nothing where the store cannot be written."""
    merged = {**read_statistics(Path(store.root)), **told}
    try:
        replace_file(Path(store.root) / STATISTICS, json.dumps(merged, sort_keys=True).encode())
    except (OSError, StoreError):
        return
