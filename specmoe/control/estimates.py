"""Running estimates for the controller; old cycles count less, so that they follow the run."""

from __future__ import annotations

import math

import numpy as np
import torch


class PowerFit:
    """y = c * x^k, 0 <= k <= 1.2, by decaying least squares over logarithms; k is the prior while x hardly varied."""

    KEEP, PRIOR_VARIANCE = 0.97, 0.3
    EXPECTED_WEIGHT = 0.5  # of a point that is expected, where a measured one has 1

    def __init__(self, prior_exponent: float) -> None:
        self._prior = prior_exponent
        self._weight = self._u = self._v = self._uu = self._uv = 0.0
        self._only_expected = False

    def expect(self, *points: tuple[float, float]) -> None:
        """Points (x, y) to begin with: they give the shape, and the first measured point moves them to its level."""
        for x, y in points:
            self._put(math.log(x), math.log(max(y, 1e-9)), self.EXPECTED_WEIGHT)
        self._only_expected = bool(points)

    def add(self, x: float, y: float) -> None:
        """A measured point with x > 0."""
        u, v = math.log(x), math.log(max(y, 1e-9))
        if self._only_expected:
            shift = v - math.log(float(self.at(np.array(x))))
            self._v, self._uv = self._v + shift * self._weight, self._uv + shift * self._u
            self._only_expected = False
        self._put(u, v, 1.0)

    def _put(self, u: float, v: float, weight: float) -> None:
        self._weight = self.KEEP * self._weight + weight
        self._u, self._v = self.KEEP * self._u + weight * u, self.KEEP * self._v + weight * v
        self._uu, self._uv = self.KEEP * self._uu + weight * u * u, self.KEEP * self._uv + weight * u * v

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
