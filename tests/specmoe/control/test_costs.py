"""Predicted seconds match the machine that was seen, and predicted cycles match simulated requests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from specmoe.control.controller import CycleChoice
from specmoe.control.costs import Costs, cycles_to_come
from specmoe.stats import CycleStats
from tests.specmoe.control.machines import Machine


def _cycle(machine: Machine, gamma: int) -> CycleStats:
    lengths = torch.full((machine.rows,), gamma)
    return machine.cycle(CycleChoice(lengths, 4, 1, ""), torch.zeros(machine.rows, dtype=torch.long))


def test_costs_predict_the_machine_they_saw() -> None:
    machine, costs = Machine([0.7] * 4), Costs()
    for i in range(60):
        costs.add(_cycle(machine, i % 6))
    for gamma in (0, 2, 5):
        positions = 4 * (gamma + 1)
        draft_s, verify_s = costs.terms_s(gamma, positions, 4)
        assert draft_s == pytest.approx(gamma * machine.draft_step_s)
        assert draft_s + verify_s == pytest.approx(machine.time_s(gamma, positions), rel=0.15)


def test_a_draft_that_proposed_nothing_has_a_time() -> None:
    costs = Costs()
    costs.add(replace(_cycle(Machine([0.7] * 4), 0), gamma=3, draft_s=0.001))
    assert sum(costs.terms_s(3, 4, 4)) > 0


def _simulated(chance: float, gamma: int, remaining: list[int], runs: int) -> tuple[float, float]:
    """Mean cycles until the last row ends, and mean cycles of a row, where the last cycle counts for its part."""
    generator, last, every = np.random.default_rng(0), [], []
    for _ in range(runs):
        ends = []
        for tokens in remaining:
            cycles = 0.0
            while tokens > 0:
                given = 1 + int(np.cumprod(generator.random(gamma) < chance).sum())
                cycles += min(1.0, tokens / given)
                tokens -= given
            ends.append(cycles)
        last.append(max(ends))
        every.append(np.mean(ends))
    return float(np.mean(last)), float(np.mean(every))


def test_without_drafts_the_request_takes_a_cycle_a_token() -> None:
    cycles, rows = cycles_to_come(np.zeros(0), np.array([8.0, 8.0, 8.0]))
    assert cycles.tolist() == [8.0]
    assert rows.tolist() == [3.0]


def test_a_single_row_takes_its_tokens_over_those_of_a_cycle() -> None:
    cycles, rows = cycles_to_come(np.array([0.5, 0.25]), np.array([35.0]))
    assert cycles.tolist() == [35.0, 35 / 1.5, 20.0]
    assert rows.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("chance", [0.6, 0.9])
@pytest.mark.parametrize("gamma", [1, 5, 12])
def test_rows_leave_as_simulated_ones_do(chance: float, gamma: int) -> None:
    remaining = [48] * 24
    cycles, rows = cycles_to_come(chance ** np.arange(1.0, gamma + 1), np.array(remaining, float))
    last, mean = _simulated(chance, gamma, remaining, runs=40)
    assert cycles[gamma] == pytest.approx(last, rel=0.12)
    assert cycles[gamma] * rows[gamma] == pytest.approx(24 * mean, rel=0.05)


def test_long_drafts_leave_fewer_rows_in_a_cycle() -> None:
    _, rows = cycles_to_come(0.9 ** np.arange(1.0, 13), np.full(64, 64.0))
    assert (rows[1:] < rows[:-1]).all()


def test_rows_with_few_tokens_left_leave_first() -> None:
    cycles, rows = cycles_to_come(np.zeros(0), np.array([4.0, 40.0]))
    assert cycles.tolist() == [40.0]
    assert rows.tolist() == [1.1]
