"""The controller with one part switched off or a dropped one put back."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from specmoe.control.controller import Adaptive
from specmoe.control.costs import Costs
from specmoe.control.estimates import PowerFit
from specmoe.options import SpecOptions
from specmoe.stats import CycleStats


class Counted(Adaptive):
    """The controller, which counts its decisions, as they take time."""

    decisions = 0

    def __init__(self, options: SpecOptions, expert_bytes: int, absent_bytes: float, most_experts: int) -> None:
        super().__init__(options, most_experts)

    def _decide(self, remaining: np.ndarray) -> tuple[int, str]:
        self.decisions += 1
        return super()._decide(remaining)


# Kept parts, switched off


class PlainRate(Counted):
    """Tokens over time of the next cycle, whatever comes after it."""

    def _rates(self, remaining: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        _, times_s = super()._rates(remaining)
        fits = (np.arange(1, len(times_s)) < remaining[:, None]).mean(axis=0)
        kept = np.append(0.0, (self._acceptance.reach[: len(fits)] * fits).cumsum())
        return len(remaining) * (1 + kept) / times_s, times_s


class NoTrials(Counted):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._trials.SHARE = -1.0  # type: ignore[misc]


class FreeTrials(Counted):
    """Trials without an allowance; they may still cost no more than a share of the time to come."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._trials._allowance_s = 1e9


class OneAcceptance(Counted):
    """One acceptance rate for all positions of a draft."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        rates, positions = self._acceptance, np.arange(1.0, self._longest + 1)

        class Flat:
            add = staticmethod(rates.add)
            mean = property(lambda self: rates.mean)
            reach = property(lambda self: min(0.995, rates.mean) ** positions)

        self._acceptance = Flat()  # type: ignore[assignment]


class NoKnobs(Counted):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._knobs.learn = lambda rate: None  # type: ignore[method-assign]


class NoHold(Counted):
    HOLD_S = 0.0


class NoIdleInterval(Counted):
    IDLE_INTERVAL = 1


# Dropped parts, put back


class Ratio:
    """Sum over sum, both decaying."""

    def __init__(self, keep: float = 0.8) -> None:
        self._keep = keep
        self.above = self.below = 0.0

    def add(self, above: float, below: float = 1.0) -> None:
        self.above, self.below = self._keep * self.above + above, self._keep * self.below + below

    @property
    def value(self) -> float:
        return self.above / self.below if self.below else 0.0


class Corrected(Counted):
    """Predicted time times how long cycles of that gamma took beside their prediction, which counts as 16 cycles."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._ratios = [Ratio(0.9) for _ in range(self._longest + 1)]

    def _take_in(self, cycle: CycleStats, *rest: torch.Tensor) -> None:
        if not self._first:
            predicted_s = float(sum(self._costs.terms_s(cycle.gamma, cycle.positions, cycle.rows)))
            self._ratios[cycle.gamma].add((cycle.draft_s + cycle.verify_s) / predicted_s)
        super()._take_in(cycle, *rest)

    def _rates(self, remaining: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rates, times_s = super()._rates(remaining)
        factors = np.array([(r.above + 16) / (r.below + 16) for r in self._ratios[: len(rates)]])
        return rates / factors, times_s * factors


class UnionBytes(PowerFit):
    """Bytes moved over positions verified, ``most * (1 - exp(-c * x^k))``: the union of their absent experts."""

    def __init__(self, expert_bytes: int, absent_bytes: float) -> None:
        super().__init__(prior_exponent=0.9)
        self._least, self._most = float(expert_bytes), max(absent_bytes, 2.0 * expert_bytes)

    def add(self, x: float, y: float) -> None:
        super().add(x, -math.log1p(-min(0.98, max(y, self._least) / self._most)))

    def at(self, x: Any) -> Any:
        return self._most * -np.expm1(-super().at(x))


class LinkCosts(Costs):
    """Verification without its waits as a power of positions, and waits by the bytes moved."""

    def __init__(self, *sizes: Any) -> None:
        super().__init__()
        self._bytes, self._wait_per_byte = UnionBytes(*sizes), Ratio()

    def add(self, cycle: CycleStats) -> None:
        super().add(CycleStats(**(vars(cycle) | {"verify_s": max(0.0, cycle.verify_s - cycle.wait_s)})))
        self._bytes.add(cycle.positions, cycle.moved_bytes)
        self._wait_per_byte.add(cycle.wait_s, cycle.moved_bytes)

    def terms_s(self, gamma: Any, positions: Any, rows: Any) -> Any:
        draft_s, verify_s = super().terms_s(gamma, positions, rows)
        return draft_s, verify_s + self._wait_s(gamma, positions)

    def _wait_s(self, gamma: Any, positions: Any) -> Any:
        return self._wait_per_byte.value * self._bytes.at(positions)


class ExposedCosts(LinkCosts):
    """Waits as a share of link time that is left after the draft, one share without and one with a draft."""

    apart = True

    def __init__(self, *sizes: Any) -> None:
        super().__init__(*sizes)
        self._link_s_per_byte, self._early_bytes = Ratio(), Ratio(0.7)
        self._exposed = (Ratio(), Ratio())

    def add(self, cycle: CycleStats) -> None:
        super().add(cycle)
        if cycle.gamma:
            self._early_bytes.add(cycle.early_bytes / cycle.gamma)
        self._link_s_per_byte.add(cycle.busy_s, cycle.moved_bytes)
        late_s = cycle.busy_s * max(0.0, 1 - cycle.early_bytes / max(1, cycle.moved_bytes))
        self._exposed[self.apart and cycle.gamma > 0].add(min(cycle.wait_s, late_s), late_s)

    def _wait_s(self, gamma: Any, positions: Any) -> Any:
        late_bytes = np.maximum(0.0, self._bytes.at(positions) - gamma * self._early_bytes.value)
        without, drafting = (e.value if e.below else self._exposed[not i].value for i, e in enumerate(self._exposed))
        share = without + (drafting - without) * np.minimum(1.0, gamma)
        return share * late_bytes * self._link_s_per_byte.value


class OneExposed(ExposedCosts):
    apart = False


class Link(Counted):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._costs = LinkCosts(*args[1:3])


class Exposed(Counted):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._costs = ExposedCosts(*args[1:3])


class ExposedOnce(Counted):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._costs = OneExposed(*args[1:3])


class Margin(Counted):
    """A change of gamma must promise 2 % more."""

    def _rates(self, remaining: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rates, times_s = super()._rates(remaining)
        rates[min(self._gamma, len(rates) - 1)] *= 1.02
        return rates, times_s


class Overhead(Counted):
    """What a cycle takes beside drafting and verification, as a mean."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._other_s = Ratio()
        terms_s = self._costs.terms_s

        def with_other_s(gamma: Any, positions: Any, rows: Any) -> Any:
            draft_s, verify_s = terms_s(gamma, positions, rows)
            return draft_s, verify_s + self._other_s.value

        self._costs.terms_s = with_other_s  # type: ignore[method-assign]

    def _take_in(self, cycle: CycleStats, *rest: torch.Tensor) -> None:
        self._other_s.add(cycle.other_s)
        super()._take_in(cycle, *rest)


VARIANTS: dict[str, Callable[..., Adaptive]] = {
    "as it is": Counted,
    "without: tokens to the last row's end": PlainRate,
    "without: trials": NoTrials,
    "without: allowance of trials": FreeTrials,
    "without: acceptance by position": OneAcceptance,
    "without: N and interval by trial": NoKnobs,
    "without: holding a decision": NoHold,
    "without: idle refresh interval": NoIdleInterval,
    "with: correction by gamma": Corrected,
    "with: link term": Link,
    "with: link term, exposed share apart with a draft": Exposed,
    "with: link term, one exposed share": ExposedOnce,
    "with: margin of 2 %": Margin,
    "with: overhead term": Overhead,
}
