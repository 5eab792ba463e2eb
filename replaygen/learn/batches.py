"""Mini-batches of current and replay samples. Batch t is a pure function of the seed and t."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace

import torch

from replaygen.errors import DataError
from replaygen.learn.samples import Batch, Samples, collate


def derive(*parts: object) -> int:
    """A 63-bit seed from anything with a plain text form."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _generator(*parts: object) -> torch.Generator:
    return torch.Generator().manual_seed(derive(*parts))


class MixedBatches:
    """`batches[t]`, t in 0..iterations-1: current and replay samples mixed within each mini-batch.

    With a buffer, round(batch * r_new / (r_new + r_old)) samples are current (at least one of each kind) and the rest
    replay. Current samples come epoch by epoch, each epoch a permutation from (seed, epoch). Replay classes take turns,
    each round a permutation from (seed, round); within its class a sample is drawn uniformly from (seed, t).
    Nothing depends on what was drawn before, so a fit may start at any t.

    Args:
        current: the step's own samples.
        buffer: replay samples, or None.
        balance: current classes take turns too (each sample stands for its `balance_class`), instead of epochs.
        channels: classes of the network, background included.

    Raises:
        DataError: no current samples, an empty buffer, or a batch too small for both kinds.
    """

    def __init__(
        self, current: Samples, buffer: Samples | None, *, batch: int, seed: int, iterations: int, channels: int,
        r_new: float = 1.0, r_old: float = 1.0, balance: bool = False,
    ) -> None:  # fmt: skip
        if len(current) == 0:
            raise DataError("the step has no current samples", hint="check the scenario's split and setting")
        if buffer is not None and len(buffer) == 0:
            raise DataError("the replay buffer is empty", hint="were all replay samples rejected? see the run's counts")
        if buffer is not None and (batch < 2 or r_new <= 0 or r_old <= 0):
            raise DataError(
                f"batch = {batch}, r_new = {r_new}, r_old = {r_old} cannot hold both current and replay samples",
                hint="batch of 2 or more, both ratios above 0; a method without replay takes no buffer",
            )
        self.current = current
        self.buffer = buffer
        self.batch = batch
        self.seed = seed
        self.iterations = iterations
        self.channels = channels
        self.n_new = batch
        self._classes = _by_class(buffer) if buffer is not None else {}
        self._current_classes = _by_class(current) if balance else {}
        if buffer is not None:
            self.n_new = min(max(round(batch * r_new / (r_new + r_old)), 1), batch - 1)
        self._orders: dict[tuple[str, int], list[int]] = {}

    def __len__(self) -> int:
        return self.iterations

    def __iter__(self) -> Iterator[Batch]:
        return (self[t] for t in range(self.iterations))

    def __getitem__(self, t: int) -> Batch:
        """Batch t; an IndexError beyond the last."""
        chosen = self.drawn(t)
        items = [samples.items[index] for samples, index, _ in chosen]
        made = collate(items, [samples.get(index, view) for samples, index, view in chosen], self.channels)
        return replace(made, progress=t / self.iterations)

    def drawn(self, t: int) -> list[tuple[Samples, int, int]]:
        """(samples, index, view) of every member of batch t, current first; nothing is loaded."""
        if not 0 <= t < self.iterations:
            raise IndexError(f"batch {t} of {self.iterations}")
        members = [(self.current, index) for index in self._current(t)]
        if self.buffer is not None:
            members += [
                (self.buffer, index) for index in self._turns("replay", self._classes, self.batch - self.n_new, t)
            ]
        return [
            (samples, index, self._view(samples, index, t, place)) for place, (samples, index) in enumerate(members)
        ]

    @property
    def epoch(self) -> int:
        """Iterations until every current sample was drawn once."""
        return -(-len(self.current) // self.n_new)

    def _current(self, t: int) -> list[int]:
        if self._current_classes:
            return self._turns("current", self._current_classes, self.n_new, t)
        count = len(self.current)
        positions = range(t * self.n_new, (t + 1) * self.n_new)
        return [self._order("epoch", place // count, count)[place % count] for place in positions]

    def _turns(self, kind: str, members: dict[int, list[int]], count: int, t: int) -> list[int]:
        classes = sorted(members)
        places = range(t * count, (t + 1) * count)
        turns = [
            classes[self._order(f"{kind} round", place // len(classes), len(classes))[place % len(classes)]]
            for place in places
        ]
        dice = _generator(self.seed, kind, t)
        return [
            those[int(torch.randint(len(those), (1,), generator=dice))]
            for those in (members[channel] for channel in turns)
        ]

    def _view(self, samples: Samples, index: int, t: int, place: int) -> int:
        views = samples.items[index].views
        if views is None or (views.count == 1 and not views.fresh):
            return 0
        drawn = derive(self.seed, "view", t, place)
        return 1 + drawn if views.fresh else drawn % views.count

    def _order(self, kind: str, number: int, count: int) -> list[int]:
        if (kind, number) not in self._orders:
            if len(self._orders) > 64:
                self._orders.clear()
            self._orders[kind, number] = torch.randperm(
                count, generator=_generator(self.seed, kind, number)
            ).tolist()  # fmt: skip
        return self._orders[kind, number]


def _by_class(samples: Samples) -> dict[int, list[int]]:
    members: dict[int, list[int]] = {}
    for index, item in enumerate(samples.items):
        members.setdefault(item.balance_class, []).append(index)
    return members
