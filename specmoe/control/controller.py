"""Chooses each cycle's draft lengths (0 is off), N and refresh interval from what the run measured so far.

Per cycle with drafts of up to g tokens, over B rows::

    time(g)   = g * t_draft(B) + t_verify(P) + exposed * (bytes(P) - g * early) / link_rate + t_other
    tokens(g) = sum over rows of 1 + a_1 + a_1 a_2 + ... + a_1 .. a_g             a_i kept given all before it

P = B + sum of draft lengths are the positions verified, ``early`` the bytes that a draft step prefetches.  All
of it is estimated online, and the time corrected by what cycles of that g took.  The g is taken that lets the last
row end soonest (`specmoe.control.horizon`), so with the most tokens per second; rows whose chances are poor draft less.
Now and then a cycle tries half (of two: none) or twice that g, so that the estimates know its surroundings; the
expected loss of trials is held to a share of all time, and of the time to come.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from specmoe.control.costs import Costs
from specmoe.control.estimates import Acceptance, Correction
from specmoe.control.horizon import cycles_to_come
from specmoe.control.trials import Knobs, Trials
from specmoe.options import SpecOptions
from specmoe.stats import CycleStats


@dataclass(frozen=True)
class CycleChoice:
    """One cycle's choice: draft ``lengths`` long [B], N, refresh interval in cycles, and the reason in words."""

    lengths: torch.Tensor
    draft_experts: int
    refresh_interval: int
    reason: str


class Controller(Protocol):
    def choose(self, index: torch.Tensor, most: torch.Tensor) -> CycleChoice:
        """A setting for request rows ``index`` (long [B]), each drafting at most ``most`` (long [B]) tokens."""
        ...

    def learn(self, cycle: CycleStats, index: torch.Tensor, lengths: torch.Tensor, accepted: torch.Tensor) -> None:
        """What the cycle cost, and what rows ``index`` proposed (``lengths``) and kept (``accepted``)."""
        ...


class Fixed:
    """The options' own gamma, N and interval, every cycle."""

    def __init__(self, options: SpecOptions) -> None:
        self._options = options

    def choose(self, index: torch.Tensor, most: torch.Tensor) -> CycleChoice:
        options = self._options
        return CycleChoice(most.clamp_max(options.gamma), options.draft_experts, options.refresh_interval, "fixed")

    def learn(self, cycle: CycleStats, index: torch.Tensor, lengths: torch.Tensor, accepted: torch.Tensor) -> None:
        pass


class Adaptive:
    """The formula above, with trials.

    Args:
        options: gamma is the most tokens drafted, N and the interval where it starts.
        rows: rows of the request.
        expert_bytes: of one expert, the grain of transfers.
        absent_bytes: of all experts that the device cannot hold.
        most_experts: largest N that it may pin.
    """

    MARGIN = 1.02
    """A change must promise this much more tokens per second."""
    IDLE_INTERVAL = 8
    """Cycles between refreshes of a draft set that nobody drafts with."""
    SHRUNK_INTERVAL = 32
    """The same where every resident expert may draft: the set then shrinks to one expert a layer, as pins only keep the
    cache from those of most use."""
    LOOK_S, LOOKS = 0.025, 4
    """Seconds of cycles for which a choice stands, unless a row ends, and how many times as long once it was confirmed
    so often: to look takes about 0.7 ms of Python, which short cycles would feel."""

    def __init__(
        self, options: SpecOptions, rows: int, expert_bytes: int, absent_bytes: float, most_experts: int
    ) -> None:
        self._longest = options.gamma
        self._costs = Costs(expert_bytes, absent_bytes)
        self._correction = Correction(options.gamma)
        self._acceptance = Acceptance(rows, options.gamma)
        self._knobs = Knobs(min(options.draft_experts, most_experts), most_experts, options.refresh_interval)
        self._trials = Trials()
        self._cycle = 0
        self._gamma = 0
        self._standing: tuple[torch.Tensor, str] | None = None
        self._stands_s, self._confirmed = 0.0, 0
        self._unread: list[tuple[CycleStats, torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._shrinks = options.draft_pool == "resident"

    def choose(self, index: torch.Tensor, most: torch.Tensor) -> CycleChoice:
        self._cycle += 1
        self._trials.passed()
        if self._cycle <= 2:
            lengths, reason = self._finding_out(most)
        else:
            lengths, reason = self._stands(most) or self._weighed(index, most)
        experts, interval = self._knobs.draft_experts, self._knobs.refresh_interval
        if not int(lengths.max()):
            experts = 1 if self._shrinks else experts
            interval = max(interval, self.SHRUNK_INTERVAL if self._shrinks else self.IDLE_INTERVAL)
        return CycleChoice(lengths, experts, interval, reason)

    def _finding_out(self, most: torch.Tensor) -> tuple[torch.Tensor, str]:
        """One cycle of each kind tells what both cost."""
        gamma = min(2, self._longest) if self._cycle == 1 else 0
        return most.clamp_max(gamma), f"finding out what a cycle {'with' if gamma else 'without'} a draft costs"

    def _stands(self, most: torch.Tensor) -> tuple[torch.Tensor, str] | None:
        """The latest choice, while it is young and of the same rows, which may have less room by now."""
        if self._standing is None or self._stands_s <= 0 or len(self._standing[0]) != len(most):
            return None
        lengths, reason = self._standing
        return torch.minimum(lengths, most), reason

    def _weighed(self, index: torch.Tensor, most: torch.Tensor) -> tuple[torch.Tensor, str]:
        """Draft lengths by the estimates, which stand for a while, or a trial of others, and the reason."""
        self._standing = None
        self._read()
        rates, times = self._rates(index, most)
        best = max(range(len(rates)), key=rates.__getitem__)
        held = min(self._gamma, len(rates) - 1)
        if rates[best] < self.MARGIN * rates[held]:
            best = held
        if max(best, held) >= 2 * max(1, min(best, held)):
            self._trials.soon()
        self._confirmed = min(self.LOOKS, self._confirmed + 1) if best == self._gamma else 0
        self._gamma = best
        to_come_s = float((most + 1).sum()) / rates[best]
        tried = self._trials.due(best, len(rates) - 1, to_come_s, lambda g: times[g] * (1 - rates[g] / rates[best]))
        if tried is not None:
            reason = f"trial of gamma {tried}: {rates[tried]:.0f} tok/s expected, {rates[best]:.0f} with {best}"
            return most.clamp_max(tried), reason
        if best == 0:
            second = max(range(1, len(rates)), key=rates.__getitem__, default=0)
            lengths = most.clamp_max(0)
            reason = (
                f"off: {rates[0]:.0f} tok/s expected, at best {rates[second]:.0f} with gamma {second}; "
                f"acceptance {self._acceptance.mean:.2f}"
            )
        else:
            positions = len(index) + float(most.clamp_max(best).sum())
            lengths = self._lengths(index, most, best)
            reason = (
                f"{rates[best]:.0f} tok/s expected, {rates[0]:.0f} without a draft; "
                f"acceptance {self._acceptance.mean:.2f}, {self._costs.explain(best, positions, len(index))}"
            )
        self._standing, self._stands_s = (lengths, reason), self.LOOK_S * self._confirmed
        return lengths, reason

    def _rates(self, index: torch.Tensor, most: torch.Tensor) -> tuple[list[float], list[float]]:
        """Tokens per second expected until the last row ends, and seconds of a cycle, with drafts of up to 0, 1, ..."""
        room = most.numpy(force=True) + 1.0
        longest = min(self._longest, int(room.max()) - 1)
        reach = self._acceptance.reach(index)[:, :longest] * (np.arange(1.0, longest + 1) < room[:, None])
        gammas = np.arange(longest + 1.0)
        drafted = np.minimum(room[:, None] - 1, gammas).mean(axis=0)
        moments, rows = cycles_to_come(reach.mean(axis=0), room)
        present = np.maximum(1.0, rows)  # of less than one, a share of the cycles is counted
        times = self._costs.time_s(gammas[:, None], present * (1 + drafted[:, None]), present)
        correction = np.array([self._correction.at(g) for g in range(longest + 1)])
        times = np.maximum(1e-9, correction[:, None] * times)
        whole_s = np.trapezoid(times * np.minimum(1.0, rows), moments, axis=1)
        return (room.sum() / whole_s).tolist(), times[:, 0].tolist()

    def _lengths(self, index: torch.Tensor, most: torch.Tensor, gamma: int) -> torch.Tensor:
        """Each row drafts as far as one more position earns its share of the time it adds."""
        lengths = most.clamp_max(gamma)
        if len(index) == 1:
            return lengths
        rows, drafted = len(index), float(lengths.sum())
        full = self._costs.time_s(gamma, rows + drafted, rows)
        per_position_s = (full - self._costs.time_s(gamma, rows + 0.5 * drafted, rows)) / max(1.0, 0.5 * drafted)
        reach = self._acceptance.reach(index)[:, :gamma]
        kept = reach * (np.arange(gamma) < lengths.numpy(force=True)[:, None])
        per_token_s = full / (rows + float(kept.sum()))
        worth = np.cumprod(reach * per_token_s >= per_position_s, axis=1).sum(axis=1)
        return torch.minimum(lengths, torch.from_numpy(np.maximum(1, worth)).to(lengths))

    def learn(self, cycle: CycleStats, index: torch.Tensor, lengths: torch.Tensor, accepted: torch.Tensor) -> None:
        self._unread.append((cycle, index, lengths, accepted))
        self._stands_s -= cycle.draft_s + cycle.verify_s

    def _read(self) -> None:
        """Take in the cycles since the latest look."""
        for cycle, index, lengths, accepted in self._unread:
            if self._costs.seen > 1:  # of what was not yet seen, nothing was predicted
                predicted_s = max(1e-9, self._costs.time_s(cycle.gamma, cycle.positions, cycle.rows))
                self._correction.add(cycle.gamma, cycle.draft_s + cycle.verify_s + self._costs.other_s, predicted_s)
            self._costs.add(cycle)
            self._acceptance.add(index, lengths, accepted)
            self._trials.spent(cycle.draft_s + cycle.verify_s)
            if self._gamma == 0 and cycle.drafted and cycle.accepted == cycle.drafted:
                self._trials.soon()  # kept whole: a draft may pay by now
            if cycle.gamma:
                self._knobs.learn(cycle.tokens / max(1e-9, cycle.draft_s + cycle.verify_s) / cycle.rows)
        self._unread = []
