"""Hugging Face `datasets`: parquet files with image and mask as Image features, read by `load_dataset(FOLDER)`."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from replaygen.errors import DataError
from replaygen.exports.ids import Ids
from replaygen.exports.samples import Sample
from replaygen.sample import encode_png

_TEXT = (
    "class", "source", "recipe_source", "licence", "licence_name", "licence_url", "owner", "owner_page", "title",
    "page", "url", "photo", "file", "sha256", "prompt", "generator", "parent", "labeler",
)  # fmt: skip
_NUMBERS = ("class_id", "width", "height")
_GROUP = 64
"""Samples of a row group, which is what is in memory."""


class HuggingFaceLayout:
    """data/train-00000-of-00001.parquet, ...: `shard` samples each."""

    def __init__(self, folder: Path, ids: Ids, *, shard: int) -> None:
        if find_spec("pyarrow") is None:
            raise DataError("this export needs the package pyarrow", hint="pip install pyarrow")
        self.folder, self.shard = folder / "data", shard
        self.folder.mkdir()
        self._rows: list[dict[str, Any]] = []
        self._count = self._files = 0
        self._writer: Any = None

    def add(self, sample: Sample) -> None:
        """Take a sample; written with the others of its row group."""
        about = sample.about
        self._rows.append({
            "id": sample.id,
            "image": {"bytes": sample.image, "path": f"{sample.id}.{sample.kind}"},
            "mask": {"bytes": encode_png(sample.mask), "path": f"{sample.id}.mask.png"},
            **{name: about[name] for name in (*_TEXT, *_NUMBERS)},
            "visible": about["visible"], "visible_names": about["visible_names"], "erased": about["erased"],
            "seed": about["seed"], "scores": json.dumps(about["scores"], sort_keys=True),
        })  # fmt: skip
        self._count += 1
        if len(self._rows) >= min(_GROUP, self.shard):
            self._flush()
        if self._count % self.shard == 0:
            self._end_file()

    def close(self) -> None:
        """Write the rest, and name the files by how many there are."""
        self._end_file()
        for i in range(self._files):
            part = self.folder / f"{i:05d}.part"
            part.rename(self.folder / f"train-{i:05d}-of-{self._files:05d}.parquet")

    def _flush(self) -> None:
        if not self._rows:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._writer is None:
            path = self.folder / f"{self._files:05d}.part"
            self._writer = pq.ParquetWriter(path, schema(), compression="zstd", compression_level=3)
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=schema()))
        self._rows = []

    def _end_file(self) -> None:
        self._flush()
        if self._writer is not None:
            self.release()
            self._files += 1

    def release(self) -> None:
        """Close the file that is being written."""
        if self._writer is not None:
            self._writer.close()
        self._writer = None


def schema() -> Any:
    """The table's columns, with the features that `datasets` reads from the schema's metadata."""
    import pyarrow as pa

    picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = [("id", pa.string()), ("image", picture), ("mask", picture)]
    columns += [(name, pa.string()) for name in _TEXT] + [(name, pa.int32()) for name in _NUMBERS]
    columns += [("visible", pa.list_(pa.int32())), ("visible_names", pa.list_(pa.string())), ("erased", pa.bool_())]
    columns += [("seed", pa.int64()), ("scores", pa.string())]
    features = {name: _feature(kind) for name, kind in columns}
    told = json.dumps({"info": {"features": features}}, sort_keys=True)
    return pa.schema(columns, metadata={"huggingface": told})


def _feature(kind: Any) -> dict[str, Any]:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return {"_type": "Image"}
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "List"}
    return {"dtype": str(kind), "_type": "Value"}
