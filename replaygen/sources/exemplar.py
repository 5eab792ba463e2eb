"""Source `exemplar`: real images of a step, kept with their step labels: an upper bound, not replay without memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Set


def choose(ids: Iterable[str], present: Mapping[str, Set[int]], raw_class: int, *, count: int, seed: int) -> list[str]:
    """The images of a step to keep for one class, in an order fixed by the seed and each id alone.

    Args:
        ids: the step's image ids.
        present: per id, the data set's class ids in its mask.
        raw_class: the data set's id of the class.
        count: how many to keep at most.
        seed: fixes the choice.
    """
    holding = [image for image in ids if raw_class in present[image]]
    return sorted(holding, key=lambda image: hashlib.sha256(f"{seed}:{image}".encode()).digest())[:count]
