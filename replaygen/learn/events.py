"""What a fit tells while it runs, as mappings that read as lines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Event(dict[str, Any]):
    """What a fit tells; `str()` gives a line.

    {"event": "progress" | "warning" | "resumed" | "checkpoint" | "finished", "iteration", "of", ...}. Progress has
    `loss` (the mean since the last), `lr`, `images_per_second` and `seconds_left`; the end has `seconds`,
    `images_per_second` and `wait_share`, the share of the time in which the loop waited for a batch.
    """

    def __str__(self) -> str:
        if self["event"] == "warning":
            return f"warning: {self['message']}"
        at = f"iteration {self['iteration']} of {self['of']}"
        if self["event"] == "progress":
            left = f", about {in_words(self['seconds_left'])} left" if self.get("seconds_left") else ""
            return f"{at}: loss {self['loss']:.4f}, lr {self['lr']:.2e}{left}"
        if self["event"] == "finished":
            return (
                f"finished {at} in {in_words(self['seconds'])}: {self['images_per_second']:.1f} images/s, "
                f"waited for batches {100 * self['wait_share']:.1f} % of the time"
            )
        return f"{self['event']} at {at}"


Log = Callable[[Event], None]
"""Gets every event of a fit; `print` and a logger's `info` will do."""


def in_words(seconds: float) -> str:
    """A rough duration: `40 s`, `2 min`, `3 h 5 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
