"""Prefetching changes no output, overlaps with drafting, and accounts for every byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from specmoe import SpecMoE, StoreError
from specmoe.timeline import Timeline
from tests.conftest import prompts, reference
from tests.specmoe.offload.bench import SlowSource


def _slowed(tiny: tuple[Path, PreTrainedModel], seconds: float, **options: Any) -> tuple[SpecMoE, SlowSource]:
    chosen = {"gamma": 6, "draft_experts": 1, "prefetch": "draft", "expert_budget": "50%", **options}
    engine = SpecMoE.from_pretrained(tiny[0], store=tiny[0] / "store", **chosen)
    engine.link._source = slow = SlowSource(engine.link._source, seconds)
    return engine, slow


@pytest.mark.parametrize(
    ("seconds", "placement"),
    [
        (0.0, "on-demand"),
        (0.001, "lfu"),
        *(pytest.param(*rest, marks=pytest.mark.slow) for rest in [(0.0, "lru"), (0.0, "lfu"), (0.001, "lru")]),
        pytest.param(0.001, "on-demand", marks=pytest.mark.slow),
    ],
)
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


@pytest.mark.parametrize(
    ("prefetch", "reset"),
    [
        ("none", True),
        ("draft", False),
        pytest.param("none", False, marks=pytest.mark.slow),
        pytest.param("draft", True, marks=pytest.mark.slow),
    ],
)
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
