"""The prefetcher stays within its budget and starts only what can arrive in time, most wanted first."""

from __future__ import annotations

import torch

from specmoe import ExpertStore
from specmoe.offload.placement import LeastRecentlyUsed
from specmoe.offload.prefetch import Prefetcher
from tests.specmoe.offload.bench import Bench, warm_bench


def _prefetcher(bench: Bench, budget_experts: int) -> Prefetcher:
    return Prefetcher(bench.store, bench.residency, bench.link, budget_experts * bench.stride)


def _counts(**uses: int) -> torch.Tensor:
    counts = torch.zeros(8, dtype=torch.long)
    for name, n in uses.items():
        counts[int(name[1:])] = n
    return counts


def test_no_more_than_the_budget_is_started_per_cycle(bench: Bench) -> None:
    prefetcher = _prefetcher(bench, 2)
    bench.let_through(100)
    for _ in range(2):
        prefetcher.begin(100, 1.0)
        prefetcher.wanted(0, _counts(e0=1, e1=1, e2=1))
        prefetcher.wanted(1, _counts(e3=1))
        prefetcher.end(0.01)
        bench.residency.reset()
    assert len(bench.source.began) <= 4
    assert bench.residency.stats.prefetched_bytes <= 4 * bench.stride


def test_the_most_wanted_go_first(bench: Bench) -> None:
    prefetcher = _prefetcher(bench, 2)
    prefetcher.begin(100, 1.0)
    prefetcher.wanted(0, _counts(e0=1, e1=2, e2=5))
    assert bench.residency.slots.resident(0) == {1, 2}


def test_residents_are_not_prefetched_again(bench: Bench) -> None:
    prefetcher = _prefetcher(bench, 6)
    prefetcher.begin(100, 1.0)
    for _ in range(3):
        prefetcher.wanted(0, _counts(e0=1, e1=1))
    assert bench.residency.stats.prefetched_bytes == 2 * bench.stride


def test_experts_that_would_arrive_late_are_not_prefetched(bench: Bench) -> None:
    prefetcher = _prefetcher(bench, 6)
    prefetcher.begin(0, 0.0)  # nothing lies ahead
    prefetcher.wanted(0, _counts(e0=1, e1=1))
    assert prefetcher.skipped_late == 2
    assert bench.residency.stats.prefetched_bytes == 0
    prefetcher.begin(10, 1.0)
    prefetcher.wanted(0, _counts(e0=1, e1=1))
    assert prefetcher.skipped_late == 2
    assert bench.residency.stats.prefetched_bytes == 2 * bench.stride


def test_before_a_step_was_timed_the_budget_alone_decides(bench: Bench) -> None:
    prefetcher = _prefetcher(bench, 6)
    prefetcher.begin(4, None)
    prefetcher.wanted(0, _counts(e0=1, e1=1))
    assert prefetcher.skipped_late == 0
    assert bench.residency.stats.prefetched_bytes == 2 * bench.stride


def test_the_measured_rate_decides_what_arrives_in_time(store: ExpertStore) -> None:
    bench = Bench(store, 6, LeastRecentlyUsed(), gated=False)
    bench.source.seconds = 0.02
    bench.ask(2, 0, 1)  # the link learns that an expert takes 20 ms
    prefetcher = _prefetcher(bench, 6)
    prefetcher.begin(2, 0.01)
    prefetcher.wanted(0, _counts(e0=4, e1=3, e2=2, e3=1))
    assert 1 <= len(bench.residency.slots.resident(0)) <= 2
    assert prefetcher.skipped_late >= 2
    bench.residency.prefetched.end()
    bench.link.close()


def test_experts_picked_by_this_cycles_draft_are_not_evicted(store: ExpertStore) -> None:
    bench = warm_bench(store, {})  # all worth nothing to the placement
    prefetcher = _prefetcher(bench, 6)
    prefetcher.begin(100, 1.0)
    prefetcher.wanted(0, _counts(e0=1, e1=1, e2=1, e3=1))
    prefetcher.wanted(1, _counts(e0=9))
    assert bench.residency.slots.resident(0) == {0, 1, 2, 3}
    assert bench.residency.slots.resident(1) == set()
    bench.link.close()
