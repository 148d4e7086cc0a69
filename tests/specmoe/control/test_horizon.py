"""The cycles to come against simulated rows."""

from __future__ import annotations

import numpy as np
import pytest

from specmoe.control.horizon import POINTS, cycles_to_come


def _simulated(chance: float, gamma: int, room: list[int], runs: int) -> tuple[float, float]:
    """Mean cycles until the last row ends, and mean cycles of a row, where the last cycle counts for its part."""
    generator, last, every = np.random.default_rng(0), [], []
    for _ in range(runs):
        ends = []
        for tokens in room:
            cycles = 0.0
            while tokens > 0:
                given = 1 + int(np.cumprod(generator.random(gamma) < chance).sum())
                cycles += min(1.0, tokens / given)
                tokens -= given
            ends.append(cycles)
        last.append(max(ends))
        every.append(np.mean(ends))
    return float(np.mean(last)), float(np.mean(every))


def test_without_drafts_every_row_ends_when_its_room_is_used_up() -> None:
    moments, rows = cycles_to_come(np.zeros(0), np.array([8.0, 8.0, 8.0]))
    assert moments.shape == rows.shape == (1, POINTS)
    assert np.trapezoid(rows[0], moments[0]) == pytest.approx(3 * 8, rel=0.02)
    assert moments[0, -1] == pytest.approx(8, abs=1)


def test_a_single_row_takes_its_room_over_the_tokens_of_a_cycle() -> None:
    moments, rows = cycles_to_come(np.array([0.5, 0.25]), np.array([35.0]))
    assert moments.tolist() == [[0.0, 35.0], [0.0, 35 / 1.5], [0.0, 20.0]]
    assert (rows == 1).all()


@pytest.mark.parametrize("chance", [0.6, 0.9])
@pytest.mark.parametrize("gamma", [1, 5, 12])
def test_rows_leave_as_simulated_ones_do(chance: float, gamma: int) -> None:
    room = [48] * 24
    moments, rows = cycles_to_come(chance ** np.arange(1.0, gamma + 1), np.array(room, float))
    last, mean = _simulated(chance, gamma, room, runs=40)
    assert np.trapezoid(rows[gamma], moments[gamma]) == pytest.approx(24 * mean, rel=0.05)
    assert np.trapezoid(np.minimum(1, rows[gamma]), moments[gamma]) == pytest.approx(last, rel=0.12)


def test_long_drafts_leave_a_longer_tail() -> None:
    moments, rows = cycles_to_come(0.9 ** np.arange(1.0, 13), np.full(64, 64.0))
    tails = [
        np.trapezoid((r < 16) * (r > 0.5), m) / np.trapezoid(r / 64, m) for m, r in zip(moments, rows, strict=True)
    ]
    assert tails == sorted(tails)


def test_rows_with_little_room_leave_first() -> None:
    moments, rows = cycles_to_come(np.array([0.8]), np.array([4.0, 40.0]))
    halfway = [float(np.interp(10, m, r)) for m, r in zip(moments, rows, strict=True)]
    assert halfway == pytest.approx([1, 1], abs=0.05)
