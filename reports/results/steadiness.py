"""How steady decoding is while it is timed: the rate over the run, from the times at which tokens arrived."""

from __future__ import annotations

from collections.abc import Sequence

from reports.results.latency import Arrivals

LEAST_TOKENS = 12
"""Decoded tokens of a batch below which nothing is said of its halves."""


def decoded(arrivals: Arrivals) -> list[float]:
    """Seconds from the moment at which every row had its first token to each later token, ascending."""
    start = max((row[0] for row in arrivals if row), default=0.0)
    return sorted(max(0.0, seconds - start) for row in arrivals for seconds in row[1:])


def rates(arrivals: Arrivals, parts: int) -> list[tuple[float, float]]:
    """(middle in seconds, tokens per second) of equal parts of the decode time; empty where nothing was decoded."""
    times = decoded(arrivals)
    if not times or times[-1] <= 0:
        return []
    width = times[-1] / parts
    counts = [0] * parts
    for seconds in times:
        counts[min(parts - 1, int(seconds / width))] += 1
    return [((place + 0.5) * width, count / width) for place, count in enumerate(counts)]


def second_half_over_first(arrivals: Arrivals) -> float | None:
    """Rate of the later half of the decoded tokens over that of the earlier half; None where there are too few."""
    times = decoded(arrivals)
    middle = len(times) // 2
    if len(times) < LEAST_TOKENS or times[middle - 1] <= 0 or times[-1] <= times[middle - 1]:
        return None
    return ((len(times) - middle) / (times[-1] - times[middle - 1])) / (middle / times[middle - 1])


def drift(runs: Sequence[Arrivals], bound: float) -> float | None:
    """The median ratio of halves over several runs, if every run drifts the same way and the median beyond ``bound``.

    Args:
        runs: of one cell.
        bound: 0.25 is a quarter faster, or as much slower.
    """
    known = sorted(ratio for run in runs if (ratio := second_half_over_first(run)) is not None)
    if not known or not (known[0] > 1 or known[-1] < 1):
        return None
    median = known[len(known) // 2]
    return median if max(median, 1 / median) > 1 + bound else None
