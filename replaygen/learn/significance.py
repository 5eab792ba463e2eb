"""Is one method better than another? The paired t test: rows of one seed share it and their step 0.

    d_s = a_s - b_s,  t = mean(d) / (sd(d) / sqrt(n)),  p = P(|T| >= |t|),  T: Student's t with n - 1 degrees of freedom

Only the standard library is needed: for a whole number of degrees of freedom the distribution is a finite sum
(Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from replaygen.errors import DataError

ONE = "one seed: no test"
"""What is said where there are too few pairs."""


@dataclass(frozen=True)
class Comparison:
    """a against b over n pairs, in the metric's own unit.

    Attributes:
        pairs: n.
        difference: mean of a - b.
        low, high: 95 % t interval of the difference; None for one pair.
        p: two-sided, of the paired t test; None for one pair.
    """

    pairs: int
    difference: float
    low: float | None = None
    high: float | None = None
    p: float | None = None

    @property
    def sign(self) -> int:
        """1: a is better, -1: b is, 0: equal."""
        return (self.difference > 0) - (self.difference < 0)

    @property
    def beyond_chance(self) -> bool:
        """Whether the 95 % interval leaves out 0."""
        return self.p is not None and self.p < 0.05

    def __str__(self) -> str:
        difference = f"{self.difference:+.1f}".replace("-", "−")
        if self.low is None or self.high is None or self.p is None:
            return f"{difference} ({ONE})"
        interval = f"[{self.low:.1f}, {self.high:.1f}]".replace("-", "−")
        p = "p<0.001" if self.p < 0.001 else f"p={self.p:.2g}" if self.p < 0.1 else f"p={self.p:.2f}"
        return f"{difference} {interval} {p} ({self.pairs} seeds)"

    def as_json(self) -> dict[str, Any]:
        """Plain data with stable keys."""
        return {
            "pairs": self.pairs, "difference": self.difference, "low": self.low, "high": self.high, "p": self.p,
            "sign": self.sign,
        }  # fmt: skip


def compare(a: Sequence[float], b: Sequence[float]) -> Comparison:
    """The paired t test of "a is better than b".

    Where all differences are equal there is no spread to judge them by: the interval is that one value, and p is 0, or
    1 where they are 0.

    Args:
        a, b: one value a seed, of the same seeds in the same order.

    Raises:
        DataError: no pairs, or unequal counts.
    """
    if len(a) != len(b) or not a:
        raise DataError(
            f"{len(a)} and {len(b)} values cannot be paired", hint="give both rows' values of the same seeds, in order"
        )
    differences = [one - other for one, other in zip(a, b, strict=True)]
    count, mean = len(differences), statistics.fmean(differences)
    if count < 2:
        return Comparison(count, mean)
    error = statistics.stdev(differences) / math.sqrt(count)
    half = quantile(0.95, count - 1) * error
    p = two_sided(mean / error, count - 1) if error > 0 else float(mean == 0)
    return Comparison(count, mean, mean - half, mean + half, p)


def compare_seeds(a: Mapping[int, float], b: Mapping[int, float]) -> Comparison | None:
    """`compare` over the seeds that both have; None where they share none."""
    shared = [seed for seed in a if seed in b]
    return compare([a[seed] for seed in shared], [b[seed] for seed in shared]) if shared else None


def within(t: float, freedom: int) -> float:
    """P(|T| <= |t|) of Student's t with a whole number of degrees of freedom, exact but for rounding.

    With θ = atan(t / sqrt(ν)): for odd ν it is 2/π (θ + sin θ (cos θ + 2/3 cos³ θ + ... )), for even ν
    sin θ (1 + 1/2 cos² θ + 1·3/(2·4) cos⁴ θ + ... ), each sum ending at the power ν - 2.
    """
    angle = math.atan(abs(t) / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for power in range(odd, freedom - 1, 2):
        total += term
        term *= cosine * cosine * (power + 1) / (power + 2)
    return 2.0 / math.pi * (angle + sine * total) if odd else sine * total


def two_sided(t: float, freedom: int) -> float:
    """p = P(|T| >= |t|), never below 0; absolute error about 1e-15."""
    return min(1.0, max(0.0, 1.0 - within(t, freedom)))


def quantile(share: float, freedom: int) -> float:
    """The t with P(|T| <= t) = share, 0 <= share < 1, by halving an interval until it cannot be halved."""
    low, high = 0.0, 1.0
    while within(high, freedom) < share:
        low, high = high, 2.0 * high
    while low < (middle := (low + high) / 2.0) < high:
        low, high = (middle, high) if within(middle, freedom) < share else (low, middle)
    return high
