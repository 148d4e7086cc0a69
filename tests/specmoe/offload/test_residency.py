"""An expert that only passes through evicts none that the placement policy keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from specmoe import ExpertStore
from specmoe.offload.placement import IN_TRANSIT, LeastFrequentlyUsed, LeastRecentlyUsed, Placement, make_placement
from tests.specmoe.offload.bench import Bench

Make = Callable[[int, Placement], Bench]


@pytest.fixture
def make(store: ExpertStore) -> Iterator[Make]:
    """Makes a residency of so many slots, closed after the test."""
    made: list[Bench] = []

    def bench(slots: int, placement: Placement) -> Bench:
        made.append(Bench(store, slots, placement, gated=False))
        return made[-1]

    yield bench
    for one in made:
        one.link.close()


def _passes(bench: Bench, placement: Placement, counts: list[int], times: int) -> list[int]:
    """Hits of each pass over all layers in which expert ``e`` of every layer has ``counts[e]`` tokens."""
    hits = []
    for _ in range(times):
        before = bench.residency.stats.hits
        for layer in range(len(bench.store.layers)):
            placement.observe(layer, np.array(counts))
            bench.ask(layer, *(e for e, count in enumerate(counts) if count))
        hits.append(bench.residency.stats.hits - before)
    return hits


def test_a_full_frequency_cache_hits_all_its_experts_in_every_pass(store: ExpertStore, make: Make) -> None:
    experts = [layer.experts for layer in store.layers]
    slots = 3 * len(experts) + IN_TRANSIT
    placement = make_placement("top-fraction", experts, slots)
    bench = make(slots, placement)
    counts = list(range(experts[0], 0, -1))  # every expert is used in every pass, the first ones most
    assert _passes(bench, placement, counts, 4)[1:] == [3 * len(experts)] * 3


def test_lfu_evicts_only_experts_it_values_less(store: ExpertStore, make: Make) -> None:
    experts = [layer.experts for layer in store.layers]
    slots = 2 * len(experts) + IN_TRANSIT
    placement = LeastFrequentlyUsed(experts)
    bench = make(slots, placement)
    counts = [9, 9] + [1] * (experts[0] - 2)
    assert min(_passes(bench, placement, counts, 5)[1:]) >= 2 * len(experts)
    assert all({0, 1} <= bench.residency.slots.resident(layer) for layer in range(len(experts)))


def test_lru_evicts_an_earlier_layers_experts_for_the_current_layer(store: ExpertStore, make: Make) -> None:
    placement = LeastRecentlyUsed()
    bench = make(4, placement)
    for layer, asked in ((0, [0, 1, 2, 3]), (1, [0, 1, 2, 3])):
        placement.observe(layer, np.array([1, 1, 1, 1] + [0] * (store.layers[layer].experts - 4)))
        bench.ask(layer, *asked)
    assert bench.residency.slots.resident(0) == set()
    assert bench.residency.slots.resident(1) == {0, 1, 2, 3}


def test_a_single_slot_is_slow_but_serves_every_expert(store: ExpertStore, make: Make) -> None:
    placement = make_placement("lfu", [layer.experts for layer in store.layers], 1)
    bench = make(1, placement)
    placement.observe(0, np.ones(store.layers[0].experts, dtype=np.int64))
    asked = list(range(store.layers[0].experts))
    assert sorted(expert for expert, _ in bench.residency.stream(0, asked)) == asked


def test_residents_are_evicted_when_no_other_slot_can_be_freed(store: ExpertStore, make: Make) -> None:
    placement = make_placement("on-demand", [layer.experts for layer in store.layers], 4)
    bench = make(4, placement)
    bench.residency.slots.pin(1, [0, 1])
    bench.ask(1, 0, 1)
    bench.residency.slots.pin(0, [0, 1])
    bench.ask(0, 0, 1)
    bench.residency.slots.pin(0, [0])  # 1 is a former draft expert: no slot is free until the pass is done with it
    assert sorted(e for e, _ in bench.residency.stream(0, [0, 1, 2, 3])) == [0, 1, 2, 3]
