"""Images that came with masks: a pack that `replaygen import` wrote, in which masks stand for the labeler.

<class>/<name>.jpg          images by class, as every folder source has them
_masks/<class>/<name>.png   8-bit, one channel: the class id of each pixel
classes.json                the classes of the masks, as in a folder pack
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from replaygen.classes import ClassList, nearest_hint
from replaygen.datasets import FolderPhotos
from replaygen.datasets.files import read_classes
from replaygen.errors import DataError

MASKS = "_masks"
"""The folder of masks in a pack; a folder source takes no name that starts with "_" for a class."""

CLASSES = "classes.json"
_HINT = "`replaygen import IMAGES --masks MASKS --classes FILE --out PACK` writes such a folder"


@dataclass(frozen=True)
class MaskPack:
    """The masks of a pack, by class; `background` and `ignore` are values in them."""

    root: Path
    masks: FolderPhotos
    classes: ClassList
    background: int | None
    ignore: int

    @classmethod
    def open(cls, root: Path, cache_dir: Path) -> MaskPack:
        """The pack at `root`.

        Raises:
            DataError: it has no masks or no classes.json.
        """
        if not (root / MASKS).is_dir():
            raise DataError(f"no folder {MASKS} beside the images", where=str(root), hint=_HINT)
        if not (root / CLASSES).is_file():
            raise DataError(f"no {CLASSES} beside the images", where=str(root), hint=_HINT)
        classes, background, ignore = read_classes(root / CLASSES)
        return cls(root, FolderPhotos(root / MASKS, cache_dir), classes, background, ignore)

    def of(self, folder: str) -> dict[str, tuple[str, str]]:
        """Stem -> (name relative to the root, sha256) of the masks of a class's folder; DataError where it has none."""
        entries = self.masks.entries(folder)
        return {PurePosixPath(name).stem: (f"{MASKS}/{name}", sha256) for name, _, sha256 in entries}

    def table(self, names: Sequence[str], queried: str) -> list[tuple[int, int]]:
        """[(value in masks, channel)], ascending: 0 for the background and for classes that the scenario has not.

        Args:
            names: the scenario's class names by channel.
            queried: the class that is asked for.

        Raises:
            DataError: the masks do not know the queried class.
        """
        channels = {name: channel for channel, name in enumerate(names) if channel}
        if queried not in self.classes.names:
            raise DataError(f"the masks have no class {queried!r}", where=str(self.root / CLASSES),
                            hint=nearest_hint(queried, self.classes.names))  # fmt: skip
        ground = {self.background} if self.background is not None else set()
        return sorted((one.id, 0 if one.id in ground else channels.get(one.name, 0)) for one in self.classes)
