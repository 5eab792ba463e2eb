"""Class-named folders of unlabelled photos, the simplest source of replay images."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from replaygen.canonical import digest_of
from replaygen.classes import nearest_hint, slug
from replaygen.datasets.files import is_text, list_folder, require_folder
from replaygen.datasets.manifest import Entry, Manifest, build_manifest, read_checked
from replaygen.datasets.scan import ScanMemory, image_size
from replaygen.errors import DataError

PHOTO_ENDINGS = ("jpg", "jpeg", "png", "webp", "bmp", "gif")
"""Endings (in any case) of the files that count as photos; others are left out and counted."""


_HINT = "give a folder that holds one folder of photos a class"


class FolderPhotos:
    """`root/<class>/<file>`: photos by class, none of them labelled.

    Folders whose name starts with `_` are no classes, but can be asked for by name; ones that start with `.` do not
    exist. Nothing is opened before `entries` is called for its class, and then each file is hashed once.

    Attributes:
        root: the folder, or None for photos made of entries.
        min_side: photos whose shorter side has fewer pixels are left out; None opens no photo to look.
    """

    def __init__(self, root: Path | str, cache_dir: Path | str, *, min_side: int | None = None) -> None:
        self.root: Path | None = require_folder(Path(root).expanduser().absolute(), _HINT)
        if min_side is not None and min_side < 1:
            raise DataError(f"min_side is {min_side}", where=str(root), hint="give a number of pixels, or leave it out")
        self.min_side = min_side
        self._cache_dir = Path(cache_dir)
        self._manifests: dict[str, Manifest] = {}
        self._left_out: dict[str, dict[str, int]] = {}
        folders = [item.name for item in list_folder(self.root, _HINT) if item.is_dir() and is_text(item.name)]
        self._folders = tuple(sorted(name for name in folders if not name.startswith(".")))

    @classmethod
    def from_entries(cls, entries: Mapping[str, Iterable[Entry]]) -> FolderPhotos:
        """Photos in memory, for plans and tests: (name, size, sha256) by class; nothing can be read from them."""
        photos = cls.__new__(cls)
        photos.root = None
        photos.min_side = None
        photos._cache_dir = Path()
        photos._folders = tuple(sorted(entries))
        photos._manifests = {name: Manifest.of(files) for name, files in entries.items()}
        photos._left_out = {name: {} for name in entries}
        return photos

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes that have a folder, sorted."""
        return tuple(name for name in self._folders if not name.startswith("_"))

    @property
    def folders(self) -> tuple[str, ...]:
        """All folders, those that start with `_` too, sorted."""
        return self._folders

    def entries(self, name: str) -> tuple[Entry, ...]:
        """The photos of a class in the order of their file names: (name relative to the root, bytes, sha256).

        Raises:
            DataError: no such folder (with the nearest names), or a file that cannot be read.
        """
        return self._manifest(name).entries

    def digest(self, name: str) -> str:
        """sha256 of the photos of a class: their names and bytes."""
        return self._manifest(name).digest

    def left_out(self, name: str) -> dict[str, int]:
        """How many files of a class's folder are not among its entries, by reason."""
        self._manifest(name)
        return dict(self._left_out[name])

    def read(self, name: str) -> bytes:
        """The bytes of a photo by the name that `entries` gave it.

        Raises:
            DataError: not one of the entries, unreadable, or changed since it was hashed.
        """
        entry = self._manifest(name.split("/", 1)[0]).by_name.get(name)
        if entry is None:
            raise DataError(f"no photo called {name!r}", where=str(self.root or "photos made of entries"))
        if self.root is None:
            raise DataError("these photos were made without files", hint="open a folder to read photos")
        return read_checked(self.root / name, entry)

    def _manifest(self, name: str) -> Manifest:
        manifest = self._manifests.get(name)
        if manifest is None:
            manifest = self._manifests[name] = self._read_folder(name)
        return manifest

    def _read_folder(self, name: str) -> Manifest:
        if name not in self._folders or self.root is None:
            raise DataError(
                f"no folder of photos called {name!r}",
                where=str(self.root or "photos made of entries"),
                hint=nearest_hint(name, self._folders) if self._folders else "it holds no folder at all",
            )
        photos: list[str] = []
        left_out: Counter[str] = Counter()
        for item in list_folder(self.root / name, "restore the folder"):
            reason = _not_a_photo(item)
            if reason is None:
                photos.append(item.name)
            else:
                left_out[reason] += 1
        place = digest_of(str(self.root))[:16]
        cache = self._cache_dir / f"photos-{slug(name)}-{place}.jsonl"
        manifest = build_manifest(self.root, [f"{name}/{file}" for file in photos], cache)
        if self.min_side is not None:
            kept = self._large_enough(manifest, self.min_side)
            if len(kept) < len(manifest):
                left_out[f"a side below {self.min_side} pixels"] = len(manifest) - len(kept)
            manifest = Manifest(kept)
        self._left_out[name] = dict(left_out)
        return manifest

    def _large_enough(self, manifest: Manifest, min_side: int) -> tuple[Entry, ...]:
        assert self.root is not None
        memory = ScanMemory.load(self._cache_dir / f"sizes-{manifest.digest}.json")
        fresh = False
        kept = []
        for entry in manifest.entries:
            size = memory.sizes.get(entry[2])
            if size is None:
                path = self.root / entry[0]
                data = read_checked(path, entry)
                try:
                    size = image_size(data, str(path))
                except DataError:
                    size = (0, 0)  # kept: the source that decodes it counts it as damaged
                memory.sizes[entry[2]] = size
                fresh = True
            if size == (0, 0) or min(size) >= min_side:
                kept.append(entry)
        if fresh:
            memory.save()
        return tuple(kept)


def _not_a_photo(item: os.DirEntry[str]) -> str | None:
    """Why a folder's item is left out; None for a photo."""
    if item.is_dir():
        return "a folder below the class"
    if item.name.startswith("."):
        return "hidden"
    if not is_text(item.name):
        return "a name that is not UTF-8"
    if item.name.rpartition(".")[2].lower() not in PHOTO_ENDINGS:
        return "no photo by its ending"
    return None
