"""The command that writes replay sets in the layouts of other software."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from replaygen.cli.options import Cache, Json, RecipeName, Set, open_recipe


class Format(StrEnum):
    """Layouts, as `replaygen.exports.FORMATS`."""

    webdataset = "webdataset"
    voc = "voc"
    coco = "coco"
    huggingface = "huggingface"
    folders = "folders"


class Numbers(StrEnum):
    """What masks hold."""

    dataset = "dataset"
    channels = "channels"


def export(
    layout: Annotated[Format, typer.Argument(metavar="FORMAT", help="webdataset, voc, coco, huggingface or folders")],
    recipe: RecipeName,
    out: Annotated[Path, typer.Option("--out", help="a new folder, which appears when it is complete")],
    classes: Annotated[list[str] | None, typer.Argument(metavar="[CLASS]...", help="default: all")] = None,
    method: Annotated[
        str | None, typer.Option("--method", help="whose replay; default: the first row with any")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="default: the recipe's first")] = None,
    ids: Annotated[
        Numbers, typer.Option("--ids", help="masks hold the data set's class ids, or the scenario's channels")
    ] = Numbers.dataset,
    shard: Annotated[int, typer.Option("--shard", min=1, help="samples of a tar or parquet file")] = 1000,
    allow_restricted: Annotated[
        str,
        typer.Option(
            "--allow-restricted",
            metavar="WHY",
            help="photos too whose licence forbids it or is not known; never purged or withdrawn ones",
        ),
    ] = "",
    changes: Set = None,
    cache_root: Cache = None,
    as_json: Json = False,
) -> None:
    """Export the replay sets of a finished run: images, labels and provenance, for other software to read."""
    from replaygen.exports import export as write

    found, store = open_recipe(recipe, changes, cache_root, reads=True)
    done = write(
        found.plan(store), layout.value, out, classes=classes or (), method=method, seed=seed, ids=ids.value,
        shard=shard, allow_restricted=allow_restricted,
    )  # fmt: skip
    if as_json:
        print(json.dumps(done.as_json(), ensure_ascii=False))
        return
    print(f"wrote {done.out}: {sum(done.samples.values())} samples of {len(done.samples)} classes, "
          f"{done.files} files, {done.size / 1e6:.1f} MB")  # fmt: skip
    for reason, count in done.left_out.items():
        print(f"  left out: {count} {reason}")
