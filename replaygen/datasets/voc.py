"""PASCAL VOC 2012 as its devkit lays it out, with the 10,582 augmented training masks where they are there."""

from __future__ import annotations

from pathlib import Path

from replaygen.classes import ClassInfo, ClassList, palette
from replaygen.datasets.base import Layout
from replaygen.datasets.files import by_stem, read_ids, require_folder
from replaygen.errors import DataError

VOC_CLASSES: tuple[str, ...] = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""The names of ids 0..20."""

_DOWNLOAD = (
    "download VOCtrainval_11-May-2012.tar from http://host.robots.ox.ac.uk/pascal/VOC/voc2012/ and unpack it; "
    "the path is the folder that holds VOCdevkit, or VOCdevkit/VOC2012 itself"
)
_AUGMENT = (
    "unpack SegmentationClassAug (VOC 2012 and SBD masks as 12,031 PNGs) beside SegmentationClass, and write the "
    "10,582 ids to ImageSets/Segmentation/train_aug.txt, or give the list as the option train_aug"
)


def read_voc(root: Path, *, train_aug: str | Path | None = None) -> Layout:
    """The layout of a VOC 2012 devkit.

    A mask comes from SegmentationClassAug where that has it, from SegmentationClass otherwise. The split `train_aug` is
    the list given, or ImageSets/Segmentation/train_aug.txt or trainaug.txt.

    Args:
        root: the folder with VOCdevkit/VOC2012, with VOC2012, or VOC2012 itself.
        train_aug: a list file: an id a line, more words on the line do not count.

    Raises:
        DataError: a part is missing; says what to download and where to put it.
    """
    require_folder(root, _DOWNLOAD)
    base = next(
        (path for path in (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012") if (path / "JPEGImages").is_dir()),
        None,
    )
    if base is None:
        raise DataError(
            "no folder JPEGImages in it, nor in VOC2012 or VOCdevkit/VOC2012", where=str(root), hint=_DOWNLOAD
        )
    masks: dict[str, str] = {}
    for folder in ("SegmentationClass", "SegmentationClassAug"):
        if (base / folder).is_dir():
            masks |= by_stem(base, folder, ("png",), _DOWNLOAD)
    if not masks:
        raise DataError(
            "neither SegmentationClass nor SegmentationClassAug holds a mask", where=str(base), hint=_DOWNLOAD
        )
    colors = palette(len(VOC_CLASSES))
    return Layout(
        name="voc2012",
        root=base,
        classes=ClassList(tuple(ClassInfo(i, name, colors[i]) for i, name in enumerate(VOC_CLASSES))),
        background=0,
        ignore=255,
        splits=_splits(base, train_aug),
        images=by_stem(base, "JPEGImages", ("jpg",), _DOWNLOAD),
        masks=masks,
        where=str(base / "ImageSets" / "Segmentation"),
        advice={"train_aug": _AUGMENT, "train": _DOWNLOAD, "val": _DOWNLOAD, "trainval": _DOWNLOAD},
    )


def _splits(base: Path, train_aug: str | Path | None) -> dict[str, tuple[str, ...]]:
    lists = require_folder(base / "ImageSets" / "Segmentation", _DOWNLOAD)
    names = ["train", "val", "trainval"]
    if (base / "SegmentationClassAug").is_dir():
        names += ["trainaug", "train_aug"]
    splits = {
        name.replace("trainaug", "train_aug"): read_ids(lists / f"{name}.txt", first_word=True)
        for name in names
        if (lists / f"{name}.txt").is_file()
    }
    if train_aug is not None:
        splits["train_aug"] = read_ids(Path(train_aug), first_word=True)
    return splits
