"""Intervals cover the median as often as they claim, and too few or unsteady rounds allow no conclusion."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.results.stats import bootstrap, geometric_mean, quotient, stability


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=12))
def test_an_interval_holds_the_median_and_stays_within_the_values(values: list[float]) -> None:
    ratio = bootstrap(values)
    assert ratio.low <= ratio.median <= ratio.high
    assert min(values) == pytest.approx(min([*values, ratio.low]))
    assert max(values) == pytest.approx(max([*values, ratio.high]))


def test_equal_values_have_an_interval_of_no_width() -> None:
    ratio = bootstrap([2.0, 2.0, 2.0])
    assert (ratio.low, ratio.median, ratio.high) == (2.0, 2.0, 2.0)


def test_intervals_of_ten_rounds_hold_the_truth_about_as_often_as_they_say() -> None:
    draw = np.random.default_rng(0)
    held = {0.95: 0, 0.99: 0}
    for number in range(100):
        values = draw.lognormal(0, 0.1, 10).tolist()
        for confidence in held:
            ratio = bootstrap(values, confidence, seed=number)
            held[confidence] += ratio.low <= 1 <= ratio.high
    assert held[0.95] >= 85, "a bootstrap of medians falls a little short of what it promises"
    assert held[0.99] >= 93


def test_more_confidence_is_a_wider_interval() -> None:
    values = np.random.default_rng(1).lognormal(0, 0.2, 12).tolist()
    narrow, wide = bootstrap(values, 0.5), bootstrap(values, 0.99)
    assert wide.low < narrow.low
    assert narrow.high < wide.high


def test_values_that_are_not_finite_are_left_out() -> None:
    assert bootstrap([1.0, float("nan"), 3.0, float("inf")]).n == 2
    assert bootstrap([]).median is None
    assert bootstrap([1.5]).low is None


def test_a_quotient_is_of_medians_and_wider_than_either_sample() -> None:
    ratio = quotient([2.0, 2.1, 1.9, 2.0, 2.05, 1.95], [1.0, 1.1, 0.9, 1.0, 1.05, 0.95])
    assert ratio.median == pytest.approx(2.0)
    assert ratio.low < 2.0 < ratio.high
    assert quotient([2.0], [1.0, 1.1]).low is None


def test_the_mean_over_cells_is_geometric() -> None:
    mean = geometric_mean([[2.0, 2.0], [0.5, 0.5]])
    assert mean.median == pytest.approx(1.0)
    assert (mean.low, mean.high) == (pytest.approx(1.0), pytest.approx(1.0))
    assert geometric_mean([[4.0], [1.0]]).median == pytest.approx(2.0)
    assert geometric_mean([[0.0], []]).median is None


def test_its_interval_comes_from_the_rounds_of_each_cell() -> None:
    draw = np.random.default_rng(2)
    mean = geometric_mean([draw.lognormal(0.5, 0.1, 8).tolist(), draw.lognormal(-0.5, 0.1, 8).tolist()])
    assert mean.low < mean.median < mean.high


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([1.0], "1 of 6 rounds"),
        ([1.0, 1.01, 1.0], "3 rounds, 6 are needed"),
        ([1.0, 1.5, 0.7, 1.2, 0.8, 1.4], "standard deviation is 2"),
        ([1.0, 1.5, 0.7, 1.2, 0.8, 1.4], "interval is ±"),
    ],
)
def test_what_is_too_wide_to_conclude_says_why(values: list[float], reason: str) -> None:
    verdict = stability(values)
    assert not verdict.stable
    assert reason in str(verdict)


def test_steady_ratios_are_stable() -> None:
    assert str(stability([1.0, 1.01, 0.99, 1.0, 1.02, 0.98])) == "stable"


def test_interval_holds_the_median_and_stays_within_the_ratios_seen() -> None:
    ratios = [1.1, 1.4, 1.2, 1.3, 1.25, 1.5, 1.05]
    ratio = bootstrap(ratios)
    assert ratio.low is not None
    assert ratio.high is not None
    assert min(ratios) <= ratio.low < 1.25 < ratio.high <= max(ratios)
    assert ratio == bootstrap(ratios)


def test_one_round_has_no_interval_and_says_so() -> None:
    ratio = bootstrap([1.5])
    assert (ratio.low, ratio.high, ratio.verdict) == (None, None, "single")
    assert str(ratio) == "1.50× (n=1)"


def test_no_ratio_is_shown_as_not_applicable() -> None:
    assert str(bootstrap([])) == str(bootstrap([float("nan")])) == "–"


@pytest.mark.parametrize(
    ("ratios", "verdict"), [([1.1, 1.2, 1.3], "faster"), ([0.8, 0.9, 0.7], "slower"), ([0.9, 1.0, 1.2], "same")]
)
def test_verdict_follows_the_interval(ratios: list[float], verdict: str) -> None:
    assert bootstrap(ratios).verdict == verdict
