"""What a process holds in memory between tasks: models, freed once nobody has worked here for a while.

A model is opened once and used by task after task. It is let go when another one needs its place, when the memory runs
short, and when the process has been idle; never one that the task in hand has taken. What closes itself, such as an
inpainting server, is told through `also_free`.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

log = logging.getLogger("replaygen.holding")

T = TypeVar("T")

IDLE = 60.0
"""Seconds without a task after which models are freed; a run says otherwise with `idle` in `[run]`."""

_MOST_USED = 0.5
"""Share of the memory in use above which only the task's own models are held."""


class Holding:
    """The models of one process. Safe for threads.

    Attributes:
        idle: seconds without a task before all is freed; 0 frees after each task.
        memory_limit: bytes that the process may use, 0 where nobody told.
    """

    def __init__(self, idle: float = IDLE) -> None:
        self.idle = idle
        self.memory_limit = 0
        self._models: OrderedDict[tuple[str, Hashable], Any] = OrderedDict()
        self._taken: set[tuple[str, Hashable]] = set()
        self._frees: list[Callable[[], None]] = []
        self._reset()

    def _reset(self) -> None:
        """As in a process in which nothing runs: at the start, and in a forked child."""
        self._turn = threading.RLock()
        self._working = 0
        self._timer: threading.Timer | None = None

    def __len__(self) -> int:
        return len(self._models)

    def hold(self, kind: str, name: Hashable, make: Callable[[], T], *, most: int = 1) -> T:
        """The model of this name, opened where it is not held; the task in hand has taken it until its end.

        Args:
            kind: what sort of model it is; models of other kinds do not count.
            name: all that decides it, its device too.
            make: opens it; asked once more, with the others gone, where a GPU's memory was full.
            most: how many of this kind are held while the memory allows.
        """
        with self._turn:
            found = (kind, name)
            if found not in self._models:
                self._make_place(kind, most)
                self._models[found] = self._made(make)
            self._models.move_to_end(found)
            self._taken.add(found)
            return cast(T, self._models[found])

    @contextmanager
    def working(self) -> Iterator[None]:
        """Around a task: nothing is freed for idleness inside, and the clock starts at its end."""
        with self._turn:
            self._working += 1
            self._stop_timer()
        try:
            yield
        finally:
            with self._turn:
                self._working -= 1
                if not self._working:
                    self._taken.clear()
                    self._start_timer()

    def also_free(self, free: Callable[[], None]) -> None:
        """Call `free` too whenever memory is wanted back; it must not wait for a task."""
        with self._turn:
            self._frees.append(free)

    def make_room(self) -> None:
        """Let go of all that the task in hand has not taken; outside of a task, of everything."""
        with self._turn:
            spare = [found for found in self._models if found not in self._taken or not self._working]
            for found in spare:
                del self._models[found]
            frees = list(self._frees)
        for free in frees:
            free()
        if spare:
            give_back()

    def clear(self) -> None:
        """Let go of everything."""
        with self._turn:
            self._taken.clear()
            self._stop_timer()
            self.make_room()

    def _make_place(self, kind: str, most: int) -> None:
        mine = [found for found in self._models if found[0] == kind]
        for found in mine[: max(0, len(mine) - most + 1)]:
            del self._models[found]
            self._taken.discard(found)
        if len(self._models) > len(self._taken) and memory_used(self.memory_limit) > _MOST_USED:
            self.make_room()

    def _made(self, make: Callable[[], T]) -> T:
        try:
            return make()
        except Exception as error:
            if not out_of_memory(error):
                raise
        self.make_room()
        give_back()
        return make()

    def _start_timer(self) -> None:
        self._stop_timer()
        if not self._models:
            return
        if self.idle <= 0:
            self.make_room()
            return
        self._timer = threading.Timer(self.idle, self._free_when_idle)
        self._timer.daemon = True
        self._timer.start()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _free_when_idle(self) -> None:
        with self._turn:
            if self._working or self._timer is not threading.current_thread():
                return
            log.info("idle for %g s: %d models are freed", self.idle, len(self._models))
            self.clear()


def memory_used(limit: int = 0) -> float:
    """The share in use of what this process may use: of `limit` bytes, and of a GPU's memory where there is one."""
    share = 0.0
    if limit > 0:
        share = resident() / limit
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        free, total = torch.cuda.mem_get_info()
        share = max(share, 1 - (free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()) / total)
    return share


def resident() -> int:
    """Bytes of memory that this process has now; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a GPU's memory is full."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.cuda.OutOfMemoryError)


def give_back() -> None:
    """Free cycles, and give a GPU's unused memory back to the other processes."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


HELD = Holding()
"""This process's."""

os.register_at_fork(after_in_child=HELD._reset)
