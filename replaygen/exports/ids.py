"""What the numbers in exported masks mean: the data set's own class ids, or the scenario's channels."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from replaygen.classes import palette
from replaygen.errors import DataError
from replaygen.report.text import plain
from replaygen.sample import IGNORE

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from replaygen.plan import Plan
    from replaygen.sample import Mask8

Kind = Literal["dataset", "channels"]
COLORS = palette(256)


@dataclass(frozen=True)
class ExportClass:
    """One class as exported masks have it; `color`: VOC's for its id, 8-bit RGB."""

    id: int
    name: str
    channel: int

    @property
    def color(self) -> tuple[int, int, int]:
        return COLORS[self.id]


@dataclass(frozen=True)
class Ids:
    """The classes of an export.

    Attributes:
        kind: "dataset" (the ids of the data set's masks) or "channels" (0 = background, 1.. in learning order).
        classes: by id; the background among them, where it has an id.
        background: its id; None where the data set has none: what is no class of the scenario is then 255, ignore.
    """

    kind: Kind
    classes: tuple[ExportClass, ...]
    background: int | None

    @classmethod
    def of(cls, plan: Plan, kind: Kind) -> Ids:
        """The classes of a plan's scenario."""
        scenario, dataset = plan.opened.scenario, plan.opened.dataset
        if kind == "channels":
            rows = [ExportClass(channel, name, channel) for channel, name in enumerate(scenario.names)]
            return cls(kind, tuple(rows), 0)
        rows = [ExportClass(raw, scenario.names[channel], channel) for channel, raw in enumerate(scenario.raw, start=1)]
        if scenario.background is not None:
            name = next((info.name for info in dataset.classes if info.id == scenario.background), scenario.names[0])
            rows.append(ExportClass(scenario.background, name, 0))
        return cls(kind, tuple(sorted(rows, key=lambda row: row.id)), scenario.background)

    @cached_property
    def by_channel(self) -> dict[int, ExportClass]:
        return {one.channel: one for one in self.classes}

    @cached_property
    def by_id(self) -> dict[int, ExportClass]:
        return {one.id: one for one in self.classes}

    @cached_property
    def _table(self) -> npt.NDArray[np.uint8]:
        import numpy as np

        table = np.full(256, IGNORE, dtype=np.uint8)
        for channel, one in self.by_channel.items():
            table[channel] = one.id
        return table

    def apply(self, mask: Mask8, where: str) -> Mask8:
        """Exported ids, uint8 [H, W], of channels, uint8 [H, W]; 255 stays.

        Raises:
            DataError: a channel that the scenario does not have.
        """
        import numpy as np

        odd = sorted({int(value) for value in np.unique(mask)} - {0, IGNORE} - set(self.by_channel))
        if odd:
            raise DataError(f"a label holds channel {odd[0]}, which the scenario does not have", where=where,
                            hint="run `replaygen cache verify`")  # fmt: skip
        mapped: Mask8 = self._table[mask]
        return mapped

    def as_json(self) -> dict[str, Any]:
        """`classes.json` of a folder pack, and what the numbers are."""
        rows = [
            {"id": one.id, "name": plain(one.name), "color": list(one.color), "channel": one.channel}
            for one in self.classes
        ]
        return {"ids": self.kind, "classes": rows, "background_id": self.background, "ignore_id": IGNORE}

    def file(self) -> bytes:
        """`as_json`, one class a line."""
        told = self.as_json()
        lines = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in told["classes"])
        rest = "".join(f', "{name}": {json.dumps(told[name])}' for name in ("background_id", "ignore_id"))
        return f'{{"ids": "{self.kind}", "classes": [\n{lines}\n]{rest}}}\n'.encode()
