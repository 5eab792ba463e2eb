"""What a picture's numbers tell: copies, colour, text, emptiness. On drawn pictures, and on real photographs."""

from __future__ import annotations

import io
import json
import random
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from replaygen.errors import DataError
from replaygen.screens.doors import MOST_FLAT, is_grey
from replaygen.screens.looks import look

if TYPE_CHECKING:
    from replaygen.sample import Image8

MOSTLY_TEXT = 0.35
WORDS = ("cow", "sheep", "behind", "the", "fence", "in", "a", "field", "hold", "letters", "that", "people", "wrote")


def bits(first: str, second: str) -> int:
    """Bits in which two hashes differ."""
    return (int(first, 16) ^ int(second, 16)).bit_count()


def as_jpeg(image: Image8, quality: int = 85, shrink: float = 1.0) -> Image8:
    """The picture after a smaller copy of it was stored as JPEG."""
    file = io.BytesIO()
    drawn = Image.fromarray(image)
    drawn = drawn.resize((round(drawn.width * shrink), round(drawn.height * shrink)), Image.Resampling.LANCZOS)
    drawn.save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file).convert("RGB"))


def scene(seed: int = 0, size: tuple[int, int] = (240, 180)) -> Image8:
    """A made-up colour photo: soft blobs of many colours with grain."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), np.float64)
    return np.clip(smooth + draw.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)


def page(seed: int, letters: int, *, dark: bool = False, size: tuple[int, int] = (850, 1100)) -> Image8:
    """A page of words in Pillow's own font, letters so many pixels high, shrunk to 256 pixels and stored as JPEG."""
    draw = random.Random(seed)
    sheet = Image.new("RGB", size, (30, 30, 34) if dark else (252, 250, 244))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(letters)
    for y in range(50, size[1] - 50 - letters, round(letters * 1.35)):
        line = ""
        while pen.textlength(line, font) < (size[0] - 120) * (0.6 if draw.random() < 0.15 else 0.9):
            line += draw.choice(WORDS) + " "
        pen.text((50, y), line, (220, 220, 210) if dark else (20, 20, 30), font)
    sheet.thumbnail((256, 256), Image.Resampling.LANCZOS)
    return as_jpeg(np.asarray(sheet), 90)


def card(sentence: str, size: tuple[int, int], ground: tuple[int, int, int]) -> Image8:
    """A host's "photo unavailable" card: a sentence on a plain ground."""
    drawn = Image.new("RGB", size, ground)
    pen, font = ImageDraw.Draw(drawn), ImageFont.load_default(max(8, size[0] // 18))
    ink = (130, 130, 130) if sum(ground) > 300 else (190, 190, 190)
    pen.text((size[0] / 2, size[1] / 2), sentence, ink, font, anchor="mm", align="center")
    return as_jpeg(np.asarray(drawn))


@lru_cache(maxsize=1)
def photographs(root: Path) -> tuple[tuple[str, Image8], ...]:
    """Every ninth photograph of web_animals and voc_animals, about 370."""
    files = [*sorted((root / "web_animals").rglob("*.jpg")), *sorted((root / "voc_animals" / "images").glob("*.jpg"))]
    return tuple((file.name, np.asarray(Image.open(file).convert("RGB"))) for file in files[::9])


@lru_cache(maxsize=1)
def looks(root: Path) -> tuple[dict[str, Any], ...]:
    """What the photographs look like."""
    return tuple(look(image) for _, image in photographs(root))


def test_hash_is_that_of_the_library() -> None:
    """The hash is ImageHash's own, of the picture and of its mirror image."""
    image = scene(3)
    told = look(image)
    assert told["hash"] == str(imagehash.phash(Image.fromarray(image)))
    assert told["mirror"] == str(imagehash.phash(Image.fromarray(image[:, ::-1])))
    assert (told["width"], told["height"]) == (240, 180)


def test_a_look_is_plain_data_and_repeats() -> None:
    """A look survives JSON, and is the same for the same pixels, contiguous or not, whatever OpenCV's threads."""
    import cv2

    image = scene(1)
    told = look(image)
    assert json.loads(json.dumps(told)) == told
    before = cv2.getNumThreads()
    try:
        for threads in (1, 4):
            cv2.setNumThreads(threads)
            assert look(np.asfortranarray(image)) == told
            assert cv2.getNumThreads() == threads
    finally:
        cv2.setNumThreads(before)


def test_the_picture_is_left_alone() -> None:
    """Looking changes no pixel, and works on a picture that may not be written."""
    image = scene(2)
    copy = image.copy()
    image.flags.writeable = False
    look(image)
    np.testing.assert_array_equal(image, copy)


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 700, 3), (3, 1, 3), (3, 3, 3), (900, 9, 3), (3, 4, 3)])
def test_odd_sizes_have_a_look(shape: tuple[int, int, int]) -> None:
    """A picture of any shape has a look, and shares are shares."""
    told = look(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    assert (told["height"], told["width"]) == shape[:2]
    assert 0 <= told["text"] <= 1
    assert 0 <= told["flat"] <= 1
    assert len(told["hash"]) == len(told["mirror"]) == 16


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_what_is_no_picture_is_refused(image: Any) -> None:
    """An array of another type or shape is refused with a sentence."""
    with pytest.raises(DataError, match="cannot look at an array"):
        look(image)


@pytest.mark.parametrize("seed", range(5))
def test_copies_are_close_and_others_far(seed: int) -> None:
    """A smaller, recompressed copy stays within 4 bits, mirrored too; another picture does not."""
    image = scene(seed)
    told, copy, other = look(image), look(as_jpeg(image, 60, 0.5)), look(scene(seed + 100))
    mirrored = look(as_jpeg(image[:, ::-1], 75))
    assert bits(told["hash"], copy["hash"]) <= 4
    assert bits(told["mirror"], mirrored["hash"]) <= 4
    assert bits(told["hash"], other["hash"]) > 10


def test_a_large_picture_is_close_to_its_small_copy() -> None:
    """Shrinking before hashing keeps a photo of 2,000 pixels and its copy of 200 together."""
    image = np.asarray(Image.fromarray(scene(7)).resize((2000, 1500), Image.Resampling.BICUBIC))
    assert bits(look(image)["hash"], look(as_jpeg(image, 85, 0.1))["hash"]) <= 4


def test_grey_and_toned_pictures_have_no_colour() -> None:
    """Grey has neither colour nor tone, sepia and a duotone have a tone only, a colour picture has colour."""
    image = scene(4)
    light = np.asarray(Image.fromarray(image).convert("L"), np.float64)[..., None] / 255
    grey = np.repeat(light * 255, 3, axis=2).astype(np.uint8)
    sepia = as_jpeg((light * (255, 242, 210) + (1 - light) * (40, 20, 5)).astype(np.uint8))
    blue = as_jpeg((light * (217, 242, 255) + (1 - light) * (0, 13, 51)).astype(np.uint8))
    faint = as_jpeg(np.clip(light * 255 + 0.01 * (image - light * 255) + (3, 0, -3), 0, 255).astype(np.uint8))
    told = look(grey)
    assert told["colour"] == told["tone"] == 0
    assert look(sepia)["tone"] > 10
    assert all(is_grey(look(each)) for each in (grey, sepia, blue, faint))
    assert not is_grey(look(image))


def test_real_photographs_keep_their_colour(data_root: Path) -> None:
    """Real photographs turned grey or sepia are told from themselves; few of those in colour are taken for grey."""
    told = looks(data_root)
    coloured = [one for one in told if one["colour"] > 0.5]
    assert len(told) > 300
    assert len(told) - len(coloured) >= 2, "some real photographs are black and white"
    assert sum(is_grey(one) for one in coloured) <= 0.01 * len(coloured)
    for _, image in photographs(data_root)[::20]:
        light = np.asarray(Image.fromarray(image).convert("L"), np.float64)[..., None] / 255
        assert is_grey(look(as_jpeg((light * (255, 242, 210) + (1 - light) * (40, 20, 5)).astype(np.uint8))))


@pytest.mark.parametrize(
    ("letters", "dark"), [(16, False), (20, False), (26, False), (34, False), (22, True), (30, True)]
)
def test_pages_are_text(letters: int, dark: bool) -> None:
    """A page of words is mostly text, whatever the size of its letters, dark on light or light on dark."""
    assert all(look(page(seed, letters, dark=dark))["text"] > MOSTLY_TEXT for seed in range(3))


@pytest.mark.parametrize("letters", [44, 56, 70])
def test_slides_are_text(letters: int) -> None:
    """A slide with large letters is mostly text."""
    assert look(page(1, letters, size=(1024, 768)))["text"] > MOSTLY_TEXT


def test_text_is_a_share() -> None:
    """A page over half of a photo counts for about half, and a photo without text for next to nothing."""
    image = scene(5, (256, 256))
    assert look(image)["text"] < 0.05
    image[:, :128] = page(2, 26, size=(1000, 1000))[:, :128]
    assert 0.3 < look(image)["text"] < 0.6


def test_real_photographs_are_not_text(data_root: Path) -> None:
    """Less than 0.5 % of real photographs are taken for text, and they have next to none on average."""
    shares = [one["text"] for one in looks(data_root)]
    assert sum(share > MOSTLY_TEXT for share in shares) < 0.005 * len(shares)
    assert np.mean(shares) < 0.03


@pytest.mark.parametrize("sentence", ["This photo is\nno longer available", "Photo unavailable", "404", ""])
@pytest.mark.parametrize("size", [(500, 375), (240, 240), (100, 75)])
@pytest.mark.parametrize("ground", [(238, 238, 238), (255, 255, 255), (40, 40, 44), (203, 214, 224)])
def test_cards_are_flat(sentence: str, size: tuple[int, int], ground: tuple[int, int, int]) -> None:
    """A placeholder with a sentence on a plain ground is flat, and so is a blank picture."""
    assert look(card(sentence, size, ground))["flat"] >= MOST_FLAT


def test_a_gradient_is_flat() -> None:
    """A picture that only fades from one colour to another shows nothing."""
    fade = np.linspace(0, 1, 200)[:, None, None]
    image = np.broadcast_to(fade * (20, 40, 200) + (1 - fade) * (230, 240, 255), (200, 300, 3)).astype(np.uint8)
    assert look(image)["flat"] >= MOST_FLAT


def test_an_object_before_a_white_sheet_is_not_flat() -> None:
    """A small textured object on pure white is no placeholder."""
    image = np.full((200, 260, 3), 255, np.uint8)
    image[50:150, 60:200] = scene(6, (140, 100))
    assert look(image)["flat"] < MOST_FLAT - 0.05


def test_real_photographs_are_not_flat(data_root: Path) -> None:
    """No real photograph is flat, white sheets and foggy fields included."""
    assert max(one["flat"] for one in looks(data_root)) < MOST_FLAT


def test_real_copies_are_found(data_root: Path) -> None:
    """Real photographs shrunk to half and stored at quality 50, plain or mirrored, stay within 6 bits of themselves."""
    told = looks(data_root)
    far = 0
    for index in range(0, len(told), 8):
        image = photographs(data_root)[index][1]
        far += bits(told[index]["hash"], look(as_jpeg(image, 50, 0.5))["hash"]) > 6
        far += bits(told[index]["mirror"], look(as_jpeg(image[:, ::-1], 80))["hash"]) > 6
    assert far == 0
