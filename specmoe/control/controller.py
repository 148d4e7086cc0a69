"""Chooses each cycle's draft length gamma (0: no draft), N and refresh interval.

With drafts of g tokens in B rows and a_i the probability of keeping token i::

    time(g)   = g * draft_step(B) + verify(B (g + 1))                         seconds of a cycle
    tokens(g) = 1 + a_1 + a_1 a_2 + ... + a_1 .. a_g                          of a row in a cycle
    rate(g)   = tokens to come / (cycles until the last row ends * time(g) with their mean number of rows)

The g of the highest rate is taken.  Every term is estimated from the cycles of the run, beginning with what the split
of the expert budget (``specmoe.control.split``) expects, if there was one; now and then a cycle tries half or twice
that g, so that the estimates know its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from specmoe.control.costs import Costs, cycles_to_come
from specmoe.control.estimates import Acceptance
from specmoe.control.split import Plan
from specmoe.control.trials import Knobs, Trials
from specmoe.options import SpecOptions
from specmoe.stats import CycleStats


@dataclass(frozen=True)
class CycleChoice:
    """One cycle's draft ``lengths`` (long [B]), N, refresh interval in cycles, and the reason as text."""

    lengths: torch.Tensor
    draft_experts: int
    refresh_interval: int
    reason: str


class Controller(Protocol):
    def choose(self, most: torch.Tensor) -> CycleChoice:
        """The choice for rows that may draft at most ``most`` (long [B]) tokens."""
        ...

    def learn(self, cycle: CycleStats, lengths: torch.Tensor, accepted: torch.Tensor) -> None:
        """What a cycle cost, whose counters may be completed later, and what its rows drafted and had accepted."""
        ...


class Fixed:
    """The options' gamma, N and interval in every cycle."""

    def __init__(self, options: SpecOptions) -> None:
        self._options = options

    def choose(self, most: torch.Tensor) -> CycleChoice:
        options = self._options
        return CycleChoice(most.clamp_max(options.gamma), options.draft_experts, options.refresh_interval, "fixed")

    def learn(self, cycle: CycleStats, lengths: torch.Tensor, accepted: torch.Tensor) -> None:
        pass


class Adaptive:
    """The gamma of the highest expected rate.

    Args:
        options: gamma is the longest draft; N and the refresh interval are where it starts.
        most_experts: largest N that may be pinned.
        plan: what is expected of the cycles to come.  Without it, or where drafting and not drafting are expected to
            differ by less than ``CERTAIN``, the first two cycles are one with and one without a draft.
    """

    CERTAIN = 1.5
    TELLING = 4  # drafted tokens of a first cycle, at least, to learn how many are accepted
    IDLE_INTERVAL = 32  # cycles between refreshes of a draft set that is not used
    HOLD_S = 0.1  # a decision takes about 0.5 ms of Python, so it holds for so long while no row ends

    def __init__(self, options: SpecOptions, most_experts: int, plan: Plan | None = None) -> None:
        self._longest = options.gamma
        self._idle_experts = most_experts if options.draft_pool == "pinned" else 1  # pins keep slots from the cache
        self._costs = Costs()
        self._acceptance = Acceptance(options.gamma) if plan is None else Acceptance(options.gamma, plan.agreement)
        self._first: list[int] | None = None if plan is not None else [min(2, self._longest), 0]
        if plan is not None:
            self._costs.expect((plan.rows, plan.draft_step_s), *plan.verify_s)
        start = min(options.draft_experts, most_experts)
        self._knobs = Knobs(start, most_experts, options.refresh_interval, options.pins_experts)
        self._trials = Trials()
        self._rows = self._gamma = 0
        self._reason, self._holds_s = "", 0.0
        self._last: tuple[CycleStats, torch.Tensor, torch.Tensor] | None = None

    def choose(self, most: torch.Tensor) -> CycleChoice:
        if self._last is not None:
            self._take_in(*self._last)
        gamma, reason = self._gamma, self._reason
        if self._first is None:
            self._first = self._begin(most.numpy(force=True) + 1.0)
        if self._first:
            gamma, reason = self._first.pop(0), "first cycles, with and without a draft"
        elif self._holds_s <= 0 or self._rows != len(most):
            gamma, reason = self._decide(most.numpy(force=True) + 1.0)
        lengths = most.clamp_max(gamma)
        experts, interval = self._knobs.draft_experts, self._knobs.refresh_interval
        if not int(lengths.max()):
            experts, interval = min(experts, self._idle_experts), max(interval, self.IDLE_INTERVAL)
        return CycleChoice(lengths, experts, interval, reason)

    def learn(self, cycle: CycleStats, lengths: torch.Tensor, accepted: torch.Tensor) -> None:
        self._last = (cycle, lengths, accepted)  # complete when the next cycle begins

    def _take_in(self, cycle: CycleStats, lengths: torch.Tensor, accepted: torch.Tensor) -> None:
        self._costs.add(cycle)
        self._trials.passed(cycle.total_s)
        self._holds_s -= cycle.total_s
        if cycle.gamma:
            self._acceptance.add(lengths, accepted)
            self._knobs.learn(cycle.tokens / cycle.total_s / cycle.rows)

    def _begin(self, remaining: np.ndarray) -> list[int]:
        """Gamma of the first cycles: none where the expected speeds with and without a draft differ clearly."""
        rates, _ = self._rates(remaining)
        drafting = float(rates[1:].max(initial=0.0))
        if max(rates[0], drafting) > self.CERTAIN * min(rates[0], drafting):
            return []
        gamma = max(int(rates[1:].argmax()) + 1, min(self.TELLING // len(remaining), self._longest))
        return [gamma, 0] if drafting > rates[0] else [0, gamma]

    def _decide(self, remaining: np.ndarray) -> tuple[int, str]:
        """The best gamma, which then holds for a while, or one to try for a cycle, and the reason."""
        rates, times_s = self._rates(remaining)
        best = int(rates.argmax())
        self._rows, self._gamma, self._holds_s = len(remaining), best, 0.0
        loss_s = (times_s * (1 - rates / rates[best])).tolist()
        tried = self._trials.due(best, remaining.sum() / rates[best], loss_s)
        if tried is not None:
            return tried, f"trial of gamma {tried}: {rates[tried]:.0f} tok/s expected, {rates[best]:.0f} with {best}"
        self._holds_s = self.HOLD_S
        other = f"{rates[0]:.0f} without a draft" if best else f"at best {rates[1:].max(initial=0.0):.0f} with one"
        reason = f"{rates[best]:.0f} tok/s expected, {other}; acceptance {self._acceptance.mean:.2f}"
        self._reason = reason if best else f"off: {reason}"
        return best, self._reason

    def _rates(self, remaining: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens per second until the last row ends, and seconds of the next cycle, for drafts of up to 0, 1, ..."""
        gammas = np.arange(min(self._longest + 1.0, remaining.max()))
        drafted = np.minimum(remaining[:, None] - 1, gammas).mean(axis=0)  # by a row
        drafting = (gammas[1:] < remaining[:, None]).mean(axis=0)  # share of rows that may draft so many
        cycles, mean_rows = cycles_to_come(self._acceptance.reach[: len(drafting)] * drafting, remaining)
        rows = np.stack([mean_rows, np.full_like(mean_rows, len(remaining))])  # until the end, and now
        mean_s, now_s = np.add(*self._costs.terms_s(gammas, rows * (1 + drafted), rows))
        return remaining.sum() / (cycles * mean_s), now_s


def make_controller(options: SpecOptions, most_experts: int, plan: Plan | None = None) -> Controller:
    """The controller that the options name; arguments are those of ``Adaptive``."""
    if options.controller == "fixed" or not options.speculates:
        return Fixed(options)
    return Adaptive(options, most_experts, plan)
