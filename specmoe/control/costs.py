"""How long a cycle takes and how many of them a request still takes."""

from __future__ import annotations

import numpy as np

from specmoe.control.estimates import Number, PowerFit, UnionBytes
from specmoe.stats import CycleStats


class Costs:
    """``gamma * draft_step(rows that draft) + verify(positions) + wait_per_byte * bytes(positions)`` seconds.

    Args:
        expert_bytes: of one expert, the unit of transfers.
        absent_bytes: of all experts that the device cannot hold, the most that a pass moves.
    """

    def __init__(self, expert_bytes: int, absent_bytes: float) -> None:
        self._draft_step_s = PowerFit(prior_exponent=0.4)
        self._verify_s = PowerFit(prior_exponent=0.6)  # without waits for the link
        self._bytes = UnionBytes(absent_bytes, floor=float(expert_bytes))
        self._waited_s = self._moved_bytes = 0.0  # both decay

    def add(self, cycle: CycleStats) -> None:
        """Learn from a complete cycle."""
        if cycle.gamma:
            self._draft_step_s.add(max(1, cycle.drafted) / cycle.gamma, cycle.draft_s / cycle.gamma)
        self._verify_s.add(cycle.positions, max(0.0, cycle.verify_s - cycle.wait_s))
        self._bytes.add(cycle.positions, cycle.moved_bytes)
        self._waited_s = 0.8 * self._waited_s + cycle.wait_s
        self._moved_bytes = 0.8 * self._moved_bytes + cycle.moved_bytes

    def terms_s(self, gamma: Number, positions: Number, rows: Number) -> tuple[Number, Number, Number]:
        """Draft, verification, and wait for the link, of ``rows`` rows that draft up to ``gamma`` tokens each."""
        step_rows = np.maximum(1.0, (positions - rows) / np.maximum(1.0, gamma))
        wait_s = self._waited_s / max(1.0, self._moved_bytes) * self._bytes.at(positions)
        return gamma * self._draft_step_s.at(step_rows), self._verify_s.at(positions), wait_s

    def time_s(self, gamma: Number, positions: Number, rows: Number) -> Number:
        """Sum of the terms; arrays broadcast."""
        draft_s, verify_s, wait_s = self.terms_s(gamma, positions, rows)
        time_s: Number = np.maximum(1e-9, draft_s + verify_s + wait_s)
        return time_s


def cycles_to_come(reach: np.ndarray, remaining: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cycles until the last row ends, and the mean number of rows in them, for drafts of up to 0, 1, ... g tokens.

    A cycle gives a row m tokens on average, with variance v (truncated geometric: Leviathan et al. 2023, section 3.1).
    A row with r tokens to go takes n = r / m cycles with standard deviation sqrt(n v) / m, the last of B about
    sqrt(2 ln B) of these more.

    Args:
        reach: float64 [g], probability that a row keeps its first i + 1 drafted tokens.
        remaining: float64 [B], tokens that each row may still give, at least one.

    Returns:
        Two float64 [g + 1].
    """
    mean = np.append(1.0, 1 + reach.cumsum())
    square = np.append(0.0, ((2 * np.arange(len(reach)) + 1) * reach).cumsum())
    variance = np.maximum(0.0, square - (mean - 1) ** 2)
    cycles = remaining.max() / mean
    cycles = cycles + np.sqrt(2 * np.log(len(remaining)) * cycles * variance) / mean
    return cycles, np.maximum(1.0, remaining.sum() / mean / cycles)
