"""ADE20K as the scene parsing benchmark cuts it: ADEChallengeData2016, 150 classes, and 0 = unlabelled.

The benchmark leaves pixels of value 0 out of evaluation. Incremental training on it (MiB and its successors) gives them
to channel 0 while training and leaves them out of evaluation too; so does this reader: 0 is the class "other", and
`score_background` is False.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from replaygen.classes import ClassInfo, ClassList, palette
from replaygen.datasets.base import Layout
from replaygen.datasets.files import by_stem, require_folder
from replaygen.errors import DataError

_DOWNLOAD = (
    "download ADEChallengeData2016.zip from http://sceneparsing.csail.mit.edu/ and unpack it; "
    "the path is ADEChallengeData2016 or the folder that holds it"
)
_SPLITS = {"train": "training", "val": "validation"}


def ade20k_names() -> tuple[str, ...]:
    """The names of ids 1..150: the first word of each entry of the benchmark's objectInfo150.txt."""
    text = resources.files("replaygen.datasets").joinpath("ade20k_classes.txt").read_text(encoding="ascii")
    return tuple(text.split("\n")[:150])


def read_ade20k(root: Path) -> Layout:
    """The layout of ADEChallengeData2016 with the splits `train` (training) and `val` (validation), sorted by id.

    Raises:
        DataError: a part is missing; says what to download and where to put it.
    """
    require_folder(root, _DOWNLOAD)
    base = next((path for path in (root, root / "ADEChallengeData2016") if (path / "annotations").is_dir()), None)
    if base is None:
        raise DataError("no folder annotations in it, nor in ADEChallengeData2016", where=str(root), hint=_DOWNLOAD)
    images: dict[str, str] = {}
    masks: dict[str, str] = {}
    splits: dict[str, tuple[str, ...]] = {}
    for split, folder in _SPLITS.items():
        found = by_stem(base, f"images/{folder}", ("jpg", "jpeg", "png"), _DOWNLOAD)
        both = sorted(found.keys() & images.keys())
        if both:
            raise DataError(
                f"{both[0]!r} is in training and in validation", where=str(base / "images"), hint="remove one of them"
            )
        images |= found
        masks |= by_stem(base, f"annotations/{folder}", ("png",), _DOWNLOAD)
        splits[split] = tuple(found)
    names = ("other", *ade20k_names())
    colors = palette(len(names))
    return Layout(
        name="ade20k",
        root=base,
        classes=ClassList(tuple(ClassInfo(i, name, colors[i]) for i, name in enumerate(names))),
        background=0,
        ignore=255,
        splits=splits,
        images=images,
        masks=masks,
        score_background=False,
        where=str(base / "images"),
    )
