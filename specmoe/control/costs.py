"""How long a cycle takes and how many of them a request still takes."""

from __future__ import annotations

import numpy as np

from specmoe.control.estimates import PowerFit
from specmoe.stats import CycleStats


class Costs:
    """Seconds of a cycle: ``gamma * draft_step(rows that draft) + verify(positions)``, waits for the link included."""

    def __init__(self) -> None:
        self._draft_step_s, self._verify_s = PowerFit(prior_exponent=0.4), PowerFit(prior_exponent=0.6)

    def expect(self, draft_step_s: tuple[float, float], *verify_s: tuple[float, float]) -> None:
        """Before the first cycle: (rows, seconds of a draft step), and (positions, seconds of verification)."""
        self._draft_step_s.expect(draft_step_s)
        self._verify_s.expect(*verify_s)

    def add(self, cycle: CycleStats) -> None:
        """Learn from a complete cycle."""
        if cycle.gamma:
            self._draft_step_s.add(max(1, cycle.drafted) / cycle.gamma, cycle.draft_s / cycle.gamma)
        self._verify_s.add(cycle.positions, cycle.verify_s)

    def terms_s(self, gamma: np.ndarray, positions: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Draft and verification of ``rows`` rows that draft up to ``gamma`` tokens each; arrays broadcast."""
        step_rows = np.maximum(1.0, (positions - rows) / np.maximum(1.0, gamma))
        return gamma * self._draft_step_s.at(step_rows), self._verify_s.at(positions)


def cycles_to_come(reach: np.ndarray, remaining: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cycles until the last row ends, and the mean number of rows in them, for drafts of up to 0, 1, ... g tokens.

    A cycle gives a row m tokens on average, with variance v (truncated geometric: Leviathan et al. 2023, section 3.1).
    A row with r tokens to go takes n = r / m cycles with standard deviation sqrt(n v) / m, the last of B about
    sqrt(2 ln B) of these more.  ``reach`` (float64 [g]) is the probability that a row keeps its first i + 1 drafted
    tokens, ``remaining`` (float64 [B], at least 1) what each row may still give; returns two float64 [g + 1].
    """
    mean = np.append(1.0, 1 + reach.cumsum())
    square = np.append(0.0, ((2 * np.arange(len(reach)) + 1) * reach).cumsum())
    variance = np.maximum(0.0, square - (mean - 1) ** 2)
    cycles = remaining.max() / mean
    cycles = cycles + np.sqrt(2 * np.log(len(remaining)) * cycles * variance) / mean
    return cycles, np.maximum(1.0, remaining.sum() / mean / cycles)
