"""Chooses each cycle's draft lengths (0 is off), N and refresh interval from what the run measured so far.

Per cycle with drafts of up to g tokens, over B rows::

    time(g)   = g * t_draft + t_verify(P) + exposed * bytes(P) / link_rate        P = B + sum of draft lengths
    tokens(g) = sum over rows of 1 + a_1 + a_1 a_2 + ... + a_1 .. a_g             a_i kept given all before it

All of it is estimated online; the g with the most tokens per second is taken, and rows whose chances are
poor draft less.  Where nothing is drafted for long, a probe finds out whether that is still right, ever more
rarely, so that being wrong about speculation costs a few percent at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from specmoe.estimates import Acceptance, Average, Line, PowerLaw
from specmoe.options import SpecOptions
from specmoe.stats import CycleStats


@dataclass(frozen=True)
class Setting:
    """One cycle's choice: draft ``lengths`` long [B], N, refresh interval in cycles, and the reason in words."""

    lengths: torch.Tensor
    draft_experts: int
    refresh_interval: int
    why: str


class Controller(Protocol):
    def choose(self, index: torch.Tensor, most: torch.Tensor) -> Setting:
        """A setting for request rows ``index`` (long [B]), each drafting at most ``most`` (long [B]) tokens."""
        ...

    def learn(self, cycle: CycleStats, index: torch.Tensor, lengths: torch.Tensor, accepted: torch.Tensor) -> None:
        """What the cycle cost, and what rows ``index`` proposed (``lengths``) and kept (``accepted``)."""
        ...


class Fixed:
    """The options' own gamma, N and interval, every cycle."""

    def __init__(self, options: SpecOptions) -> None:
        self._options = options

    def choose(self, index: torch.Tensor, most: torch.Tensor) -> Setting:
        options = self._options
        return Setting(most.clamp_max(options.gamma), options.draft_experts, options.refresh_interval, "fixed")

    def learn(self, cycle: CycleStats, index: torch.Tensor, lengths: torch.Tensor, accepted: torch.Tensor) -> None:
        pass


class Costs:
    """Estimated seconds of a cycle with a draft of g tokens and P positions verified.

    Args:
        expert_bytes: of one expert, the grain of transfers.
        all_bytes: of all experts, more than which no pass moves.
    """

    def __init__(self, expert_bytes: int, all_bytes: float) -> None:
        self._all_bytes = all_bytes
        self._draft_step_s = Average()
        self._verify_s = Line(slope_share=0.5)
        self._moved = PowerLaw(floor=float(expert_bytes))
        self._rate = Average()
        self._exposed = Average()

    def add(self, cycle: CycleStats) -> None:
        if cycle.gamma:
            self._draft_step_s.add(cycle.draft_s / cycle.gamma)
        self._verify_s.add(cycle.positions, max(0.0, cycle.verify_s - cycle.wait_s))
        self._moved.add(cycle.positions, cycle.moved_bytes)
        if cycle.busy_s > 0:
            self._rate.add(cycle.moved_bytes / cycle.busy_s)
            self._exposed.add(min(1.0, cycle.wait_s / cycle.busy_s))

    def time_s(self, gamma: int, positions: float) -> float:
        """Predicted duration of a cycle."""
        moved_s = min(self._all_bytes, self._moved.at(positions)) / self._rate.value if self._rate.value else 0.0
        exposed = 1.0 if self._exposed.value is None else self._exposed.value
        # a draft step was never seen: take it for a verification of one position per row, without its waits
        step_s = self._verify_s.at(positions / (gamma + 1)) if self._draft_step_s.value is None else None
        draft_s = gamma * (self._draft_step_s.value if step_s is None else step_s)  # type: ignore[operator]
        return draft_s + self._verify_s.at(positions) + exposed * moved_s

    def explain(self, gamma: int, positions: float) -> str:
        step_ms = 1e3 * (self._draft_step_s.value or 0.0)
        verify_ms, moved_mb = 1e3 * self._verify_s.at(positions), self._moved.at(positions) / 1e6
        return f"draft {step_ms:.1f} ms/token, verify {verify_ms:.1f} ms, {moved_mb:.1f} MB"


class Adaptive:
    """The formula above, with probes.

    Args:
        options: gamma is the most tokens drafted, N and the interval where it starts.
        rows: rows of the request.
        expert_bytes: of one expert, the grain of transfers.
        all_bytes: of all experts.
        most_experts: largest N that the budget can pin.
    """

    MARGIN = 1.03
    """A change must promise this much more tokens per second."""

    def __init__(self, options: SpecOptions, rows: int, expert_bytes: int, all_bytes: float, most_experts: int) -> None:
        self._longest = options.gamma
        self._costs = Costs(expert_bytes, all_bytes)
        self._acceptance = Acceptance(rows, options.gamma)
        self._knobs = Knobs(min(options.draft_experts, most_experts), most_experts, options.refresh_interval)
        self._cycle = 0
        self._gamma = 0
        self._probe_in, self._patience = 8, 8

    def choose(self, index: torch.Tensor, most: torch.Tensor) -> Setting:
        gamma, why = self._gamma_and_reason(index, most)
        lengths = self._lengths(index, most, gamma)
        return Setting(lengths, self._knobs.draft_experts, self._knobs.refresh_interval, why)

    def _gamma_and_reason(self, index: torch.Tensor, most: torch.Tensor) -> tuple[int, str]:
        self._cycle += 1
        if self._cycle <= 2:  # one cycle of each kind tells what both cost
            gamma = 0 if self._cycle == 1 else min(4, self._longest)
            return gamma, "finding out what a cycle " + ("without" if gamma == 0 else "with") + " a draft costs"
        rates = self._rates(index, most)
        best = max(range(len(rates)), key=rates.__getitem__)
        held = min(self._gamma, len(rates) - 1)
        if rates[best] < self.MARGIN * rates[held]:
            best = held
        self._gamma = best
        if best == 0:
            return self._off(rates)
        positions = len(index) + float(most.clamp_max(best).sum())
        return best, (
            f"{rates[best]:.0f} tok/s expected, {rates[0]:.0f} without a draft; "
            f"acceptance {self._acceptance.mean:.2f}, {self._costs.explain(best, positions)}"
        )

    def _off(self, rates: list[float]) -> tuple[int, str]:
        self._probe_in -= 1
        if self._probe_in <= 0 and len(rates) > 1:
            self._patience = min(256, 2 * self._patience)
            self._probe_in = self._patience
            return min(2, len(rates) - 1), "probe: is a draft still not worth it?"
        second = max(range(1, len(rates)), key=rates.__getitem__, default=0)
        return 0, (
            f"off: {rates[0]:.0f} tok/s expected, at best {rates[second]:.0f} with gamma {second}; "
            f"acceptance {self._acceptance.mean:.2f}"
        )

    def _rates(self, index: torch.Tensor, most: torch.Tensor) -> list[float]:
        """Expected tokens per second with drafts of up to 0, 1, ... tokens."""
        reach = self._acceptance.reach(index)  # [B, longest]
        most = most.cpu()
        reach = reach * (torch.arange(self._longest) < most[:, None])
        gained = [0.0, *reach.sum(dim=0).cumsum(0).tolist()]
        drafted = [0.0, *[float(most.clamp_max(g).sum()) for g in range(1, self._longest + 1)]]
        longest = min(self._longest, int(most.max()))
        rows = len(index)
        return [(rows + gained[g]) / max(1e-9, self._costs.time_s(g, rows + drafted[g])) for g in range(longest + 1)]

    def _lengths(self, index: torch.Tensor, most: torch.Tensor, gamma: int) -> torch.Tensor:
        """Each row drafts as far as one more position earns its share of the time it adds."""
        lengths = most.clamp_max(gamma)
        if gamma == 0 or len(index) == 1 or self._cycle <= 2:
            return lengths
        rows, drafted = len(index), float(lengths.sum())
        full = self._costs.time_s(gamma, rows + drafted)
        per_position_s = (full - self._costs.time_s(gamma, rows + 0.5 * drafted)) / max(1.0, 0.5 * drafted)
        reach = self._acceptance.reach(index)[:, :gamma]
        kept = reach * (torch.arange(gamma) < lengths.cpu()[:, None])
        per_token_s = full / (rows + float(kept.sum()))
        worth = (reach * per_token_s >= per_position_s).long().cumprod(dim=1).sum(dim=1)
        return torch.minimum(lengths, worth.clamp_min(1).to(lengths.device))

    def learn(self, cycle: CycleStats, index: torch.Tensor, lengths: torch.Tensor, accepted: torch.Tensor) -> None:
        self._costs.add(cycle)
        self._acceptance.add(index, lengths, accepted)
        if self._gamma == 0 and cycle.drafted and cycle.accepted == cycle.drafted:
            self._patience = 8  # a probe that was kept whole: look again soon
            self._probe_in = min(self._probe_in, self._patience)
        if cycle.gamma:
            self._knobs.learn(cycle.tokens / max(1e-9, cycle.draft_s + cycle.verify_s) / cycle.rows)


class Knobs:
    """N and refresh interval by careful trial: one of them changes for a while, and stays changed if it paid.

    The measure is tokens per second and row over ``TRIAL`` drafting cycles, against as many before.
    """

    TRIAL = 6
    REST = 12

    def __init__(self, draft_experts: int, most_experts: int, refresh_interval: int) -> None:
        self.draft_experts, self.refresh_interval = draft_experts, refresh_interval
        self._most = most_experts
        self._before: list[float] = []
        self._during: list[float] = []
        self._held: tuple[int, int] | None = None
        self._turn = 0
        self._rest = self.REST

    def learn(self, rate: float) -> None:
        """Tokens per second and row of one drafting cycle."""
        if self._held is None:
            self._before = [*self._before, rate][-self.TRIAL :]
            self._rest -= 1
            if self._rest <= 0 and len(self._before) == self.TRIAL:
                self._begin_trial()
            return
        self._during.append(rate)
        if len(self._during) == self.TRIAL:
            if sum(self._during) < 1.03 * sum(self._before):
                self.draft_experts, self.refresh_interval = self._held
                self._rest = 2 * self.REST  # it did not pay: ask less often
            else:
                self._rest = self.REST
            self._held, self._during, self._before = None, [], []

    def _begin_trial(self) -> None:
        candidates = [
            (min(self._most, 2 * self.draft_experts), self.refresh_interval),
            (self.draft_experts, min(64, 2 * self.refresh_interval)),
            (max(1, self.draft_experts // 2), self.refresh_interval),
            (self.draft_experts, max(1, self.refresh_interval // 2)),
        ]
        held = (self.draft_experts, self.refresh_interval)
        for _ in candidates:
            self._turn = (self._turn + 1) % len(candidates)
            if candidates[self._turn - 1] != held:
                self._held = held
                self.draft_experts, self.refresh_interval = candidates[self._turn - 1]
                return
