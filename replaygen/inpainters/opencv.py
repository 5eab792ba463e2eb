"""OpenCV's two ways to fill a hole, without weights: fast marching (Telea 2004) and Navier-Stokes (Bertalmio 2001)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from replaygen.errors import ModelError, RecipeError

if TYPE_CHECKING:
    from replaygen.inpainters.answers import Mask
    from replaygen.sample import Image8

METHODS = ("telea", "ns")
MOST_RADIUS = 64


def identity(method: str, radius: int) -> dict[str, Any]:
    """What decides the pixels.

    Raises:
        RecipeError: an unknown method, or a radius outside 1..64 pixels.
    """
    if method not in METHODS:
        raise RecipeError(f"OpenCV has no inpainting method {method!r}", hint='method = "telea" or "ns"')
    if not 1 <= radius <= MOST_RADIUS:
        raise RecipeError(f"an inpainting radius of {radius} pixels", hint=f"radius = 1 to {MOST_RADIUS}")
    return {"backend": "opencv", "method": method, "radius": radius, "version": 1}


class OpenCV:
    """A `Backend`: the hole is filled from its rim inwards, each pixel from those at most `radius` pixels away.

    Raises:
        RecipeError: as `identity`.
        ModelError: OpenCV is not installed.
    """

    name = "opencv"
    at_once = 1

    def __init__(self, method: str = "telea", radius: int = 5) -> None:
        self._identity = identity(method, radius)
        try:
            import cv2
        except ImportError as error:
            raise ModelError(
                f"OpenCV cannot be imported: {error}", where="the inpainting backend",
                hint="pip install 'replaygen[inpaint]'",
            ) from None  # fmt: skip
        self._cv2 = cv2
        self._flag = cv2.INPAINT_TELEA if method == "telea" else cv2.INPAINT_NS
        self._radius = radius

    def paint(self, image: Image8, mask: Mask) -> Any:
        """uint8 [H, W, 3]. A hole without a rim, the whole picture, comes out as it was."""
        import numpy as np

        from replaygen.inpainters.answers import Failure

        try:
            return self._cv2.inpaint(np.ascontiguousarray(image), mask.astype(np.uint8), self._radius, self._flag)
        except self._cv2.error as error:
            raise Failure("inpainter-crashed", f"OpenCV: {str(error.err)[:200]}") from None

    def identity(self) -> dict[str, Any]:
        """As `Inpainter.identity`."""
        return dict(self._identity)

    def versions(self) -> dict[str, str]:
        """As `Inpainter.versions`."""
        return {"opencv": str(self._cv2.__version__)}

    def close(self) -> None:
        """Nothing to stop."""
