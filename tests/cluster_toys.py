"""A stage for tests of clusters: it never gives its memory back. Workers know it by `PRELOAD`."""

from __future__ import annotations

from pathlib import Path

from replaygen.stages import Inputs, Out
from replaygen.testing import toys

PRELOAD = (
    f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import cluster_toys; cluster_toys.register()"
)

_kept: list[bytes] = []


class HogStage(toys.NothingStage):
    """Keeps memory after its end, as a leak does."""

    name = "toy-hog"

    def run(self, params: toys.ToyParams, inputs: Inputs, out: Out) -> None:
        """Keep `bytes` bytes."""
        _kept.append(b"x" * params.bytes)
        out.accept(params.samples)


def register() -> None:
    """Make it, and the other toys, known in this process."""
    toys.register({HogStage.name: HogStage})
