"""The layout of the VOC devkit: VOCdevkit/VOC2012 with JPEGImages, SegmentationClass and ImageSets/Segmentation."""

from __future__ import annotations

from pathlib import Path

from replaygen.exports.ids import Ids
from replaygen.exports.layout import Lines, as_jpeg, palette_png
from replaygen.exports.place import write
from replaygen.exports.samples import Sample
from replaygen.report.text import plain


class VocLayout:
    """Masks are palette PNGs with VOC's colours; images that are PNG become JPEG, for the devkit knows no other."""

    def __init__(self, folder: Path, ids: Ids, *, shard: int) -> None:
        self.base = folder / "VOCdevkit" / "VOC2012"
        self._lines = Lines(self.base / "samples.jsonl")
        lists = self.base / "ImageSets" / "Segmentation"
        lists.mkdir(parents=True)
        self._lists = [(lists / f"{name}.txt").open("x", encoding="utf-8") for name in ("train", "trainval")]
        (lists / "val.txt").touch()
        write(self.base / "labelmap.txt", _labelmap(ids))

    def add(self, sample: Sample) -> None:
        """Write an image, its mask and its lines."""
        write(self.base / "JPEGImages" / f"{sample.id}.jpg", as_jpeg(sample))
        write(self.base / "SegmentationClass" / f"{sample.id}.png", palette_png(sample.mask))
        self._lines.add(sample.about)
        for file in self._lists:
            file.write(f"{sample.id}\n")

    def close(self) -> None:
        """Close the lists."""
        self._lines.close()
        for file in self._lists:
            file.close()

    release = close


def _labelmap(ids: Ids) -> bytes:
    """`name:red,green,blue::` a line, as annotation tools write it beside a devkit; ":" in a name becomes a space."""
    rows = [f"{' '.join(plain(one.name).replace(':', ' ').split())}:{','.join(map(str, one.color))}::"
            for one in ids.classes]  # fmt: skip
    return "\n".join(["# label:color_rgb:parts:actions", *rows, ""]).encode()
