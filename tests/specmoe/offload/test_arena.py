"""The arena never holds more than its budget."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specmoe.errors import BudgetError
from specmoe.offload.arena import ExpertArena
from specmoe.offload.device import CpuDevice

SLOT = 8192


def _arena(slots: int, spare_bytes: int = 0) -> ExpertArena:
    return ExpertArena(CpuDevice(), SLOT, slots * SLOT + spare_bytes, max_slots=1000)


@given(st.integers(1, 6), st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=60))
def test_slots_are_never_shared_and_never_exceed_the_budget(slots: int, steps: list[tuple[bool, int]]) -> None:
    arena = _arena(slots)
    held: dict[tuple[int, int], torch.Tensor] = {}
    for take, expert in steps:
        key = (0, expert)
        if take and key not in held and len(held) == slots:
            with pytest.raises(ValueError, match="no slot is free"):
                arena.acquire(key)
        elif take and key not in held:
            held[key] = arena.acquire(key).fill_(expert)
        elif not take and key in held:
            arena.release(key)
            del held[key]
        assert set(arena.occupants()) == set(held)
        assert arena.free_slots == slots - len(held)
        assert all(bool((buffer == key[1]).all()) for key, buffer in held.items())
    assert arena.peak_bytes <= slots * SLOT


def test_a_budget_is_rounded_down_to_whole_slots() -> None:
    assert _arena(3, spare_bytes=SLOT - 1).slots == 3


def test_a_budget_beyond_all_experts_takes_no_more_memory_than_they_need() -> None:
    assert ExpertArena(CpuDevice(), SLOT, 100 * SLOT, max_slots=7).slots == 7


def test_a_budget_below_one_expert_is_refused() -> None:
    with pytest.raises(BudgetError, match="smaller than one expert"):
        ExpertArena(CpuDevice(), SLOT, SLOT - 1, max_slots=10)


def test_slots_start_at_pages() -> None:
    arena = _arena(3)
    for expert in range(3):
        buffer = arena.acquire((0, expert))
        assert buffer.data_ptr() % 4096 == 0
        assert buffer.numel() == SLOT


def test_an_expert_cannot_hold_two_slots() -> None:
    arena = _arena(2)
    arena.acquire((0, 1))
    with pytest.raises(ValueError, match="already has a slot"):
        arena.acquire((0, 1))
