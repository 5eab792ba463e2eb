"""The command that takes in images which came with masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from replaygen.cli.options import Json


def import_(
    images: Annotated[Path, typer.Argument(help="images, or a folder of images a class")],
    masks: Annotated[Path, typer.Option("--masks", help="their masks: NAME.png, or CLASS/NAME.png, 8-bit ids")],
    classes: Annotated[Path, typer.Option("--classes", help="what the ids are: lines ID NAME, or a classes.json")],
    out: Annotated[Path, typer.Option("--out", help="a new folder, for a recipe's path")],
    ignore: Annotated[
        int | None, typer.Option("--ignore", min=0, max=255, help="the value of pixels that say nothing; default: 255")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check images with their masks, and lay them out for a recipe; images without masks need no import."""
    from replaygen.exports.importing import import_masks, read_mask_classes

    done = import_masks(images, masks, read_mask_classes(classes, ignore=ignore), out.absolute())
    if as_json:
        print(json.dumps(done.as_json(), ensure_ascii=False))
        return
    print(f"wrote {done.out}: {sum(done.samples.values())} images of {len(done.samples)} classes")
    for reason, count in done.reasons().items():
        print(f"  left out: {count} {reason}")
    print(f"\nIn a recipe:\n\n{done.recipe()}")
