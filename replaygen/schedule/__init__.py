"""Recurring runs: jobs and their ticks, as rows of the ledger, and the daemon that runs them.

APScheduler reads the cron lines and finds the times. Its scheduler takes no clock and its stores pickle, so the loop
and the memory are ours: the ledger is the truth, and a tick is a row that can exist once.
"""

from replaygen.schedule.jobs import Job, Jobs, ScheduleError
from replaygen.schedule.ticks import Tick, Ticks

__all__ = ["Job", "Jobs", "ScheduleError", "Tick", "Ticks"]
