"""The meter counts what the decode loop did: drafted and accepted tokens by position, and every second of a cycle."""

from __future__ import annotations

import time
from typing import Any

import pytest

from specmoe.meter import Meter
from specmoe.offload.counters import LinkStats, ResidencyStats
from specmoe.stats import GenerationStats, PhaseStats
from specmoe.timeline import Timeline


class Counters:
    """A link and a residency whose totals the test sets."""

    def __init__(self) -> None:
        self.link, self.experts = LinkStats(), ResidencyStats()
        self.refresh_s = 0.0

    def snapshot(self) -> float:
        return float(self.link.moved_bytes)

    def since(self, before: float) -> LinkStats:
        return LinkStats(moved_bytes=int(self.link.moved_bytes - before))

    @property
    def residency(self) -> Any:
        class Residency:
            snapshot = staticmethod(lambda: 0)
            since = staticmethod(lambda before: self.experts)

        return Residency()


def _meter(gamma: int = 3) -> tuple[Meter, GenerationStats, Counters]:
    stats = GenerationStats(drafted_by_position=[0] * gamma, accepted_by_position=[0] * gamma)
    counters: Any = Counters()
    return Meter(stats, counters, counters, Timeline(enabled=False)), stats, counters


def test_drafted_tokens_after_a_stop_token_count_neither_as_drafted_nor_as_accepted() -> None:
    meter, stats, _ = _meter()
    with meter.cycle(3) as cycle:
        meter.committed(proposed=[3, 3, 1], accepted=[1, 3, 1], gained=[2, 2, 2], stopped=[False, True, True])
    assert stats.drafted_by_position == [3, 2, 1]
    assert stats.accepted_by_position == [3, 1, 0]
    assert (cycle.drafted, cycle.accepted, cycle.tokens) == (6, 4, 6)
    assert stats.decode_tokens == 6


def test_the_parts_of_a_cycle_sum_to_its_duration() -> None:
    meter, stats, _ = _meter()
    started = time.perf_counter()
    with meter.cycle(1):
        with meter.drafting(2, 4, 1, "fixed"):
            time.sleep(0.002)
        with meter.verifying(3, 1):
            time.sleep(0.003)
        time.sleep(0.001)
    took = time.perf_counter() - started
    (cycle,) = stats.cycles
    assert cycle.draft_s >= 0.002
    assert cycle.verify_s >= 0.003
    assert cycle.other_s >= 0.001
    assert cycle.total_s == pytest.approx(took, abs=1e-3)
    assert (cycle.gamma, cycle.draft_experts, cycle.refresh_interval, cycle.reason) == (2, 4, 1, "fixed")
    assert (stats.target_passes, stats.row_steps) == (1, 1)


def test_bytes_moved_while_drafting_are_a_part_of_the_cycles_bytes() -> None:
    meter, stats, counters = _meter()
    with meter.cycle(1):
        with meter.drafting(1, 4, 1, "fixed"):
            counters.link.moved_bytes += 100
        with meter.verifying(2, 1):
            counters.link.moved_bytes += 1000
    assert (stats.cycles[0].early_bytes, stats.cycles[0].moved_bytes) == (100, 1100)


def test_the_time_of_a_draft_step_is_that_of_the_latest_cycle_that_drafted() -> None:
    meter, stats, _ = _meter()
    assert meter.draft_step_s is None
    for gamma in (2, 0):
        with meter.cycle(1), meter.drafting(gamma, 4, 1, "fixed"):
            pass
    assert meter.draft_step_s == stats.cycles[0].draft_s / 2


def test_a_cycle_that_fails_is_not_counted() -> None:
    meter, stats, _ = _meter()
    with pytest.raises(RuntimeError), meter.cycle(1):
        raise RuntimeError
    assert stats.cycles == []


def test_a_phase_holds_what_happened_within_it() -> None:
    meter, _, counters = _meter()
    counters.link.moved_bytes = 5
    phase = PhaseStats()
    with meter.phase(phase):
        counters.link.moved_bytes += 7
    assert phase.link.moved_bytes == 7
    assert phase.seconds > 0
