"""Running estimates for the controller; old cycles count less, so that they follow the run."""

from __future__ import annotations

import math

import numpy as np
import torch


class PowerFit:
    """y = c * x^k, 0 <= k <= 1.2, by decaying least squares over logarithms; k is the prior while x hardly varied."""

    KEEP, PRIOR_VARIANCE = 0.97, 0.3

    def __init__(self, prior_exponent: float) -> None:
        self._prior = prior_exponent
        self._weight = self._u = self._v = self._uu = self._uv = 0.0

    def add(self, x: float, y: float) -> None:
        """A point with x > 0."""
        u, v, keep = math.log(x), math.log(max(y, 1e-9)), self.KEEP
        self._weight, self._u, self._v = keep * self._weight + 1, keep * self._u + u, keep * self._v + v
        self._uu, self._uv = keep * self._uu + u * u, keep * self._uv + u * v

    def at(self, x: np.ndarray) -> np.ndarray:
        """The estimate at ``x`` > 0; 0 before the first point."""
        if not self._weight:
            return 0.0 * x
        mean_u, mean_v, held = self._u / self._weight, self._v / self._weight, self.PRIOR_VARIANCE / self._weight
        variance = max(0.0, self._uu / self._weight - mean_u * mean_u)
        slope = (self._uv / self._weight - mean_u * mean_v + held * self._prior) / (variance + held)
        y: np.ndarray = np.exp(mean_v + min(1.2, max(0.0, slope)) * (np.log(x) - mean_u))
        return y


class Acceptance:
    """Probability that a draft token is accepted given those before it, by position; ``prior`` counts as two tokens."""

    KEEP_TOKEN, KEEP_CYCLE = 0.98, 0.85  # counts decay with every token tried, in a cycle to no less than KEEP_CYCLE

    def __init__(self, longest: int, prior: float = 0.6) -> None:
        self._positions = np.arange(longest)
        self._tried = np.full(longest, 2.0 / longest)
        self._kept = self._tried * prior

    def add(self, lengths: torch.Tensor, accepted: torch.Tensor) -> None:
        """A cycle: how many tokens rows drafted and had accepted, both long [B]."""
        drafted, counts = lengths.numpy(force=True), accepted.numpy(force=True)
        tried = (self._positions < np.minimum(counts + 1, drafted)[:, None]).sum(axis=0)
        decay = max(self.KEEP_CYCLE, self.KEEP_TOKEN ** float(tried.sum()))
        self._tried = decay * self._tried + tried
        self._kept = decay * self._kept + (self._positions < counts[:, None]).sum(axis=0)

    @property
    def mean(self) -> float:
        """The rate over all positions."""
        return float(self._kept.sum() / self._tried.sum())

    @property
    def reach(self) -> np.ndarray:
        """Probability that a row keeps its first i + 1 tokens, float64 [longest]."""
        chance: np.ndarray = np.minimum((self._kept + 2 * self.mean) / (self._tried + 2), 0.995)
        return chance.cumprod()
