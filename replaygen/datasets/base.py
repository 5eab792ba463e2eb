"""A segmentation data set: images, masks, classes and splits, named by the digest of all of them."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from replaygen.canonical import digest_of
from replaygen.classes import ClassInfo, ClassList, nearest_hint, palette, slug
from replaygen.datasets.manifest import Entry, Manifest, build_manifest, read_checked
from replaygen.datasets.scan import MaskScan, ScanMemory, check_png_size, image_size, problems_error, scan_mask
from replaygen.errors import DataError
from replaygen.sample import IGNORE

if TYPE_CHECKING:
    from replaygen.sample import Image8, Mask8

log = logging.getLogger("replaygen.datasets")

_ID = re.compile(r"[A-Za-z0-9_-]{1,200}")
_SAVE_EVERY_S = 20.0


@dataclass(frozen=True)
class Layout:
    """Where a data set's parts lie; what each format's reader returns.

    Attributes:
        name: short name for reports.
        root: folder that `images` and `masks` are relative to.
        classes: every class of the masks, background included where there is one.
        background: the raw id that means "none of the classes", or None.
        ignore: the value in the mask files that means ignore; reading turns it into 255.
        splits: ids by split name, in the order of the list.
        images: image file by id.
        masks: mask file by id.
        score_background: whether pixels of the raw background count in evaluation.
        where: the file or folder to name in errors about the splits.
        advice: how to get a split's files, by split name.
    """

    name: str
    root: Path
    classes: ClassList
    background: int | None
    ignore: int
    splits: Mapping[str, tuple[str, ...]]
    images: Mapping[str, str]
    masks: Mapping[str, str]
    score_background: bool = True
    where: str = ""
    advice: Mapping[str, str] = field(default_factory=dict)


class SegmentationDataset:
    """Images with masks; opened by `open_dataset`, or made of entries for a plan without files.

    Attributes:
        name: short name.
        root: its folder, or None for one made of entries.
        classes: the classes of the masks, background included where there is one.
        background: raw id of the background, or None where every pixel belongs to a class.
        score_background: False where pixels of the raw background are unlabelled and left out of evaluation (ADE20K).
        ignore: 255.
    """

    ignore = IGNORE

    def __init__(
        self,
        layout: Layout,
        manifest: Manifest,
        cache_dir: Path | None,
        *,
        present: Mapping[str, Iterable[int]] | None = None,
    ) -> None:
        self.name = layout.name
        self.root: Path | None = layout.root if cache_dir is not None else None
        self.classes = layout.classes
        self.background = layout.background
        self.score_background = layout.score_background
        self.manifest = manifest
        self._layout = layout
        self._cache_dir = cache_dir
        nothing = {layout.background, IGNORE}
        self._given = None if present is None else {key: frozenset(ids) - nothing for key, ids in present.items()}

    @classmethod
    def open(cls, layout: Layout, cache_dir: Path) -> SegmentationDataset:
        """Check the layout, hash the files that are new or changed, and return the data set."""
        check_layout(layout)
        ids = {key for split in layout.splits.values() for key in split}
        names = [layout.images[key] for key in ids] + [layout.masks[key] for key in ids]
        place = digest_of(str(layout.root.absolute()))[:16]
        cache_dir = Path(cache_dir)
        manifest = build_manifest(layout.root, names, cache_dir / f"files-{slug(layout.name)}-{place}.jsonl")
        return cls(layout, manifest, cache_dir)

    @classmethod
    def from_entries(
        cls,
        name: str,
        classes: ClassList | Sequence[str],
        splits: Mapping[str, Sequence[str]],
        present: Mapping[str, Iterable[int]],
        *,
        background: int | None = 0,
        entries: Iterable[Entry] | None = None,
    ) -> SegmentationDataset:
        """A data set in memory, for plans and tests: everything but the pixels.

        Args:
            name: short name.
            classes: a ClassList, or names whose ids are their positions.
            splits: ids by split name.
            present: raw class ids by image id.
            background: raw id of the background, or None.
            entries: the manifest's files; by default one made-up image and mask an id.
        """
        if not isinstance(classes, ClassList):
            colors = palette(len(classes))
            classes = ClassList(tuple(ClassInfo(i, text, colors[i]) for i, text in enumerate(classes)))
        ids = sorted({key for split in splits.values() for key in split})
        images = {key: f"images/{key}.png" for key in ids}
        masks = {key: f"masks/{key}.png" for key in ids}
        if entries is None:
            entries = [(file, 1, digest_of(file)) for file in (*images.values(), *masks.values())]
        ordered = {split: tuple(keys) for split, keys in splits.items()}
        layout = Layout(name, Path(name), classes, background, IGNORE, ordered, images, masks, where=name)
        check_layout(layout)
        return cls(layout, Manifest.of(entries), None, present=present)

    @cached_property
    def digest(self) -> str:
        """sha256 of the data set: its files, classes and splits; not of where it lies."""
        return digest_of(
            {
                "manifest": self.manifest.digest,
                "classes": [[info.id, info.name, info.color] for info in self.classes],
                "background": self.background,
                "score_background": self.score_background,
                "ignore": self._layout.ignore,
                "splits": dict(self._layout.splits),
                "images": self._used(self._layout.images),
                "masks": self._used(self._layout.masks),
            }
        )

    def _used(self, files: Mapping[str, str]) -> dict[str, str]:
        return {key: files[key] for key in self.ids}

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """All ids of all splits, sorted."""
        return tuple(sorted({key for split in self._layout.splits.values() for key in split}))

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits, sorted."""
        return tuple(sorted(self._layout.splits))

    def split(self, name: str) -> tuple[str, ...]:
        """The ids of a split in the order of its list; a DataError that names the splits where there is no such one."""
        found = self._layout.splits.get(name)
        if found is None:
            hint = self._layout.advice.get(name) or nearest_hint(name, self.splits)
            raise DataError(f"{self.name} has no split called {name!r}", where=self._layout.where, hint=hint)
        return found

    def image(self, key: str) -> Image8:
        """The image `key`, upright: uint8 [H, W, 3]. DataError: unknown id, damaged, or changed since opening."""
        from replaygen.sample import decode_image

        data, where = self._read(self._layout.images, key)
        return decode_image(data, where=where)

    def mask(self, key: str) -> Mask8:
        """The mask `key`: uint8 [H, W], raw class ids, 255 = ignore. DataError as for `image`."""
        from replaygen.sample import decode_mask

        data, where = self._read(self._layout.masks, key)
        check_png_size(data, where)
        mask = decode_mask(data, where=where)
        if self._layout.ignore != IGNORE:
            mask[mask == self._layout.ignore] = IGNORE
        return mask

    def present(self, ids: Iterable[str]) -> dict[str, frozenset[int]]:
        """The raw class ids with at least one pixel in each mask; background and ignore never count.

        Masks are read once; what they hold is remembered on disk under the data set's digest.

        Raises:
            DataError: an unknown id, an unreadable mask, or a mask with a value that is no class.
        """
        ids = list(ids)
        if self._given is not None:
            for key in ids:
                if key not in self._given:
                    raise DataError(f"no classes were given for image {key!r}", where=self.name)
            return {key: self._given[key] for key in ids}
        scans = self._scan_masks(ids)
        self._check_values(scans)
        objects = {info.id for info in self.classes} - {self.background, self._layout.ignore, IGNORE}
        return {key: frozenset(scan.values) & objects for key, scan in scans.items()}

    def validate(self) -> None:
        """Read every mask and every image header once; success is remembered under the digest.

        Raises:
            DataError: unreadable files, masks with values that are no class, images and masks of different size; names
                the first five and counts the rest.
        """
        if self._given is not None or self._memory.valid:
            return
        scans = self._scan_masks(self.ids)
        self._check_values(scans)
        problems: list[str] = []
        for key, scan in scans.items():
            try:
                data, where = self._read(self._layout.images, key)
                size = image_size(data, where)
            except DataError as error:
                problems.append(f"{self._layout.images[key]}: {error.what}")
                continue
            if size != (scan.width, scan.height):
                problems.append(
                    f"{self._layout.images[key]} is {size[0]} x {size[1]} pixels (upright), "
                    f"its mask {self._layout.masks[key]} {scan.width} x {scan.height}"
                )
        if problems:
            raise problems_error(problems, str(self._layout.root), "fix the pairs, or take their ids out of the splits")
        self._memory.valid = True
        self._memory.save()

    @cached_property
    def _memory(self) -> ScanMemory:
        path = None if self._cache_dir is None else self._cache_dir / f"scan-{self.digest}.json"
        return ScanMemory.load(path)

    def _entry(self, files: Mapping[str, str], key: str) -> Entry:
        name = files.get(key)
        entry = None if name is None else self.manifest.by_name.get(name)
        if entry is None:
            raise DataError(f"{self.name} has no image {key!r}", where=self._layout.where)
        return entry

    def _read(self, files: Mapping[str, str], key: str) -> tuple[bytes, str]:
        entry = self._entry(files, key)
        if self.root is None:
            raise DataError(f"{self.name} was made without files", hint="open_dataset reads pixels")
        path = self.root / entry[0]
        return read_checked(path, entry), os.fspath(path)

    def _scan_masks(self, ids: Iterable[str]) -> dict[str, MaskScan]:
        memory = self._memory
        found: dict[str, MaskScan] = {}
        fresh = 0
        problems: list[str] = []
        saved = time.monotonic()
        for key in ids:
            sha = self._entry(self._layout.masks, key)[2]
            scan = memory.masks.get(sha)
            if scan is None:
                try:
                    scan = scan_mask(*self._read(self._layout.masks, key))
                except DataError as error:
                    problems.append(f"{self._layout.masks[key]}: {error.what}")
                    continue
                memory.masks[sha] = scan
                fresh += 1
                if time.monotonic() - saved > _SAVE_EVERY_S:
                    log.info("%s: %d masks read", self.name, fresh)
                    memory.save()
                    saved = time.monotonic()
            found[key] = scan
        if fresh:
            memory.save()
        if problems:
            hint = "restore the masks, or take their ids out of the splits"
            raise problems_error(problems, str(self._layout.root), hint)
        return found

    def _check_values(self, scans: Mapping[str, MaskScan]) -> None:
        known = {info.id for info in self.classes} | {self._layout.ignore, IGNORE}
        problems = []
        for key, scan in scans.items():
            unknown = [str(value) for value in scan.values if value not in known]
            if unknown:
                problems.append(f"{self._layout.masks[key]} holds {', '.join(unknown[:8])}, which no class has as id")
        if problems:
            raise problems_error(
                problems, str(self._layout.root), f"list these ids in the classes, or set them to {self._layout.ignore}"
            )


def sample_id(key: str) -> str:
    """An image's id as the shards write it, `[a-z0-9_-]+`; ids that differ stay different."""
    return slug(key)


def check_layout(layout: Layout) -> None:
    """Refuse a layout with an empty split, a repeated or unsafe id, an image without mask or a mask without image."""
    ids = {info.id for info in layout.classes}
    if layout.background is not None and layout.background not in ids:
        raise DataError(f"background {layout.background} is no class", where=layout.where, hint="list it, or say null")
    if not layout.splits:
        raise DataError(f"{layout.name} has no split", where=layout.where, hint="write ids to splits/train.txt")
    for split, keys in layout.splits.items():
        if not keys:
            raise DataError(f"split {split!r} is empty", where=layout.where, hint="list its ids, one a line")
        if len(set(keys)) != len(keys):
            seen: set[str] = set()
            twice = next(key for key in keys if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise DataError(f"split {split!r} lists {twice!r} twice", where=layout.where, hint="list each id once")
        for key in keys:
            if not _ID.fullmatch(key):
                raise DataError(
                    f"split {split!r} lists {key!r}, which is no id",
                    where=layout.where,
                    hint="ids are file names without ending, of letters, digits, '_' and '-', at most 200",
                )
        for files, what in ((layout.images, "image"), (layout.masks, "mask")):
            lost = [key for key in keys if key not in files]
            if lost:
                more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
                raise DataError(
                    f"no {what} for {lost[0]!r} of split {split!r}{more}",
                    where=str(layout.root),
                    hint=layout.advice.get(split) or f"add the {what}, or take the id out of the split",
                )
