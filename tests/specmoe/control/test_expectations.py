"""A controller that begins with what a split expects loses no cycle where that is right, and recovers elsewhere."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from specmoe.control.controller import Adaptive
from specmoe.control.estimates import PowerFit
from specmoe.control.split import Plan
from specmoe.options import SpecOptions
from tests.specmoe.control.machines import LONGEST, Machine

COPIES = {"acceptance": [0.97] * 8, "draft_step_s": 0.004, "verify_s": 0.02, "link_bytes_s": 2e9}
"""A machine on which copies draft: long drafts pay."""
RESIDENT = {"acceptance": [0.5] * 2, "draft_step_s": 0.02, "link_bytes_s": 4e9}
"""One on which nothing is missing: drafts do not pay."""


def _plan(machine: Machine, **wrong: Any) -> Plan:
    """What is true of a machine, but for what is ``wrong``."""
    rows = machine.rows
    gamma = max(range(LONGEST + 1), key=machine.rate_of)
    verify_s = tuple((rows * (g + 1), machine.time_s(0, rows * (g + 1))) for g in (0, max(1, gamma), LONGEST))
    right = Plan("low-bit", 4, 40, 0, gamma, machine.acceptance[0], 0.0, rows, machine.draft_step_s, verify_s)
    return replace(right, **wrong)


def _controller(plan: Plan | None) -> Adaptive:
    return Adaptive(SpecOptions.of(gamma=LONGEST, controller="auto"), most_experts=8, plan=plan)


def _speed(machine: dict[str, Any], tokens: int, **wrong: Any) -> float:
    """Over that of the best fixed gamma, in as many cycles as its ``tokens`` a row take; mean of some seeds."""
    speeds = []
    for seed in range(5):
        one = Machine(**machine, seed=seed)
        best = max(range(LONGEST + 1), key=one.rate_of)
        cycles = max(2, round(tokens * one.rows / one.expected(torch.full((one.rows,), best))))
        speeds.append(one.run(_controller(_plan(one, **wrong)), cycles) / one.best_fixed())
    return float(np.mean(speeds))


@pytest.mark.parametrize("machine", [COPIES, RESIDENT], ids=["copies", "resident"])
def test_a_right_expectation_costs_no_cycle(machine: dict[str, Any]) -> None:
    assert _speed(machine, 48) >= 0.97


def test_the_first_cycle_drafts_as_expected() -> None:
    machine = Machine(**COPIES)
    machine.run(_controller(_plan(machine)), 3)
    assert min(machine.gammas(3)) >= 6
    assert "tok/s expected" in machine.choices[0].reason


def test_no_cycle_drafts_where_drafts_are_clearly_not_expected_to_pay() -> None:
    machine = Machine(**RESIDENT)
    machine.run(_controller(_plan(machine)), 20)
    assert sum(machine.gammas(20)) <= 2  # a trial at most


def test_where_the_speeds_expected_are_close_both_are_tried_first() -> None:
    machine = Machine([0.7] * 3)
    machine.run(_controller(_plan(machine)), 2)
    assert sorted(machine.gammas(2))[0] == 0
    assert sorted(machine.gammas(2))[1] > 0
    assert all("first cycles" in choice.reason for choice in machine.choices)


@pytest.mark.parametrize(
    "wrong",
    [{"agreement": 0.5}, {"draft_step_s": 0.001}, {"draft_step_s": 0.02}, {"verify_s": ((8, 0.1), (88, 0.2))}],
    ids=str,
)
def test_a_wrong_expectation_is_corrected_within_the_request(wrong: dict[str, Any]) -> None:
    assert _speed(COPIES, 64, **wrong) >= 0.85
    assert _speed(COPIES, 1000, **wrong) >= 0.95


def test_drafts_that_were_expected_to_pay_are_given_up() -> None:
    assert _speed(RESIDENT, 200, agreement=0.97, draft_step_s=0.001) >= 0.9


def test_expected_points_give_the_shape_and_the_first_measured_one_the_level() -> None:
    fit = PowerFit(prior_exponent=0.1)
    fit.expect((1.0, 1.0), (100.0, 10.0))
    assert float(fit.at(np.array(10.0))) == pytest.approx(10**0.5, rel=0.2)
    fit.add(10.0, 31.6)  # ten times what was expected
    assert float(fit.at(np.array(10.0))) == pytest.approx(31.6, rel=0.05)
    assert float(fit.at(np.array(100.0))) == pytest.approx(100, rel=0.3)
