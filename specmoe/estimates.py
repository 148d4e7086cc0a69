"""Running estimates that the controller decides by; each forgets slowly, so that it follows the run."""

from __future__ import annotations

import math

import torch


class Average:
    """Exponentially weighted mean; ``value`` is None until something was seen."""

    def __init__(self, weight: float = 0.3) -> None:
        self.value: float | None = None
        self._weight = weight

    def add(self, value: float) -> None:
        self.value = value if self.value is None else (1 - self._weight) * self.value + self._weight * value


class _Fit:
    """Exponentially weighted least squares of v on u, with a slope to lean on where u hardly varied."""

    def __init__(self, decay: float) -> None:
        self.weight = 0.0
        self._decay = decay
        self._sums = torch.zeros(4, dtype=torch.float64)  # u, v, uu, uv

    def add(self, u: float, v: float) -> None:
        self.weight = self._decay * self.weight + 1
        self._sums = self._decay * self._sums + torch.tensor([u, v, u * u, u * v], dtype=torch.float64)

    def means(self) -> tuple[float, float]:
        u, v, _, _ = (self._sums / self.weight).tolist()
        return u, v

    def slope(self, prior: float, spread: float) -> float:
        """Slope of v, where ``prior`` counts like one point whose u is ``spread`` (variance) away."""
        u, v, uu, uv = (self._sums / self.weight).tolist()
        held = spread / self.weight
        variance = max(0.0, uu - u * u)
        return (uv - u * v + held * prior) / (variance + held) if variance + held > 0 else 0.0


class Line:
    """y over x, both >= 0, y not falling: what a verification costs by the positions it verifies.

    Args:
        slope_share: with one x seen only, the part of y taken to grow in proportion with x.
        decay: weight of older points at each new one.
    """

    def __init__(self, slope_share: float, decay: float = 0.9) -> None:
        self._share, self._fit = slope_share, _Fit(decay)

    def add(self, x: float, y: float) -> None:
        self._fit.add(x, y)

    def at(self, x: float) -> float:
        """The estimate at ``x``; 0 before any point."""
        if not self._fit.weight:
            return 0.0
        mean_x, mean_y = self._fit.means()
        prior = self._share * mean_y / mean_x if mean_x else 0.0
        slope = max(0.0, self._fit.slope(prior, (mean_x / 3) ** 2))
        return max(0.0, mean_y + slope * (x - mean_x))


class Union:
    """Bytes over positions verified, ``most * (1 - exp(-c * x^k))``: how the union of absent experts fills up.

    With k = 1 this is what independent picks give; picks that resemble each other fill more slowly.

    Args:
        most: bytes that a pass can move at most.
        floor: y below it counts as it; where nothing else was seen, the estimate is 0.
        prior_exponent: k with one x seen only.
    """

    _FULL = 0.98

    def __init__(self, most: float, floor: float = 1.0, prior_exponent: float = 0.9, decay: float = 0.9) -> None:
        self._most, self._floor = max(most, 2 * floor), floor
        self._prior, self._fit = prior_exponent, _Fit(decay)

    def _fill(self, y: float) -> float:
        """log of c * x^k for ``y`` bytes."""
        return math.log(-math.log1p(-min(self._FULL, max(y, self._floor) / self._most)))

    def add(self, x: float, y: float) -> None:
        self._fit.add(math.log(x), self._fill(y))

    def at(self, x: float) -> float:
        """The estimate at ``x`` >= 1; 0 before any point."""
        if not self._fit.weight:
            return 0.0
        mean_u, mean_v = self._fit.means()
        if mean_v <= self._fill(self._floor) + 1e-9:
            return 0.0
        exponent = min(1.2, max(0.3, self._fit.slope(self._prior, 0.3)))
        return self._most * -math.expm1(-math.exp(mean_v + exponent * (math.log(x) - mean_u)))


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

    def __init__(self, rows: int, longest: int, prior: float = 0.6) -> None:
        self._tried = torch.full((longest,), 2.0 / longest)  # the prior weighs as two tokens
        self._kept = self._tried * prior
        self._row_tried = torch.zeros(rows)
        self._row_kept = torch.zeros(rows)

    def add(self, index: torch.Tensor, lengths: torch.Tensor, accepted: torch.Tensor) -> None:
        """One cycle: request rows ``index``, proposed ``lengths`` and ``accepted`` counts, all long [B]."""
        if int(lengths.max()) == 0:
            return
        index, lengths, accepted = index.cpu(), lengths.cpu(), accepted.cpu()
        places = torch.arange(len(self._tried))
        kept = places < accepted[:, None]
        tried = (places <= accepted[:, None]) & (places < lengths[:, None])  # reached with all before it kept
        decay = max(self._CYCLE_DECAY, self._TOKEN_DECAY ** float(tried.sum()))
        self._tried = decay * self._tried + tried.sum(dim=0)
        self._kept = decay * self._kept + kept.sum(dim=0)
        self._row_tried[index] = self._CYCLE_DECAY * self._row_tried[index] + tried.sum(dim=1)
        self._row_kept[index] = self._CYCLE_DECAY * self._row_kept[index] + kept.sum(dim=1)

    @property
    def mean(self) -> float:
        """The batch's chance for one token."""
        return float(self._kept.sum() / self._tried.sum())

    def reach(self, index: torch.Tensor) -> torch.Tensor:
        """Chance that rows ``index`` (long [B]) keep their first i + 1 drafted tokens: [B, longest]."""
        mean, index = self.mean, index.cpu()
        profile = (self._kept + 2 * mean) / (self._tried + 2)  # [longest], by place
        rate = (self._row_kept[index] + 4 * mean) / (self._row_tried[index] + 4)  # [B]
        chance = (profile[None, :] * (rate / max(mean, 1e-3))[:, None]).clamp(0.0, 0.995)
        return chance.cumprod(dim=1)
