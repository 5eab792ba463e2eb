"""COCO: panoptic JSON with its PNGs, and stuff JSON with run lengths; one segment a class, no instances.

Category ids are the ids of the masks. In a panoptic PNG a pixel is 1 + the id, and 0 where the mask says ignore.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaygen.exports.ids import Ids
from replaygen.exports.layout import rgb_png
from replaygen.exports.place import write
from replaygen.exports.samples import Sample
from replaygen.report.text import plain
from replaygen.sample import IGNORE

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

PANOPTIC, STUFF = "panoptic_train", "stuff_train"


class CocoLayout:
    """images/, annotations/panoptic_train.json with its folder of PNGs, annotations/stuff_train.json."""

    def __init__(self, folder: Path, ids: Ids, *, shard: int) -> None:
        self.folder, self.ids = folder, ids
        (folder / "annotations").mkdir()
        self._lists = {name: _Spool(folder, name) for name in ("images", PANOPTIC, STUFF)}
        self._licences: dict[tuple[str, str], int] = {}
        self._images = self._stuff = 0

    def add(self, sample: Sample) -> None:
        """Write an image, its panoptic PNG, and what the lists say of both."""
        import numpy as np

        self._images += 1
        write(self.folder / "images" / f"{sample.id}.{sample.kind}", sample.image)
        numbers = np.where(sample.mask == IGNORE, 0, sample.mask.astype(np.int64) + 1)
        write(self.folder / "annotations" / PANOPTIC / f"{sample.id}.png", rgb_png(numbers))
        self._lists["images"].add(self._image(sample))
        segments = []
        for value in np.unique(sample.mask[sample.mask != IGNORE]).tolist():
            there = sample.mask == value
            told = {"category_id": value, "area": int(there.sum()), "bbox": _box(there), "iscrowd": 0}
            segments.append({"id": value + 1, **told})
            self._stuff += 1
            lengths = {"size": list(there.shape), "counts": run_lengths(there)}
            self._lists[STUFF].add({"id": self._stuff, "image_id": self._images, "segmentation": lengths, **told})
        self._lists[PANOPTIC].add(
            {"image_id": self._images, "file_name": f"{sample.id}.png", "segments_info": segments}
        )

    def _image(self, sample: Sample) -> dict[str, Any]:
        about = sample.about
        licence = (about["licence_name"] or "not recorded", about["licence_url"] or "")
        number = self._licences.setdefault(licence, len(self._licences) + 1)
        told = {
            "id": self._images, "file_name": f"{sample.id}.{sample.kind}", "width": sample.width,
            "height": sample.height, "license": number, "replay": about,
        }  # fmt: skip
        named = {"coco_url": about["url"], "flickr_url": about["page"] if about["source"] == "flickr" else None}
        return told | {name: value for name, value in named.items() if value}

    def close(self) -> None:
        """Join the lists to the two JSON files."""
        for name in (PANOPTIC, STUFF):
            with (self.folder / "annotations" / f"{name}.json").open("xb") as file:
                file.write(b'{"info": ' + _json({"description": "replay", "version": "1"}) + b',\n"licenses": ')
                file.write(_json(self._licence_rows()) + b',\n"categories": ' + _json(self._categories(name)))
                file.write(b',\n"images": [\n')
                self._lists["images"].copy_to(file)
                file.write(b'\n],\n"annotations": [\n')
                self._lists[name].copy_to(file)
                file.write(b"\n]}\n")
        self.release()
        for spool in self._lists.values():
            spool.path.unlink()

    def release(self) -> None:
        """Close the lists."""
        for spool in self._lists.values():
            spool.file.close()

    def _licence_rows(self) -> list[dict[str, Any]]:
        return [{"id": number, "name": name, "url": url} for (name, url), number in self._licences.items()]

    def _categories(self, name: str) -> list[dict[str, Any]]:
        rows: Iterator[dict[str, Any]] = (
            {"id": one.id, "name": plain(one.name), "supercategory": "background" if one.channel == 0 else "replay"}
            for one in self.ids.classes
        )
        if name == STUFF:
            return list(rows)
        return [{**row, "isthing": 0, "color": list(self.ids.by_id[row["id"]].color)} for row in rows]


class _Spool:
    """A JSON list that grows on disk."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f".{name}.list"
        self.file = self.path.open("xb")

    def add(self, row: dict[str, Any]) -> None:
        self.file.write((b",\n" if self.file.tell() else b"") + _json(row))

    def copy_to(self, file: Any) -> None:
        self.file.flush()
        with self.path.open("rb") as written:
            shutil.copyfileobj(written, file)


def run_lengths(there: npt.NDArray[np.bool_]) -> list[int]:
    """COCO's uncompressed run lengths of bool [H, W]: down the columns, pixels that are out first."""
    import numpy as np

    flat = np.concatenate([[False], there.ravel(order="F"), [not there[-1, -1]]])
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    return [int(length) for length in np.diff(ends, prepend=0)]


def _box(there: npt.NDArray[np.bool_]) -> list[int]:
    """[x, y, width, height] in pixels of what is true in bool [H, W]."""
    import numpy as np

    rows, columns = np.flatnonzero(there.any(axis=1)), np.flatnonzero(there.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    return [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=True).encode()
