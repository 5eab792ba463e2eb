"""The seam of image inpainting: a picture and a hole in, a picture of the same size out.

    with open_inpainter({"backend": "opencv", "method": "telea", "radius": 5}, {}) as inpainter:
        filled = inpainter.fill(image, hole)             # or raises Failure
        answers = inpainter.fill_many(images, holes)     # a picture or a Failure each, in their order

Every backend stands behind `Checked`: whatever it answers, pixels outside the hole are the image's own, and what cannot
be a fill (nothing, another size, not finite, black, one colour, the unchanged picture) is a `Failure` with a named
reason, which costs that one picture.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import numpy as np

from replaygen.errors import RecipeError
from replaygen.inpainters.answers import REASONS, Failure, Mask, Reason, Stray, judged

if TYPE_CHECKING:
    from replaygen.sample import Image8

__all__ = [
    "REASONS", "Backend", "Checked", "Failure", "Inpainter", "Mask", "Reason", "Stray", "checked", "identity_of",
    "open_inpainter",
]  # fmt: skip


Answer = TypeVar("Answer")

LAMA_CLEANER = "1.2.5"


class Inpainter(Protocol):
    """What `open_inpainter` gives. Safe for several threads."""

    name: str

    def fill(self, image: Image8, mask: Mask) -> Image8:
        """The picture with its hole filled.

        Args:
            image: uint8 [H, W, 3], RGB.
            mask: bool [H, W], True where to fill. An empty one gives a copy of the image.

        Returns:
            uint8 [H, W, 3], a new array; equal to `image` wherever `mask` is False.

        Raises:
            Failure: this picture cannot be filled.
            ModelError: the backend cannot be started, or is gone for good.
            ValueError: shapes or dtypes of the arguments.
        """
        ...

    def fill_many(self, images: Sequence[Image8], masks: Sequence[Mask]) -> list[Image8 | Failure]:
        """As `fill`, of several; a picture or a Failure each, in their order.

        Interrupted, or when the backend is gone, it closes the inpainter and waits for no answer that is under way.

        Raises:
            ModelError, ValueError: as `fill`.
        """
        ...

    def identity(self) -> dict[str, Any]:
        """What decides the pixels, as far as it is known before anything runs; JSON-able, for a key."""
        ...

    def versions(self) -> dict[str, str]:
        """Libraries by name, for a record; in no key."""
        ...

    def close(self) -> None:
        """Stop what was started. To fill afterwards is an error."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(self, *exception: object) -> None: ...


class Backend(Protocol):
    """What stands behind `Checked`: it fills, and nothing it says is believed.

    `paint` raises Failure for a picture, ModelError where the backend cannot go on at all.
    `at_once` is how many calls of `paint` may be under way. Where that is more than one, `close` may
    come while some are, and ends them soon; it may come twice.
    """

    name: str
    at_once: int

    def paint(self, image: Image8, mask: Mask) -> Any: ...
    def identity(self) -> dict[str, Any]: ...
    def versions(self) -> dict[str, str]: ...
    def close(self) -> None: ...


def identity_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """`Inpainter.identity` from the recipe alone: nothing is opened, no library is imported.

    Args:
        spec: as for `open_inpainter`.

    Raises:
        RecipeError: an unknown backend or method.
    """
    backend = spec.get("backend", "opencv")
    if backend == "opencv":
        from replaygen.inpainters.opencv import identity

        return identity(*_opencv(spec))
    if backend == "lama":
        sha256 = spec.get("sha256")
        return {"backend": "lama", "version": f"lama-cleaner {LAMA_CLEANER}", "sha256": sha256 and str(sha256).lower()}
    raise RecipeError(f"no inpainting backend is called {backend!r}", hint='backend = "opencv" or "lama"')


def _opencv(spec: Mapping[str, Any]) -> tuple[str, int]:
    radius = spec.get("radius")
    return str(spec.get("method") or "telea"), 5 if radius is None else int(radius)


def open_inpainter(spec: Mapping[str, Any], where: Mapping[str, Any]) -> Inpainter:
    """A backend, checked and ready to fill.

    Args:
        spec: what decides the pixels. "backend": "opencv" (default) or "lama"; of opencv "method": "telea" (default) or
            "ns", and "radius", in pixels (default 5); of lama "sha256": of the accepted weights, and "threads" (default
            1). Other names are of no meaning.
        where: what does not. "weights": a TorchScript file; "server": URL of a running lama-cleaner, on loopback or
            https; "device": of weights (default "cpu"); "timeout": seconds a picture may take (default 60, also
            read from the spec). Of weights and server one is needed, for lama.

    Raises:
        RecipeError: a spec that names no backend, or weights without their sha256.
        ModelError: the backend cannot be started: what is missing, and how to get it.
    """
    identity_of(spec)
    if spec.get("backend", "opencv") == "opencv":
        from replaygen.inpainters.opencv import OpenCV

        return Checked(OpenCV(*_opencv(spec)))
    from replaygen.inpainters.lama import open_lama

    return Checked(open_lama(spec, where))


class Checked:
    """A backend whose answers were looked at; an `Inpainter`.

    Attributes:
        stray: how far the answers were from their images outside the holes, before these were put back.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.name = backend.name
        self.stray = Stray()

    def fill(self, image: Image8, mask: Mask) -> Image8:
        """As `Inpainter.fill`."""
        _check(image, mask)
        if not mask.any():
            return image.copy()
        try:
            answer = self._backend.paint(image, mask)
        except MemoryError:
            raise Failure("inpainter-crashed", "out of memory") from None
        filled, stray = judged(answer, image, mask)
        self.stray = self.stray.worse(stray)
        return filled

    def fill_many(self, images: Sequence[Image8], masks: Sequence[Mask]) -> list[Image8 | Failure]:
        """As `Inpainter.fill_many`."""
        if len(images) != len(masks):
            raise ValueError(f"{len(images)} images and {len(masks)} masks")
        for image, mask in zip(images, masks, strict=True):
            _check(image, mask)
        workers = min(self._backend.at_once, len(images))
        if workers <= 1:
            return [_caught(self.fill, image, mask) for image, mask in zip(images, masks, strict=True)]
        try:
            return _on_threads(lambda i: _caught(self.fill, images[i], masks[i]), len(images), workers)
        except BaseException:
            self.close()
            raise

    def identity(self) -> dict[str, Any]:
        """As `Inpainter.identity`."""
        return self._backend.identity()

    def versions(self) -> dict[str, str]:
        """As `Inpainter.versions`."""
        return self._backend.versions()

    def close(self) -> None:
        """As `Inpainter.close`."""
        self._backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def checked(backend: Backend) -> Inpainter:
    """The backend as an `Inpainter`."""
    return Checked(backend)


def _caught(fill: Callable[[Image8, Mask], Image8], image: Image8, mask: Mask) -> Image8 | Failure:
    try:
        return fill(image, mask)
    except Failure as failure:
        return failure


def _on_threads(work: Callable[[int], Answer], count: int, threads: int) -> list[Answer]:
    """work(0), ..., work(count - 1), by several threads; the first error that comes ends it.

    The threads are daemons: of a pool's threads Python waits for the end before it exits itself, and a request may hang
    for as long as a picture may take.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, Answer] | BaseException] = queue.SimpleQueue()
    over = threading.Event()

    def go() -> None:
        while not over.is_set():
            try:
                number = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((number, work(number)))
            except BaseException as error:  # raised again below
                done.put(error)
                return

    for number in range(count):
        waiting.put(number)
    answers: dict[int, Answer] = {}
    try:
        for number in range(threads):
            threading.Thread(target=go, name=f"inpaint-{number}", daemon=True).start()
        while len(answers) < count:
            came = done.get()
            if isinstance(came, BaseException):
                raise came
            answers[came[0]] = came[1]
    finally:
        over.set()
    return [answers[number] for number in range(count)]


def _check(image: Image8, mask: Mask) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"an image is uint8 [H, W, 3], not {image.dtype} {list(image.shape)}")
    if mask.dtype != np.bool_ or mask.shape != image.shape[:2]:
        raise ValueError(f"a mask of it is bool {list(image.shape[:2])}, not {mask.dtype} {list(mask.shape)}")
