"""One JSON text for one value, so that equal content has equal bytes and so an equal sha256."""

from __future__ import annotations

import hashlib
import json


def canonical(value: object) -> bytes:
    """The canonical JSON of `value`: sorted keys, no spaces, UTF-8, floats by repr, tuples written as lists.

    Raises:
        ValueError: NaN, infinity, or text that is not valid Unicode.
        TypeError: a type that JSON does not have (a set, an array, bytes), or a mapping key that is not text.
    """
    _check_keys(value)
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def digest_of(value: object) -> str:
    """The sha256 (64 hexadecimal digits) of `canonical(value)`."""
    return hashlib.sha256(canonical(value)).hexdigest()


def _check_keys(value: object) -> None:
    # json would write the keys 1 and "1" alike, and two values would share their bytes
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"mapping key {key!r} is not text")
            if isinstance(item, (dict, list, tuple)):
                _check_keys(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            if isinstance(item, (dict, list, tuple)):
                _check_keys(item)
