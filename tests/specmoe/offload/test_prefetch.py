"""Draft-driven prefetch: what may pass what on the link, what is counted, and what is never given up for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from specmoe import ExpertStore, SpecMoE, StoreError
from specmoe.model.convert import open_or_build
from specmoe.offload.arena import ExpertArena, Key
from specmoe.offload.device import CpuDevice
from specmoe.offload.link import Link
from specmoe.offload.placement import LeastFrequentlyUsed, LeastRecentlyUsed, OnDemand, Placement
from specmoe.offload.prefetch import Prefetcher
from specmoe.offload.residency import Residency
from specmoe.offload.sources import DiskSource, Source
from specmoe.timeline import Timeline
from tests.conftest import prompts, reference

NONE_SPARED = frozenset[Key]().__contains__


@dataclass
class SlowSource:
    """A source that takes its time, or fails for some experts; remembers in which order it was read."""

    base: Source
    seconds: float = 0.0
    broken: set[Key] = field(default_factory=set)
    gate: threading.Semaphore | None = None
    began: list[Key] = field(default_factory=list)

    def read(self, layer: int, expert: int, out: memoryview) -> int:
        self.began.append((layer, expert))
        if self.gate is not None:
            self.gate.acquire(timeout=2)  # a wrong order fails a claim instead of hanging
        time.sleep(self.seconds)
        if (layer, expert) in self.broken:
            out[:64] = b"\xff" * 64
            raise StoreError(f"expert {expert} of layer {layer} is unreadable")
        return self.base.read(layer, expert, out)

    def view(self, layer: int, expert: int) -> torch.Tensor | None:
        return None

    def check(self, layer: int, expert: int, data: memoryview) -> None:
        self.base.check(layer, expert, data)

    def close(self) -> None:
        self.base.close()


class Bench:
    """A link over a gated source, an arena of ``slots`` and a residency on top."""

    def __init__(self, store: ExpertStore, slots: int, placement: Placement, gated: bool = True) -> None:
        self.store, self.stride = store, store.slot_bytes
        self.source = SlowSource(DiskSource(store), gate=threading.Semaphore(0) if gated else None)
        device = CpuDevice()
        self.link = Link(self.source, store, device)
        self.arena = ExpertArena(device, store.slot_bytes, slots * store.slot_bytes, store.total_experts)
        self.residency = Residency(store, self.arena, self.link, placement)

    def let_through(self, transfers: int) -> None:
        assert self.source.gate is not None
        self.source.gate.release(transfers)

    def until_begun(self, count: int) -> None:
        deadline = time.monotonic() + 60
        while len(self.source.began) < count and time.monotonic() < deadline:
            time.sleep(0.0005)
        assert len(self.source.began) >= count

    def until_moved(self, count: int) -> None:
        deadline = time.monotonic() + 60
        while self.link.stats.transfers < count and time.monotonic() < deadline:
            time.sleep(0.0005)
        assert self.link.stats.transfers >= count

    def ask(self, layer: int, *experts: int) -> None:
        """One target pass over a layer."""
        for _ in self.residency.stream(layer, sorted(experts)):
            pass

    def counters(self) -> dict[str, int]:
        """Prefetch counters in experts."""
        stats = vars(self.residency.stats)
        names = ("prefetched", "useful", "late", "wasted")
        return {name: stats[f"{name}_bytes"] // self.stride for name in names}


@pytest.fixture(scope="module")
def store(tiny: tuple[Path, PreTrainedModel]) -> ExpertStore:
    return open_or_build(tiny[0], tiny[0] / "store")


@pytest.fixture
def bench(store: ExpertStore) -> Iterator[Bench]:
    made = Bench(store, 6, LeastRecentlyUsed())
    yield made
    made.let_through(100)
    made.link.close()


# The link


def _submit(bench: Bench, expert: int, ahead: bool) -> Any:
    return bench.link.submit(0, expert, CpuDevice().allocate(bench.stride), ahead=ahead)


def test_demanded_transfers_pass_prefetches_that_have_not_begun(bench: Bench) -> None:
    transfers = [_submit(bench, expert, ahead=True) for expert in (0, 1, 2)]
    bench.until_begun(1)  # the first; the others are queued
    transfers.append(_submit(bench, 3, ahead=False))
    bench.let_through(4)
    for transfer in transfers:
        bench.link.wait(transfer)
    assert bench.source.began == [(0, 0), (0, 3), (0, 1), (0, 2)]


def test_a_promoted_prefetch_queues_with_the_demanded(bench: Bench) -> None:
    transfers = [_submit(bench, expert, ahead=True) for expert in (0, 1, 2)]
    bench.until_begun(1)  # the first; the others are queued
    transfers.append(_submit(bench, 3, ahead=False))
    bench.link.promote(transfers[2])
    bench.link.promote(transfers[0])  # has begun: nothing to do
    bench.let_through(4)
    for transfer in transfers:
        bench.link.wait(transfer)
    assert bench.source.began == [(0, 0), (0, 3), (0, 2), (0, 1)]


def test_only_what_has_not_begun_can_be_withdrawn(bench: Bench) -> None:
    begun = _submit(bench, 0, ahead=True)
    bench.until_begun(1)
    queued, demanded = _submit(bench, 1, ahead=True), _submit(bench, 2, ahead=False)
    assert bench.link.queued == 2
    assert bench.link.withdraw(queued)
    assert not bench.link.withdraw(queued)
    assert not bench.link.withdraw(begun)
    assert not bench.link.withdraw(demanded)
    bench.let_through(2)
    bench.link.wait(demanded)
    assert bench.source.began == [(0, 0), (0, 2)]
    assert bench.link.stats.moved_bytes == 2 * bench.stride


def test_closing_ends_what_was_queued(store: ExpertStore) -> None:
    bench = Bench(store, 6, OnDemand())
    transfers = [_submit(bench, expert, ahead=expert > 1) for expert in range(4)]
    bench.let_through(4)
    bench.link.close()
    assert all(t.done for t in transfers)
    bench.link.close()


def test_a_failed_transfer_fails_where_it_is_waited_for_and_nowhere_else(bench: Bench) -> None:
    bench.source.broken.add((0, 1))
    good, bad, after = (_submit(bench, expert, ahead=False) for expert in (0, 1, 2))
    bench.let_through(3)
    bench.link.wait(good)
    with pytest.raises(StoreError, match="unreadable"):
        bench.link.wait(bad)
    bench.link.wait(after)


# Residency: what a prefetched expert is counted as, and whom it may replace


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


def test_a_prefetch_that_nobody_asks_for_is_wasted(bench: Bench) -> None:
    assert bench.residency.prefetched.start((1, 4), 1.0, NONE_SPARED)
    bench.let_through(1)
    bench.until_moved(1)
    bench.residency.prefetched.end()
    assert bench.counters() == {"prefetched": 1, "useful": 0, "late": 0, "wasted": 1}


def test_a_prefetch_that_never_began_is_taken_back_and_costs_nothing(bench: Bench) -> None:
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


def test_an_unused_prefetch_leaves_unless_the_placement_keeps_it(store: ExpertStore) -> None:
    kept = {}
    for placement in (OnDemand(), LeastRecentlyUsed()):
        bench = Bench(store, 6, placement, gated=False)
        bench.residency.prefetched.start((1, 4), 1.0, NONE_SPARED)
        bench.until_moved(1)
        bench.residency.prefetched.end()
        kept[type(placement).__name__] = bench.residency.slots.holds(1, 4)
        bench.link.close()
    assert kept == {"OnDemand": False, "LeastRecentlyUsed": True}


def _warm(store: ExpertStore, uses: dict[int, int]) -> Bench:
    """A full arena: experts 0 .. 3 of layer 0, each used so many times."""
    placement = LeastFrequentlyUsed([8, 8, 8], decay=1.0)
    bench = Bench(store, 4, placement, gated=False)
    placement.observe(0, torch.tensor([uses.get(e, 0) for e in range(8)]))
    bench.ask(0, 0, 1, 2, 3)
    assert bench.arena.free_slots == 0
    return bench


def test_a_prefetch_replaces_the_least_valued_only_if_that_is_colder(store: ExpertStore) -> None:
    bench = _warm(store, {0: 5, 1: 2, 2: 9, 3: 7})
    assert not bench.residency.prefetched.start((1, 0), 2.0, NONE_SPARED)  # expert 1 is used twice a pass: as hot
    assert bench.residency.prefetched.start((1, 0), 3.0, NONE_SPARED)
    assert bench.residency.slots.resident(0) == {0, 2, 3}
    bench.residency.prefetched.end()
    bench.link.close()


def test_a_prefetch_never_replaces_pinned_spared_or_prefetched_experts(store: ExpertStore) -> None:
    bench = _warm(store, {0: 1, 1: 1, 2: 1, 3: 1})
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
    """Whoever meets the failure, what is read afterwards is the expert and not what a failed read left."""
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


# The prefetcher: budget and cut-off


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


def test_residents_are_not_brought_again(bench: Bench) -> None:
    prefetcher = _prefetcher(bench, 6)
    prefetcher.begin(100, 1.0)
    for _ in range(3):
        prefetcher.wanted(0, _counts(e0=1, e1=1))
    assert bench.residency.stats.prefetched_bytes == 2 * bench.stride


def test_what_would_not_arrive_in_time_is_not_started(bench: Bench) -> None:
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


def test_what_this_cycles_draft_wants_is_not_given_up(store: ExpertStore) -> None:
    bench = _warm(store, {})  # all worth nothing to the placement
    prefetcher = _prefetcher(bench, 6)
    prefetcher.begin(100, 1.0)
    prefetcher.wanted(0, _counts(e0=1, e1=1, e2=1, e3=1))
    prefetcher.wanted(1, _counts(e0=9))
    assert bench.residency.slots.resident(0) == {0, 1, 2, 3}
    assert bench.residency.slots.resident(1) == set()
    bench.link.close()


# End to end


def _slowed(tiny: tuple[Path, PreTrainedModel], seconds: float, **options: Any) -> tuple[SpecMoE, SlowSource]:
    chosen = {"gamma": 6, "draft_experts": 1, "prefetch": "draft", "expert_budget": "50%", **options}
    engine = SpecMoE.from_pretrained(tiny[0], store=tiny[0] / "store", **chosen)
    engine.link._source = slow = SlowSource(engine.link._source, seconds)
    return engine, slow


@pytest.mark.parametrize("placement", ["on-demand", "lru", "lfu"])
@pytest.mark.parametrize("seconds", [0.0, 0.001])
def test_output_is_unchanged_and_every_prefetched_byte_is_accounted_for(
    seconds: float, placement: str, tiny: tuple[Path, PreTrainedModel]
) -> None:
    ids, mask = prompts(3)
    engine, _ = _slowed(tiny, seconds, placement=placement, prefetch_share=0.2)
    with engine:
        output = engine.generate(ids, mask, max_new_tokens=24)
        stats, budget = output.stats.decode, engine.arena.slots * engine.store.slot_bytes
        assert engine.arena.peak_slots <= engine.arena.slots
    experts = stats.experts
    assert output.sequences.tolist() == reference(tiny[1], ids, mask, 24).tolist()
    assert experts.prefetched_bytes > 0
    assert experts.prefetched_bytes == experts.useful_bytes + experts.late_bytes + experts.wasted_bytes
    assert experts.prefetched_bytes <= len(output.stats.cycles) * 0.2 * budget
    misses = experts.requests - experts.hits
    on_demand = misses * engine.store.slot_bytes - experts.late_bytes
    assert stats.link.moved_bytes == on_demand + experts.prefetched_bytes


def test_the_link_works_while_the_draft_computes(tiny: tuple[Path, PreTrainedModel]) -> None:
    timeline, drafting = Timeline(), Timeline()
    engine, _ = _slowed(tiny, 0.001, gamma=8)
    with engine:
        engine.generate(*prompts(3), max_new_tokens=30, timeline=timeline)
    drafting.spans = [s for s in timeline.spans if s.name == "draft step" or s.track == "link"]
    assert timeline.overlap_s("compute", "link") >= drafting.overlap_s("compute", "link") > 0


def test_without_prefetch_the_link_rests_while_the_draft_computes(tiny: tuple[Path, PreTrainedModel]) -> None:
    timeline = Timeline()
    engine, _ = _slowed(tiny, 0.001, prefetch="none")
    with engine:
        stats = engine.generate(*prompts(3), max_new_tokens=20, timeline=timeline).stats
    timeline.spans = [s for s in timeline.spans if s.name == "draft step" or s.track == "link"]
    assert timeline.overlap_s("compute", "link") == 0
    assert stats.decode.experts.prefetched_bytes == 0


def test_the_link_is_waited_for_within_verifications_only(tiny: tuple[Path, PreTrainedModel]) -> None:
    """Also where a useless prefetch is still under way when the verification is over."""
    timeline = Timeline()
    engine, _ = _slowed(tiny, 0.005, gamma=8)
    with engine:
        stats = engine.generate(*prompts(3), max_new_tokens=20, timeline=timeline).stats
    verifications = [s for s in timeline.spans if s.name == "verify"]
    for cycle, span in zip(stats.cycles, verifications, strict=True):
        waits = [w for w in timeline.spans if w.track == "wait" and span.start_s <= w.end_s <= span.end_s]
        assert cycle.wait_s == pytest.approx(sum(w.end_s - w.start_s for w in waits), abs=1e-3)
        assert cycle.wait_s + cycle.refresh_s <= cycle.verify_s
    assert all(part >= 0 for part in stats.breakdown_s().values())


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("prefetch", ["none", "draft"])
def test_an_engine_recovers_from_a_failed_read(prefetch: str, reset: bool, tiny: tuple[Path, PreTrainedModel]) -> None:
    ids, mask = prompts(3)
    engine, source = _slowed(tiny, 0.0005, prefetch=prefetch, placement="on-demand")
    with engine:
        engine.generate(ids, mask, max_new_tokens=2)
        source.broken = {(layer, expert) for layer in range(3) for expert in range(8)}
        with pytest.raises(StoreError, match="unreadable"):
            engine.generate(ids, mask, max_new_tokens=30)
        source.broken = {(2, expert) for expert in range(8)}  # fails late in a pass, or while it drafts
        with pytest.raises(StoreError, match="unreadable"):
            engine.generate(ids, mask, max_new_tokens=30)
        source.broken = set()
        if reset:
            engine.reset()
            assert engine.arena.free_slots == engine.arena.slots
        output = engine.generate(ids, mask, max_new_tokens=24)
        pinned = {(p, e) for p in range(3) for e in engine._state.residency.slots.pinned(p)}
        assert set(engine.arena.occupants()) == pinned
    assert output.sequences.tolist() == reference(tiny[1], ids, mask, 24).tolist()
