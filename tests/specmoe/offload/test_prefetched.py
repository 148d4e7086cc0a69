"""Every prefetch is counted as useful, late or wasted, and replaces only experts valued less."""

from __future__ import annotations

import threading

import pytest

from specmoe import ExpertStore, StoreError
from specmoe.offload.placement import LeastRecentlyUsed, OnDemand
from tests.specmoe.offload.bench import NONE_SPARED, Bench, warm_bench


def test_a_prefetch_found_on_the_device_is_useful(bench: Bench) -> None:
    assert bench.residency.prefetched.start((1, 4), 1.0, NONE_SPARED)
    bench.let_through(1)
    bench.until_moved(1)
    bench.ask(1, 4)
    bench.residency.prefetched.end()
    assert bench.counters() == {"prefetched": 1, "useful": 1, "late": 0, "wasted": 0}
    assert bench.residency.stats.hits == 1


def test_a_prefetch_that_a_pass_waits_for_is_late(bench: Bench) -> None:
    assert bench.residency.prefetched.start((1, 4), 1.0, NONE_SPARED)
    bench.until_begun(1)
    threading.Timer(0.02, bench.let_through, [1]).start()
    bench.ask(1, 4)
    bench.residency.prefetched.end()
    assert bench.counters() == {"prefetched": 1, "useful": 0, "late": 1, "wasted": 0}
    assert bench.residency.stats.hits == 0
    assert bench.link.stats.transfers == 1, "it is waited for, not moved twice"
    assert bench.link.stats.wait_s > 0


def test_a_prefetch_that_no_pass_asks_for_is_wasted(bench: Bench) -> None:
    assert bench.residency.prefetched.start((1, 4), 1.0, NONE_SPARED)
    bench.let_through(1)
    bench.until_moved(1)
    bench.residency.prefetched.end()
    assert bench.counters() == {"prefetched": 1, "useful": 0, "late": 0, "wasted": 1}


def test_a_prefetch_that_never_began_is_withdrawn_and_costs_nothing(bench: Bench) -> None:
    assert bench.residency.prefetched.start((1, 4), 1.0, NONE_SPARED)
    bench.until_begun(1)
    assert bench.residency.prefetched.start((1, 5), 1.0, NONE_SPARED)
    assert bench.residency.prefetched.start((1, 6), 1.0, NONE_SPARED)
    bench.let_through(1)  # the first ends while it is waited for, and the others must not follow it
    bench.residency.prefetched.end()
    assert bench.source.began == [(1, 4)]
    assert bench.counters()["prefetched"] == 1
    assert bench.residency.slots.resident(1) == {4}
    assert bench.arena.free_slots == 5


def test_an_unused_prefetch_is_evicted_unless_the_placement_keeps_it(store: ExpertStore) -> None:
    kept = {}
    for placement in (OnDemand(), LeastRecentlyUsed()):
        bench = Bench(store, 6, placement, gated=False)
        bench.residency.prefetched.start((1, 4), 1.0, NONE_SPARED)
        bench.until_moved(1)
        bench.residency.prefetched.end()
        kept[type(placement).__name__] = bench.residency.slots.holds(1, 4)
        bench.link.close()
    assert kept == {"OnDemand": False, "LeastRecentlyUsed": True}


def test_a_prefetch_replaces_the_least_valued_expert_only_if_it_is_used_less(store: ExpertStore) -> None:
    bench = warm_bench(store, {0: 5, 1: 2, 2: 9, 3: 7})
    assert not bench.residency.prefetched.start((1, 0), 2.0, NONE_SPARED)  # expert 1 is used twice a pass: as hot
    assert bench.residency.prefetched.start((1, 0), 3.0, NONE_SPARED)
    assert bench.residency.slots.resident(0) == {0, 2, 3}
    bench.residency.prefetched.end()
    bench.link.close()


def test_a_prefetch_never_replaces_pinned_spared_or_prefetched_experts(store: ExpertStore) -> None:
    bench = warm_bench(store, {0: 1, 1: 1, 2: 1, 3: 1})
    bench.residency.slots.pin(0, [0, 1])
    spared = {(0, 2)}.__contains__
    assert bench.residency.prefetched.start((1, 0), 100.0, spared)
    assert bench.residency.slots.resident(0) == {0, 1, 2}  # 3 gave way
    assert not bench.residency.prefetched.start((1, 1), 100.0, spared)
    assert bench.residency.slots.resident(1) == {0}
    bench.residency.prefetched.end()
    bench.link.close()


def test_demanded_experts_take_the_slot_of_a_prefetch_when_there_is_no_other(store: ExpertStore) -> None:
    bench = Bench(store, 3, OnDemand(), gated=False)
    for expert in (5, 6, 7):
        assert bench.residency.prefetched.start((2, expert), 1.0, NONE_SPARED)
    bench.until_moved(3)
    bench.ask(0, 1, 2)
    bench.residency.prefetched.end()
    assert bench.counters() == {"prefetched": 3, "useful": 0, "late": 0, "wasted": 3}
    assert bench.arena.free_slots == 3
    bench.link.close()


@pytest.mark.parametrize("asked_for", [True, False])
def test_a_failed_prefetch_leaves_no_slot_and_no_bytes_behind(asked_for: bool, store: ExpertStore) -> None:
    """Wherever the error surfaces, a later pass reads the expert again instead of using what the failed read left."""
    bench = Bench(store, 6, LeastRecentlyUsed(), gated=False)
    bench.source.broken.add((1, 4))
    bench.residency.prefetched.start((1, 4), 1.0, NONE_SPARED)
    bench.residency.prefetched.start((1, 5), 1.0, NONE_SPARED)
    bench.until_moved(1)
    if asked_for:
        with pytest.raises(StoreError, match="unreadable"):
            bench.ask(1, 4, 5)
    else:
        try:
            bench.residency.prefetched.end()
        except StoreError:
            bench.residency.prefetched.end()  # a second call must not fail on the same transfer again
    bench.source.broken.clear()
    moved = bench.link.stats.transfers
    bench.ask(1, 4)
    assert bench.link.stats.transfers == moved + 1, "the expert is not on the device yet"
    bench.residency.reset()
    assert bench.arena.free_slots == 6
    bench.link.close()
