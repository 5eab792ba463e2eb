"""du: how many bytes the store holds, by stage and by ref."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from replaygen.errors import StoreError
from replaygen.store.keys import is_digest
from replaygen.store.layout import Layout
from replaygen.store.objects import Objects
from replaygen.store.refs import Refs
from replaygen.store.shelf import Records


@dataclass(frozen=True)
class DuReport:
    """Bytes. An object counts once in each stage and once in each ref that reaches it, and once in `objects`.

    `refs` is by "recipe/name"; `unreferenced` are the objects that no ref reaches.
    """

    stages: dict[str, int]
    refs: dict[str, int]
    objects: int
    records: int
    partial: int
    quarantine: int
    tmp: int
    unreferenced: int

    @property
    def total(self) -> int:
        """All bytes of objects, records, partial work, quarantine and temps."""
        return self.objects + self.records + self.partial + self.quarantine + self.tmp


def du(layout: Layout, objects: Objects, records: Records, refs: Refs) -> DuReport:
    """Count. Damaged records and refs are left out of `stages` and `refs`."""
    sizes = {name: objects.size(name) if is_digest(name) else _size(path) for name, path in objects.names()}
    outputs: dict[str, set[str]] = {}
    inputs: dict[str, list[str]] = {}
    stages: dict[str, set[str]] = {}
    for key, _ in records.keys():  # noqa: SIM118
        try:
            record = records.look(key) if key else None
        except StoreError:
            continue
        if record is not None:
            outputs[key] = {output.digest for output in record.outputs}
            inputs[key] = [input_key for _, input_key in record.inputs]
            stages.setdefault(record.stage, set()).update(outputs[key])
    by_ref: dict[str, set[str]] = {}
    for recipe, name, data in refs.all():
        reached = by_ref.setdefault(f"{recipe}/{name}", set())
        seen: set[str] = set()
        ahead = list(data.get("slots", {}).values())
        while ahead:
            key = ahead.pop()
            if key not in seen:
                seen.add(key)
                reached |= outputs.get(key, set())
                ahead += inputs.get(key, [])
    referenced = set().union(*by_ref.values())

    def total(digests: set[str]) -> int:
        return sum(sizes.get(digest, 0) for digest in digests)

    return DuReport(
        stages={stage: total(digests) for stage, digests in sorted(stages.items())},
        refs={name: total(digests) for name, digests in sorted(by_ref.items())},
        objects=sum(sizes.values()),
        records=_tree_size(layout.records),
        partial=_tree_size(layout.partial),
        quarantine=_tree_size(layout.quarantine),
        tmp=_tree_size(layout.tmp),
        unreferenced=sum(size for name, size in sizes.items() if name not in referenced),
    )


def _tree_size(root: Path) -> int:
    return sum(_size(Path(folder, name)) for folder, _, names in os.walk(root) for name in names)


def _size(path: Path) -> int:
    try:
        return os.lstat(path).st_size
    except FileNotFoundError:
        return 0
