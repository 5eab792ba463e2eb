"""Digit scenes: real handwriting composed on real photographs, as a folder pack with replay photographs.

:func:`build_digit_scenes` writes a small segmentation data set (ten classes, "zero" to "nine") which needs nothing but
scikit-learn: its 8x8 handwritten digits are enlarged and put, bright, on dimmed crops of its two sample photographs.
One half of the handwriting of every class is kept for the replay photographs, so that no stroke of a replay photograph
is ever seen in a training or validation scene; validation scenes use handwriting which training scenes do not.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from replaygen.errors import DataError

UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

DIGIT_NAMES: tuple[str, ...] = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""Class names; the digit ``d`` has the class id ``d + 1``."""

IGNORE_ID = 255
BACKGROUND_ID = 0
PARTS: tuple[str, ...] = ("train", "val", "photos")
"""The three disjoint parts of the handwriting."""

_COLORS: tuple[tuple[int, int, int], ...] = (
    (0, 0, 0),
    (230, 25, 75),
    (60, 180, 75),
    (255, 225, 25),
    (0, 130, 200),
    (245, 130, 48),
    (145, 30, 180),
    (70, 240, 240),
    (240, 50, 230),
    (210, 245, 60),
    (250, 190, 212),
)
_IGNORE_COLOR = (224, 224, 192)
_STREAM = {"split": 0, "train": 1, "val": 2, "photos": 3}
_INTRUDER_SHARE = 0.2
_VAL_SHARE = 0.3
_MIN_SIZE = 32

_SOURCE = """\
# Source

Every picture of this folder was composed by replaygen from material which comes with scikit-learn. The handwriting is
that of the "Optical Recognition of Handwritten Digits" data set of the UCI Machine Learning Repository (E. Alpaydin and
C. Kaynak, 1998; https://archive.ics.uci.edu/ml/datasets/Optical+Recognition+of+Handwritten+Digits), whose test set is
what `sklearn.datasets.load_digits` returns. The backgrounds are dimmed crops of the two photographs of
`sklearn.datasets.load_sample_images`, both released under the Creative Commons licence CC BY 2.0
(https://creativecommons.org/licenses/by/2.0/) and retrieved on 21 August 2011 by Robert Layton, with the credits of
`sklearn/datasets/images/README.txt`: `china.jpg`, "Some rights reserved by danielbuechele", from
https://www.flickr.com/photos/danielbuechele/6061409035/sizes/z/in/photostream/; `flower.jpg`, there credited likewise
"Some rights reserved by danielbuechele", but with links to the account vultilion:
https://www.flickr.com/photos/vultilion/ and
https://www.flickr.com/photos/vultilion/6056698931/sizes/z/in/photostream/. Changes made: the photographs were
cropped, resized and dimmed, and the digits were enlarged, tinted and drawn over them.

Composed with size={size}, train={train}, val={val}, photos={photos}, seed={seed}.
"""


@dataclass(frozen=True)
class Stamp:
    """One enlarged digit of a scene.

    Attributes:
        handwriting: index of the 8x8 image in ``sklearn.datasets.load_digits``.
        digit: the digit it shows, 0..9.
        top: first row of its square box, in pixels of the scene.
        left: first column of its square box.
        side: side of its square box.
        ink: RGB of its strokes, 0..255 each.
    """

    handwriting: int
    digit: int
    top: int
    left: int
    side: int
    ink: tuple[int, int, int]


@dataclass(frozen=True)
class Scene:
    """All that is needed to draw one picture.

    Attributes:
        id: name of the picture, matches ``[a-z0-9_-]+``.
        photo: index of the background photograph.
        box: (left, top, right, bottom) of the crop, as fractions of the width and the height of the photograph.
        light: factor by which the crop is dimmed, in (0, 1).
        stamps: the digits; their boxes do not overlap.
    """

    id: str
    photo: int
    box: tuple[float, float, float, float]
    light: float
    stamps: tuple[Stamp, ...]


@dataclass(frozen=True)
class Handwriting:
    """The raw material.

    Attributes:
        digits: float32, shape (n, 8, 8), ink in 0..1.
        labels: int64, shape (n,), the digit 0..9 of every image.
        photos: background photographs in the order of their names, each uint8 of shape (h, w, 3).
    """

    digits: Float32Array
    labels: IntArray
    photos: tuple[UInt8Array, ...]


def load_handwriting() -> Handwriting:
    """Read the digits and the two photographs which come with scikit-learn.

    Raises:
        DataError: if scikit-learn is not installed.
    """
    try:
        datasets: Any = importlib.import_module("sklearn.datasets")
    except ModuleNotFoundError as error:
        raise DataError("digit scenes need scikit-learn", hint="pip install 'replaygen[digits]'") from error
    digits = datasets.load_digits()
    samples = datasets.load_sample_images()
    order = sorted(range(len(samples.filenames)), key=lambda i: Path(samples.filenames[i]).name)
    return Handwriting(
        digits=np.asarray(digits.images, dtype=np.float32) / np.float32(16),
        labels=np.asarray(digits.target, dtype=np.int64),
        photos=tuple(np.asarray(samples.images[i], dtype=np.uint8) for i in order),
    )


def split_handwriting(labels: npt.ArrayLike, seed: int = 0) -> dict[str, tuple[IntArray, ...]]:
    """Split the handwriting of each digit into disjoint parts.

    Half of it goes to "photos"; of the rest, 30 % go to "val" and the others to "train".

    Args:
        labels: integers of shape (n,), the digit 0..9 of every image.
        seed: seed of the shuffle.

    Returns:
        For each of :data:`PARTS`, ten int64 arrays of shape (m,): the indices of that part which show digit 0..9.
    """
    labels = np.asarray(labels, dtype=np.int64)
    rng = np.random.default_rng([seed, _STREAM["split"]])
    parts: dict[str, list[IntArray]] = {part: [] for part in PARTS}
    for digit in range(len(DIGIT_NAMES)):
        own = rng.permutation(np.flatnonzero(labels == digit)).astype(np.int64)
        half = len(own) // 2
        val = half + round((len(own) - half) * _VAL_SHARE)
        parts["photos"].append(own[:half])
        parts["val"].append(own[half:val])
        parts["train"].append(own[val:])
    return {part: tuple(indices) for part, indices in parts.items()}


def _background(rng: np.random.Generator, photos: int) -> tuple[int, tuple[float, float, float, float], float]:
    """Draw a photograph, a crop of it (fractions of its sides) and a dimming factor."""
    photo = int(rng.integers(photos))
    side = rng.uniform(0.15, 0.45)
    left, top = rng.uniform(0.0, 1.0 - side, size=2)
    box = (float(left), float(top), float(left + side), float(top + side))
    return photo, box, float(rng.uniform(0.25, 0.5))


def _stamps(rng: np.random.Generator, classes: Sequence[int], pool: Sequence[IntArray], size: int) -> tuple[Stamp, ...]:
    """Place a digit of each class, one after another, in free boxes; one which finds no room is left out."""
    placed: list[Stamp] = []
    for digit in classes:
        handwriting = int(rng.choice(pool[digit]))
        red, green, blue = (int(value) for value in rng.integers(190, 256, size=3))
        side = round(rng.uniform(20, 29) * size / 64)
        for top, left in rng.integers(0, size - side + 1, size=(40, 2)).tolist():
            if all(
                top + side <= other.top
                or other.top + other.side <= top
                or left + side <= other.left
                or other.left + other.side <= left
                for other in placed
            ):
                placed.append(Stamp(handwriting, digit, top, left, side, (red, green, blue)))
                break
    return tuple(placed)


def plan_scenes(
    part: str, count: int, pool: Sequence[IntArray], *, size: int = 64, photos: int = 2, seed: int = 0
) -> list[Scene]:
    """Plan the labelled scenes of a split: two to four digits of any class each.

    Args:
        part: "train" or "val"; names the scenes and selects the stream of random numbers.
        count: number of scenes.
        pool: for each digit 0..9, the indices of the handwriting which may be used.
        size: side of the scenes in pixels.
        photos: number of background photographs.
        seed: seed of the plan; the first scenes do not depend on ``count``.
    """
    scenes = []
    for number in range(count):
        rng = np.random.default_rng([seed, _STREAM[part], number])
        photo, box, light = _background(rng, photos)
        classes = rng.integers(len(DIGIT_NAMES), size=int(rng.integers(2, 5))).tolist()
        scenes.append(Scene(f"{part}-{number:05d}", photo, box, light, _stamps(rng, classes, pool, size)))
    return scenes


def plan_photos(
    digit: int, count: int, pool: Sequence[IntArray], *, size: int = 64, photos: int = 2, seed: int = 0
) -> list[Scene]:
    """Plan the replay photographs of one class: one to three digits of it, and in one of five also another digit.

    Args:
        digit: the digit 0..9 of the class.
        count: number of photographs.
        pool: for each digit 0..9, the indices of the handwriting which may be used.
        size: side of the pictures in pixels.
        photos: number of background photographs.
        seed: seed of the plan; the first photographs do not depend on ``count``.
    """
    scenes = []
    for number in range(count):
        rng = np.random.default_rng([seed, _STREAM["photos"], digit, number])
        photo, box, light = _background(rng, photos)
        classes = [digit] * int(rng.integers(1, 4))
        if rng.random() < _INTRUDER_SHARE:
            other = int(rng.integers(len(DIGIT_NAMES) - 1))
            classes = [*classes[:2], other + (other >= digit)]
        scenes.append(Scene(f"{DIGIT_NAMES[digit]}-{number:05d}", photo, box, light, _stamps(rng, classes, pool, size)))
    return scenes


def render_scene(scene: Scene, material: Handwriting, size: int = 64) -> tuple[UInt8Array, UInt8Array]:
    """Draw a scene.

    Returns:
        The picture, uint8 RGB of shape (size, size, 3), and its mask, uint8 of shape (size, size): 0 for background,
        ``d + 1`` where the ink of a digit ``d`` covers at least half of the background.
    """
    source = material.photos[scene.photo]
    height, width = source.shape[:2]
    left, top, right, bottom = scene.box
    crop = Image.fromarray(source).resize(
        (size, size), Image.Resampling.BILINEAR, box=(left * width, top * height, right * width, bottom * height)
    )
    picture = np.asarray(crop, dtype=np.float32) * np.float32(scene.light)
    mask = np.zeros((size, size), dtype=np.uint8)
    for stamp in scene.stamps:
        small = Image.fromarray(material.digits[stamp.handwriting])
        ink = np.asarray(small.resize((stamp.side, stamp.side), Image.Resampling.BILINEAR), dtype=np.float32)
        cover = np.clip(ink * np.float32(1.5), 0, 1)
        window = (slice(stamp.top, stamp.top + stamp.side), slice(stamp.left, stamp.left + stamp.side))
        tint = np.asarray(stamp.ink, dtype=np.float32)
        picture[window] += cover[..., None] * (tint - picture[window])
        mask[window][cover >= 0.5] = stamp.digit + 1
    return np.rint(picture).clip(0, 255).astype(np.uint8), mask


def _palette() -> list[int]:
    """Return the 768 palette entries of the mask files."""
    entries = [value for color in _COLORS for value in color]
    entries += [0] * (3 * 256 - len(entries))
    entries[3 * IGNORE_ID :] = _IGNORE_COLOR
    return entries


def _save_mask(mask: UInt8Array, path: Path) -> None:
    """Write a (h, w) uint8 mask as an 8-bit palette PNG."""
    picture = Image.fromarray(mask).convert("L")
    picture.putpalette(_palette())
    picture.save(path, bits=8)


def _classes() -> dict[str, Any]:
    """Return the content of ``classes.json``."""
    return {
        "dataset": "digit-scenes",
        "ignore_id": IGNORE_ID,
        "background_id": BACKGROUND_ID,
        "classes": [
            {"id": index, "name": name, "color": list(color)}
            for index, (name, color) in enumerate(zip(("background", *DIGIT_NAMES), _COLORS, strict=True))
        ],
    }


def _write_pack(folder: Path, source: str, *, size: int, train: int, val: int, photos: int, seed: int) -> None:
    """Write the whole pack into an existing empty folder."""
    material = load_handwriting()
    parts = split_handwriting(material.labels, seed)
    backgrounds = len(material.photos)
    for name in ("images", "masks", "splits"):
        (folder / name).mkdir()
    for part, count in (("train", train), ("val", val)):
        scenes = plan_scenes(part, count, parts[part], size=size, photos=backgrounds, seed=seed)
        for scene in scenes:
            picture, mask = render_scene(scene, material, size)
            Image.fromarray(picture).save(folder / "images" / f"{scene.id}.png")
            _save_mask(mask, folder / "masks" / f"{scene.id}.png")
        (folder / "splits" / f"{part}.txt").write_text("".join(f"{s.id}\n" for s in scenes), encoding="ascii")
    for digit, name in enumerate(DIGIT_NAMES):
        (folder / "photos" / name).mkdir(parents=True)
        for scene in plan_photos(digit, photos, parts["photos"], size=size, photos=backgrounds, seed=seed):
            picture, _ = render_scene(scene, material, size)
            Image.fromarray(picture).save(folder / "photos" / name / f"{scene.id}.png")
    (folder / "classes.json").write_text(json.dumps(_classes(), indent=1) + "\n", encoding="ascii")
    (folder / "SOURCE.md").write_text(source, encoding="ascii")


def _is_complete(root: Path, source: str) -> bool:
    """Tell whether ``root`` holds the pack; raise if it holds anything else."""
    if not os.path.lexists(root):
        return False
    if root.is_dir():
        note = root / "SOURCE.md"
        if note.is_file():
            if note.read_text(encoding="utf-8") == source:
                return True
            raise DataError(
                "the folder holds other files, or digit scenes which were composed with other arguments",
                where=str(root),
                hint="name another folder, or remove this one",
            )
        if not any(root.iterdir()):
            return False
    raise DataError("this is not a pack of digit scenes", where=str(root), hint="name a folder which does not exist")


def build_digit_scenes(
    root: Path, *, size: int = 64, train: int = 1500, val: int = 300, photos: int = 150, seed: int = 0
) -> Path:
    """Write the digit scenes: labelled train and val scenes and class-named replay photographs.

    The folder holds ``images/<id>.png`` (RGB), ``masks/<id>.png`` (8-bit palette PNG, pixel = class id: 0 background,
    1..10 the digits 0..9), ``classes.json``, ``splits/train.txt`` and ``splits/val.txt`` (one id a line),
    ``photos/<class name>/<id>.png`` (unlabelled, RGB) and ``SOURCE.md`` (credits and arguments). The same arguments
    and library versions give the same bytes. The folder is made aside and renamed, so that it is never half-made; one
    which is already there with the same arguments is left as it is.

    Args:
        root: folder to make.
        size: side of the square pictures in pixels, at least 32.
        train: number of training scenes.
        val: number of validation scenes.
        photos: number of replay photographs of each class.
        seed: seed of the handwriting split and of every scene.

    Returns:
        ``root``.

    Raises:
        DataError: if a number is out of range, if ``root`` holds anything but this very pack, or if scikit-learn is
            not installed.
    """
    if size < _MIN_SIZE:
        raise DataError(f"size must be at least {_MIN_SIZE}, not {size}")
    for name, number in (("train", train), ("val", val), ("photos", photos), ("seed", seed)):
        if number < 0:
            raise DataError(f"{name} must not be negative, but is {number}")
    root = Path(root)
    source = _SOURCE.format(size=size, train=train, val=val, photos=photos, seed=seed)
    if _is_complete(root, source):
        return root
    parent = root.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=parent))
    try:
        pack = aside / "pack"
        pack.mkdir()
        _write_pack(pack, source, size=size, train=train, val=val, photos=photos, seed=seed)
        try:
            os.rename(pack, root)
        except OSError:
            if not _is_complete(root, source):
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return root
