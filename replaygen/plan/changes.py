"""KEY=VALUE of `--set`, as what is laid over a recipe."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from typing import Any

from replaygen.errors import RecipeError


def changes_of(told: Iterable[str]) -> dict[str, Any]:
    """Dotted key -> value; a key alone is true.

    Args:
        told: KEY=VALUE, each VALUE in TOML.

    Raises:
        RecipeError: a value is no TOML.
    """
    laid: dict[str, Any] = {}
    for change in told:
        key, equals, value = change.partition("=")
        try:
            laid[key.strip()] = tomllib.loads(f"x = {value}")["x"] if equals else True
        except tomllib.TOMLDecodeError:
            raise RecipeError(
                f"--set {change!r}: the value is no TOML", hint="quote text: --set 'data.path=\"photos\"'"
            ) from None
    return laid
