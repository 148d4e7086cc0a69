"""Trials are rare, cheap and taken back unless they pay."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specmoe.control.trials import Knobs, Trials


@pytest.mark.parametrize(("to_come_s", "tried"), [(100.0, 2), (0.1, None)])
def test_no_trial_costs_more_than_a_share_of_the_time_to_come(to_come_s: float, tried: int | None) -> None:
    trials = Trials()
    for _ in range(Trials.FEWEST):
        trials.passed(25.0)
    assert trials.due(0, to_come_s, [0.01] * 9) == tried


def test_the_gap_between_trials_doubles_until_the_best_gamma_changes() -> None:
    trials, tried = Trials(), []
    for i in range(200):
        trials.passed(1.0)
        if trials.due(0 if i < 150 else 4, 1e6, [0.0] * 9) is not None:
            tried.append(i + 1)
    assert tried[:5] == [4, 12, 28, 60, 124]
    assert tried[5] == 151 + Trials.FEWEST


def test_trials_alternate_between_half_and_twice_the_gamma() -> None:
    trials, tried = Trials(), []
    for _ in range(300):
        trials.passed(1.0)
        tried.append(trials.due(4, 1e6, [0.0] * 17))
    assert [gamma for gamma in tried if gamma is not None][:4] == [8, 2, 8, 2]


def _settle(knobs: Knobs, rate_of: dict[tuple[int, int], float], default: float, cycles: int) -> list[tuple[int, int]]:
    seen = []
    for _ in range(cycles):
        seen.append((knobs.draft_experts, knobs.refresh_interval))
        knobs.learn(rate_of.get(seen[-1], default))
    return seen


def test_a_change_that_does_not_pay_is_taken_back() -> None:
    knobs = Knobs(4, 8, 2)
    seen = _settle(knobs, {(4, 2): 1.0}, default=0.5, cycles=400)
    assert len(set(seen)) > 2, "other values are tried"
    assert seen.count((4, 2)) > 0.7 * len(seen)


def test_a_change_without_effect_is_taken_back_too() -> None:
    knobs = Knobs(4, 8, 2)
    seen = _settle(knobs, {}, default=1.0, cycles=400)
    assert seen.count((4, 2)) > 0.7 * len(seen)


def test_a_change_that_pays_stays() -> None:
    knobs = Knobs(2, 8, 1)
    rates = {(n, i): 1.0 + 0.2 * math.log2(n) + 0.1 * math.log2(i) for n in (1, 2, 4, 8) for i in (1, 2, 4, 8)}
    rates |= {(n, i): 0.5 for n in (1, 2, 4, 8) for i in (16, 32, 64)}
    seen = _settle(knobs, rates, default=0.1, cycles=1500)
    assert seen.count((8, 8)) > 0.5 * len(seen)


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 64), st.lists(st.floats(0.1, 10), max_size=200))
def test_knobs_stay_within_their_ranges(start: int, most: int, interval: int, rates: list[float]) -> None:
    knobs = Knobs(min(start, most), most, interval)
    for rate in rates:
        knobs.learn(rate)
        assert 1 <= knobs.draft_experts <= most
        assert 1 <= knobs.refresh_interval <= 64
