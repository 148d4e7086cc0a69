"""Latencies of rows from the times at which their tokens arrived."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

Arrivals = Sequence[Sequence[float]]
"""By row: the seconds from the request until each of its tokens was final; tokens of one burst have one time."""

Latencies = Callable[[Arrivals], list[float]]

PERCENTS = (50, 95, 99)
"""Of the latencies that metrics, tables and figures show."""


def first_token(arrivals: Arrivals) -> list[float]:
    """Time to first token of each row."""
    return [row[0] for row in arrivals]


def between_tokens(arrivals: Arrivals) -> list[float]:
    """Time between a token and the one before it in its row: 0 within a burst."""
    return [round(after - before, 6) for row in arrivals for before, after in pairwise(row)]


def end_to_end(arrivals: Arrivals) -> list[float]:
    """Time to the last token of each row."""
    return [row[-1] for row in arrivals]


def percentile(values: Sequence[float], percent: float) -> float | None:
    """By linear interpolation between neighbours; None of no values."""
    return float(np.percentile(values, percent)) if values else None
