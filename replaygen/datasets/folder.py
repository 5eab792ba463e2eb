"""A folder pack: images/, masks/, classes.json and splits/, the format to bring your own data in.

    classes.json        {"classes": [{"id", "name", "color"}, ...], "background_id": 0 or null, "ignore_id": 255}
    images/<id>.jpg     or jpeg, png, webp
    masks/<id>.png      8-bit, pixel = class id
    splits/<name>.txt   one id a line

Files that no split lists are left alone.
"""

from __future__ import annotations

from pathlib import Path

from replaygen.datasets.base import Layout
from replaygen.datasets.files import by_stem, list_files, read_classes, read_ids, require_folder
from replaygen.errors import DataError

_HINT = "a folder pack holds images/, masks/, splits/<name>.txt and classes.json"


def read_folder(root: Path) -> Layout:
    """The layout of the folder pack at `root`; a DataError naming what is missing."""
    require_folder(root, _HINT)
    if not (root / "classes.json").is_file():
        raise DataError("classes.json not found", where=str(root), hint=_HINT)
    classes, background, ignore = read_classes(root / "classes.json")
    lists = [file for file in list_files(root / "splits", _HINT) if file.endswith(".txt")]
    return Layout(
        name=root.resolve().name,
        root=root,
        classes=classes,
        background=background,
        ignore=ignore,
        splits={file.removesuffix(".txt"): read_ids(root / "splits" / file) for file in lists},
        images=by_stem(root, "images", ("jpg", "jpeg", "png", "webp"), _HINT),
        masks=by_stem(root, "masks", ("png",), _HINT),
        where=str(root / "splits"),
    )
