"""Measures a ``generate`` call: reads the counters of link, residency and pass state before and after each part.

The decode loop only says where a part begins and ends; what is counted and how is decided here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from specmoe.model.pass_state import PassState
from specmoe.offload.link import Link
from specmoe.stats import CycleStats, GenerationStats, PhaseStats
from specmoe.timeline import Timeline


class Meter:
    """Fills the ``GenerationStats`` of one call."""

    def __init__(self, stats: GenerationStats, link: Link, state: PassState, timeline: Timeline) -> None:
        self._stats, self._link, self._state, self._timeline = stats, link, state, timeline
        self._cycle = CycleStats()

    @contextmanager
    def phase(self, into: PhaseStats) -> Iterator[None]:
        """Measure a prefill or decode phase, or one more part of it."""
        link, experts = self._link.snapshot(), self._state.residency.snapshot()
        started = time.perf_counter()
        yield
        into.seconds += time.perf_counter() - started
        into.link = into.link.plus(self._link.since(link))
        into.experts = into.experts.plus(self._state.residency.since(experts))

    @contextmanager
    def cycle(self, rows: int) -> Iterator[CycleStats]:
        """Measure one cycle over ``rows`` rows; time that is neither draft nor verification is ``other_s``.

        All but the link's totals and ``other_s`` is filled in before the block ends.
        """
        started, link = time.perf_counter(), self._link.snapshot()
        cycle = self._cycle = CycleStats(rows=rows)
        yield cycle
        moved = self._link.since(link)
        cycle.moved_bytes, cycle.busy_s = moved.moved_bytes, moved.busy_s
        ended = time.perf_counter()
        cycle.other_s = ended - started - cycle.draft_s - cycle.verify_s
        self._stats.cycles.append(cycle)
        self._timeline.add("cycle", f"gamma {cycle.gamma}, {rows} rows", started, ended, tokens=cycle.tokens)

    @contextmanager
    def drafting(self, gamma: int, draft_experts: int, refresh_interval: int, reason: str) -> Iterator[None]:
        """Measure the cycle's draft of up to ``gamma`` tokens per row, and note the choices it was made with."""
        cycle = self._cycle
        cycle.gamma, cycle.draft_experts, cycle.refresh_interval = gamma, draft_experts, refresh_interval
        cycle.reason = reason
        started, link = time.perf_counter(), self._link.snapshot()
        yield
        cycle.draft_s = time.perf_counter() - started
        cycle.early_bytes = self._link.since(link).moved_bytes

    @contextmanager
    def verifying(self, positions: int, rows: int) -> Iterator[CycleStats]:
        """Measure the cycle's target pass over ``positions`` tokens of ``rows`` rows."""
        cycle, residency = self._cycle, self._state.residency
        started, link = time.perf_counter(), self._link.snapshot()
        experts, refresh_s = residency.snapshot(), self._state.refresh_s
        yield cycle
        cycle.verify_s = time.perf_counter() - started
        cycle.wait_s = self._link.since(link).wait_s
        asked = residency.since(experts)
        cycle.positions, cycle.requests, cycle.hits = positions, asked.requests, asked.hits
        cycle.refresh_s = self._state.refresh_s - refresh_s
        self._stats.target_passes += 1
        self._stats.row_steps += rows

    def committed(self, proposed: list[int], accepted: list[int], gained: list[int], stopped: list[bool]) -> None:
        """Count what each row of the cycle proposed, had accepted, and gained in the end.

        Where a row ``stopped``, drafted tokens after its stop token count neither as drafted nor as accepted.
        """
        cycle, stats = self._cycle, self._stats
        for wanted, kept, tokens, has_stopped in zip(proposed, accepted, gained, stopped, strict=True):
            drafted = min(wanted, tokens) if has_stopped else wanted
            kept = min(kept, tokens)
            cycle.drafted, cycle.accepted = cycle.drafted + drafted, cycle.accepted + kept
            for i in range(drafted):
                stats.drafted_by_position[i] += 1
                stats.accepted_by_position[i] += i < kept
        cycle.tokens = sum(gained)
        stats.decode_tokens += cycle.tokens

    @property
    def draft_step_s(self) -> float | None:
        """Seconds per draft step in the latest cycle of this call that drafted; None before there was one."""
        before = next((c for c in reversed(self._stats.cycles) if c.gamma), None)
        return before.draft_s / before.gamma if before else None
