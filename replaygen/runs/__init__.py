"""Execute a plan: inline, or on Dask."""

from replaygen.runs.replay import ReplaySample, ReplaySet, replay_sets
from replaygen.runs.results import RunResult, StepResult, read_result, table
from replaygen.runs.runner import Run, Tally, run

__all__ = [
    "ReplaySample",
    "ReplaySet",
    "Run",
    "RunResult",
    "StepResult",
    "Tally",
    "read_result",
    "replay_sets",
    "run",
    "table",
]
