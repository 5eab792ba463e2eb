"""Colours: of classes on photographs, and of methods in charts.

The class colours were chosen one after the other, each as far as possible (in CIELAB) from those before it, as seen by
people with usual, red-blind, green-blind and blue-blind sight, leaving out the greens and browns that fill photographs.
"""

from __future__ import annotations

import colorsys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Mask8 = npt.NDArray[np.uint8]

RGB = tuple[int, int, int]

CLASSES = (
    "#0077dd", "#ff5500", "#00ffbb", "#bb5577", "#bbff00", "#ffdd77", "#9900ff", "#55bbff", "#ff55bb", "#ff9977",
    "#dd0033", "#bb00bb", "#ddbb00", "#bb7755", "#dd0099", "#dd33ff", "#bb9933", "#00ddff", "#77dd55", "#3399bb",
    "#00bb99", "#ff7799", "#007755", "#ff77dd",
)  # fmt: skip

METHODS = ("#0067a8", "#c24e00", "#0b7a5b", "#a03f78", "#5b4bb3", "#8a6100", "#4d5560", "#b3262e")
"""On white; the page gives lighter ones to dark mode under the same names, `--series-1` and on."""

METHODS_DARK = ("#63b6f2", "#ff9a52", "#46cfa5", "#f08fc6", "#ada1ff", "#e3b341", "#b5bdc7", "#ff8b8b")


def rgb(color: str) -> RGB:
    """ "#rrggbb" as three numbers 0..255."""
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def class_color(channel: int) -> str:
    """The colour of a channel from 1, as #rrggbb; channel 0 is drawn as nothing."""
    if channel <= len(CLASSES):
        return CLASSES[channel - 1] if channel else "#000000"
    turn = (channel * 0.61803398875) % 1.0
    red, green, blue = colorsys.hls_to_rgb(turn, 0.45 + 0.2 * (channel % 2), 0.75)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def colorize(mask: Mask8) -> npt.NDArray[np.uint8]:
    """A mask as colours to lay over its image: background clear, ignore half-clear white.

    Args:
        mask: uint8 [H, W], channels, 255 = ignore.

    Returns:
        uint8 [H, W, 4], RGBA.
    """
    import numpy as np

    table = np.zeros((256, 4), np.uint8)
    for channel in np.unique(mask).tolist():
        if channel:
            table[channel] = (*rgb(class_color(channel)), 255)
    table[255] = (255, 255, 255, 128)
    return table[mask]
