"""`open_dataset`: one door to every format."""

from __future__ import annotations

import re
from pathlib import Path

from replaygen.classes import nearest_hint
from replaygen.datasets.ade20k import read_ade20k
from replaygen.datasets.base import SegmentationDataset
from replaygen.datasets.files import read_text
from replaygen.datasets.folder import read_folder
from replaygen.datasets.voc import read_voc
from replaygen.errors import DataError

OPTIONS: dict[str, tuple[str, ...]] = {
    "folder": (),
    "voc": ("train_aug",),
    "ade20k": (),
    "digits": ("size", "train", "val", "photos", "seed"),
}
KINDS = tuple(OPTIONS)
"""The formats that `open_dataset` reads."""

Option = int | str | Path
"""A value of an option."""


def open_dataset(kind: str, path: Path | str, *, cache_dir: Path | str, **options: Option) -> SegmentationDataset:
    """Open a data set: list and hash its files (only new or changed ones), and refuse one that does not fit together.

    Args:
        kind: `folder` (a folder pack), `voc` (a VOC 2012 devkit), `ade20k` (ADEChallengeData2016), or `digits` (digit
            scenes, composed at `path` when there is nothing yet).
        path: its folder.
        cache_dir: folder where hashes and scans are remembered; made when needed.
        **options: `voc`: `train_aug`, a list file. `digits`: `size`, `train`, `val`, `photos`, `seed`.

    Raises:
        DataError: unknown kind or option; the data set is missing or inconsistent. Names the file and the way out.
    """
    if kind not in OPTIONS:
        raise DataError(f"no kind of data set called {kind!r}", hint=nearest_hint(kind, KINDS))
    for name in options:
        if name not in OPTIONS[kind]:
            known = OPTIONS[kind]
            hint = nearest_hint(name, known) if known else f"{kind} has no options"
            raise DataError(f"data sets of kind {kind!r} have no option {name!r}", hint=hint)
    root = Path(path).expanduser().absolute()
    if kind == "voc":
        list_file = options.get("train_aug")
        layout = read_voc(root, train_aug=None if list_file is None else Path(str(list_file)).expanduser())
    elif kind == "ade20k":
        layout = read_ade20k(root)
    else:
        if kind == "digits":
            _digits(root, {name: _number(name, value) for name, value in options.items()})
        layout = read_folder(root)
    return SegmentationDataset.open(layout, Path(cache_dir))


def _number(name: str, value: Option) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise DataError(f"option {name} of digits is {value!r}", hint="give a whole number")
    return value


def _digits(root: Path, options: dict[str, int]) -> None:
    if root.exists() and _composed_with(root, options):
        return
    from replaygen.datasets.digits import build_digit_scenes

    try:
        build_digit_scenes(root, **options)
    except (ValueError, OSError) as error:
        raise DataError(
            f"digit scenes cannot be made: {error}", where=str(root), hint="give an empty path, or the same options"
        ) from None
    except ModuleNotFoundError as error:
        raise DataError(str(error), where=str(root), hint="pip install 'replaygen[digits]'") from None


def _composed_with(root: Path, options: dict[str, int]) -> bool:
    # says the same as build_digit_scenes would, without importing what draws the scenes
    if not (root / "SOURCE.md").is_file():
        return False
    note = read_text(root / "SOURCE.md", "remove the folder; it is composed anew")
    line = re.search(r"^Composed with (.+)\.$", note, re.MULTILINE)
    if line is None:
        return False
    made = dict(re.findall(r"(\w+)=(\d+)", line[1]))
    return all(made.get(name) == str(value) for name, value in options.items())
