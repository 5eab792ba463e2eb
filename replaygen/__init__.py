"""replaygen: replay data for class-incremental semantic segmentation.

    import replaygen as rg

    store = rg.Store("cache")
    plan = rg.Recipe.load("digits").plan(store)   # nothing runs
    print(plan)
    run = rg.run(plan)                            # rg.run(plan, client) on a Dask cluster
    print(rg.table(run.result))

Names are imported on first use, so `import replaygen` is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from replaygen.api import trainer as trainer
    from replaygen.errors import ReplaygenError as ReplaygenError
    from replaygen.learn.buffer import ReplayBuffer as ReplayBuffer
    from replaygen.plan import Plan as Plan
    from replaygen.plan import Recipe as Recipe
    from replaygen.report import predictions as predictions
    from replaygen.report import sheet as sheet
    from replaygen.report import step_images as step_images
    from replaygen.report import write_report as write_report
    from replaygen.runs import Run as Run
    from replaygen.runs import replay_sets as replay_sets
    from replaygen.runs import run as run
    from replaygen.runs import table as table
    from replaygen.scenario import Scenario as Scenario
    from replaygen.scenario import make_scenario as make_scenario
    from replaygen.store import Store as Store

_HOME = {
    "Plan": "plan",
    "Recipe": "plan",
    "ReplayBuffer": "learn",
    "ReplaygenError": "errors",
    "Run": "runs",
    "Scenario": "scenario",
    "Store": "store",
    "make_scenario": "scenario",
    "predictions": "report",
    "replay_sets": "runs",
    "run": "runs",
    "sheet": "report",
    "step_images": "report",
    "table": "runs",
    "trainer": "api",
    "write_report": "report",
}
__all__ = [
    "Plan",
    "Recipe",
    "ReplayBuffer",
    "ReplaygenError",
    "Run",
    "Scenario",
    "Store",
    "make_scenario",
    "predictions",
    "replay_sets",
    "run",
    "sheet",
    "step_images",
    "table",
    "trainer",
    "write_report",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
