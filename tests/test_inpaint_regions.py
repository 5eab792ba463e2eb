"""Which pixels go: kinds, specks, growing, and the pixels that never go. What a recipe may say of it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw, ImageFont
from pydantic import ValidationError

from replaygen.errors import DataError
from replaygen.inpainters.base import identity_of, open_inpainter
from replaygen.inpainters.regions import TOO_MUCH, find_erasure, find_old, grown, without_specks
from replaygen.inpainters.specs import EraseSpec
from replaygen.screens.text import text_pixels

DIGEST = "ab" * 32


def spec(**changes: Any) -> dict[str, Any]:
    """A spec as a stage reads it; nothing grows, no speck is left, unless told."""
    return EraseSpec.model_validate({"dilate": 0, "least": 0, "most": 1.0, **changes}).identity()


def blank(height: int = 40, width: int = 60) -> np.ndarray:
    return np.zeros((height, width), np.uint8)


# regions


def test_only_the_chosen_kinds_go() -> None:
    """Other classes, unsure pixels and letters go each when asked for; shares are told by kind."""
    label, marks, text = blank(), blank(), np.zeros((40, 60), bool)
    marks[:10, :10], marks[20:30, :20], text[:4, 50:] = 1, 2, True
    others = find_erasure(spec(), label, marks, text)
    assert np.array_equal(others.region, marks == 1)
    assert others.why == {"others": 100 / 2400}
    unsure = find_erasure(spec(others=False, unsure=True), label, marks, text)
    assert np.array_equal(unsure.region, marks == 2)
    every = find_erasure(spec(unsure=True, text=True), label, marks, text)
    assert np.array_equal(every.region, (marks > 0) | text)
    assert every.share == pytest.approx(340 / 2400)
    assert set(every.why) == {"others", "unsure", "text"}
    assert every.as_json("opencv") == {
        "share": 0.14167, "backend": "opencv", "why": {"others": 0.04167, "unsure": 0.08333, "text": 0.01667},
    }  # fmt: skip


def test_nothing_marked_is_nothing_erased() -> None:
    """Without marks and letters, or with a mark that the label forbids, the picture stays as it is."""
    label = blank()
    assert not find_erasure(spec(), label).region.any()
    label[:] = 3
    marks = np.ones_like(label)
    found = find_erasure(spec(dilate=8), label, marks)
    assert (found.share, found.refused) == (0.0, None)


def test_specks_stay_and_letters_are_none() -> None:
    """Parts below `least` of the picture are left, each by itself; small letters go all the same."""
    marks, text = blank(), np.zeros((40, 60), bool)
    marks[5:10, 5:10], marks[30, 30], marks[31, 31] = 1, 1, 1
    text[20, 40] = True
    found = find_erasure(spec(least=0.005, text=True), blank(), marks, text)
    assert found.region.sum() == 26
    assert found.region[20, 40]
    assert not found.region[30, 30]


def test_growing_follows_the_picture_s_size() -> None:
    """`dilate` is in pixels per 256 of the longer side, and grows a pixel to a disc."""
    for side, radius in ((256, 4), (512, 8), (128, 2)):
        marks = blank(side, side // 2)
        marks[side // 4, side // 4] = 1
        rows, columns = np.nonzero(find_erasure(spec(dilate=4), blank(side, side // 2), marks).region)
        assert (np.ptp(rows), np.ptp(columns)) == (2 * radius, 2 * radius)
        assert (np.hypot(rows - side // 4, columns - side // 4) <= radius + 1e-6).all()


@settings(max_examples=60, deadline=None)
@given(
    marks=arrays(np.uint8, (23, 31), elements=st.sampled_from([0, 0, 0, 1, 2])),
    label=arrays(np.uint8, (23, 31), elements=st.sampled_from([0, 0, 255, 7])),
    dilate=st.floats(0, 64), least=st.floats(0, 0.2), text=st.booleans(),
)  # fmt: skip
def test_a_labelled_pixel_never_goes(
    marks: np.ndarray, label: np.ndarray, dilate: float, least: float, text: bool
) -> None:
    """Whatever is marked and however far it grows, the class's pixels stay, and what goes lies near a mark."""
    letters = np.ones_like(label, bool) if text else None
    found = find_erasure(spec(dilate=dilate, least=least, unsure=True, text=text), label, marks, letters)
    assert not found.region[label == 7].any()
    assert found.share == found.region.mean()
    if not text:
        assert not (found.region & ~grown(marks > 0, dilate * 31 / 256)).any()


def test_too_much_is_refused() -> None:
    """More than `most` of the picture is refused, as much as it is not; a picture that is all hole always is."""
    marks = blank()
    marks[:20] = 1
    assert find_erasure(spec(most=0.5), blank(), marks).refused is None
    marks[20, 0] = 1
    assert find_erasure(spec(most=0.5), blank(), marks).refused == TOO_MUCH
    marks[:] = 1
    assert find_erasure(spec(most=1.0), blank(), marks).refused == TOO_MUCH


def test_old_objects_of_current_images() -> None:
    """Old classes in the background go; the step's own pixels never do; void goes only where a region grows into it."""
    label, predicted = blank(), blank()
    label[:, 30:], label[:10, :5] = 9, 255
    predicted[:20, :40] = 2
    found = find_old(spec(), label, predicted)
    assert np.array_equal(found.region, (label == 0) & (predicted > 0))
    assert set(found.why) == {"old"}
    wide = find_old(spec(dilate=64), label, predicted).region
    assert wide[0, 0]
    assert not wide[label == 9].any()


def test_specks_are_parts_that_touch_at_corners_too() -> None:
    """Eight neighbours make one part."""
    region = np.zeros((9, 9), bool)
    region[[0, 1, 2], [0, 1, 2]] = True
    region[8, 8] = True
    assert without_specks(region, 3).sum() == 3
    assert not without_specks(region, 4).any()


def test_what_does_not_fit_is_refused() -> None:
    """Sizes that differ and marks without a meaning are errors."""
    with pytest.raises(DataError, match="cannot be read beside"):
        find_erasure(spec(), blank(), blank(3, 4))
    with pytest.raises(DataError, match="cannot be read beside"):
        find_erasure(spec(text=True), blank(), None, np.zeros((3, 4), bool))
    with pytest.raises(DataError, match="holds the value 7"):
        find_erasure(spec(), blank(), np.full((40, 60), 7, np.uint8))
    with pytest.raises(DataError, match="cannot be read beside"):
        find_old(spec(), blank(), blank(3, 4))


# specs


@pytest.mark.parametrize(
    "told",
    [
        {"backend": "lama"}, {"backend": "lama", "weights": "big.pt"}, {"backend": "lama", "sha256": DIGEST},
        {"backend": "lama", "weights": "big.pt", "sha256": "not hex"}, {"backend": "lama", "server": "file:///x"},
        {"backend": "lama", "server": "http://127.0.0.1:1"},
        {"backend": "lama", "weights": "big.pt", "sha256": DIGEST, "server": "http://127.0.0.1:1"},
        {"backend": "magic"}, {"method": "x"}, {"radius": 0}, {"radius": 65}, {"dilate": -1}, {"timeout": 0},
        {"most": 0}, {"most": 1.5}, {"least": 0.4}, {"others": False}, {"weights": "big.pt"}, {"server": "http://x"},
        {"dilute": 3},
    ],
)  # fmt: skip
def test_impossible_specs_are_refused(told: dict[str, Any]) -> None:
    """What cannot be done, and what is misspelt, is refused before any work."""
    with pytest.raises(ValidationError):
        EraseSpec.model_validate(told)


def test_identity_names_no_place() -> None:
    """Paths, addresses and patience are in no key; weights are there by their sha256, of OpenCV what it reads."""
    weights = EraseSpec(backend="lama", weights="/somewhere/big.pt", sha256=DIGEST, timeout=5)
    assert weights.identity() == EraseSpec(backend="lama", weights="elsewhere.pt", sha256=DIGEST).identity()
    assert weights.identity() == EraseSpec(backend="lama", server="http://127.0.0.1:9", sha256=DIGEST).identity()
    assert "somewhere" not in repr(weights.identity())
    assert weights.where() == {"weights": "/somewhere/big.pt", "server": None, "timeout": 5.0}
    assert set(EraseSpec().identity()) == {
        "backend", "method", "radius", "others", "unsure", "text", "dilate", "most", "least",
    }  # fmt: skip
    assert EraseSpec(radius=4).identity() != EraseSpec().identity()


@pytest.mark.parametrize("told", [EraseSpec(), EraseSpec(method="ns", radius=2)])
def test_a_spec_opens_what_it_names(told: EraseSpec) -> None:
    """The seam takes a spec as it is: what the plan knows of the backend is what the backend says of itself."""
    with open_inpainter(told.identity(), told.where()) as inpainter:
        assert inpainter.identity() == identity_of(told.identity())
    lama = EraseSpec(backend="lama", weights="x.pt", sha256=DIGEST)
    assert identity_of(lama.identity())["sha256"] == DIGEST


def test_specs_load_nothing_heavy() -> None:
    """A plan reads specs without OpenCV, torch or numpy's help."""
    import subprocess
    import sys

    code = "import sys, replaygen.inpainters.specs; print(sorted({'cv2', 'torch', 'PIL'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# letters


def _photographs(root: Path, every: int) -> list[np.ndarray]:
    files = sorted((root / "voc_animals" / "images").glob("*.jpg"))[11::every]
    return [np.asarray(Image.open(file).convert("RGB")) for file in files]


def _written(image: np.ndarray, number: int, *, share: float, opacity: float) -> tuple[np.ndarray, np.ndarray]:
    """The picture with a line of words at `share` of its longer side, stored as JPEG; bool [H, W] of the strokes."""
    height, width = image.shape[:2]
    layer = Image.new("L", (width, height), 0)
    words = ("sample picture", "copyright 2009", "stock example")[number % 3]
    place = (width // 20, (height // 12, height // 2, height * 4 // 5)[number // 3 % 3])
    ImageDraw.Draw(layer).text(place, words, 255, ImageFont.load_default(max(image.shape) * share))
    strokes = np.asarray(layer) / 255
    mixed = image * (1 - opacity * strokes[..., None]) + 255 * opacity * strokes[..., None]
    file = io.BytesIO()
    Image.fromarray(np.rint(mixed).astype(np.uint8)).save(file, "JPEG", quality=90)
    return np.asarray(Image.open(file).convert("RGB")), strokes > 0.5


@pytest.mark.parametrize(("share", "opacity", "least"), [(0.07, 1.0, 0.6), (0.1, 1.0, 0.6), (0.08, 0.6, 0.4)])
def test_words_over_real_photographs_are_found(data_root: Path, share: float, opacity: float, least: float) -> None:
    """Of captions most strokes are found, of watermarks many; nearly all that is found lies at the words."""
    recall, precision = [], []
    for number, image in enumerate(_photographs(data_root, 61)):
        written, strokes = _written(image, number, share=share, opacity=opacity)
        radius = 3 * max(image.shape) / 256
        found = grown(text_pixels(written), radius)
        recall.append((found & strokes).sum() / strokes.sum())
        if found.any():
            precision.append((found & grown(strokes, 4 * radius)).sum() / found.sum())
    assert np.mean(recall) > least
    assert np.mean(precision) > 0.85


def test_real_photographs_are_left_alone(data_root: Path) -> None:
    """Few photographs lose anything to the search for letters, and on average next to nothing."""
    shares = [text_pixels(image).mean() for image in _photographs(data_root, 41)]
    assert len(shares) > 20
    assert np.mean([share > 0 for share in shares]) <= 0.2
    assert np.mean(shares) < 0.005


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 300, 3), (3, 2, 3), (64, 64, 3), (700, 20, 3)])
def test_any_picture_can_be_looked_at(shape: tuple[int, int, int]) -> None:
    """Odd sizes are no error; the picture is left alone; equal pixels give an equal region."""
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    copy = image.copy()
    found = text_pixels(image)
    assert (found.shape, found.dtype) == (shape[:2], np.bool_)
    assert np.array_equal(found, text_pixels(np.asfortranarray(image)))
    assert np.array_equal(image, copy)
