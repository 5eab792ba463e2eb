"""Batches that fit: rows go through a model as many at once as are asked for, or as a GPU's memory allows.

On a CPU a batch is always the one that was asked for, so its bytes never change. On a GPU that number is the upper
bound: a batch is halved where the last ones tell that the free memory is too small, and where the GPU says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar
from weakref import WeakKeyDictionary

from replaygen.holding import HELD, give_back, out_of_memory

log = logging.getLogger("replaygen.portions")

R = TypeVar("R")
V = TypeVar("V")

_MARGIN = 1.1
"""Rows are expected to need this much more than the dearest seen, for what lies scattered."""


class Memory(Protocol):
    """A device's memory, in bytes."""

    def free(self) -> int:
        """What could be taken now."""

    def start(self) -> int:
        """What is taken now; `peak` counts from here."""

    def peak(self) -> int:
        """The most that was taken since `start`."""


@dataclass(frozen=True)
class _Cuda:
    device: str

    def free(self) -> int:
        import torch

        ours = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return int(torch.cuda.mem_get_info(self.device)[0]) + ours

    def start(self) -> int:
        import torch

        torch.cuda.reset_peak_memory_stats(self.device)
        return int(torch.cuda.memory_allocated(self.device))

    def peak(self) -> int:
        import torch

        return int(torch.cuda.max_memory_allocated(self.device))


def memory_of(device: str) -> Memory | None:
    """The memory to mind on a device; None where batches stay as they are."""
    return _Cuda(device) if device.startswith("cuda") else None


@dataclass
class Portions:
    """How a model's rows are cut into batches; what was learned of its need lives as long as the model.

    Attributes:
        most: rows of a full batch.
        memory: see `memory_of`.
        pad: fill a batch up with its last row, so that every batch has the same size.
    """

    most: int
    memory: Memory | None
    pad: bool = True
    _limit: int = field(default=0, init=False)
    _a_row: float = field(default=0.0, init=False)

    def over(self, rows: Sequence[R], forward: Callable[[Sequence[R]], V]) -> Iterator[tuple[V, int]]:
        """`forward` of each batch in order, and how many of its rows count: those after them repeat the last.

        Raises:
            whatever `forward` raises; a full memory only where one row alone does not fit.
        """
        done = 0
        while done < len(rows):
            size = self.size()
            part = list(rows[done : done + size])
            count = len(part)
            if self.pad:
                part += part[-1:] * (size - count)
            made = self._tried(part, forward)
            if made is None:
                self._limit = size // 2
                log.warning("the GPU's memory is full: %d rows at once from now on, not %d", self._limit, size)
                continue
            yield made[0], count
            done += count

    def size(self) -> int:
        """Rows of the next batch."""
        size = self._limit or self.most
        if self.memory is None or not self._a_row or size == 1:
            return size
        if size * self._a_row * _MARGIN > self.memory.free():
            HELD.make_room()
        while size > 1 and size * self._a_row * _MARGIN > self.memory.free():
            size //= 2
        return size

    def _tried(self, part: list[R], forward: Callable[[Sequence[R]], V]) -> tuple[V] | None:
        """What `forward` makes; None where it found the memory full and fewer rows can be tried."""
        if self.memory is None:
            return (forward(part),)
        before = self.memory.start()
        try:
            made = forward(part)
        except Exception as error:
            if len(part) == 1 or not out_of_memory(error):
                raise
        else:
            self._a_row = max(self._a_row, (self.memory.peak() - before) / len(part))
            return (made,)
        HELD.make_room()
        give_back()
        return None


_OF: WeakKeyDictionary[object, dict[int, Portions]] = WeakKeyDictionary()


def portions_of(model: object, most: int, device: object) -> Portions:
    """The portions of a model that keeps none itself; batches are not filled up."""
    mine = _OF.setdefault(model, {})
    if most not in mine:
        mine[most] = Portions(most, memory_of(str(device)), pad=False)
    return mine[most]
