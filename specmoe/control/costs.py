"""What a cycle costs in seconds, by draft length, positions and rows, from the cycles that the run has had."""

from __future__ import annotations

import numpy as np

from specmoe.control.estimates import Average, Number, PowerFit, Ratio, UnionBytes
from specmoe.stats import CycleStats


class Costs:
    """Estimated seconds of a cycle over B rows with drafts of up to g tokens and P positions verified.

    Args:
        expert_bytes: of one expert, the grain of transfers.
        absent_bytes: of all experts that the device cannot hold, about the most that a pass moves.
    """

    def __init__(self, expert_bytes: int, absent_bytes: float) -> None:
        self._draft_step_s = PowerFit(prior_exponent=0.4)
        self._verify_s = PowerFit(prior_exponent=0.6)
        self._moved = UnionBytes(absent_bytes, floor=float(expert_bytes))
        self._early_bytes = Average()
        self._rate = Ratio()
        self._exposed = (Ratio(), Ratio())  # of link time, without a draft and with one
        self._other_s = Average()
        self.seen = 0
        """Cycles added."""

    def add(self, cycle: CycleStats) -> None:
        """Take in a cycle that is over."""
        self.seen += 1
        self._other_s.add(cycle.other_s)
        if cycle.gamma:
            self._draft_step_s.add(max(1, cycle.drafted) / cycle.gamma, cycle.draft_s / cycle.gamma)
            self._early_bytes.add(cycle.early_bytes / cycle.gamma)
        self._verify_s.add(cycle.positions, max(0.0, cycle.verify_s - cycle.wait_s))
        self._moved.add(cycle.positions, cycle.moved_bytes)
        self._rate.add(cycle.moved_bytes, cycle.busy_s)
        late_s = cycle.busy_s * max(0.0, 1 - cycle.early_bytes / max(1, cycle.moved_bytes))
        self._exposed[cycle.gamma > 0].add(min(cycle.wait_s, late_s), late_s)

    def time_s(self, gamma: Number, positions: Number, rows: Number) -> Number:
        """Predicted duration of a cycle, or of many (arrays that broadcast)."""
        late_bytes = np.maximum(0.0, self._moved.at(positions) - gamma * (self._early_bytes.value or 0.0))
        moved_s = late_bytes / self._rate.value if self._rate.value else 0.0
        idle, drafting = self._exposure(False), self._exposure(True)
        exposed = idle + (drafting - idle) * np.minimum(1.0, gamma)
        draft_s = gamma * self._step_s(gamma, positions, rows)
        time_s: Number = draft_s + self._verify_s.at(positions) + exposed * moved_s + self.other_s
        return time_s

    def _exposure(self, drafting: bool) -> float:
        """Share of the link's time that a cycle waits for: more positions and a queue filled early hide more of it."""
        seen = [e.value for e in (self._exposed[drafting], self._exposed[not drafting]) if e.value is not None]
        return seen[0] if seen else 1.0

    def _step_s(self, gamma: Number, positions: Number, rows: Number) -> Number:
        """One of ``gamma`` draft steps, of which not every row takes part in each."""
        if not self._draft_step_s.seen:  # like verifying one position per row, without its waits
            return self._verify_s.at(rows)
        step_s: Number = self._draft_step_s.at(np.maximum(1.0, (positions - rows) / np.maximum(1.0, gamma)))
        return step_s

    @property
    def other_s(self) -> float:
        """What a cycle takes beside drafting and verification."""
        return self._other_s.value or 0.0

    def explain(self, gamma: int, positions: float, rows: int) -> str:
        step_ms = 1e3 * self._step_s(gamma, positions, rows)
        verify_ms, moved_mb = 1e3 * self._verify_s.at(positions), self._moved.at(positions) / 1e6
        return f"draft {step_ms:.1f} ms/token, verify {verify_ms:.1f} ms, {moved_mb:.1f} MB"
