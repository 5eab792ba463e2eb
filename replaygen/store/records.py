"""Records: what a task made, in records/ab/<key>.json, published by one link.

The file is `{"sha256":"<64 hex>","task":T,"outputs":O,"made":M}` and a newline, T, O and M in canonical JSON. The
digest is of everything between it and the last brace; the sha256 of T is the record's key and the name of its file, and
the sha256 of O is its outputs digest. So a record is checked from its bytes, without encoding anything again.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from replaygen.classes import nearest_hint
from replaygen.errors import StoreError
from replaygen.store.keys import canonical, ingredients, is_digest, sha256_hex


@dataclass(frozen=True)
class Counts:
    """What became of the samples asked for; `requested` is always the sum of the rest.

    `rejected` and `failed` give a number for each named reason.
    """

    requested: int
    accepted: int
    rejected: dict[str, int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbers = [self.requested, self.accepted, *self.rejected.values(), *self.failed.values()]
        if any(type(number) is not int or number < 0 for number in numbers):
            raise StoreError(f"counts must be whole numbers from 0: {self}")
        if any(not isinstance(reason, str) or not reason for reason in (*self.rejected, *self.failed)):
            raise StoreError(f"each rejection and failure needs a named reason: {self}")
        total = self.accepted + sum(self.rejected.values()) + sum(self.failed.values())
        if self.requested != total:
            raise StoreError(
                f"counts do not add up: {self.requested} requested, {total} accounted for",
                hint="requested = accepted + rejected + failed; give every lost sample a reason",
            )

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "requested": self.requested,
            "accepted": self.accepted,
            "rejected": dict(self.rejected),
            "failed": dict(self.failed),
        }


@dataclass(frozen=True)
class OutputObject:
    """One object that a task made: its name within the task, sha256, bytes, and number of samples."""

    name: str
    digest: str
    size: int
    samples: int

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name or not is_digest(self.digest):
            raise StoreError(f"output {self.name!r} has no name or no sha256: {self.digest!r}")
        if type(self.size) is not int or type(self.samples) is not int or self.size < 0 or self.samples < 0:
            raise StoreError(f"output {self.name!r} has size {self.size!r} and {self.samples!r} samples")

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"name": self.name, "digest": self.digest, "size": self.size, "samples": self.samples}


@dataclass(frozen=True)
class Record:
    """What a task made.

    Args:
        key: `task_key` of the next four and `inputs`.
        stage, version, params, seed, inputs: the key's ingredients; inputs are (role, key) in order.
        slot: the task's name in its recipe, for people ("cow/images/0003"); in no key.
        outputs: the objects, each name once.
        counts: what became of the samples asked for.
        read: for each input key, the `outputs_digest` of its record when it was read.
        provenance: where the content came from.
        environment: versions, device and CPU capability.
        started: ISO 8601, UTC.
        seconds: wall time.
    """

    key: str
    stage: str
    version: int
    params: dict[str, Any]
    seed: int | None
    inputs: tuple[tuple[str, str], ...]
    slot: str
    outputs: tuple[OutputObject, ...]
    counts: Counts
    read: dict[str, str]
    provenance: dict[str, Any]
    environment: dict[str, Any]
    started: str
    seconds: float

    @cached_property
    def outputs_digest(self) -> str:
        """sha256 over the canonical list of outputs: equal bytes made, equal digest."""
        return sha256_hex(canonical([output.to_dict() for output in self.outputs]))

    def output(self, name: str) -> OutputObject:
        """The output called `name`; StoreError with the nearest name where there is none."""
        for output in self.outputs:
            if output.name == name:
                return output
        raise StoreError(
            f"the record has no output called {name!r}",
            where=f"record {self.key} ({self.slot or self.stage})",
            hint=nearest_hint(name, [output.name for output in self.outputs]),
        )

    def to_json(self) -> bytes:
        """The record's file. StoreError where a value has no canonical JSON or the key is another task's."""
        task = canonical(ingredients(self.stage, self.version, self.params, self.seed, self.inputs))
        made = {
            "slot": self.slot,
            "counts": self.counts.to_dict(),
            "read": self.read,
            "provenance": self.provenance,
            "environment": self.environment,
            "started": self.started,
            "seconds": self.seconds,
        }
        outputs = canonical([output.to_dict() for output in self.outputs])
        data = seal(b'"task":%s,"outputs":%s,"made":%s' % (task, outputs, canonical(made)))
        if Record.from_json(data).key != self.key:
            raise StoreError(
                "the record's key is not the key of its ingredients", where=f"record {self.key} ({self.slot})"
            )
        return data

    @classmethod
    def from_json(cls, data: bytes) -> Record:
        """The record in a file's bytes; StoreError where they are damaged in any way."""
        return glance(data).record()


@dataclass(frozen=True)
class Glance:
    """A record whose digest was found right and whose parts are not yet looked into; quick to make."""

    key: str
    outputs_digest: str
    task: dict[str, Any]
    outputs: list[dict[str, Any]]
    made: dict[str, Any]

    @property
    def read(self) -> dict[str, str]:
        """As `Record.read`."""
        read = self.made.get("read")
        if not isinstance(read, dict):
            raise StoreError("record is damaged: `read` must map input keys to output digests")
        return read

    def objects(self) -> list[tuple[str, str, int]]:
        """(output name, digest, size in bytes) of each output."""
        try:
            found = [(output["name"], output["digest"], output["size"]) for output in self.outputs]
        except (TypeError, KeyError) as error:
            raise StoreError(f"record is damaged: an output lacks {error}") from None
        if not all(is_digest(digest) for _, digest, _ in found):
            raise StoreError("record is damaged: an output has no sha256")
        return found

    def record(self) -> Record:
        """The record, every field checked; StoreError where one is missing, unknown or odd."""
        for part, fields in ((self.task, _TASK), (self.made, _MADE)):
            if set(part) != fields:
                odd = sorted(set(part) ^ fields)
                raise StoreError(f"record is damaged: fields {', '.join(odd)} are missing or unknown")
        try:
            record = Record(
                key=self.key,
                outputs=tuple(OutputObject(**output) for output in self.outputs),
                **{**self.task, "inputs": tuple((role, key) for role, key in self.task["inputs"])},
                **{**self.made, "counts": Counts(**self.made["counts"])},
            )
            ingredients(record.stage, record.version, record.params, record.seed, record.inputs)
        except StoreError as error:
            raise StoreError(f"record is damaged: {error.what}") from None
        except (TypeError, ValueError, AttributeError) as error:
            raise StoreError(f"record is damaged: {error}") from None
        _check_rest(record)
        return record


_TASK = {"stage", "version", "params", "seed", "inputs"}
_MADE = {"slot", "counts", "read", "provenance", "environment", "started", "seconds"}

_FIRST_READ = 1 << 16

_scan = json.JSONDecoder().raw_decode


def glance(data: bytes) -> Glance:
    """Check a record file's digest, and cut it into its parts. Keys and digests are those of the bytes themselves."""
    body = unseal("record", data)
    position = 0
    parts: list[Any] = []
    slices: list[bytes] = []
    try:
        text = body.decode("ascii") if body.isascii() else body.decode("utf-8")
        for head in ('"task":', ',"outputs":', ',"made":'):
            if not text.startswith(head, position):
                raise ValueError(f"no {head.strip(',:')}")
            value, end = _scan(text, position + len(head))
            parts.append(value)
            slices.append(text[position + len(head) : end].encode("utf-8"))
            position = end
    except (ValueError, RecursionError) as error:
        raise StoreError(f"record is damaged: {error}") from None
    task, outputs, made = parts
    if position != len(text) or not isinstance(task, dict) or not isinstance(outputs, list):
        raise StoreError("record is damaged: not a task with outputs")
    if not isinstance(made, dict):
        raise StoreError("record is damaged: not a task with outputs")
    return Glance(sha256_hex(slices[0]), sha256_hex(slices[1]), task, outputs, made)


def seal(body: bytes) -> bytes:
    """A JSON file that checks itself: the members of an object, with their sha256 before them."""
    return b'{"sha256":"%s",%s}\n' % (sha256_hex(body).encode(), body)


def unseal(kind: str, data: bytes) -> bytes:
    """The members in a file that `seal` wrote; StoreError where one byte is not as it was."""
    if data[:11] != b'{"sha256":"' or data[75:77] != b'",' or data[-2:] != b"}\n":
        raise StoreError(f"{kind} is damaged: not a sealed file")
    body = data[77:-2]
    if sha256_hex(body).encode() != data[11:75]:
        raise StoreError(f"{kind} is damaged: its bytes differ from its digest")
    return body


def _check_rest(record: Record) -> None:
    names = [output.name for output in record.outputs]
    if len(set(names)) != len(names):
        raise StoreError(f"record is damaged: an output name is given twice in {names}")
    if not all(isinstance(part, dict) for part in (record.read, record.provenance, record.environment)):
        raise StoreError("record is damaged: read, provenance and environment must be tables")
    if not all(is_digest(key) and is_digest(value) for key, value in record.read.items()):
        raise StoreError("record is damaged: `read` must map input keys to output digests")
    if not isinstance(record.slot, str) or not isinstance(record.started, str):
        raise StoreError("record is damaged: slot and started must be text")
    if isinstance(record.seconds, bool) or not isinstance(record.seconds, (int, float)):
        raise StoreError("record is damaged: seconds must be a number")
    if not math.isfinite(record.seconds) or record.seconds < 0:
        raise StoreError("record is damaged: seconds must be a number from 0")


def read_all(path: str) -> bytes:
    """A small file's bytes. OSError as `open`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        parts = [os.read(descriptor, _FIRST_READ)]
        while len(parts[-1]) == _FIRST_READ:
            parts.append(os.read(descriptor, _FIRST_READ))
        return b"".join(parts)
    finally:
        os.close(descriptor)
