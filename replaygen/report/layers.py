"""Places for the boxes of a picture of what is made from what: layers downwards, few crossings, no edge over a box."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

Edge = tuple[str, str]

SWEEPS = 6
"""How often the layers are put in order by their neighbours, down and up."""

_BEND = "\0"


@dataclass(frozen=True)
class Layout:
    """Where everything stands.

    Attributes:
        layers: from top to bottom, each from left to right; a place that an edge passes through is an empty text.
        paths: edge -> (layer, place in it) of its start, of where it passes, and of its end.
    """

    layers: tuple[tuple[str, ...], ...]
    paths: Mapping[Edge, tuple[tuple[int, int], ...]]


def laid_out(nodes: Sequence[str], edges: Iterable[Edge]) -> Layout:
    """Layers of an acyclic graph: everything stands below what it is made from; the same graph gives the same places.

    Args:
        nodes: in an order in which every edge leads forward.
        edges: pairs of nodes; those that follow from others are left out.
    """
    kept = reduced(nodes, edges)
    depth = _depths(nodes, kept)
    rows: list[list[str]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for node in nodes:
        rows[depth[node]].append(node)
    chains: dict[Edge, list[str]] = {}
    for number, (above, below) in enumerate(kept):
        bends = [f"{_BEND}{number}.{layer}" for layer in range(depth[above] + 1, depth[below])]
        for layer, bend in enumerate(bends, start=depth[above] + 1):
            rows[layer].append(bend)
        chains[above, below] = [above, *bends, below]
    _order(rows, [pair for chain in chains.values() for pair in pairwise(chain)])
    places = {name: (layer, place) for layer, row in enumerate(rows) for place, name in enumerate(row)}
    shown = tuple(tuple("" if name.startswith(_BEND) else name for name in row) for row in rows)
    return Layout(shown, {edge: tuple(places[name] for name in chain) for edge, chain in chains.items()})


def reduced(nodes: Sequence[str], edges: Iterable[Edge]) -> list[Edge]:
    """The edges without those that follow from others: a -> c where a -> b -> c leads there too."""
    told = set(edges)
    below: dict[str, set[str]] = {}
    for node in reversed(nodes):
        nearest = {end for start, end in told if start == node}
        below[node] = nearest.union(*(below[end] for end in nearest))
    order = {node: i for i, node in enumerate(nodes)}
    kept = [
        (start, end) for start, end in told
        if not any(end in below[between] for first, between in told if first == start and between != end)
    ]  # fmt: skip
    return sorted(kept, key=lambda edge: (order[edge[0]], order[edge[1]]))


def _depths(nodes: Sequence[str], edges: Sequence[Edge]) -> dict[str, int]:
    """One more than the deepest it is made from; what is made from nothing stands just above its first use."""
    depth: dict[str, int] = {}
    for node in nodes:
        depth[node] = 1 + max((depth[start] for start, end in edges if end == node), default=-1)
    made = {end for _, end in edges}
    for node in nodes:
        uses = [depth[end] for start, end in edges if start == node]
        if node not in made and uses:
            depth[node] = min(uses) - 1
    return depth


def _order(rows: list[list[str]], links: Sequence[Edge]) -> None:
    """Sort each layer by the mean place of its neighbours in the layer before, then after, some times."""
    above: dict[str, list[str]] = {}
    below: dict[str, list[str]] = {}
    for start, end in links:
        above.setdefault(end, []).append(start)
        below.setdefault(start, []).append(end)
    for _ in range(SWEEPS):
        for i in range(1, len(rows)):
            rows[i] = _sorted(rows[i], rows[i - 1], above)
        for i in range(len(rows) - 2, -1, -1):
            rows[i] = _sorted(rows[i], rows[i + 1], below)


def _sorted(row: list[str], other: list[str], neighbours: Mapping[str, list[str]]) -> list[str]:
    where = {name: (place + 0.5) / len(other) for place, name in enumerate(other)}

    def mean(place: int) -> tuple[float, int]:
        known = [where[name] for name in neighbours.get(row[place], ()) if name in where]
        return (sum(known) / len(known) if known else (place + 0.5) / len(row), place)

    return [row[place] for place in sorted(range(len(row)), key=mean)]
