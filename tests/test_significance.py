"""The paired test against scipy, against numbers worked out by hand, and in the cases that have no answer."""

from __future__ import annotations

import math
import random

import pytest
from scipy import stats

from replaygen.errors import DataError
from replaygen.learn.significance import compare, compare_seeds, quantile, two_sided
from replaygen.report.tables import against_best, best_against
from replaygen.runs.results import RunResult, StepResult


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 9, 10, 29, 120])
def test_student_t_is_exact(freedom: int) -> None:
    """Two-sided probabilities and the 95 % quantile are scipy's, for odd and even degrees of freedom."""
    for t in (0.0, 0.1, 0.7, 1.0, 2.5, -2.5, 4.303, 12.706, 60.0):
        assert two_sided(t, freedom) == pytest.approx(2 * stats.t.sf(abs(t), freedom), abs=1e-13)
    assert quantile(0.95, freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-11)


def test_three_seeds_by_hand() -> None:
    """Differences 1, 2, 3: mean 2, standard error 1/sqrt(3), t = 2 sqrt(3) at 2 degrees of freedom.

    There P(|T| > t) = 1 - t / sqrt(2 + t²) = 1 - sqrt(12/14), and the 95 % quantile is 4.302653.
    """
    told = compare([11.0, 12.0, 13.0], [10.0, 10.0, 10.0])
    assert told.difference == pytest.approx(2.0)
    assert told.p == pytest.approx(1 - math.sqrt(12 / 14))
    assert (told.low, told.high) == pytest.approx((2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)), abs=1e-6)
    assert (told.pairs, told.sign) == (3, 1)
    assert not told.beyond_chance


def test_random_pairs_agree_with_scipy() -> None:
    """p and interval are those of scipy's paired t test, for two to nine seeds."""
    draw = random.Random(3)
    for count in range(2, 10):
        a = [draw.gauss(50.0, 2.0) for _ in range(count)]
        b = [draw.gauss(49.0, 2.0) for _ in range(count)]
        told, known = compare(a, b), stats.ttest_rel(a, b)
        interval = known.confidence_interval(0.95)
        assert told.p == pytest.approx(known.pvalue, abs=1e-12)
        assert (told.low, told.high) == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_p_below_five_percent_is_an_interval_without_zero() -> None:
    """The two ways of saying "beyond chance" are one."""
    draw = random.Random(4)
    for _ in range(50):
        told = compare([draw.gauss(1.0, 1.0) for _ in range(4)], [0.0] * 4)
        assert told.low is not None
        assert told.high is not None
        assert told.beyond_chance == (told.low > 0 or told.high < 0)


def test_one_seed_is_no_test() -> None:
    """A single pair has a difference and nothing to judge it by, and says so."""
    told = compare([52.0], [50.0])
    assert (told.difference, told.low, told.high, told.p) == (2.0, None, None, None)
    assert str(told) == "+2.0 (one seed: no test)"
    assert str(compare([48.0], [50.0])).startswith("\u22122.0")


def test_exchanging_the_rows_turns_the_sign() -> None:
    """b against a is a against b, mirrored, with the same p."""
    a, b = [50.0, 51.0, 53.0], [49.0, 51.5, 50.0]
    one, other = compare(a, b), compare(b, a)
    assert (other.difference, other.low, other.high) == pytest.approx((-one.difference, -one.high, -one.low))  # type: ignore[operator]
    assert one.p == pytest.approx(other.p)
    assert (one.sign, other.sign) == (1, -1)


@pytest.mark.parametrize(("gap", "p"), [(1.5, 0.0), (0.0, 1.0)])
def test_differences_without_spread(gap: float, p: float) -> None:
    """Equal differences give an interval of one value and no division by zero."""
    told = compare([gap + 4.0, gap + 5.0], [4.0, 5.0])
    assert (told.difference, told.low, told.high, told.p) == (gap, gap, gap, p)


def test_what_cannot_be_paired_is_refused() -> None:
    """Unequal counts or none at all are a mistake of the caller."""
    with pytest.raises(DataError, match="2 and 1 values"):
        compare([1.0, 2.0], [1.0])
    with pytest.raises(DataError, match="0 and 0 values"):
        compare([], [])


def test_seeds_are_paired_by_their_number() -> None:
    """Only seeds that both rows have count, whatever their order; none in common: nothing to say."""
    told = compare_seeds({0: 50.0, 1: 60.0, 2: 70.0}, {2: 69.0, 0: 49.5})
    assert told is not None
    assert (told.pairs, told.difference) == (2, 0.75)
    assert compare_seeds({0: 1.0}, {1: 1.0}) is None


def test_it_is_told_in_one_line() -> None:
    """Difference with its sign, interval, p, seeds: t = 1.2 / (0.2 / sqrt(3)), so p = 1 - t / sqrt(2 + t²) = 0.0091."""
    assert str(compare([51.2, 51.4, 51.0], [50.0, 50.0, 50.0])) == "+1.2 [0.7, 1.7] p=0.0091 (3 seeds)"


def _run(**rows: list[float]) -> RunResult:
    steps = tuple(
        StepResult(method, seed, 0, ("other", "a"), (1,), (), {"all": value}, [], 1, 1.0)
        for method, values in rows.items() for seed, value in enumerate(values)
    )  # fmt: skip
    return RunResult("r", "R", "1", "overlapped", (("a",),), steps)


def test_the_best_row_is_tested_against_the_second() -> None:
    """Joint training is no rival; every other row is tested against the best one that it is not."""
    result = _run(finetune=[20.0, 22.0], mib=[50.0, 51.0], recall=[60.0, 60.0], joint=[80.0, 80.0])
    best = best_against(result)
    assert best is not None
    assert (best.method, best.other, best.comparison.difference) == ("recall", "mib", 9.5)
    lowest = against_best(result, "finetune")
    assert lowest is not None
    assert (lowest.other, lowest.comparison.difference) == ("recall", -39.0)
    assert against_best(result, "joint") is None


def test_a_row_alone_is_not_tested() -> None:
    """Neither against joint nor against itself."""
    assert best_against(_run(recall=[60.0, 61.0], joint=[80.0, 80.0])) is None
    assert best_against(_run(joint=[80.0])) is None
