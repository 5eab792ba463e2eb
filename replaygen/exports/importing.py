"""Import images that came with masks: checked one by one, and laid out as recipes read them (`labeler = "given"`)."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaygen.classes import ClassInfo, ClassList, nearest_hint, palette, slug
from replaygen.datasets.files import is_text, list_files, list_folder, read_classes, read_text
from replaygen.datasets.photos import PHOTO_ENDINGS
from replaygen.errors import DataError
from replaygen.exports.layout import as_line
from replaygen.exports.place import new_folder, write
from replaygen.report.text import stripped
from replaygen.sample import IGNORE, decode_image, decode_mask, encode_png
from replaygen.sources.masks import CLASSES, MASKS

if TYPE_CHECKING:
    from replaygen.sample import Mask8

_HINT = "give a folder of images, or one that holds a folder of images a class"
_FOLDER = re.compile(r"[^\W_][\w ()+-]{0,60}(?<! )")
_NUMBERED = re.compile(r"(\d{1,3})\s*[:,\s]\s*(\S.*)")
_BACKGROUND = "background"


@dataclass(frozen=True)
class MaskClasses:
    """What the values in masks mean; `background`: its value, None without one."""

    classes: ClassList
    background: int | None
    ignore: int

    @property
    def values(self) -> frozenset[int]:
        """Every value that a mask may hold."""
        return frozenset({one.id for one in self.classes} | {self.ignore, IGNORE})

    def objects(self) -> dict[str, int]:
        """Class name -> value, background aside."""
        return {one.name: one.id for one in self.classes if one.id != self.background}


@dataclass
class Imported:
    """What was taken in.

    Attributes:
        samples: by class.
        rejected: (file, reason) of every image that was not; no image vanishes.
        folders: class -> folder, where the class's name is no folder name.
    """

    out: Path
    samples: dict[str, int] = field(default_factory=dict)
    rejected: list[tuple[str, str]] = field(default_factory=list)
    folders: dict[str, str] = field(default_factory=dict)

    def reasons(self) -> dict[str, int]:
        """Reason -> images, most frequent first."""
        return dict(Counter(reason for _, reason in self.rejected).most_common())

    def recipe(self) -> str:
        """The table that a recipe reads the pack with."""
        lines = ["[replay.given]", 'source = "folder"', f"path = {json.dumps(str(self.out), ensure_ascii=False)}",
                 'labeler = "given"', f"only = {json.dumps(list(self.samples), ensure_ascii=False)}"]  # fmt: skip
        if self.folders:
            rows = (f"{json.dumps(name)} = {json.dumps(folder)}" for name, folder in self.folders.items())
            lines.append(f"folders = {{ {', '.join(rows)} }}")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Plain data with stable keys."""
        return {
            "out": str(self.out), "samples": sum(self.samples.values()), "classes": self.samples,
            "rejected": self.reasons(), "folders": self.folders, "recipe": self.recipe(),
        }  # fmt: skip


def read_mask_classes(path: Path, *, ignore: int | None = None) -> MaskClasses:
    """The classes of masks: a `classes.json` as folder packs have it, or text with a class a line.

    A line is `ID NAME`, or a name alone, whose id is then its line's number from 0; blank lines and such that begin
    with "#" do not count. The class "background" is the background.

    Args:
        ignore: the value of pixels that say nothing; default: what the JSON says, else 255.

    Raises:
        DataError: neither of these; an id or a name that is given twice.
    """
    if path.suffix.lower() == ".json":
        classes, background, told = read_classes(path)
        return MaskClasses(classes, background, told if ignore is None else ignore)
    text = read_text(path, "write a class a line: ID NAME")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
    rows = [_NUMBERED.fullmatch(line) for line in lines]
    if not lines or (any(rows) and not all(rows)):
        raise DataError("not a list of classes", where=str(path), hint="write `ID NAME` on every line, or names only")
    pairs = [(int(row[1]), row[2]) if row else (i, line) for i, (row, line) in enumerate(zip(rows, lines, strict=True))]
    if any(number > 255 for number, _ in pairs):
        raise DataError("a class id is above 255", where=str(path), hint="masks have 8 bits; 255 is ignore")
    colors = palette(256)
    try:
        classes = ClassList(tuple(ClassInfo(number, name, colors[number]) for number, name in pairs))
    except DataError as error:
        raise DataError(error.what, where=str(path), hint=error.hint or "give each class its own") from None
    background = next((one.id for one in classes if one.name == _BACKGROUND), None)
    return MaskClasses(classes, background, IGNORE if ignore is None else ignore)


def import_masks(images: Path, masks: Path, classes: MaskClasses, out: Path) -> Imported:
    """Check images with their masks, and write them to a new folder; the same files give the same bytes.

    Args:
        images: `<class>/<name>.jpg`, or `<name>.jpg`: then the class is the one with most pixels in the mask.
        masks: `<class>/<name>.png`, or `<name>.png`: 8-bit, one channel, of the image's size.
        out: a folder that is not there yet.

    Raises:
        DataError: a folder that is no class, a mask with a value that is none, or no image that fits.
        ReplaygenError: the place is taken or cannot be written.
    """
    done = Imported(out)
    objects, seen = classes.objects(), set[str]()
    with new_folder(out) as folder:
        for place, name in _images(images, objects):
            told = f"{place}/{name}" if place else name
            mask, reason = _mask(images / place / name, _beside(masks, place, name), classes)
            of = place or (_largest(mask, objects) if mask is not None else "")
            if mask is not None and not (of and (mask == objects[of]).any()):
                mask, reason = None, "class-absent"
            target = f"{_folder(of, done)}/{slug(Path(name).stem)}" if mask is not None else ""
            if target in seen:
                mask, reason = None, "same-name"
            if mask is None:
                done.rejected.append((told, reason))
                continue
            seen.add(target)
            done.samples[of] = done.samples.get(of, 0) + 1
            write(folder / f"{target}{Path(name).suffix.lower()}", (images / place / name).read_bytes())
            write(folder / MASKS / f"{target}.png", encode_png(mask))
        if not done.samples:
            told = ", ".join(f"{reason} {count}" for reason, count in done.reasons().items())
            raise DataError("no image could be taken in", where=str(images), hint=told or _HINT)
        done.samples = {name: done.samples[name] for name in objects if name in done.samples}
        _write_about(folder, classes, done)
    return done


def _images(root: Path, objects: dict[str, int]) -> Iterator[tuple[str, str]]:
    """(class or "", file name) of every image, sorted."""
    items = [item.name for item in list_folder(root, _HINT) if item.is_dir() and is_text(item.name)]
    folders = sorted(name for name in items if not name.startswith((".", "_")))
    for name in folders:
        if name not in objects:
            raise DataError(f"the folder {stripped(name)!r} is no class", where=str(root),
                            hint=nearest_hint(name, objects))  # fmt: skip
    for place in folders or [""]:
        for name in list_files(root / place, _HINT):
            if name.rpartition(".")[2].lower() in PHOTO_ENDINGS:
                yield place, name


def _beside(masks: Path, place: str, name: str) -> Path:
    """Where an image's mask is: in its class's folder, or in the folder of all."""
    file = f"{Path(name).stem}.png"
    return masks / place / file if (masks / place / file).is_file() else masks / file


def _mask(image: Path, mask: Path, classes: MaskClasses) -> tuple[Mask8 | None, str]:
    """A mask, uint8 [H, W], with 255 for what is ignored; or None and why it was refused.

    Raises:
        DataError: a value that is no class: then the list of classes is wrong, and not one image.
    """
    import numpy as np

    if not mask.is_file():
        return None, "no-mask"
    try:
        size = decode_image(image.read_bytes()).shape[:2]
    except (DataError, OSError):
        return None, "unreadable"
    try:
        found = decode_mask(mask.read_bytes())
    except (DataError, OSError):
        return None, "mask-unreadable"
    odd = sorted(set(np.unique(found).tolist()) - classes.values)
    if odd:
        raise DataError(
            f"{stripped(mask.name)} holds {', '.join(map(str, odd[:8]))}, which no class has as id",
            where=str(mask.parent), hint="list these ids in the classes, or name the one to leave out with --ignore",
        )  # fmt: skip
    if found.shape != size:
        return None, "mask-of-another-size"
    found[found == classes.ignore] = IGNORE
    return found, ""


def _largest(mask: Mask8, objects: dict[str, int]) -> str:
    """The class with most pixels; "" where there is none."""
    import numpy as np

    counts = np.bincount(mask.ravel(), minlength=256)
    best = max(objects, key=lambda name: int(counts[objects[name]]), default="")
    return best if best and counts[objects[best]] else ""


def _folder(name: str, done: Imported) -> str:
    """A class's folder: its name, or a slug where that is no plain folder name."""
    if _FOLDER.fullmatch(name):
        return name
    return done.folders.setdefault(name, f"class-{slug(name)}"[:80])


def _write_about(folder: Path, classes: MaskClasses, done: Imported) -> None:
    rows = [{"id": one.id, "name": one.name, "color": list(one.color)} for one in classes.classes if one.id != IGNORE]
    told = {"classes": rows, "background_id": classes.background, "ignore_id": IGNORE}
    write(folder / CLASSES, as_line(told))
    rejected = [{"file": stripped(name), "reason": reason} for name, reason in done.rejected]
    about = {name: value for name, value in done.as_json().items() if name not in ("out", "recipe")}
    write(folder / "import.json", as_line({**about, "refused": rejected}))
