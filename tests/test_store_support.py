"""What the tests of the store share: a deterministic piece of work, and children that crash in the middle of it.

Run as a script, it is a single-threaded process of its own: `python test_store_support.py <verb> <folder> [...]`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from replaygen.errors import ObjectMissing
from replaygen.store import Counts, OutputObject, OutputRef, Record, Store, fsops, index, task_key
from replaygen.store.fsops import Op

SYNCS = {"fsync", "fsync_dir"}


def make_record(
    params: dict[str, Any],
    outputs: dict[str, OutputRef],
    *,
    stage: str = "source",
    inputs: tuple[tuple[str, str], ...] = (),
    slot: str = "",
    read: dict[str, str] | None = None,
) -> Record:
    """A record whose times are fixed, so that equal work gives equal bytes."""
    return Record(
        key=task_key(stage, 1, params, 0, inputs), stage=stage, version=1, params=params, seed=0, inputs=inputs,
        slot=slot, outputs=tuple(OutputObject(name, ref.digest, ref.size, 1) for name, ref in outputs.items()),
        counts=Counts(3, 1, {"too dark": 2}, {}), read=read or {}, provenance={"from": "test"},
        environment={"python": "3"}, started="2026-01-01T00:00:00+00:00", seconds=1.5,
    )  # fmt: skip


def publish(store: Store, params: dict[str, Any], data: bytes = b"", **more: Any) -> Record:
    """Put one output, by default the parameters as JSON, and publish its record."""
    return store.publish(make_record(params, {"images": store.put(data or json.dumps(params).encode())}, **more))


def skip_syncs(_op: Op, act: Callable[[], None]) -> None:
    """A hook that leaves fsyncs out: they matter to no test but the one that cuts the power."""
    if _op.kind not in SYNCS:
        act()


def tree(root: Path) -> dict[str, bytes]:
    """Bytes of every file of the store that is part of its content."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for part in ("objects", "records", "refs", "partial")
        for path in sorted((root / part).rglob("*"))
        if path.is_file()
    }


@dataclass
class Promise:
    """A thing that the store said was durable, from one operation of the trace to another."""

    kind: str
    name: str
    value: Any
    start: int
    end: int = 1 << 30


@dataclass
class Journal:
    """The promises made so far; `position` counts operations."""

    position: int = 0
    promises: list[Promise] = field(default_factory=list)

    def changing(self, kind: str, name: str) -> None:
        """From here on, the old promise about this thing no longer holds."""
        for promise in self.promises:
            if (promise.kind, promise.name) == (kind, name) and promise.end > self.position:
                promise.end = self.position

    def promise(self, kind: str, name: str, value: Any) -> None:
        """From here on, power may fail and this must still be so."""
        self.promises.append(Promise(kind, name, value, self.position))


def work(root: Path, journal: Journal | None = None) -> None:
    """Use every verb that writes: put, put_file, publish, lock, lease, ref, replace, partial, gc. Can be run again."""
    journal = journal or Journal()
    store = Store(root)

    def put(data: bytes) -> OutputRef:
        ref = store.put(data)
        journal.promise("object", ref.digest, data)
        return ref

    def publish(record: Record) -> None:
        published = store.publish(record)
        journal.promise("record", record.key, published)

    source = make_record({"count": 3}, {"images": put(b"images " * 40)}, slot="cow/images")
    first = make_record(
        {}, {"masks": put(b"masks " * 30)}, stage="label", inputs=(("images", source.key),), slot="cow/labels",
        read={source.key: source.outputs_digest},
    )  # fmt: skip
    garbage = make_record({"count": 4}, {"images": put(b"garbage " * 20)}, slot="dog/images")
    with store.lease("run", [source.key, first.key, garbage.key]), store.lock(source.key):
        publish(source)
        put(b"images " * 40)
        publish(source)
        (store.partial(first.key) / "half").write_bytes(b"half a fit")
        publish(first)
        publish(garbage)
        store.write_ref("digits", "main", {"slots": {"cow/labels": first.key, "dog/images": garbage.key}})
        journal.promise("ref", "main", {"slots": {"cow/labels": first.key, "dog/images": garbage.key}})
        store.clear_partial(first.key)
    plain = root / "plain.bin"
    plain.write_bytes(b"other masks " * 30)
    other = store.put_file(plain)
    journal.promise("object", other.digest, b"other masks " * 30)
    second = replace(first, outputs=(OutputObject("masks", other.digest, other.size, 1),))
    journal.changing("record", first.key)
    store.replace(second)
    journal.promise("record", first.key, second)
    journal.changing("ref", "main")
    store.write_ref("digits", "main", {"slots": {"cow/labels": first.key}})
    journal.promise("ref", "main", {"slots": {"cow/labels": first.key}})
    for output in (*first.outputs, *garbage.outputs):
        journal.changing("object", output.digest)
    journal.changing("record", garbage.key)
    store.gc()


def index_eagerly() -> None:
    """Let the index of verified objects write, and rewrite, its file at every chance."""
    index._RACY_NS = -(10**18)
    index._COMPACT_FROM = 0


def count_operations(root: Path) -> list[Op]:
    """The trace of an uninterrupted `work`, without its fsyncs' waiting."""
    operations: list[Op] = []

    def note(op: Op, act: Callable[[], None]) -> None:
        operations.append(op)
        skip_syncs(op, act)

    fsops.trace = note
    work(root)
    fsops.trace = None
    return operations


def crash_points(operations: list[Op]) -> list[tuple[int, str, int]]:
    """(operation, "before" | "after" | "torn", bytes written) for every way to die in a trace."""
    points = []
    for number, op in enumerate(operations):
        points += [(number, "before", 0), (number, "after", 0)]
        if op.kind in {"write", "append", "note"}:
            points += [(number, "torn", size) for size in sorted({1, len(op.data) // 2, len(op.data) - 1})]
    return points


def crash(root: Path, number: int, when: str, size: int) -> None:
    """Fork a child that works and dies at one operation, as by SIGKILL; its fsyncs are left out."""
    child = os.fork()
    if child == 0:
        code = 3
        try:
            _work_until(root, number, when, size)
            code = 4
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) != 9:
        raise AssertionError(f"the child did not die at {number} {when}: {os.waitstatus_to_exitcode(status)}")


def _work_until(root: Path, number: int, when: str, size: int) -> None:
    seen = 0

    def hook(op: Op, act: Callable[[], None]) -> None:
        nonlocal seen
        if seen == number:
            if when == "after":
                skip_syncs(op, act)
            elif when == "torn":
                with open(op.path, "ab") as file:
                    file.write(op.data[:size])
            os._exit(9)
        seen += 1
        skip_syncs(op, act)

    fsops.trace = hook
    work(root)


def check_consistent(store: Store) -> list[str]:
    """What is wrong with a store that a crash left: nothing may be."""
    report = store.verify()
    wrong = [f"{damage.kind} {damage.name}: {damage.why}" for damage in report.damaged]
    wrong += [f"{key} lacks {name}" for key, name in report.missing]
    wrong += [f"quarantined {path.name}" for path in (store.root / "quarantine").iterdir()]
    return wrong


def crash_everywhere(folder: Path) -> dict[str, Any]:
    """Row 2: die at each point, look, finish, compare."""
    operations = count_operations(folder / "whole")
    truth = tree(folder / "whole")
    failures = []
    points = crash_points(operations)
    for number, when, size in points:
        root = folder / f"{number}-{when}-{size}"
        crash(root, number, when, size)
        fsops.trace = skip_syncs
        where = f"{number} {when} {operations[number].kind} {operations[number].path.relative_to(folder)}"
        try:
            wrong = check_consistent(Store(root))
            work(root)
            if tree(root) != truth:
                wrong.append("finishing gave other bytes")
            wrong += [f"left {path}" for part in ("tmp", "leases") for path in (root / part).iterdir()]
        except Exception as error:
            wrong = [f"{type(error).__name__}: {error}"]
        failures += [f"{where}: {line}" for line in wrong]
    return {"points": len(points), "kinds": sorted({op.kind for op in operations}), "failures": failures}


def hold_lock(folder: Path, key: str) -> None:
    """Take a lock and never let go."""
    with Store(folder).lock(key), Store(folder).lease("holder"):
        print("held", flush=True)
        time.sleep(600)


def let_go_after_fork(folder: Path, key: str) -> bool:
    """Take a lock, fork a child that lives on, let go; whether the lock can be taken while the child lives."""
    store = Store(folder)
    with store.lock(key):
        sleeper = os.fork()
        if sleeper == 0:
            time.sleep(60)
            os._exit(0)
    try:
        with Store(folder).lock(key, timeout=0):
            return True
    finally:
        os.kill(sleeper, 9)
        os.waitpid(sleeper, 0)


def publish_one(folder: Path, text: str) -> str:
    """Publish one key with an output of its own; the outputs digest of the record that won."""
    store = Store(folder)
    record = make_record({"count": 7}, {"images": store.put(text.encode())})
    return store.publish(record).outputs_digest


def run_tasks(folder: Path, count: int) -> int:
    """What a run does: lease, look, make what is missing, ref. Returns how often a cached object was gone."""
    store = Store(folder)
    keys = [make_record({"slice": number}, {}).key for number in range(count)]
    with store.lease("run", keys):
        for number, key in enumerate(keys):
            with store.lock(key):
                if store.status(key).state != "cached":
                    data = f"slice {number} ".encode() * 50
                    store.publish(make_record({"slice": number}, {"images": store.put(data)}))
        gone = 0
        for key in keys:
            record = store.get(key)
            try:
                store.read(record.output("images").digest if record else "0" * 64)
            except ObjectMissing:
                gone += 1
        store.write_ref("shared", "main", {"slots": {str(number): key for number, key in enumerate(keys)}})
    return gone


def child(verb: str, folder: Path, *args: str) -> subprocess.Popen[str]:
    """A process that runs one of the functions above."""
    command = [sys.executable, "-W", "error", __file__, verb, str(folder), *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def child_result(process: subprocess.Popen[str], timeout: float = 300) -> Any:
    """What it printed, as JSON, once it has ended well."""
    output, _ = process.communicate(timeout=timeout)
    assert process.returncode == 0, output
    return json.loads(output)


def main() -> None:
    verb, folder, *args = sys.argv[1:]
    if verb == "crash":
        index_eagerly()
        print(json.dumps(crash_everywhere(Path(folder))))
    elif verb == "hold":
        hold_lock(Path(folder), args[0])
    elif verb == "publish":
        print(json.dumps(publish_one(Path(folder), args[0])))
    elif verb == "forked":
        print(json.dumps(let_go_after_fork(Path(folder), args[0])))
    elif verb == "tasks":
        fsops.trace = skip_syncs
        print(json.dumps(run_tasks(Path(folder), int(args[0]))))


if __name__ == "__main__":
    main()
