"""Pinned and permanent experts are never evicted, and a layer's version changes with its residents."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specmoe.offload.arena import ExpertArena
from specmoe.offload.device import CpuDevice
from specmoe.offload.placement import LeastFrequentlyUsed, OnDemand, Placement
from specmoe.offload.slots import Slots


def _slots(total: int, placement: Placement, layers: int = 2) -> Slots:
    return Slots(layers, ExpertArena(CpuDevice(), 4096, total * 4096, 100), placement)


def _none_spared(key: tuple[int, int]) -> bool:
    return False


def test_pinned_and_permanent_experts_are_never_candidates() -> None:
    slots = _slots(4, OnDemand())
    slots.pin(0, [1])
    slots.keep_permanently(0, [9])
    for expert in (1, 2, 9):
        slots.acquire((0, expert))
    assert slots.least_valued(_none_spared) == (0, 2)
    assert slots.least_valued(lambda key: key == (0, 2)) is None
    for expert in (1, 2, 9):
        slots.release_unless_kept((0, expert))
    assert slots.resident(0) == {1}
    assert slots.holds(0, 9)
    assert not slots.holds(0, 2)


def test_the_least_valued_is_the_policys() -> None:
    placement = LeastFrequentlyUsed([4, 4])
    slots = _slots(4, placement)
    placement.observe(0, np.array([3, 1, 2, 0]))
    for expert in (0, 1, 2):
        slots.acquire((0, expert))
    assert slots.least_valued(_none_spared) == (0, 1)
    assert slots.value((0, 1)) < slots.value((0, 2))


def test_a_full_arena_gives_no_slot() -> None:
    slots = _slots(1, OnDemand())
    slots.acquire((0, 0))
    assert slots.free == 0
    with pytest.raises(ValueError, match="no slot is free"):
        slots.acquire((1, 0))
    assert slots.resident(1) == set()


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5)), max_size=30))
def test_the_version_changes_whenever_the_residents_do(keys: list[tuple[int, int]]) -> None:
    slots = _slots(12, OnDemand())
    seen = {(layer, slots.version[layer]): slots.resident(layer) for layer in (0, 1)}
    for key in keys:
        if key in slots:
            slots.release(key)
        else:
            slots.acquire(key)
        for layer in (0, 1):
            assert seen.setdefault((layer, slots.version[layer]), slots.resident(layer)) == slots.resident(layer)
    slots.clear()
    assert slots.free == 12
    assert slots.resident(0) == slots.resident(1) == set()
