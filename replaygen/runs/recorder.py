"""Writes down what a run does: its row in the ledger, its events as JSON lines, its log."""

from __future__ import annotations

import contextlib
import getpass
import json
import logging
import os
import platform
import secrets
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from replaygen.canonical import digest_of
from replaygen.errors import StoreError
from replaygen.logs import TIMED, in_json, of_interest, redacted
from replaygen.runs.alive import held
from replaygen.runs.ledger import ALIVE, Ledger, now_text
from replaygen.runs.progress import Progress, Quiet
from replaygen.store import fsops

if TYPE_CHECKING:
    from replaygen.plan import Plan, Recipe, Task
    from replaygen.runs.execute import Outcome
    from replaygen.runs.runner import Run
    from replaygen.store import Store

EVENTS, LOG = "events.jsonl", "log.txt"
"""A run's files in its folder."""

log = logging.getLogger("replaygen.runs.recorder")

T = TypeVar("T")


class Recorder:
    """Progress that is written down, and shown by another one.

    Attributes:
        id: the run's, empty where nothing can be written.
        folder: where the run's files go; None where nothing can be written.
        shown: who shows the progress to people.
        tells: what is done goes to the log too, since that does not hold what `shown` says.
    """

    current: Recorder | None = None
    """The one that this process writes now."""

    def __init__(self, ledger: Ledger | None, run: str, shown: Progress) -> None:
        self._ledger = ledger
        self.id = run
        self.shown = shown
        self.folder = ledger.folder(run) if ledger is not None else None
        self.tells = False
        self._broken = False
        self._at_end: dict[str, Any] = {}

    def event(self, event: str, **fields: Any) -> None:
        """Add a line to the events; a line that cannot be written is no fault of the run's."""
        if self.folder is None or self._broken:
            return
        line = json.dumps({"time": now_text(), "event": event, **fields}, ensure_ascii=False, default=str)
        try:
            fsops.append_line(self.folder / EVENTS, line.encode() + b"\n")
        except OSError as error:
            self._broken = True
            log.warning("the run's events are written no more: %s", error.strerror)

    def about(self, **columns: Any) -> None:
        """Set columns of the run's row."""
        if self._ledger is not None:
            _kept(lambda: self._ledger.about(self.id, **columns) if self._ledger else None)

    def recipe(self, recipe: Recipe) -> None:
        """Say which recipe this runs."""
        made = digest_of(recipe.table.model_dump(mode="json", exclude={"run"}))
        self.about(recipe=recipe.name, recipe_hash=made)
        self.event("recipe", recipe=recipe.name, recipe_hash=made, path=str(recipe.path))

    def finished(self, run: Run) -> None:
        """Say what the run did."""
        self._at_end["counts"] = told = run.as_json()
        self.event("counts", **told)

    def reported(self, page: Path | None) -> None:
        """Say where the page is that shows the run."""
        if page is not None:
            self._at_end["report"] = str(page.absolute())

    # as Progress; see there

    def start(self, plan: Plan) -> None:
        """Before the first task."""
        self.event("start", tasks=len(plan.tasks))
        self.shown.start(plan)

    def done(self, task: Task, outcome: Outcome) -> None:
        """A task's record stands."""
        self.event(
            "task", slot=task.slot, stage=task.stage, key=task.key, state=outcome.state,
            seconds=round(outcome.seconds, 3), requested=outcome.requested, accepted=outcome.accepted,
            rejected=outcome.rejected, failed=outcome.failed, bytes=outcome.bytes,
        )  # fmt: skip
        if self.tells:
            log.info("%s: %s in %.1f s, %d accepted", task.slot, outcome.state, outcome.seconds, outcome.accepted)
        self.shown.done(task, outcome)

    def failed(self, task: Task, error: BaseException, again: bool) -> None:
        """A task raised an error."""
        told = {"slot": task.slot, "stage": task.stage, "key": task.key, "error": told_of(error), "again": again}
        self.event("failed", **told)
        self.shown.failed(task, error, again)

    def note(self, message: str, **fields: Any) -> None:
        """Anything that a person wants to know."""
        self.event("note", message=redacted(message), **fields)
        if self.tells:
            log.info("%s", message)
        self.shown.note(message, **fields)

    def close(self) -> None:
        """No more tasks."""
        self.shown.close()


@contextlib.contextmanager
def recording(
    store: Store, command: str, *, shown: Progress | None = None, tick: int | None = None, redirect: bool = False
) -> Iterator[Recorder]:
    """Write down what is done within as a run. Within another one on the same store, it is part of that run.

    Where the store cannot be written nothing is, and that is no error.

    Args:
        store: where the ledger lies.
        command: what was asked for, as people type it.
        shown: who shows the progress; nobody by default.
        tick: the tick of the schedule that this is.
        redirect: everything that the process says, and what it starts says, goes to the run's log.
    """
    outer = Recorder.current
    if outer is not None and outer._ledger is not None and outer._ledger.root == store.root:
        before, outer.shown = outer.shown, shown or Quiet()
        try:
            yield outer
        finally:
            outer.shown = before
        return
    ledger = _ledger_of(store)
    run = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}" if ledger is not None else ""
    recorder = Recorder(ledger, run, shown or Quiet())
    with contextlib.ExitStack() as until:
        if ledger is not None and not _begun(recorder, ledger, until, command, tick, redirect=redirect):
            recorder._ledger = recorder.folder = None
        Recorder.current, before_that = recorder, Recorder.current
        try:
            yield recorder
        except BaseException as error:
            state = state_of_end(error)
            _end(recorder, state, None if state == "done" else told_of(error))
            raise
        else:
            _end(recorder, "done", None)
        finally:
            Recorder.current = before_that


def _ledger_of(store: Store) -> Ledger | None:
    if store.readonly or not os.access(store.root, os.W_OK):
        return None
    return _kept(lambda: Ledger(store.root))


def _begun(
    recorder: Recorder, ledger: Ledger, until: contextlib.ExitStack, command: str, tick: int | None, *, redirect: bool
) -> bool:
    folder = ledger.folder(recorder.id)

    def begin() -> bool:
        with fsops.explained("make a run's folder", folder):
            fsops.make_folder(folder)
            fsops.append_line(folder / LOG, b"")
        until.enter_context(held(folder / ALIVE, note=_who()))
        ledger.begin(recorder.id, redacted(command), who=_who(), tick=tick)
        return True

    if not _kept(begin):
        return False
    _redirect(folder / LOG) if redirect else until.enter_context(_logged(folder / LOG))
    recorder.tells = not redirect and not in_json()
    recorder.event("begin", run=recorder.id, command=redacted(command), tick=tick, who=_who())
    return True


def _end(recorder: Recorder, state: str, error: str | None) -> None:
    recorder.event("end", state=state, error=error)
    if recorder.tells:
        log.info("%s%s", state, f": {error}" if error else "")
    recorder.about(**recorder._at_end, state=state, error=error, ended=now_text())


def state_of_end(error: BaseException) -> str:
    """What a run's end means, by how it ended: exit codes of signals are interruptions."""
    code = (error.code or 0) if isinstance(error, SystemExit) else getattr(error, "exit_code", 1)
    if isinstance(error, KeyboardInterrupt) or code in (130, 143):
        return "interrupted"
    return "done" if code == 0 else "failed"


def told_of(error: BaseException) -> str:
    """An error in words, without secrets."""
    told = f"exit code {error.code}" if isinstance(error, SystemExit) else str(error)
    return redacted(told or type(error).__name__)


def _who() -> str:
    try:
        name = getpass.getuser()
    except (OSError, KeyError):
        name = str(os.getuid())
    return f"{name}@{platform.node() or 'this machine'}, process {os.getpid()}"


@contextlib.contextmanager
def _logged(path: Path) -> Iterator[None]:
    """What is logged within, from INFO on, also goes to a file."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(TIMED)
    handler.addFilter(of_interest)
    handler.setLevel(min(logging.INFO, logging.getLogger().level or logging.INFO))
    ours = logging.getLogger("replaygen")
    before = ours.level
    if not ours.isEnabledFor(logging.INFO):
        ours.setLevel(logging.INFO)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        ours.setLevel(before)
        handler.close()


def _redirect(path: Path) -> None:
    """Lead this process's standard output and error to a file, for good."""
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _kept(act: Callable[[], T]) -> T | None:
    """What `act` gives; None, with a warning, where the ledger cannot be written: a run goes on without it."""
    try:
        return act()
    except StoreError as error:
        log.warning("this run is not written down: %s (%s)", error.what, error.where)
        return None
