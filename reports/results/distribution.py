"""Whether a system's sampled tokens are distributed as the reference model's own: a two-sample test of their scores.

A token's score u is its place in the reference model's distribution given the tokens before it: the probability of all
more likely tokens, plus a random share of its own.  Scores of draws from that distribution are uniform on [0, 1] and
independent.  A system's scores are compared with those of the reference's own draws for the same prompts, scored by
the same passes, so that rounding affects both alike.  Two tests share the level:

- Kolmogorov-Smirnov, for any difference of the two distribution functions;
- the mean of -log(1 - u), which draws of unlikely tokens raise most: for uniform scores its terms are exponential, so
  the ratio of the two means has an F distribution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.floating[Any]]
LEVEL = 1e-4
"""The size of the test: a lossless system falls below it in one cell and round of 10,000."""
POWER = 0.9
_CRITICAL = math.sqrt(math.log(4 / LEVEL) / 2)  # of half the level, times sqrt(n m / (n + m))
_SMALLEST = 1e-6  # of 1 - u: a token outside the distribution counts as one of a millionth
_QUANTILE = 1.2816  # of the normal distribution at POWER


@dataclass(frozen=True)
class TwoSample:
    """Outcome of one test: its p-value, the number of scores on both sides, and what so many can detect.

    ``detects``: a difference of the two distribution functions of at least this size is found at ``LEVEL`` with
    probability ``POWER`` or more; above 1 the samples are too small to find any.
    """

    p: float
    tokens: int
    reference_tokens: int
    detects: float


def compare(scores: Sequence[float], reference: Sequence[float]) -> TwoSample:
    """Test whether ``scores`` and ``reference`` have one distribution.

    Raises:
        ValueError: one of them is empty.
    """
    from scipy.stats import ks_2samp  # heavy: a worker that measures does not load it

    if not len(scores) or not len(reference):
        raise ValueError("no sampled tokens to compare: ask for more new tokens")
    ours, theirs = np.asarray(scores), np.asarray(reference)
    p = min(float(ks_2samp(ours, theirs, method="asymp").pvalue), _surprise_p(ours, theirs))
    return TwoSample(min(1.0, 2 * p), len(scores), len(reference), detectable(len(scores), len(reference)))


def _surprise_p(ours: Scores, theirs: Scores) -> float:
    """Two-sided p-value of the ratio of the means of -log(1 - u)."""
    from scipy.stats import f

    ratio = np.mean(-np.log(np.maximum(1 - ours, _SMALLEST))) / np.mean(-np.log(np.maximum(1 - theirs, _SMALLEST)))
    freedom = 2 * len(ours), 2 * len(theirs)
    return float(2 * min(f.cdf(ratio, *freedom), f.sf(ratio, *freedom)))


def detectable(tokens: int, reference_tokens: int) -> float:
    """The least difference of two distribution functions that Kolmogorov-Smirnov finds with probability ``POWER``.

    At the place of the difference, the observed one has a standard deviation of at most half of
    ``sqrt(1 / tokens + 1 / reference_tokens)``.
    """
    return math.sqrt(1 / tokens + 1 / reference_tokens) * (_CRITICAL + _QUANTILE / 2)


def over_repetitions(values: Sequence[float]) -> float:
    """The p-value of all repetitions together (Bonferroni): the smallest times their number, at most 1."""
    return min(1.0, min(values) * len(values))
