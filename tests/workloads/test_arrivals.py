"""Arrivals are repeated by their seed, have their rate, and are all 0 where every request is there at once."""

from __future__ import annotations

import statistics
from itertools import pairwise

import pytest
from pydantic import ValidationError

from workloads.arrivals import Poisson, times_s


def test_closed_queues_arrive_at_once() -> None:
    assert times_s(None, 3, 0) == (0.0, 0.0, 0.0)


def test_poisson_arrivals_have_their_rate() -> None:
    times = times_s(Poisson(rate_per_s=4), 4000, 1)
    gaps = [after - before for before, after in pairwise(times)]
    assert times[0] == 0.0
    assert min(gaps) >= 0
    assert statistics.mean(gaps) == pytest.approx(0.25, rel=0.06)
    assert statistics.pstdev(gaps) == pytest.approx(0.25, rel=0.08)


def test_a_seed_repeats_them_and_a_longer_queue_begins_as_a_shorter_one() -> None:
    poisson = Poisson(rate_per_s=0.5)
    assert times_s(poisson, 9, 3)[:4] == times_s(poisson, 4, 3)
    assert times_s(poisson, 4, 3) != times_s(poisson, 4, 4)


@pytest.mark.parametrize("rate", [0, -1, float("inf"), float("nan")])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(ValidationError):
        Poisson(rate_per_s=rate)
