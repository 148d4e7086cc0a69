"""Running estimates recover the curves and rates that produced their points, and stay sane far from them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specmoe.control.estimates import Acceptance, PowerFit


@given(st.floats(0, 1.1), st.floats(0.001, 5))
def test_a_power_is_found_from_its_points(exponent: float, scale: float) -> None:
    power = PowerFit(prior_exponent=0.5)
    for i in range(60):
        power.add(2 ** (i % 6), scale * 2 ** (exponent * (i % 6)))
    for x in (1, 8, 32, 64):
        assert power.at(x) == pytest.approx(scale * x**exponent, rel=0.1)


def test_a_power_seen_at_one_x_grows_by_its_prior() -> None:
    power = PowerFit(prior_exponent=0.5)
    assert power.at(3) == 0
    for _ in range(5):
        power.add(4, 8.0)
    assert power.at(4) == pytest.approx(8.0)
    assert power.at(16) == pytest.approx(16.0)


def test_a_power_never_falls_and_survives_zeros() -> None:
    power = PowerFit(prior_exponent=0.0)
    for i in range(50):
        power.add(1 + i % 5, 0.0 if i % 10 == 9 else 10.0 - (1 + i % 5))
    assert power.at(10) >= power.at(1) > 0


def test_old_points_elsewhere_still_count_while_the_run_stays_in_one_place() -> None:
    power = PowerFit(prior_exponent=1.0)
    power.add(16, 60.0)
    power.add(1, 20.0)
    for i in range(20):
        power.add(14 + i % 4, 60.0 + 5 * (-1) ** i)  # only long drafts since, and noisy ones
    assert power.at(1) == pytest.approx(20.0, rel=0.25)


@pytest.mark.parametrize("rate", [0.2, 0.6, 0.9])
def test_acceptance_finds_the_rate(rate: float) -> None:
    acceptance, generator = Acceptance(6), torch.Generator().manual_seed(0)
    lengths = torch.full((32,), 6)
    for _ in range(60):
        kept = torch.rand(32, 6, generator=generator) < rate
        acceptance.add(lengths, kept.long().cumprod(dim=1).sum(dim=1))
    assert acceptance.mean == pytest.approx(rate, abs=0.06)
    assert acceptance.reach == pytest.approx(rate ** np.arange(1, 7), abs=0.08)


def test_acceptance_has_a_profile_over_positions() -> None:
    acceptance = Acceptance(3)
    for _ in range(30):  # the first token is always kept, the second never
        acceptance.add(torch.tensor([3, 3]), torch.tensor([1, 1]))
    first, second, _ = acceptance.reach
    assert first > 0.9
    assert second < 0.1


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=3), st.integers(1, 30))
def test_the_probability_of_reaching_a_position_falls_with_distance(rows: list[tuple[int, int]], cycles: int) -> None:
    acceptance = Acceptance(5)
    lengths = torch.tensor([length for length, _ in rows])
    accepted = torch.tensor([min(pair) for pair in rows])
    for _ in range(cycles):
        acceptance.add(lengths, accepted)
    reach = acceptance.reach
    assert ((reach >= 0) & (reach < 1)).all()
    assert (reach[1:] <= reach[:-1]).all()
