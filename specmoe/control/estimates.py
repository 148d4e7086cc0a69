"""Running estimates that the controller decides by; each forgets slowly, so that it follows the run."""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
import torch

Number = TypeVar("Number", float, np.ndarray)
"""One, or many at once."""


class Average:
    """Exponentially weighted mean; ``value`` is None until something was seen."""

    def __init__(self, weight: float = 0.3) -> None:
        self.value: float | None = None
        self._weight = weight

    def add(self, value: float) -> None:
        self.value = value if self.value is None else (1 - self._weight) * self.value + self._weight * value


class Ratio:
    """Sum over sum, both forgetting: a rate to which long cycles count for more; None until something was seen."""

    def __init__(self, weight: float = 0.2) -> None:
        self._weight = weight
        self._above = self._below = 0.0

    def add(self, above: float, below: float) -> None:
        self._above = (1 - self._weight) * self._above + above
        self._below = (1 - self._weight) * self._below + below

    @property
    def value(self) -> float | None:
        return self._above / self._below if self._below > 0 else None


class Correction:
    """How many times as long as predicted cycles took, by gamma: what the estimates get wrong for one and not the next.

    That nothing needs correction counts as ``_DOUBT`` cycles: early predictions are wrong by chance, and the estimates
    learn from what they got wrong too.
    """

    _KEEP = 0.9
    _DOUBT = 16

    def __init__(self, longest: int) -> None:
        self._points = [0.0] * (longest + 1)
        self._took = [0.0] * (longest + 1)

    def add(self, gamma: int, took: float, predicted: float) -> None:
        """A cycle; ``predicted`` > 0 without correction."""
        self._points[gamma] = self._KEEP * self._points[gamma] + 1
        self._took[gamma] = self._KEEP * self._took[gamma] + took / predicted

    def at(self, gamma: int) -> float:
        return (self._took[gamma] + self._DOUBT) / (self._points[gamma] + self._DOUBT)


class _Fit:
    """v over u, a line by least squares that forgets slowly: what was seen far from where the run is now counts on.

    Where u hardly varied, the slope leans on ``prior``, which counts like one point ``SPREAD`` (a variance) away; it
    stays within ``slopes``.
    """

    SPREAD = 0.3
    DECAY = 0.97

    def __init__(self, prior: float, slopes: tuple[float, float]) -> None:
        self.weight = 0.0
        self._prior, self._slopes = prior, slopes
        self._u = self._v = self._uu = self._uv = 0.0

    def add(self, u: float, v: float) -> None:
        self.weight = self.DECAY * self.weight + 1
        self._u, self._v = self.DECAY * self._u + u, self.DECAY * self._v + v
        self._uu, self._uv = self.DECAY * self._uu + u * u, self.DECAY * self._uv + u * v

    def at(self, u: Number) -> Number:
        mean_u, mean_v, held = self._u / self.weight, self._v / self.weight, self.SPREAD / self.weight
        variance = max(0.0, self._uu / self.weight - mean_u * mean_u)
        slope = (self._uv / self.weight - mean_u * mean_v + held * self._prior) / (variance + held)
        return mean_v + min(self._slopes[1], max(self._slopes[0], slope)) * (u - mean_u)


class PowerFit:
    """y over x, a power of x that does not fall: what a pass costs by the positions it has.

    Args:
        prior_exponent: with one x seen only.
    """

    _LEAST = 0.1  # of the estimate: a y below says nothing more of the power

    def __init__(self, prior_exponent: float) -> None:
        self._fit = _Fit(prior_exponent, (0.0, 1.2))
        self._lift = Ratio(1 - _Fit.DECAY)

    def add(self, x: float, y: float) -> None:
        """A point with x > 0."""
        self._fit.add(math.log(x), math.log(max(y, self._LEAST * self.at(x), 1e-9)))
        self._lift.add(y, math.exp(self._fit.at(math.log(x))))

    def at(self, x: Number) -> Number:
        """The estimate at ``x`` > 0 (one or many), a mean of what varies; 0 before any point."""
        return np.exp(self._fit.at(np.log(x))) * (self._lift.value or 0.0) if self._fit.weight else 0.0 * x

    @property
    def seen(self) -> bool:
        """Whether there was a point."""
        return self._fit.weight > 0


class UnionBytes:
    """Bytes over positions verified, ``most * (1 - exp(-c * x^k))``: how the union of absent experts fills up.

    With k = 1 this is what independent picks give; picks that resemble each other fill more slowly.

    Args:
        most: bytes that a pass can move at most.
        floor: y below it counts as it; where nothing else was seen, the estimate is 0.
        prior_exponent: k with one x seen only.
    """

    _FULL = 0.98

    def __init__(self, most: float, floor: float = 1.0, prior_exponent: float = 0.9) -> None:
        self._most, self._floor = max(most, 2 * floor), floor
        self._fit = _Fit(prior_exponent, (0.3, 1.2))
        self._lift = Ratio(1 - _Fit.DECAY)

    def add(self, x: float, y: float) -> None:
        """A point with x > 0."""
        fill = min(self._FULL, max(y, self._floor) / self._most)
        self._fit.add(math.log(x), math.log(-math.log1p(-fill)))
        self._lift.add(y, self._fitted(x))

    def at(self, x: Number) -> Number:
        """The estimate at ``x`` > 0 (one or many), a mean of what varies; 0 before anything moved."""
        if not self._lift.value:
            return 0.0 * x
        estimate: Number = np.minimum(self._most, self._fitted(x) * self._lift.value)
        return estimate

    def _fitted(self, x: Number) -> Number:
        estimate: Number = self._most * -np.expm1(-np.exp(self._fit.at(np.log(x))))
        return estimate


class Acceptance:
    """Chance that the draft's i-th token is kept given that those before it were, by place and by row.

    Each row has its own running rate, drawn towards the batch's while it is young; the batch's profile over
    places says how chances fall with distance.

    Args:
        rows: rows of the request.
        longest: longest draft.
        prior: rate before anything was seen.
    """

    _TOKEN_DECAY, _CYCLE_DECAY = 0.98, 0.85
    """What is known weighs less with every token tried, but in one cycle no less than the second."""
    _ROW_DECAY, _ALIKE = 0.95, 12
    """What is known of one row weighs less with every cycle; the batch's rate counts as so many of its tokens."""

    def __init__(self, rows: int, longest: int, prior: float = 0.6) -> None:
        self._places = np.arange(longest)
        self._tried = np.full(longest, 2.0 / longest)  # the prior weighs as two tokens
        self._kept = self._tried * prior
        self._row_tried = np.zeros(rows)
        self._row_kept = np.zeros(rows)

    def add(self, rows: torch.Tensor, drafted: torch.Tensor, accepted: torch.Tensor) -> None:
        """One cycle: request ``rows``, how much they ``drafted`` and how much was ``accepted``, all long [B]."""
        lengths = drafted.numpy(force=True)
        if not lengths.any():
            return
        index, counts = rows.numpy(force=True), accepted.numpy(force=True)
        kept = self._places < counts[:, None]
        tried = (self._places <= counts[:, None]) & (self._places < lengths[:, None])  # with all before it kept
        decay = max(self._CYCLE_DECAY, self._TOKEN_DECAY ** float(tried.sum()))
        self._tried = decay * self._tried + tried.sum(axis=0)
        self._kept = decay * self._kept + kept.sum(axis=0)
        self._row_tried[index] = self._ROW_DECAY * self._row_tried[index] + tried.sum(axis=1)
        self._row_kept[index] = self._ROW_DECAY * self._row_kept[index] + kept.sum(axis=1)

    @property
    def mean(self) -> float:
        """The batch's chance for one token."""
        return float(self._kept.sum() / self._tried.sum())

    def reach(self, rows: torch.Tensor) -> np.ndarray:
        """Chance that request ``rows`` (long [B]) keep their first i + 1 drafted tokens: float64 [B, longest]."""
        mean, index = self.mean, rows.numpy(force=True)
        profile = (self._kept + 2 * mean) / (self._tried + 2)  # [longest], by place
        rate = (self._row_kept[index] + self._ALIKE * mean) / (self._row_tried[index] + self._ALIKE)  # [B]
        chance: np.ndarray = np.clip(profile[None, :] * (rate / max(mean, 1e-3))[:, None], 0.0, 0.995)
        return chance.cumprod(axis=1)
