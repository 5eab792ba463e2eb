"""WebDataset: tars of `<id>.jpg|png`, `<id>.mask.png` (8-bit ids) and `<id>.json`, in which image and label are one."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from replaygen.exports.ids import Ids
from replaygen.exports.layout import as_line
from replaygen.exports.samples import Sample
from replaygen.sample import encode_png


class WebDatasetLayout:
    """`replay-000000.tar`, ...: `shard` samples each; deterministic bytes (no times, no owners)."""

    def __init__(self, folder: Path, ids: Ids, *, shard: int) -> None:
        self.folder, self.shard = folder, shard
        self._count = 0
        self._tar: tarfile.TarFile | None = None

    def add(self, sample: Sample) -> None:
        """Write one sample behind the others."""
        if self._count % self.shard == 0:
            self.close()
            path = self.folder / f"replay-{self._count // self.shard:06d}.tar"
            self._tar = tarfile.open(path, "x", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - `close` closes it
        assert self._tar is not None
        self._count += 1
        files = {sample.kind: sample.image, "json": as_line(sample.about), "mask.png": encode_png(sample.mask)}
        for ending in sorted(files):
            info = tarfile.TarInfo(f"{sample.id}.{ending}")
            info.size, info.mode = len(files[ending]), 0o644
            self._tar.addfile(info, io.BytesIO(files[ending]))

    def close(self) -> None:
        """Close the last tar."""
        if self._tar is not None:
            self._tar.close()
        self._tar = None

    release = close
