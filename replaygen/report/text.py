"""Text from outside (titles, class names, file names) made fit to print, and numbers made fit to read."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Sequence

_ESCAPES = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"  # operating system commands, such as a terminal's title
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"  # colours, cursor moves
    r"|\x1b[ -/]*[0-~]?"
)
_CONTROLS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)
_FORMULA = ("=", "+", "@", "-", "\uff1d", "\uff0b", "\uff20", "\uff0d")  # the wide ones count in some languages


def plain(text: str) -> str:
    """Text that is safe to print in a terminal and to paste into a spreadsheet.

    Terminal escape sequences, control characters, invisible and direction-changing characters and lone surrogates are
    taken out, tabs and line ends become spaces, and a text that a spreadsheet would read as a formula gets a "'" before
    it. Quoting for HTML is not done here: the templates escape everything.
    """
    text = stripped(text)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) and text.strip() != "-" else text


def stripped(text: str) -> str:
    """`plain` without the look at formulas: for text that stands in quotes."""
    return _CONTROLS.sub("", re.sub(r"[\t\r\n]+", " ", _ESCAPES.sub("", text)))


def cut(text: str, most: int = 160) -> str:
    """`stripped`, and not longer than `most` characters."""
    text = stripped(text).strip()
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def number(value: float | None, digits: int = 1) -> str:
    """A number with a fixed count of decimals and a true minus sign; "–" where there is none."""
    if value is None or value != value:
        return "–"
    return f"{value:.{digits}f}".replace("-", "\u2212")


def count(value: int) -> str:
    """A whole number with commas between thousands: "2,000"."""
    return f"{value:,}"


def mean_of(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are there."""
    known = [value for value in values if value is not None and value == value]
    return statistics.fmean(known) if known else None


def deviation_of(values: Sequence[float | None]) -> float | None:
    """Sample standard deviation; None for fewer than two values."""
    known = [value for value in values if value is not None and value == value]
    return statistics.stdev(known) if len(known) > 1 else None


def duration(seconds: float) -> str:
    """Seconds as people say them: "0.8 s", "42 s", "3 min 20 s", "2 h 05 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(count: int) -> str:
    """Bytes in decimal units."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def plural(count: int, word: str, words: str = "") -> str:
    """ "1 seed", "3 seeds"."""
    return f"{count:,} {word if count == 1 else words or word + 's'}".replace(",", "\u202f" if count > 9999 else "")


def few(names: Iterable[str], most: int = 3) -> str:
    """ "zero, one, two and 6 more": each name once."""
    told = list(dict.fromkeys(names))
    return ", ".join(told[:most]) + (f" and {len(told) - most} more" if len(told) > most else "")
