"""What a run did, counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from replaygen.plan import Task
from replaygen.runs.execute import Outcome


@dataclass
class StageTally:
    """One stage's part of a run."""

    tasks: int = 0
    planned: int = 0
    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    bytes: int = 0


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
