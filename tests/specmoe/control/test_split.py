"""The split of the expert budget has the corners that it must have, and says why it chose."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from specmoe.control.split import (
    MARGIN,
    Cost,
    Demand,
    Memory,
    Rates,
    Split,
    asked_for,
    chances,
    choose,
)
from specmoe.drafting.agreement import ASSUMED, Agreement

LAYERS, EXPERTS, SLOT_BYTES = 6, 64, 4_000_000
TOTAL_BYTES = LAYERS * EXPERTS * SLOT_BYTES
COPIES_BYTES = {bits: int(TOTAL_BYTES * (bits + 0.5) / 32) for bits in (3, 4, 8)}
USE = [1 / np.arange(1, EXPERTS + 1) ** 1.3] * LAYERS
CHANCES = chances(USE, [EXPERTS] * LAYERS, [2.0] * LAYERS)
RATES = Rates(
    link_bytes_s=2e9,
    outside=Cost(0.0035, 0.00004),
    full=Cost(0.0001, 0.00001),
    packed={bits: Cost(0.0001 * (bits + 0.5) / 16, 0.00001) for bits in COPIES_BYTES},
)
GOOD = Agreement({0.1: 0.6, 0.25: 0.75, 0.5: 0.9}, {3: 0.97, 4: 0.985, 8: 0.99}, "measured")


def _split(share: float, rows: int = 8, agreement: Agreement = GOOD, rates: Rates = RATES, longest: int = 16) -> Split:
    budget_bytes = int(share * TOTAL_BYTES)
    demand = Demand(CHANCES, LAYERS, rows, longest, budget_bytes // 2)
    return choose(demand, Memory(budget_bytes, SLOT_BYTES, COPIES_BYTES), rates, agreement)


def test_with_room_for_every_expert_there_are_no_copies() -> None:
    for rows in (1, 8, 32):
        chosen = _split(1.0, rows).chosen
        assert (chosen.slots, chosen.copies_bytes) == (LAYERS * EXPERTS, 0)


def test_a_budget_too_small_for_copies_has_none() -> None:
    split = _split(0.05)
    assert split.chosen.copies_bytes == 0
    assert "4-bit copies do not fit" in split.reason


@pytest.mark.parametrize("rows", [1, 8, 128])
def test_drafts_that_are_mostly_wrong_are_not_made(rows: int) -> None:
    wrong = Agreement(dict.fromkeys(GOOD.by_share, 0.1), dict.fromkeys(GOOD.by_bits, 0.1), "measured")
    assert _split(0.25, rows, wrong).chosen.draft == "none"


def test_copies_draft_where_the_link_is_slow_and_they_are_mostly_right() -> None:
    chosen = _split(0.25, 32, rates=replace(RATES, link_bytes_s=5e8)).chosen
    assert chosen.draft == "low-bit"
    assert chosen.gamma >= 8
    assert chosen.copies_bytes + chosen.slots * SLOT_BYTES <= 0.25 * TOTAL_BYTES


def test_a_fast_link_needs_no_draft() -> None:
    assert _split(0.25, 1, rates=replace(RATES, link_bytes_s=1e12)).chosen.draft == "none"


def test_bits_are_the_fewest_that_are_right_often_enough() -> None:
    def bits(by_bits: dict[int, float]) -> int | None:
        return _split(0.4, 32, Agreement(GOOD.by_share, by_bits, "measured")).chosen.bits

    assert bits({3: 0.98, 4: 0.985, 8: 0.99}) == 3
    assert bits({3: 0.40, 4: 0.985, 8: 0.99}) == 4
    assert bits({3: 0.40, 4: 0.45, 8: 0.99}) == 8


def test_residents_draft_where_they_are_right_and_copies_are_not() -> None:
    agreement = Agreement({0.25: 0.97}, dict.fromkeys(COPIES_BYTES, 0.3), "measured")
    assert _split(0.25, 128, agreement).chosen.draft == "resident"


def test_more_rows_never_end_speculation() -> None:
    drafts = [_split(0.25, rows).chosen.draft for rows in (1, 2, 4, 8, 16, 32, 64)]
    copies = [draft == "low-bit" for draft in drafts]
    assert copies == sorted(copies)
    assert copies[-1]


def test_a_draft_that_needs_more_must_promise_clearly_more() -> None:
    split = _split(0.25, 32)
    for other in split.others:
        assert other.tok_s <= split.chosen.tok_s * MARGIN
    for plan in (split.chosen, *split.others):
        assert plan.gamma <= 16
        assert (plan.gamma == 0) == (plan.draft == "none")


def test_gamma_is_at_most_what_the_options_allow() -> None:
    assert max(plan.gamma for plan in _split(0.25, 32, longest=3).others) <= 3


def test_the_reason_has_the_numbers() -> None:
    split = _split(0.25, 32)
    chosen = split.chosen
    assert split.reason.startswith(f"{chosen.bits}-bit copies: {chosen.tok_s:.0f} tok/s at gamma {chosen.gamma}")
    assert f"{chosen.slots} full slots beside {chosen.copies_bytes / 1e6:.0f} MB of copies" in split.reason
    assert "no draft: " in split.reason
    assert "expected for 32 rows with a link of 2.00 GB/s; agreement measured" in split.reason


def test_where_no_draft_pays_the_plan_of_the_residents_is_kept_for_trials() -> None:
    split = _split(1.0, 1)
    assert split.chosen.draft == "none"
    assert split.drafting.draft == "resident"
    assert _split(0.25, 32).drafting.draft == "low-bit"


def test_chances_are_shares_of_the_picks() -> None:
    found = chances([np.array([3, 1, 0, 0]), np.array([1, 1])], [4, 2], [2.0, 1.0])
    assert found.tolist() == [1.0, 0.5, 0.0, 0.0, 0.5, 0.5]
    assert chances(None, [4, 2], [2.0, 0.0]).tolist() == [0.5] * 4 + [0.0] * 2
    assert chances([np.zeros(2)], [2], [1.0]).tolist() == [0.0, 0.0]


def test_expected_experts() -> None:
    assert asked_for(np.full(64, 2 / 64), 1) == pytest.approx(2)
    assert asked_for(np.full(64, 2 / 64), 1000) == pytest.approx(64)


def test_agreement_of_residents_is_between_what_was_measured() -> None:
    assert GOOD.of_residents(0.25) == 0.75
    assert GOOD.of_residents(1.0) == 1.0
    assert 0.6 < GOOD.of_residents(0.2) < 0.75
    assert 0 < GOOD.of_residents(0.01) < 0.1
    assert ASSUMED.of_residents(0.25) == 0.6
