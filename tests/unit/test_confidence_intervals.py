from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from benchmarks.evaluation.comparison import mcnemar
from benchmarks.evaluation.confidence_intervals import Proportion, mean_interval, wilson


def test_wilson_equals_values_worked_out_by_hand():
    # z = 2, 1 of 4: 1 + z^2/n = 2, centre (1/4 + 1/2) / 2 = 3/8, half width sqrt(3/64 + 1/16) = sqrt(7)/8.
    assert wilson(1, 4, z=2.0) == pytest.approx((3 / 8 - 7**0.5 / 8, 3 / 8 + 7**0.5 / 8))
    # The closed forms at the ends: z^2 / (n + z^2) above 0 of n and below n of n.
    z2 = 3.841458820694124
    assert wilson(0, 20) == pytest.approx((0, z2 / (20 + z2)))
    assert wilson(20, 20) == pytest.approx((20 / (20 + z2), 1))
    # A published evaluation: 60 of 280, [17.0, 26.6] %.
    assert [round(100 * end, 1) for end in wilson(60, 280)] == [17.0, 26.6]


def test_interval_of_a_mean_over_tasks():
    # One task is Wilson's interval; two alike have the same mean, the distances shrunk by sqrt(2).
    one = Proportion(3, 10)
    assert mean_interval([one]) == pytest.approx(one.interval)
    low, high = mean_interval([one, one])
    assert (0.3 - low, high - 0.3) == pytest.approx(
        ((0.3 - one.interval[0]) / 2**0.5, (one.interval[1] - 0.3) / 2**0.5)
    )
    # All solved and none: the ends keep a width, by hand from z^2 / (n + z^2) for n = 20.
    z2 = 3.841458820694124
    low, high = mean_interval([Proportion(20, 20), Proportion(0, 20)])
    assert (low, high) == pytest.approx((0.5 - z2 / (20 + z2) / 2, 0.5 + z2 / (20 + z2) / 2))


def test_interval_of_a_mean_covers_it_as_often_as_it_says():
    rng, rates = np.random.default_rng(0), np.array([0.05, 0.4, 0.9])
    drawn = rng.binomial(20, rates, (2000, 3))
    ends = np.array([mean_interval([Proportion(int(s), 20) for s in row]) for row in drawn])
    covered = ((ends[:, 0] <= rates.mean()) & (rates.mean() <= ends[:, 1])).mean()
    assert 0.93 < covered < 0.98


@pytest.mark.parametrize(("successes", "trials"), [(0, 50), (1, 7), (37, 50), (60, 280), (50, 50)])
def test_wilson_equals_scipy(successes, trials):
    reference = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    assert wilson(successes, trials) == pytest.approx((reference.low, reference.high), abs=1e-12)


def test_wilson_at_one_half_is_symmetric_and_has_its_closed_form():
    low, high = wilson(
        5, 10, z=2.0
    )  # half width z / (n + z^2) * sqrt(n / 4 + z^2 / 4) = 2 / 14 * sqrt(2.5 + 1)
    assert (low + high) / 2 == pytest.approx(0.5)
    assert (high - low) / 2 == pytest.approx(2 / 14 * (2.5 + 1) ** 0.5)


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_interval_contains_the_rate_and_stays_in_the_unit_interval(counts):
    proportion = Proportion(*counts)
    low, high = proportion.interval
    assert 0 <= low <= proportion.rate <= high <= 1


def test_proportion_counts_and_refuses_nonsense():
    assert Proportion.of([True, False, True, True]) == Proportion(3, 4)
    with pytest.raises(ValueError, match="at least one trial"):
        Proportion.of([])
    with pytest.raises(ValueError, match="0 <= successes <= trials"):
        Proportion(5, 4)


def test_mcnemar_counts_only_pairs_that_differ():
    first = [True] * 8 + [False] * 1 + [True] * 20 + [False] * 5
    second = [False] * 8 + [True] * 1 + [True] * 20 + [False] * 5
    assert mcnemar(first, second) == pytest.approx(2 * (comb(9, 0) + comb(9, 1)) / 2**9)
    assert mcnemar(second, first) == mcnemar(first, second)
    assert mcnemar([True] * 5, [False] * 5) == 2 / 32
    assert mcnemar([True] * 10 + [False] * 2, [False] * 10 + [True] * 2) == 2 * (1 + 12 + 66) / 4096
    assert mcnemar(first, first) == 1
    assert mcnemar([True, False], [False, True]) == 1


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_the_binomial_test_of_the_pairs_that_differ(wins, losses):
    p = mcnemar([True] * wins + [False] * losses, [False] * wins + [True] * losses)
    expected = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert p == pytest.approx(expected, rel=1e-9)


def test_mcnemar_refuses_unpaired_outcomes():
    with pytest.raises(ValueError, match="3 outcomes against 2"):
        mcnemar([True, True, False], [True, False])
