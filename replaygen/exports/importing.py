"""Import images that came with masks: checked one by one, and laid out as recipes read them (`labeler = "given"`)."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaygen.classes import ClassInfo, ClassList, palette, slug
from replaygen.datasets.files import read_classes, read_text
from replaygen.errors import DataError
from replaygen.exports.incoming import HINT, MISSING, UNREADABLE, Found, Refused, found, is_turned, read_below
from replaygen.exports.layout import as_line
from replaygen.exports.place import new_folder, seal, write
from replaygen.report.text import stripped
from replaygen.sample import IGNORE, decode_image, decode_mask, encode_png, mask_size
from replaygen.sources.masks import CLASSES, MASKS

if TYPE_CHECKING:
    from replaygen.sample import Mask8

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
        rejected: (file, reason) of every file below the images that was not, hidden ones aside; no image vanishes.
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
    if not masks.is_dir():
        raise DataError("folder not found", where=str(masks), hint="masks are NAME.png, or CLASS/NAME.png")
    done = Imported(out)
    objects, seen = classes.objects(), set[str]()
    places = _folders(objects)
    with new_folder(out) as folder:
        for file in found(images, objects):
            try:
                of, image, mask = _checked(images, masks, file, classes, objects)
                target = f"{places[of]}/{slug(Path(file.name).stem)}"
                if target in seen:
                    raise Refused("same-name")
            except Refused as refused:
                done.rejected.append((file.path, str(refused)))
                continue
            seen.add(target)
            done.samples[of] = done.samples.get(of, 0) + 1
            write(folder / f"{target}{Path(file.name).suffix.lower()}", image)
            write(folder / MASKS / f"{target}.png", encode_png(mask))
        if not done.samples:
            told = ", ".join(f"{reason} {count}" for reason, count in done.reasons().items())
            raise DataError("no image could be taken in", where=str(images), hint=told or HINT)
        done.samples = {name: done.samples[name] for name in objects if name in done.samples}
        done.folders = {name: places[name] for name in done.samples if places[name] != name}
        _write_about(folder, classes, done)
        seal(folder)
    return done


def _checked(
    images: Path, masks: Path, file: Found, classes: MaskClasses, objects: dict[str, int]
) -> tuple[str, bytes, Mask8]:
    """(class, the image's bytes, its mask with 255 for what is ignored) of a file that fits.

    Raises:
        Refused: it does not.
        DataError: a value in its mask is no class: then the list of classes is wrong, and not one image.
    """
    if file.reason:
        raise Refused(file.reason)
    drawn = _mask_of(masks, file)
    image = read_below(images, file.path)
    try:
        height, width = decode_image(image).shape[:2]
    except DataError:
        raise Refused(UNREADABLE) from None
    if is_turned(image):  # it is made upright when it is read, and a mask never is
        raise Refused("turned")
    mask = _mask(drawn, (width, height), file, classes)
    of = file.place or _largest(mask, objects)
    if not of or not (mask == objects[of]).any():
        raise Refused("class-absent")
    return of, image, mask


def _mask_of(masks: Path, file: Found) -> bytes:
    """The bytes of an image's mask, in its class's folder or in the folder of all; Refused."""
    name = f"{Path(file.name).stem}.png"
    for path in dict.fromkeys((f"{file.place}/{name}" if file.place else name, name)):
        try:
            return read_below(masks, path)
        except Refused as refused:
            if str(refused) != MISSING:
                raise Refused(f"mask-{refused}") from None
    raise Refused("no-mask")


def _mask(data: bytes, size: tuple[int, int], file: Found, classes: MaskClasses) -> Mask8:
    """A mask, uint8 [H, W], of an image of `size` (width, height), with 255 for what is ignored.

    Raises:
        Refused: it does not fit, which its header tells before anything is decoded.
        DataError: a value that is no class.
    """
    import numpy as np

    try:
        if mask_size(data) != size:
            raise Refused("mask-of-another-size")
        mask = decode_mask(data)
    except DataError:
        raise Refused("mask-unreadable") from None
    odd = sorted(set(np.unique(mask).tolist()) - classes.values)
    if odd:
        raise DataError(
            f"the mask holds {', '.join(map(str, odd[:8]))}, which no class has as id", where=stripped(file.path),
            hint="list these ids in the classes, or name the one to leave out with --ignore",
        )  # fmt: skip
    mask[mask == classes.ignore] = IGNORE
    return mask


def _largest(mask: Mask8, objects: dict[str, int]) -> str:
    """The class with most pixels; "" where there is none."""
    import numpy as np

    counts = np.bincount(mask.ravel(), minlength=256)
    best = max(objects, key=lambda name: int(counts[objects[name]]), default="")
    return best if best and counts[objects[best]] else ""


def _folders(names: Iterable[str]) -> dict[str, str]:
    """A folder for each class: its name, or a slug where that is no plain folder name, or is the same as an earlier one
    on a disk that does not tell capitals or forms of accents apart.
    """
    places: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        same = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
        free = _FOLDER.fullmatch(name) and same not in taken and not same.startswith("class-")
        places[name] = name if free else f"class-{slug(name)}"
        taken.add(same)
    return places


def _write_about(folder: Path, classes: MaskClasses, done: Imported) -> None:
    rows = [{"id": one.id, "name": one.name, "color": list(one.color)} for one in classes.classes if one.id != IGNORE]
    told = {"classes": rows, "background_id": classes.background, "ignore_id": IGNORE}
    write(folder / CLASSES, as_line(told))
    rejected = [{"file": stripped(name), "reason": reason} for name, reason in done.rejected]
    about = {name: value for name, value in done.as_json().items() if name not in ("out", "recipe")}
    write(folder / "import.json", as_line({**about, "refused": rejected}))
