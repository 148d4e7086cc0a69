"""Ratios of rounds, their intervals, means over cells, and whether they allow a conclusion.

The unit is the *ratio within a round*: two systems measured one after the other on the same machine.  Ratios of
different rounds are treated as independent draws; figures of different rounds are never divided.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from reports import text

RESAMPLES = 9_999
FEW_ROUNDS = 6  # with six rounds or more, the range holds the median with 95 % confidence (1 - 2 / 2**6)
WIDE = 0.10  # half the interval's width over the median
UNSTEADY = 0.10  # standard deviation over mean: pyperf's bound

OUTLYING, FAR = 3.0, 0.20  # of an outlier: standard deviations, and share of the median

Verdict = Literal["faster", "slower", "same", "single", "none"]
Values = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Ratio:
    """Median of per-round ratios with its 95 % interval; no interval from one round, no median from none."""

    median: float | None
    low: float | None
    high: float | None
    n: int

    @property
    def verdict(self) -> Verdict:
        """What a speed ratio shows: ``same`` if the interval contains 1, ``single`` without an interval."""
        if self.median is None:
            return "none"
        if self.low is None or self.high is None:
            return "single"
        if self.low > 1:
            return "faster"
        return "slower" if self.high < 1 else "same"

    @property
    def inverse(self) -> Ratio:
        """The ratio the other way round: of speeds, where this one is of times."""
        values = (self.median, self.high, self.low)
        median, low, high = (None if value is None else 1 / value for value in values)
        return Ratio(median, low, high, self.n)

    def __str__(self) -> str:
        return text.ratio(self.median, self.low, self.high)


@dataclass(frozen=True)
class Stability:
    """Whether ratios are steady enough for a conclusion; if not, the reasons, each with what to do.

    ``unsteady`` tells that the spread of the ratios is among the reasons, and not their number alone.
    """

    stable: bool
    reasons: tuple[str, ...] = ()
    unsteady: bool = False

    def __str__(self) -> str:
        return "stable" if self.stable else f"cannot conclude: {'; '.join(self.reasons)}"


def bootstrap(ratios: Sequence[float], confidence: float = 0.95, seed: int = 0) -> Ratio:
    """Median and percentile-bootstrap interval of per-round ratios; values that are not finite are excluded."""
    values = _finite(ratios)
    if not len(values):
        return Ratio(None, None, None, 0)
    if len(values) == 1:
        return Ratio(float(values[0]), None, None, 1)
    low, high = _median_interval(values, confidence, seed)
    median = float(np.median(values))  # interpolated percentiles may round past it
    return Ratio(median, min(low, median), max(high, median), len(values))


def quotient(above: Sequence[float], below: Sequence[float], confidence: float = 0.95, seed: int = 0) -> Ratio:
    """Median of ``above`` over median of ``below``, two independent samples of ratios, with its interval."""
    first, second = _finite(above), _finite(below)
    if len(first) < 2 or len(second) < 2:
        known = len(first) and len(second)
        return Ratio(float(np.median(first) / np.median(second)) if known else None, None, None, min(1, known))

    def statistic(a: Values, b: Values, axis: int) -> Any:
        return np.median(a, axis=axis) / np.median(b, axis=axis)

    low, high = _interval((first, second), statistic, confidence, seed)
    return Ratio(float(np.median(first) / np.median(second)), low, high, min(len(first), len(second)))


def geometric_mean(cells: Sequence[Sequence[float]], seed: int = 0) -> Ratio:
    """Geometric mean over cells of each cell's median ratio; rounds are resampled within each cell.

    A cell with a ratio that is not positive is excluded.
    """
    kept = [values for values in (_finite(cell) for cell in cells) if len(values) and (values > 0).all()]
    if not kept:
        return Ratio(None, None, None, 0)
    mean = float(stats.gmean([np.median(values) for values in kept]))
    fewest = min(len(values) for values in kept)
    if fewest < 2:
        return Ratio(mean, None, None, 1)

    def statistic(*samples: Values, axis: int) -> Any:
        return np.exp(np.mean([np.log(np.median(sample, axis=axis)) for sample in samples], axis=0))

    low, high = _interval(tuple(kept), statistic, 0.95, seed)
    return Ratio(mean, low, high, fewest)


def stability(ratios: Sequence[float]) -> Stability:
    """Whether the spread of per-round ratios allows a conclusion (bounds as in pyperf, see the constants)."""
    values = _finite(ratios)
    if len(values) < 2:
        return Stability(False, (f"{len(values)} of {FEW_ROUNDS} rounds: run more",))
    reasons = []
    if len(values) < FEW_ROUNDS:
        reasons.append(f"{len(values)} rounds, {FEW_ROUNDS} are needed for a 95 % interval: run more")
    few = len(reasons)
    spread = float(np.std(values, ddof=1) / np.mean(values))
    if spread > UNSTEADY:
        reasons.append(
            f"the standard deviation is {100 * spread:.0f} % of the mean (bound {100 * UNSTEADY:.0f} %): "
            "use an idle machine or run more rounds"
        )
    median, (low, high) = float(np.median(values)), _median_interval(values)
    half = (max(high, median) - min(low, median)) / 2 / median
    if half > WIDE:
        reasons.append(f"the interval is ±{100 * half:.0f} % wide (bound {100 * WIDE:.0f} %): run more rounds")
    return Stability(not reasons, tuple(reasons), unsteady=len(reasons) > few)


def outliers(values: Sequence[float]) -> list[int]:
    """Places of values far from the rest: beyond three times the usual spread of the others, and beyond 20 %.

    The spread is the median absolute deviation, scaled to a standard deviation.  Nothing stands out of two values.
    """
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 3:
        return []
    median = float(np.median(array))
    far = np.abs(array - median)
    bound = max(OUTLYING * 1.4826 * float(np.median(far)), FAR * abs(median))
    return [int(place) for place in np.flatnonzero(far > bound)]


def _finite(values: Sequence[float]) -> Values:
    array: Values = np.asarray(values, dtype=np.float64)
    kept: Values = array[np.isfinite(array)]
    return kept


def _median_interval(values: Values, confidence: float = 0.95, seed: int = 0) -> tuple[float, float]:
    return _interval((values,), lambda v, axis: np.median(v, axis=axis), confidence, seed)


def _interval(
    samples: tuple[Values, ...], statistic: Callable[..., Any], confidence: float, seed: int
) -> tuple[float, float]:
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", stats.DegenerateDataWarning
        )  # equal values: an interval of width zero is correct
        result = stats.bootstrap(
            samples,
            statistic,
            n_resamples=RESAMPLES,
            confidence_level=confidence,
            method="percentile",
            vectorized=True,
            rng=seed,
        )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
