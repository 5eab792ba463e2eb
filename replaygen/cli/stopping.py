"""Ctrl-C and SIGTERM end a command for certain, and let it put away what it holds first.

Python raises KeyboardInterrupt wherever the program happens to be, and some places lose it: importing a library, which
torch does in the middle of a first iteration, discards it in a callback or turns it into another error.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import typer

PATIENCE_IMPORTING = 4.0
"""Seconds that an import may go on after the signal."""
PATIENCE_TIDYING = 8.0
"""Seconds that may be spent on putting away before that is interrupted too."""

_AGAIN = 0.25
_SAME_PRESS = 1.0


class Stopped(KeyboardInterrupt):
    """A signal told the command to stop.

    A class of its own, because once a plain KeyboardInterrupt has passed through `exec` of a text, which dataclasses
    use, CPython ends with the status of SIGINT whatever exit code is asked for.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


@contextmanager
def resumable() -> Iterator[None]:
    """`stopping`, for a command that goes on when it is run again: it says so and exits, after Ctrl-C with 130, after
    SIGTERM with 143."""
    from replaygen.logs import say

    try:
        with stopping():
            yield
    except KeyboardInterrupt as error:
        say("interrupted; what was made is kept, run the same command to go on")
        raise typer.Exit(error.exit_code if isinstance(error, Stopped) else 128 + signal.SIGINT) from None


@contextmanager
def stopping() -> Iterator[None]:
    """Within, SIGINT and SIGTERM raise `Stopped` in the main thread, again and again until it is out.

    It waits while a module is imported, and leaves alone what tidies up after it, both for some seconds; a second
    signal waits no longer. A signal that is ignored, as background jobs of a script ignore SIGINT, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    guard = _Guard()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    taken = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in taken:
        signal.signal(number, guard.told)
    try:
        try:
            yield
        finally:
            guard.over = True
    finally:
        guard.rest()
        for number, handler in taken.items():
            signal.signal(number, handler)


class _Guard:
    def __init__(self) -> None:
        self.signum = 0
        self.over = False
        self.first = self.importing_until = self.tidying_until = 0.0

    def told(self, signum: int, frame: FrameType | None) -> None:
        """The user, or the system, says stop."""
        if self.over:
            return
        now = time.monotonic()
        if not self.signum:
            self.signum, self.first, self.importing_until = signum, now, now + PATIENCE_IMPORTING
            signal.signal(signal.SIGALRM, self.again)
            signal.setitimer(signal.ITIMER_REAL, _AGAIN, _AGAIN)
        elif now - self.first > _SAME_PRESS:  # a terminal and a wrapper may both pass one Ctrl-C on
            self.importing_until = self.tidying_until = now
        self.again(signum, frame)

    def again(self, signum: int, frame: FrameType | None) -> None:
        """Raise `Stopped`, unless it is on its way out already or would be lost here."""
        if self.over:
            return
        now = time.monotonic()
        tidying = _on_its_way()
        if now < (self.tidying_until if tidying else self.importing_until) and (tidying or _importing(frame)):
            return
        self.tidying_until = now + PATIENCE_TIDYING
        raise Stopped(self.signum)

    def rest(self) -> None:
        """Nothing more is raised."""
        if self.signum:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _on_its_way() -> bool:
    """Whether the interrupted code handles a `Stopped`, or an error that came of one: it is a `finally` or the like."""
    error, seen = sys.exc_info()[1], set[int]()
    while error is not None and id(error) not in seen:
        if isinstance(error, Stopped):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False
