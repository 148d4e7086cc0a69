"""The timeline is a valid Chrome trace, its overlaps are correct, and its costs sum to the cycles' time."""

from __future__ import annotations

import json
import threading
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from specmoe import SpecMoE
from specmoe.stats import GenerationStats
from specmoe.timeline import TRACKS, Span, Timeline
from tests.conftest import prompts


def _of(track: str, timeline: Timeline) -> list[Span]:
    return sorted((s for s in timeline.spans if s.track == track), key=lambda s: s.start_s)


@pytest.fixture(scope="module")
def traced(tiny: tuple[Path, PreTrainedModel]) -> tuple[Timeline, GenerationStats]:
    timeline = Timeline()
    with SpecMoE.from_pretrained(
        tiny[0], store=tiny[0] / "store", gamma=3, draft_experts=2, expert_budget="40%"
    ) as engine:
        stats = engine.generate(*prompts(3), max_new_tokens=12, timeline=timeline).stats
    return timeline, stats


def test_the_trace_is_json_with_named_tracks(traced: tuple[Timeline, GenerationStats], tmp_path: Path) -> None:
    traced[0].save(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    names = {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M"}
    assert [names[i] for i in range(len(TRACKS))] == list(TRACKS)
    spans = [e for e in events if e["ph"] == "X"]
    assert len(spans) == len(traced[0].spans)
    assert all(e["ts"] >= 0 and e["dur"] >= 0 and e["tid"] in names and e["name"] for e in spans)
    assert {names[e["tid"]] for e in spans} == set(TRACKS)


def test_spans_of_a_track_do_not_overlap(traced: tuple[Timeline, GenerationStats]) -> None:
    for track in TRACKS:
        spans = _of(track, traced[0])
        for one, after in pairwise(spans):
            assert one.end_s <= after.start_s


def test_draft_steps_and_verifications_lie_within_their_cycle(traced: tuple[Timeline, GenerationStats]) -> None:
    timeline, stats = traced
    cycles = _of("cycle", timeline)
    assert len(cycles) == len(stats.cycles)
    for span, cycle in zip(cycles, stats.cycles, strict=True):
        inside = [s for s in _of("compute", timeline) if span.start_s <= s.start_s and s.end_s <= span.end_s]
        assert [s.name for s in inside] == ["draft step"] * cycle.gamma + ["verify"]
        assert span.details["tokens"] == cycle.tokens
        assert inside[-1].details["positions"] == cycle.positions


def test_link_spans_are_the_links_transfers(traced: tuple[Timeline, GenerationStats]) -> None:
    timeline, stats = traced
    links = _of("link", timeline)
    assert len(links) == stats.prefill.link.transfers + stats.decode.link.transfers
    busy = stats.prefill.link.busy_s + stats.decode.link.busy_s
    assert sum(s.end_s - s.start_s for s in links) == pytest.approx(busy)


def test_a_disabled_timeline_keeps_nothing(tiny: tuple[Path, PreTrainedModel]) -> None:
    timeline = Timeline(enabled=False)
    with SpecMoE.from_pretrained(tiny[0], store=tiny[0] / "store", gamma=2, draft_experts=2) as engine:
        engine.generate(*prompts(2), max_new_tokens=4, timeline=timeline)
    assert timeline.spans == []


def test_a_timeline_ends_with_its_call(tiny: tuple[Path, PreTrainedModel]) -> None:
    timeline = Timeline()
    with SpecMoE.from_pretrained(
        tiny[0], store=tiny[0] / "store", gamma=2, draft_experts=2, placement="on-demand", expert_budget="40%"
    ) as engine:
        engine.generate(*prompts(2), max_new_tokens=4, timeline=timeline)
        before = len(timeline.spans)
        engine.generate(*prompts(2), max_new_tokens=4)
    assert len(timeline.spans) == before > 0


def test_a_block_that_raises_is_still_recorded() -> None:
    timeline = Timeline()
    with pytest.raises(KeyError), timeline.span("compute", "doomed"):
        raise KeyError
    assert [s.name for s in timeline.spans] == ["doomed"]


def test_overlap_of_known_spans() -> None:
    timeline = Timeline()
    for start, end in ((0, 4), (6, 8), (10, 11)):
        timeline.add("compute", "c", start, end)
    for start, end in ((3, 7), (7.5, 10.25), (20, 30)):
        timeline.add("link", "l", start, end)
    assert timeline.overlap_s("compute", "link") == pytest.approx(1 + 1 + 0.5 + 0.25)
    assert timeline.overlap_s("link", "compute") == timeline.overlap_s("compute", "link")
    assert timeline.overlap_s("compute", "wait") == 0


@given(*[st.lists(st.integers(0, 60), unique=True, max_size=16).map(sorted)] * 2)
def test_overlap_is_what_counting_seconds_gives(compute: list[int], link: list[int]) -> None:
    timeline, busy = Timeline(), {}
    for track, edges in (("compute", compute), ("link", link)):
        pairs = list(zip(edges[::2], edges[1::2], strict=False))
        busy[track] = {second for start, end in pairs for second in range(start, end)}
        for start, end in pairs:
            timeline.add(track, "x", start, end)  # type: ignore[arg-type]
    assert timeline.overlap_s("compute", "link") == len(busy["compute"] & busy["link"])


def test_an_empty_timeline_is_a_valid_trace() -> None:
    assert json.loads(json.dumps(Timeline().chrome()))["traceEvents"][0]["args"]["name"] == TRACKS[0]


def test_spans_come_from_any_thread() -> None:
    timeline = Timeline()
    threads = [threading.Thread(target=lambda: [timeline.add("link", "x", 0, 1) for _ in range(500)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(timeline.spans) == 2000


def test_the_parts_of_the_breakdown_sum_to_the_cycles_time(traced: tuple[Timeline, GenerationStats]) -> None:
    _, stats = traced
    parts = stats.breakdown_s()
    total = sum(c.total_s for c in stats.cycles)
    assert sum(seconds for name, seconds in parts.items() if name != "link_busy") == pytest.approx(total)
    assert all(seconds >= 0 for seconds in parts.values())
    assert total <= stats.decode.seconds
    spans = sum(s.end_s - s.start_s for s in _of("cycle", traced[0]))
    assert spans == pytest.approx(total)


def test_waits_and_refreshes_are_parts_of_a_verification(traced: tuple[Timeline, GenerationStats]) -> None:
    for cycle in traced[1].cycles:
        assert 0 <= cycle.wait_s + cycle.refresh_s <= cycle.verify_s
        assert cycle.other_s >= 0


def test_cycles_add_up_to_the_calls_counters(traced: tuple[Timeline, GenerationStats]) -> None:
    _, stats = traced
    assert sum(c.tokens for c in stats.cycles) == stats.decode_tokens
    assert sum(c.drafted for c in stats.cycles) == sum(stats.drafted_by_position)
    assert sum(c.accepted for c in stats.cycles) == sum(stats.accepted_by_position)
    assert sum(c.moved_bytes for c in stats.cycles) == stats.decode.link.moved_bytes
    assert sum(c.requests for c in stats.cycles) == stats.decode.experts.requests
    assert sum(c.hits for c in stats.cycles) == stats.decode.experts.hits
    assert sum(c.positions - c.drafted for c in stats.cycles) == stats.row_steps
    assert json.loads(json.dumps(stats.cycle_rows()))[0]["gamma"] == stats.cycles[0].gamma
