"""Running estimates for the controller: each forgets slowly, so that it follows the run."""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
import torch

Number = TypeVar("Number", float, np.ndarray)
"""A scalar or an array."""


class PowerFit:
    """y = c * x^k: a decaying least-squares line over logarithms.

    Args:
        prior_exponent: k while x hardly varied.
        exponents: least and largest k.
    """

    KEEP, PRIOR_VARIANCE = 0.97, 0.3

    def __init__(self, prior_exponent: float, exponents: tuple[float, float] = (0.0, 1.2)) -> None:
        self._prior, self._exponents = prior_exponent, exponents
        self._weight = self._u = self._v = self._uu = self._uv = 0.0

    def add(self, x: float, y: float) -> None:
        """A point with x > 0."""
        u, v, keep = math.log(x), self._to_line(y), self.KEEP
        self._weight, self._u, self._v = keep * self._weight + 1, keep * self._u + u, keep * self._v + v
        self._uu, self._uv = keep * self._uu + u * u, keep * self._uv + u * v

    def at(self, x: Number) -> Number:
        """The estimate at ``x`` > 0; 0 before the first point."""
        if not self._weight:
            return 0.0 * x
        mean_u, mean_v, held = self._u / self._weight, self._v / self._weight, self.PRIOR_VARIANCE / self._weight
        variance = max(0.0, self._uu / self._weight - mean_u * mean_u)
        slope = (self._uv / self._weight - mean_u * mean_v + held * self._prior) / (variance + held)
        slope = min(self._exponents[1], max(self._exponents[0], slope))
        line: Number = mean_v + slope * (np.log(x) - mean_u)
        return self._from_line(line)

    def _to_line(self, y: float) -> float:
        return math.log(max(y, 1e-9))

    def _from_line(self, v: Number) -> Number:
        y: Number = np.exp(v)
        return y


class UnionBytes(PowerFit):
    """Bytes moved over positions verified, ``most * (1 - exp(-c * x^k))``: the union of their absent experts.

    Independent picks give k = 1; picks that resemble each other fill it more slowly.

    Args:
        most: bytes of all absent experts.
        floor: bytes of one expert; less counts as one.
    """

    def __init__(self, most: float, floor: float = 1.0) -> None:
        super().__init__(prior_exponent=0.9, exponents=(0.3, 1.2))
        self._most, self._floor = max(most, 2 * floor), floor

    def _to_line(self, y: float) -> float:
        return math.log(-math.log1p(-min(0.98, max(y, self._floor) / self._most)))

    def _from_line(self, v: Number) -> Number:
        y: Number = self._most * -np.expm1(-np.exp(v))
        return y


class Acceptance:
    """Probability that a draft token is accepted given that those before it were, by its position in the draft.

    Args:
        longest: longest draft.
        prior: rate before the first draft, which counts as two tokens.
    """

    _KEEP_TOKEN, _KEEP_CYCLE = 0.98, 0.85  # old counts decay by token, but by no more than _KEEP_CYCLE in a cycle

    def __init__(self, longest: int, prior: float = 0.6) -> None:
        self._positions = np.arange(longest)
        self._tried = np.full(longest, 2.0 / longest)
        self._kept = self._tried * prior

    def add(self, lengths: torch.Tensor, accepted: torch.Tensor) -> None:
        """A cycle: how many tokens rows drafted and had accepted, both long [B]."""
        drafted, counts = lengths.numpy(force=True), accepted.numpy(force=True)
        tried = (self._positions < np.minimum(counts + 1, drafted)[:, None]).sum(axis=0)
        decay = max(self._KEEP_CYCLE, self._KEEP_TOKEN ** float(tried.sum()))
        self._tried = decay * self._tried + tried
        self._kept = decay * self._kept + (self._positions < counts[:, None]).sum(axis=0)

    @property
    def mean(self) -> float:
        """The rate over all positions."""
        return float(self._kept.sum() / self._tried.sum())

    @property
    def reach(self) -> np.ndarray:
        """Probability that a row keeps its first i + 1 tokens, float64 [longest]."""
        chance = (self._kept + 2 * self.mean) / (self._tried + 2)
        reach: np.ndarray = np.minimum(chance, 0.995).cumprod()
        return reach
