"""Plain folders, as a folder pack: images/, masks/, splits/train.txt, classes.json; and samples.jsonl."""

from __future__ import annotations

from pathlib import Path

from replaygen.exports.ids import Ids
from replaygen.exports.layout import Lines
from replaygen.exports.place import write
from replaygen.exports.samples import Sample
from replaygen.sample import encode_png


class FoldersLayout:
    """Images keep their bytes; masks are grey 8-bit PNGs whose value is the id."""

    def __init__(self, folder: Path, ids: Ids, *, shard: int) -> None:
        self.folder = folder
        self._lines = Lines(folder / "samples.jsonl")
        (folder / "splits").mkdir()
        self._split = (folder / "splits" / "train.txt").open("x", encoding="utf-8")

    def add(self, sample: Sample) -> None:
        """Write an image, its mask and its lines."""
        write(self.folder / "images" / f"{sample.id}.{sample.kind}", sample.image)
        write(self.folder / "masks" / f"{sample.id}.png", encode_png(sample.mask))
        self._lines.add(sample.about)
        self._split.write(f"{sample.id}\n")

    def close(self) -> None:
        """Close the lists."""
        self._lines.close()
        self._split.close()

    release = close
