"""How many cycles a batch still takes until its last row has ended, by draft length, and how it shrinks meanwhile.

A draft of up to g tokens gives a row ``m`` tokens a cycle on average, with variance ``v`` (a truncated geometric
distribution: Leviathan et al. 2023, section 3.1).  A row with room for ``r`` tokens so ends after about ``r / m``
cycles, give or take ``sqrt(v r / m) / m``.  Long drafts spread the ends: what they win while the batch is whole, they
may lose in the last cycles, whose cost only a few rows are left to share.
"""

from __future__ import annotations

import numpy as np

POINTS = 16
"""Moments at which the cycles to come are looked at: now, and from before the first row ends until the last has."""


def cycles_to_come(reach: np.ndarray, room: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows that are left at ``POINTS`` moments of the cycles to come, for drafts of up to 0, 1, ... g tokens.

    Rows are taken to have the same chances: that one was lucky so far says little of all the cycles to come.

    Args:
        reach: float64 [g], chance that a row keeps its first i + 1 drafted tokens.
        room: float64 [B], tokens that each row may still give, at least one.

    Returns:
        moments: float64 [g + 1, POINTS], cycles from now; of a single row only now and its end.
        rows: float64 like ``moments``, expected number of rows that have not ended.
    """
    places = np.arange(1, len(reach) + 1)
    kept = np.concatenate([[0.0], np.cumsum(reach)])  # [g + 1]
    square = np.concatenate([[0.0], np.cumsum((2 * places - 1) * reach)])
    mean, variance = 1 + kept, np.maximum(0.0, square - kept**2)
    ends = room / mean[:, None]  # [g + 1, B]
    if len(room) == 1:
        return np.concatenate([0 * ends, ends], axis=1), np.ones((len(mean), 2))
    spread = np.sqrt(ends * variance[:, None]) / mean[:, None] + 0.25
    first, last = np.maximum(0.0, (ends - 2.5 * spread).min(axis=1)), (ends + 2.5 * spread).max(axis=1)
    moments = np.concatenate([np.zeros((len(mean), 1)), np.linspace(first, last, POINTS - 1, axis=-1)], axis=1)
    far = (moments[:, None] - ends[:, :, None]) / spread[:, :, None]  # [g + 1, B, POINTS]
    rows = (1 / (1 + np.exp(np.clip(1.702 * far, -30.0, 30.0)))).sum(axis=1)  # the normal distribution, nearly
    rows[:, 0] = len(room)
    return moments, rows
