"""The seam of image inpainting: OpenCV behind it, and what no backend gets past it."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from replaygen.errors import RecipeError
from replaygen.inpainters.base import REASONS, Checked, Failure, checked, identity_of, open_inpainter

RNG = np.random.default_rng(0)


def scene(height: int = 61, width: int = 83) -> tuple[Any, Any]:
    """A picture with slopes, stripes and noise, and a hole of two pieces, one of them at a side."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([60 + 2 * y, 40 + 2 * x, 128 + 60 * np.sin(x / 5)], axis=-1) + RNG.normal(0, 4, (height, width, 1))
    hole = ((y - 30) ** 2 + (x - 40) ** 2 < 180) | ((y < 12) & (x < 9))
    return np.clip(image, 0, 255).astype(np.uint8), hole


class Says:
    """A backend that answers what it was given to answer."""

    name = "says"
    at_once = 1

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def paint(self, image: Any, mask: Any) -> Any:
        answer = self.answer(image, mask) if callable(self.answer) else self.answer
        if isinstance(answer, Exception):
            raise answer
        return answer

    def identity(self) -> dict[str, Any]:
        return {}

    def versions(self) -> dict[str, str]:
        return {}

    def close(self) -> None:
        pass


def honest(image: Any, mask: Any) -> Any:
    """A fill that passes."""
    noise = np.random.default_rng(1).integers(90, 160, image.shape, dtype=np.uint8)
    return np.where(mask[..., None], noise, image)


@pytest.mark.parametrize("method", ["telea", "ns"])
def test_opencv_fills_from_the_surroundings(method: str) -> None:
    """Nearer to what was there than a grey hole is, equal outside, and twice the same."""
    image, hole = scene()
    erased = image.copy()
    erased[hole] = (255, 0, 255)
    with open_inpainter({"backend": "opencv", "method": method, "radius": 4}, {}) as inpainter:
        filled, again = inpainter.fill_many([erased, erased], [hole, hole])
    assert not isinstance(filled, Failure)
    assert not isinstance(again, Failure)
    assert filled.dtype == np.uint8
    assert np.array_equal(filled, again)
    assert np.array_equal(filled[~hole], erased[~hole])
    missed = np.abs(filled[hole].astype(int) - image[hole]).mean()
    assert missed < 0.75 * np.abs(image[hole].astype(int) - image[hole].mean(axis=0)).mean()


def test_an_image_is_never_written_to() -> None:
    """Read-only arrays and strange strides are fine; without a hole a copy comes back."""
    image, hole = scene()
    image.flags.writeable = False
    with open_inpainter({}, {}) as inpainter:
        inpainter.fill(image[::-1, ::-1], hole[::-1, ::-1])
        same = inpainter.fill(image, np.zeros_like(hole))
    assert np.array_equal(same, image)
    assert same is not image
    assert same.flags.writeable


@pytest.mark.parametrize(
    ("reason", "answer"),
    [
        ("inpainter-wrong-size", lambda image, mask: image[:-1]),
        ("inpainter-wrong-size", lambda image, mask: image[..., 0]),
        ("inpainter-wrong-size", lambda image, mask: np.pad(image, ((0, 0), (0, 0), (0, 1)))),
        ("inpainter-not-an-image", None),
        ("inpainter-not-an-image", [[1, 2], [3]]),
        ("inpainter-not-an-image", lambda image, mask: honest(image, mask).astype(np.float32) * 2 - 100),
        ("inpainter-not-an-image", lambda image, mask: image.astype(complex)),
        ("inpainter-not-finite", lambda image, mask: np.where(mask[..., None], np.nan, image)),
        ("inpainter-not-finite", lambda image, mask: np.where(mask[..., None], np.inf, image.astype(np.float32))),
        ("inpainter-black", lambda image, mask: np.zeros_like(image)),
        ("inpainter-black", lambda image, mask: image * ~mask[..., None]),
        ("inpainter-one-colour", lambda image, mask: np.where(mask[..., None], np.uint8(200), image)),
        ("inpainter-unchanged", lambda image, mask: image.copy()),
        ("inpainter-strayed", lambda image, mask: honest(image, mask)[::-1, ::-1]),
        ("inpainter-strayed", lambda image, mask: honest(image, mask)[..., ::-1]),
        ("inpainter-crashed", MemoryError()),
        ("inpainter-timeout", Failure("inpainter-timeout", "as a backend says it")),
    ],
)
def test_what_cannot_be_a_fill_is_refused(reason: str, answer: Any) -> None:
    """By a named reason, and the picture beside it is not the worse for it."""
    image, hole = scene()
    backend = Says(answer)
    with checked(backend) as inpainter:
        with pytest.raises(Failure) as refused:
            inpainter.fill(image, hole)
        assert refused.value.reason == reason
        assert reason in REASONS
        answers = iter([answer, honest])

        def in_turn(image: Any, mask: Any) -> Any:
            now = next(answers)
            return now(image, mask) if callable(now) else now

        backend.answer = in_turn
        first, second = inpainter.fill_many([image, image], [hole, hole])
    assert isinstance(first, Failure)
    assert isinstance(second, np.ndarray)


def test_a_careless_backend_changes_nothing_outside() -> None:
    """Pixels outside the hole are put back, and how far they had strayed is told; floats are rounded."""
    image, hole = scene()
    inpainter = Checked(Says(lambda image, mask: np.clip(honest(image, mask) + 1.4, 0, 255)))
    filled = inpainter.fill(image, hole)
    assert np.array_equal(filled[~hole], image[~hole])
    assert inpainter.stray.share > 0.9
    assert 1.0 <= inpainter.stray.mean <= 1.5


def test_one_colour_is_no_fault_where_the_surroundings_say_so() -> None:
    """A white wall, a night sky, a hole of a few pixels."""
    hole = np.zeros((40, 40), dtype=bool)
    hole[10:30, 10:30] = True
    few = np.zeros_like(hole)
    few[20, 20:23] = True
    textured, _ = scene(40, 40)
    with open_inpainter({}, {}) as inpainter:
        for value in (0, 3, 250):
            noise = RNG.integers(0, 4, (40, 40, 3), dtype=np.uint8)
            assert inpainter.fill(noise + np.uint8(value), hole).shape == (40, 40, 3)
        assert inpainter.fill(textured, few).shape == (40, 40, 3)


def test_a_hole_that_is_the_whole_picture_cannot_be_filled_with_nothing() -> None:
    """OpenCV has no rim to start from, and leaves it as it was."""
    image, hole = scene()
    with open_inpainter({"method": "ns"}, {}) as inpainter, pytest.raises(Failure) as refused:
        inpainter.fill(image, np.ones_like(hole))
    assert refused.value.reason in {"inpainter-black", "inpainter-unchanged"}


def test_wrong_arguments_are_errors_and_no_failures() -> None:
    """They are the caller's fault, not a picture's."""
    image, hole = scene()
    with open_inpainter({}, {}) as inpainter:
        for bad_image, bad_mask in [
            (image.astype(np.float32), hole), (image[..., 0], hole), (image, hole.astype(np.uint8)), (image, hole[:-1]),
        ]:  # fmt: skip
            with pytest.raises(ValueError, match="is"):
                inpainter.fill(bad_image, bad_mask)
        with pytest.raises(ValueError, match="2 images and 1 masks"):
            inpainter.fill_many([image, image], [hole])


def test_the_identity_is_known_before_anything_is_opened() -> None:
    """It is what the opened backend says, and holds what decides pixels: no path, no time."""
    spec = {"backend": "opencv", "method": "ns", "radius": 3, "timeout": 5.0}
    with open_inpainter(spec, {}) as inpainter:
        assert inpainter.identity() == identity_of(spec)
        assert inpainter.versions().keys() == {"opencv"}
    assert identity_of({}) != identity_of(spec)
    lama = identity_of({"backend": "lama", "sha256": "AB" * 32, "timeout": 3.0})
    assert lama == {"backend": "lama", "version": "lama-cleaner 1.2.5", "sha256": "ab" * 32}
    for bad in ({"backend": "magic"}, {"method": "median"}, {"radius": 0}, {"radius": 65}):
        with pytest.raises(RecipeError):
            identity_of(bad)
        with pytest.raises(RecipeError):
            open_inpainter(bad, {})


def test_the_seam_imports_nothing_heavy() -> None:
    """A plan may ask for an identity."""
    code = (
        "import sys; from replaygen.inpainters.base import identity_of; identity_of({'backend': 'lama'});"
        "identity_of({}); print(sorted({'cv2', 'torch', 'PIL', 'ssl', 'subprocess'} & sys.modules.keys()))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


def test_a_failure_travels_between_processes() -> None:
    """Dask's workers send it; nothing of it is lost where it is taken apart."""
    failure = copy.copy(Failure("inpainter-black", "all"))
    assert (failure.reason, failure.detail) == ("inpainter-black", "all")
