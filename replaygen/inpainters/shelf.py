"""One open inpainter between two tasks of a process: a server of our own takes 10 s and more to start."""

from __future__ import annotations

import atexit
import os
import threading
from typing import TYPE_CHECKING

from replaygen.holding import HELD

if TYPE_CHECKING:
    from replaygen.inpainters.base import Inpainter

IDLE = 60.0
"""Seconds after which nobody is expected to come for an inpainter, where a run's `idle` is not shorter: it holds
memory, perhaps a GPU's."""


class Shelf:
    """Holds one inpainter, or none. What is taken belongs to the taker until it is put back.

    It is closed when another one is put here, after `IDLE` seconds, where a model needs room, and at the process's end;
    a server dies with a process that is killed. A fork of the process has nothing on its shelf.
    """

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._kept: tuple[int, str, Inpainter, threading.Timer] | None = None

    def take(self, name: str) -> Inpainter | None:
        """The inpainter that was put here under this name, where it still is."""
        with self._turn:
            if self._kept is None or self._kept[:2] != (os.getpid(), name):
                return None
            (_, _, inpainter, later), self._kept = self._kept, None
        later.cancel()
        return inpainter

    def put(self, name: str, inpainter: Inpainter) -> None:
        """Keep an inpainter for whoever takes this name; what decides its pixels, and where it runs, is in the name."""
        later = threading.Timer(min(IDLE, HELD.idle), self._clear, [inpainter])
        later.daemon = True
        with self._turn:
            before, self._kept = self._kept, (os.getpid(), name, inpainter, later)
        later.start()
        _close(before)

    def clear(self) -> None:
        """Close what is here."""
        self._clear()

    def _clear(self, only: Inpainter | None = None) -> None:
        with self._turn:
            if self._kept is None or (only is not None and only is not self._kept[2]):
                return
            before, self._kept = self._kept, None
        _close(before)


def _close(kept: tuple[int, str, Inpainter, threading.Timer] | None) -> None:
    if kept is not None and kept[0] == os.getpid():
        kept[3].cancel()
        kept[2].close()


SHELF = Shelf()
"""This process's."""

HELD.also_free(SHELF.clear)
atexit.register(SHELF.clear)
