"""`replaygen.runs.behind`, as the report names it."""

from __future__ import annotations

from replaygen.runs.behind import Slice, ancestors, identity, is_judged, open_shard, read_json, slices_of, verdicts

__all__ = ["Slice", "ancestors", "identity", "is_judged", "open_shard", "read_json", "slices_of", "verdicts"]
