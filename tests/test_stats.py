"""Intervals are held against scipy, hand values, and how often they cover the truth in simulations."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from prefiere.stats import Estimate, Moments, clustered_mean, clusters_won, sign_test, wilson

numbers = st.lists(st.floats(-1e6, 1e6), max_size=20)


@given(numbers, numbers, numbers)
def test_moments_merge_like_one_evaluation(a: list[float], b: list[float], c: list[float]) -> None:
    left = (Moments.of(a) + Moments.of(b)) + Moments.of(c)
    right = Moments.of(a) + (Moments.of(b) + Moments.of(c))
    whole = Moments.of(a + b + c)
    for m in (left, right):
        assert m.count == len(a + b + c)
        assert m.total == pytest.approx(whole.total, rel=1e-12, abs=1e-6)
        assert m.squares == pytest.approx(whole.squares, rel=1e-12)


def test_five_pairs_in_batches_of_four_give_the_mean_over_five() -> None:
    pairs = [1.0, 0.0, 0.0, 0.0, 1.0]
    assert (Moments.of(pairs[:4]) + Moments.of(pairs[4:])).mean == pytest.approx(0.4)  # a mean of means says 0.625


def test_moments_against_scipy() -> None:
    x = np.random.default_rng(0).normal(-300, 5, size=37)
    m = Moments.of(x)
    expected = scipy.stats.ttest_1samp(x, 0).confidence_interval(0.9)
    assert m.variance == pytest.approx(np.var(x, ddof=1), rel=1e-9)
    assert m.interval(0.9) == pytest.approx((expected.low, expected.high))


def test_moments_of_little() -> None:
    assert math.isnan(Moments().mean)
    assert Moments.of([3.0]).mean == 3.0
    assert all(math.isnan(v) for v in (Moments.of([3.0]).variance, *Moments.of([3.0]).interval()))


@pytest.mark.parametrize("value", [0.1, -1234.567, 1e8 / 3, 0.0])
def test_a_constant_has_no_variance_whatever_the_rounding(value: float) -> None:
    merged = Moments()
    for _ in range(1000):
        merged += Moments.of([value])
    assert merged.variance == 0.0


def test_clusters_of_one_are_students_interval_up_to_the_factor() -> None:
    # With one value per cluster G/(G-1) sum(x-m)^2/n^2 is the usual s^2/n exactly.
    x = np.random.default_rng(1).normal(size=12)
    e = clustered_mean(x, range(12))
    assert (e.low, e.high) == pytest.approx(Moments.of(x).interval())
    assert (e.n, e.clusters) == (12, 12)


def test_clustered_hand_value() -> None:
    # Clusters {1, 3}, {5}: m = 3, sums of residuals -2 and 2, Var = 2/1 * 8/9, t(1 dof, 97.5%) = 12.7062.
    e = clustered_mean([1, 5, 3], ["a", "b", "a"])
    assert e.high - 3 == pytest.approx(12.7062 * 4 / 3, rel=1e-4)
    assert (e.mean, e.n, e.clusters) == (3.0, 3, 2)


def test_one_cluster_says_nothing() -> None:
    e = clustered_mean([0.1, 0.2, 0.3], ["a"] * 3)
    assert e.mean == pytest.approx(0.2)
    assert math.isnan(e.low)
    assert math.isnan(e.high)


def test_values_and_clusters_must_match() -> None:
    with pytest.raises(ValueError, match="3 values, 2 clusters, 3 weights"):
        clustered_mean([1, 2, 3], ["a", "b"])


def test_weighted_hand_value() -> None:
    # Clusters {1 (w 3), 3 (w 1)}, {5 (w 4)}: m = 26/8 = 3.25, sums of weighted residuals -7 and 7, W = 8.
    e = clustered_mean([1, 5, 3], ["a", "b", "a"], weights=[3, 4, 1])
    assert e.mean == 3.25
    assert e.high - e.mean == pytest.approx(12.7062 * math.sqrt(2 * (49 + 49)) / 8, rel=1e-4)


def test_weight_is_repetition_within_a_prompt() -> None:
    x, w = np.random.default_rng(4).normal(size=9), np.random.default_rng(5).integers(0, 4, size=9)
    repeated = clustered_mean(x.repeat(w), np.arange(9).repeat(w))
    weighted = clustered_mean(x, range(9), weights=w)
    assert (weighted.mean, weighted.low, weighted.high) == pytest.approx((repeated.mean, repeated.low, repeated.high))
    assert weighted.clusters == repeated.clusters


def coverage(truth: float, draw: Callable[[], Estimate]) -> float:
    estimates = [draw() for _ in range(1000)]
    return float(np.mean([e.low <= truth <= e.high for e in estimates]))


@pytest.mark.parametrize("prompts", [5, 30])
def test_clustered_interval_covers_where_the_plain_one_does_not(prompts: int) -> None:
    rng = np.random.default_rng(2)
    ids = np.repeat(np.arange(prompts), 6)

    def values() -> np.ndarray:
        return rng.normal(size=prompts).repeat(6) + rng.normal(size=6 * prompts)

    def plain(x: np.ndarray) -> Estimate:
        return Estimate(x.mean(), *Moments.of(x).interval(), len(x), len(x))

    assert 0.93 <= coverage(0, lambda: clustered_mean(values(), ids)) <= 0.97
    assert coverage(0, lambda: plain(values())) < 0.8


@pytest.mark.parametrize("share", [0.55, 0.9, 0.98])
@pytest.mark.parametrize("alike", [0.0, 1.0])
def test_share_interval_covers(share: float, alike: float) -> None:
    """60 prompts of 1 to 4 pairs, whose outcomes are independent or all the same within the prompt."""
    rng = np.random.default_rng(3)
    ids = np.repeat(np.arange(60), rng.integers(1, 5, size=60))

    def draw() -> Estimate:
        own, shared = rng.random(len(ids)), rng.random(60)[ids]
        return clustered_mean((np.where(rng.random() < alike, shared, own) < share).astype(float), ids)

    # The score interval leans to the safe side near 0 and 1; it must not fall short.
    assert coverage(share, draw) >= 0.92


def test_share_interval_is_honest_when_all_are_right() -> None:
    alone = clustered_mean([1.0] * 40, range(40))
    together = clustered_mean([1.0] * 40, np.repeat(range(10), 4))
    assert alone.high == together.high == 1.0
    assert 0.9 < alone.low < 0.95  # rule of three: about 1 - 3/40
    assert together.low < alone.low  # 10 prompts may be no more than 10 answers
    assert clustered_mean([0.0] * 40, range(40), share=True).high == pytest.approx(1 - alone.low)


def test_rewards_before_training_are_exactly_zero() -> None:
    e = clustered_mean([0.0] * 40, range(40))
    assert (e.low, e.high) == (0.0, 0.0)


def test_a_share_that_takes_other_values_stays_within_bounds() -> None:
    e = clustered_mean([0.95, 1.0, 1.0, 0.99, 1.0], range(5), share=True)
    assert e.high <= 1
    assert clustered_mean([0.95, 1.0, 1.0, 0.99, 1.0], range(5)).high > 1


def test_ties_read_as_chance_with_a_width() -> None:
    e = clustered_mean([0.5] * 20, range(20))
    assert e.mean == 0.5
    assert 0.2 < e.low < 0.4
    assert e.high == pytest.approx(1 - e.low)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (10, 10), (555, 1000)])
def test_wilson_against_scipy(k: int, n: int) -> None:
    expected = scipy.stats.binomtest(k, n).proportion_ci(method="wilson")
    assert wilson(k, n) == pytest.approx((expected.low, expected.high))


def test_wilson_without_trials() -> None:
    assert all(math.isnan(v) for v in wilson(0, 0))


def test_values_of_one_cluster_are_one_coin() -> None:
    signs, prompts = [0.5, 3, -1, -2, 1, 0, -1, 1], ["a", "a", "b", "b", "b", "c", "d", "d"]
    assert clusters_won(signs, prompts) == (1, 1)  # a won twice; b lost two of three; c and d tie
    assert clusters_won([1, 1, -1], [0, 1, 2]) == (2, 1)
    assert clusters_won([], []) == (0, 0)


def test_sign_test_by_hand() -> None:
    assert sign_test(5, 0) == pytest.approx(2 / 32)
    assert sign_test(4, 1) == pytest.approx(2 * (1 + 5) / 32)
    assert sign_test(3, 3) == 1.0
    assert sign_test(0, 0) == 1.0


def test_stats_does_not_import_torch() -> None:
    code = "import sys, prefiere.stats; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
