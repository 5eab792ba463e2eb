"""What a run was: tasks, samples, seconds, rejections and versions, read from its records."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from replaygen.report.text import stripped
from replaygen.store import Record

if TYPE_CHECKING:
    from replaygen.plan import Plan


@dataclass
class StageLine:
    """One stage's part: tasks planned and done, samples asked for and accepted, refusals by reason, seconds, bytes."""

    stage: str
    tasks: int = 0
    done: int = 0
    requested: int = 0
    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    bytes: int = 0

    def take(self, record: Record) -> None:
        """Add one record."""
        self.done += 1
        self.requested += record.counts.requested
        self.accepted += record.counts.accepted
        self.rejected.update(record.counts.rejected)
        self.rejected.update(record.counts.failed)
        self.seconds += record.seconds
        self.bytes += sum(output.size for output in record.outputs)


@dataclass(frozen=True)
class Summary:
    """A run in numbers.

    Attributes:
        versions: (what, version), several joined where workers differed.
        first, last: when the first and the last of its tasks were started, UTC; "" where nothing was made.
        settings: the recipe as it was read, one JSON text, without `[run]`.
    """

    stages: tuple[StageLine, ...]
    versions: tuple[tuple[str, str], ...]
    first: str
    last: str
    command: str
    settings: str

    @property
    def total(self) -> StageLine:
        """All stages together."""
        total = StageLine("all")
        for line in self.stages:
            total.tasks += line.tasks
            total.done += line.done
            total.seconds += line.seconds
            total.bytes += line.bytes
        return total


def summary(plan: Plan) -> Summary:
    """Read every record of a plan once; what was not made yet counts as planned only."""
    lines: dict[str, StageLine] = {}
    versions: dict[str, dict[str, None]] = {}
    started: list[str] = []
    for key, task in plan.tasks.items():
        line = lines.setdefault(task.stage, StageLine(task.stage))
        line.tasks += 1
        record = plan.store.get(key)
        if record is None:
            continue
        line.take(record)
        started.append(record.started)
        for name, value in record.environment.items():
            versions.setdefault(str(name), {})[str(value)] = None
    table = plan.recipe.table.model_dump(mode="json", exclude={"run"}, exclude_defaults=True)
    return Summary(
        tuple(lines.values()), tuple((name, ", ".join(values)) for name, values in versions.items()),
        min(started, default=""), max(started, default=""), command(plan),
        json.dumps(_stripped(table), indent=2, ensure_ascii=False),
    )  # fmt: skip


def _stripped(value: Any) -> Any:
    if isinstance(value, dict):
        return {stripped(str(name)): _stripped(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_stripped(inner) for inner in value]
    return stripped(value) if isinstance(value, str) else value


def command(plan: Plan) -> str:
    """What to type to make this again."""
    path = plan.recipe.path
    inside = path.is_relative_to(plan.recipe.workspace)
    return shlex.join(["replaygen", "run", str(path.relative_to(plan.recipe.workspace)) if inside else path.name])


def rejections(lines: Iterable[StageLine]) -> list[tuple[str, str, int]]:
    """(stage, reason, samples), most frequent first."""
    found = [(line.stage, reason, count) for line in lines for reason, count in line.rejected.items()]
    return sorted(found, key=lambda item: -item[2])
