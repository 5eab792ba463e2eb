"""Scenarios: a data set's classes cut into steps, and masks turned into channels."""

from __future__ import annotations

from replaygen.scenario.cut import SETTINGS, Holdout, hold_out
from replaygen.scenario.scenario import Scenario, Step, build_scenario, make_scenario
from replaygen.scenario.tasks import parse_task

__all__ = [
    "SETTINGS",
    "Holdout",
    "Scenario",
    "Step",
    "build_scenario",
    "hold_out",
    "make_scenario",
    "parse_task",
]
