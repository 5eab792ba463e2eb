"""Canonical JSON and task keys: what a task *is*, as 64 hex digits, before anything ran.

Equal ingredients give equal keys on every machine; results never enter a key.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from replaygen.canonical import canonical as canonical_json
from replaygen.errors import StoreError

_DIGEST = re.compile(r"[0-9a-f]{64}")


def canonical(obj: object) -> bytes:
    """The one JSON text of `obj`: keys sorted, no spaces, UTF-8, floats by their shortest repr, tuples as lists.

    Args:
        obj: None, bool, int, float, str, and lists, tuples and dicts with text keys of these.

    Raises:
        StoreError: NaN or infinity, a mapping key that is no text, a lone surrogate, or any other type.
    """
    try:
        return canonical_json(obj)
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(
            f"no canonical JSON for this value: {error}",
            hint="use None, bool, int, finite float, text, and lists and text-keyed dicts of these",
        ) from None


def sha256_hex(data: bytes) -> str:
    """sha256 of `data` as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def is_digest(text: object) -> bool:
    """Whether `text` is 64 lower-case hex digits, as keys and object names are."""
    return isinstance(text, str) and _DIGEST.fullmatch(text) is not None


def check_digest(text: str, what: str = "digest") -> str:
    """`text` where it is 64 lower-case hex digits; StoreError otherwise, so it is safe as a file name."""
    if not is_digest(text):
        raise StoreError(f"not a {what}: {str(text)[:80]!r}", hint="64 lower-case hex digits are expected")
    return text


def task_key(
    stage: str, version: int, params: Mapping[str, Any], seed: int | None, inputs: Sequence[tuple[str, str]]
) -> str:
    """The key of a task: sha256 over the canonical JSON of its ingredients.

    Args:
        stage: the stage's name.
        version: the stage's version, from 0.
        params: what decides the result, and nothing else (no paths, no worker counts).
        seed: the task's seed, None where it draws nothing.
        inputs: (role, key) of each task it reads, in order.

    Raises:
        StoreError: an ingredient of another type, or a value without canonical JSON.
    """
    return sha256_hex(canonical(ingredients(stage, version, params, seed, inputs)))


def ingredients(
    stage: str, version: int, params: Mapping[str, Any], seed: int | None, inputs: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """What a key is the sha256 of, as a JSON value, checked as `task_key` says."""
    if not isinstance(stage, str) or not stage:
        raise StoreError(f"a stage needs a name, got {stage!r}")
    if type(version) is not int or version < 0:
        raise StoreError(f"stage {stage!r} has version {version!r}", hint="versions are whole numbers from 0")
    if seed is not None and type(seed) is not int:
        raise StoreError(f"stage {stage!r} has seed {seed!r}", hint="seeds are whole numbers or None")
    if not isinstance(params, Mapping):
        raise StoreError(f"stage {stage!r} has params of type {type(params).__name__}", hint="use a dict")
    pairs = []
    for role, key in inputs:
        if not isinstance(role, str) or not role:
            raise StoreError(f"stage {stage!r} has an input with role {role!r}", hint="a role is a word")
        pairs.append([role, check_digest(key, "input key")])
    return {"stage": stage, "version": version, "params": params, "seed": seed, "inputs": pairs}
