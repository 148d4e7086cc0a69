"""The controller on simulated machines: drafts are off, on, short or long as costs and acceptance demand."""

from __future__ import annotations

import math
from itertools import groupby, pairwise

import pytest
import torch

from specmoe.control.controller import Adaptive, Fixed
from specmoe.control.trials import Trials
from specmoe.options import SpecOptions
from tests.specmoe.control.machines import LONGEST, Machine


def _adaptive(**options: object) -> Adaptive:
    chosen = SpecOptions.of(**{"gamma": LONGEST, "controller": "auto", **options})
    return Adaptive(chosen, most_experts=8)


def test_a_fixed_controller_does_what_the_options_say() -> None:
    choice = Fixed(SpecOptions.of(gamma=5, draft_experts=3, refresh_interval=7)).choose(torch.tensor([9, 2, 0]))
    assert choice.lengths.tolist() == [5, 2, 0]
    assert (choice.draft_experts, choice.refresh_interval) == (3, 7)


@pytest.mark.parametrize(
    "machine",
    [Machine([0.03] * 4), Machine([0.5] * 4, draft_step_s=0.1)],
    ids=["low acceptance", "dear drafts"],
)
def test_speculation_is_turned_off_where_it_does_not_pay(machine: Machine) -> None:
    machine.run(_adaptive(), 60)
    off = [s for s in machine.choices[-30:] if int(s.lengths.max()) == 0]
    assert len(off) >= 28
    assert all(s.reason.startswith("off: ") or s.reason.startswith("trial of ") for s in machine.choices[-30:])
    assert "tok/s expected, at best" in off[-1].reason
    assert "acceptance" in off[-1].reason


def test_drafts_are_long_where_acceptance_is_high_and_transfers_dear() -> None:
    machine = Machine([0.95] * 2, link_bytes_s=5e7, draft_step_s=0.001, union=8)
    machine.run(_adaptive(), 100)
    assert sorted(machine.gammas(30))[3] >= 8  # but for trials
    assert "tok/s expected" in machine.choices[-1].reason


def test_drafts_are_short_where_acceptance_is_middling() -> None:
    machine = Machine([0.5] * 2, draft_step_s=0.001, link_bytes_s=4e9)
    machine.run(_adaptive(), 100)
    best = max(range(LONGEST + 1), key=machine.rate_of)
    assert 0 < best < 5
    assert all(g <= best + 2 for g in machine.gammas(30))


def test_the_first_two_cycles_find_out_what_each_kind_costs() -> None:
    machine = Machine([0.7] * 3)
    machine.run(_adaptive(), 2)
    assert machine.gammas(2) == [2, 0]
    assert all("first cycles" in s.reason for s in machine.choices)


def test_a_choice_stands_for_a_while_but_not_when_a_row_ends() -> None:
    controller, machine = _adaptive(), Machine([0.95] * 4, draft_step_s=0.0005)
    machine.run(controller, 60)
    runs = [len(list(same)) for _, same in groupby(s.reason for s in machine.choices[30:])]
    assert 2 <= max(runs) <= math.ceil(Adaptive.HOLD_S / min(c.total_s for c in machine.cycles))
    for rows in (3, 2, 1):
        choice = controller.choose(torch.full((rows,), 5))
        assert len(choice.lengths) == rows
        assert int(choice.lengths.max()) <= 5


def test_trials_become_rare_and_cost_little() -> None:
    machine = Machine([0.02] * 2)
    rate = machine.run(_adaptive(), 700)
    drafted = [i for i, c in enumerate(machine.cycles) if c.gamma][1:]
    gaps = [later - earlier for earlier, later in pairwise(drafted)]
    assert len(drafted) >= 3
    assert min(gaps[-4:]) >= Trials.MOST
    assert all("trial" in machine.choices[i].reason for i in drafted)
    assert rate >= (1 - 1.5 * Trials.SHARE) * machine.best_fixed()


def test_trials_notice_in_the_end_that_times_have_changed() -> None:
    controller, machine = _adaptive(), Machine([0.02] * 4, link_bytes_s=2e8)
    machine.run(controller, 40)
    assert machine.gammas(1) == [0]
    better = Machine([0.95] * 4, link_bytes_s=2e8)
    better.run(controller, 400)
    assert min(better.gammas(20)) >= 4


def test_drafts_stop_when_acceptance_collapses() -> None:
    controller, machine = _adaptive(), Machine([0.95] * 4)
    machine.run(controller, 40)
    assert min(machine.gammas(10)) >= 4
    worse = Machine([0.02] * 4)
    worse.run(controller, 60)
    assert sum(worse.gammas(20)) <= 4


def test_drafts_are_shorter_where_their_scatter_would_leave_a_tail_of_few_rows() -> None:
    cost = {"acceptance": [0.85] * 64, "draft_step_s": 0.005, "link_bytes_s": 5e8}
    endless, short = Machine(**cost), Machine(**cost, room=24)
    endless.run(_adaptive(), 40)
    short.run(_adaptive(), 40)
    assert sum(short.gammas(20)) < 0.8 * sum(endless.gammas(20))


@pytest.mark.parametrize(("pool", "experts"), [("resident", 1), ("pinned", 6)])
def test_a_draft_set_that_nobody_needs_gives_its_slots_back(pool: str, experts: int) -> None:
    machine = Machine([0.02] * 2)
    machine.run(_adaptive(draft_pool=pool, draft_experts=6), 30)
    idle = [s.draft_experts for s in machine.choices[2:] if not int(s.lengths.max())]
    assert set(idle) == {experts}
    assert all(s.draft_experts == 6 for s in machine.choices if int(s.lengths.max()))


@pytest.mark.parametrize("room", [0, 1, 3])
def test_no_row_drafts_past_its_room(room: int) -> None:
    controller = _adaptive()
    machine = Machine([0.95] * 3, room=room)
    machine.run(controller, 40)
    assert max(machine.gammas(40)) <= room
    choice = controller.choose(torch.tensor([room, 1]))
    assert choice.lengths.tolist()[0] <= room
    assert choice.lengths.tolist()[1] <= 1


@pytest.mark.parametrize("gamma", [1, 2, 3])
def test_gamma_is_the_most_it_may_choose(gamma: int) -> None:
    machine = Machine([0.95] * 3, link_bytes_s=1e8)
    machine.run(_adaptive(gamma=gamma), 40)
    assert max(machine.gammas(40)) == gamma


GRID = [
    (rows, acceptance, draft_step_s, link_bytes_s)
    for rows in (1, 8, 64)
    for acceptance in (0.05, 0.5, 0.8, 0.95)
    for draft_step_s in (0.001, 0.008)
    for link_bytes_s in (1e8, 4e9)
]


@pytest.mark.slow
def test_never_much_slower_than_the_best_fixed_gamma_over_a_grid() -> None:
    """200 cycles from a cold start, finding out and trials included; also never under 0.95x of not drafting."""
    short = {}
    for rows, acceptance, draft_step_s, link_bytes_s in GRID:
        rates = []
        for seed in range(3):
            machine = Machine([acceptance] * rows, draft_step_s, link_bytes_s=link_bytes_s, seed=seed)
            rates.append(machine.run(_adaptive(), 200) / machine.best_fixed())
        if sum(rates) / len(rates) < 0.95:
            short[rows, acceptance, draft_step_s, link_bytes_s] = [round(r, 3) for r in rates]
    assert not short


@pytest.mark.parametrize(
    ("rows", "acceptance", "draft_step_s", "link_bytes_s"),
    [(1, 0.05, 0.008, 4e9), (8, 0.8, 0.001, 1e8), (8, 0.5, 0.008, 1e8), (64, 0.95, 0.001, 4e9)],
)
def test_close_to_the_best_fixed_gamma(rows: int, acceptance: float, draft_step_s: float, link_bytes_s: float) -> None:
    machine = Machine([acceptance] * rows, draft_step_s, link_bytes_s=link_bytes_s)
    assert machine.run(_adaptive(), 200) >= 0.95 * machine.best_fixed()


def test_mixed_rows_do_no_worse_than_the_best_fixed_gamma() -> None:
    machine = Machine([0.1] * 4 + [0.9] * 4, position_s=0.001, link_bytes_s=5e8)
    assert machine.run(_adaptive(), 300) >= 0.95 * machine.best_fixed()
