"""The way of batches to the device: made in order, by threads ahead of the loop where that pays.

Batch t is a pure function of t, and every random number of it comes from generators of its own; so threads change when
it is made, and nothing else.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import torch

from replaygen.learn.samples import Batch

AHEAD = 2
"""Batches that are ready or being made while the loop uses one."""

LOADERS = {"cuda": 4}
"""Threads that load samples, by device, unless the options say otherwise; elsewhere one.

One costs the processor time that loading costs anyway, and hides it wherever a core is idle for a moment.
"""


class Batches(Protocol):
    """Anything with a length whose item t is batch t, whenever it is asked for.

    Where it also has `drawn(t)` -> [(samples, index, view)], several threads load the members of a batch.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, t: int, /) -> Batch: ...


def loaders_for(wanted: int | None, device: torch.device) -> int:
    """Threads that load on a device: as wanted, else `LOADERS`."""
    return LOADERS.get(device.type, 1) if wanted is None else wanted


def in_order(
    batches: Batches, first: int, *, ahead: int = AHEAD, loaders: int = 1, pinned: bool = False
) -> Generator[tuple[int, Batch], None, None]:
    """(t, batch t) from `first` on.

    Args:
        batches: asked by one thread at a time, in order.
        first: where to begin.
        ahead: how many batches are made in advance; 0: each one when it is asked for.
        loaders: threads that load the members of those batches; with 0 nothing is made ahead.
        pinned: put them into page-locked memory, for copies to CUDA that do not wait.
    """
    total = len(batches)
    if not ahead or not loaders:
        for t in range(first, total):
            yield t, batches[t].pinned() if pinned else batches[t]
        return
    with _threads(loaders) as pool, _threads(1) as maker:
        load = _Prefetch(batches, pool)

        def make(t: int) -> Batch:
            if loaders > 1:
                load(t, min(t + ahead, total))
            return batches[t].pinned() if pinned else batches[t]

        coming: deque[Future[Batch]] = deque()
        for t in range(first, total):
            while len(coming) < min(ahead + 1, total - t):
                coming.append(maker.submit(make, t + len(coming)))
            yield t, coming.popleft().result()


class _Prefetch:
    """Asks a pool to load the members of batches, each batch once, in order."""

    def __init__(self, batches: Batches, pool: ThreadPoolExecutor) -> None:
        self._drawn: Callable[[int], list[tuple[Any, int, int]]] | None = getattr(batches, "drawn", None)
        self._pool = pool
        self._next: int | None = None

    def __call__(self, t: int, until: int) -> None:
        if self._drawn is None:
            return
        for later in range(t if self._next is None else self._next, until):
            for samples, index, view in self._drawn(later):
                samples.prefetch(index, view, self._pool)
        self._next = until


@contextlib.contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(count, thread_name_prefix="batches")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
