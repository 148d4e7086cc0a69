"""Chooses each cycle's draft lengths (0 is off), N and refresh interval from what the run measured so far.

Per cycle with drafts of up to g tokens, over B rows::

    time(g)   = g * t_draft(B) + t_verify(P) + exposed * (bytes(P) - g * early) / link_rate + t_other
    tokens(g) = sum over rows of 1 + a_1 + a_1 a_2 + ... + a_1 .. a_g             a_i kept given all before it

P = B + sum of draft lengths are the positions verified, ``early`` the bytes that a draft step prefetches.  All
of it is estimated online, and the time corrected by what cycles of that g took.  The g is taken that lets the last
row end soonest (`specmoe.horizon`), so with the most tokens per second; rows whose chances are poor draft less.
Now and then a cycle tries half (of two: none) or twice that g, so that the estimates know its surroundings; the
expected loss of trials is held to a share of all time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, overload

import numpy as np
import torch

from specmoe.estimates import Acceptance, Average, Correction, Power, Ratio, Union
from specmoe.horizon import cycles_to_come
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
    """Estimated seconds of a cycle over B rows with drafts of up to g tokens and P positions verified.

    Args:
        expert_bytes: of one expert, the grain of transfers.
        absent_bytes: of all experts that the device cannot hold, about the most that a pass moves.
    """

    def __init__(self, expert_bytes: int, absent_bytes: float) -> None:
        self._draft_step_s = Power(prior_exponent=0.4)
        self._verify_s = Power(prior_exponent=0.6)
        self._moved = Union(absent_bytes, floor=float(expert_bytes))
        self._early_bytes = Average()
        self._rate = Ratio()
        self._exposed = (Ratio(), Ratio())  # of link time, without a draft and with one
        self._other_s = Average()
        self._before: CycleStats | None = None
        self.seen = 0
        """Cycles added."""

    def add(self, cycle: CycleStats) -> None:
        if self._before is not None:  # what a cycle needs beside draft and verification is known when it is over
            self._other_s.add(self._before.other_s)
        self._before = cycle
        self.seen += 1
        if cycle.gamma:
            self._draft_step_s.add(max(1, cycle.drafted) / cycle.gamma, cycle.draft_s / cycle.gamma)
            self._early_bytes.add(cycle.early_bytes / cycle.gamma)
        self._verify_s.add(cycle.positions, max(0.0, cycle.verify_s - cycle.wait_s))
        self._moved.add(cycle.positions, cycle.moved_bytes)
        self._rate.add(cycle.moved_bytes, cycle.busy_s)
        late_s = cycle.busy_s * max(0.0, 1 - cycle.early_bytes / max(1, cycle.moved_bytes))
        self._exposed[cycle.gamma > 0].add(min(cycle.wait_s, late_s), late_s)

    @overload
    def time_s(self, gamma: float, positions: float, rows: float) -> float: ...
    @overload
    def time_s(self, gamma: np.ndarray, positions: np.ndarray, rows: np.ndarray) -> np.ndarray: ...
    def time_s(
        self, gamma: float | np.ndarray, positions: float | np.ndarray, rows: float | np.ndarray
    ) -> float | np.ndarray:
        """Predicted duration of a cycle, or of many (arrays that broadcast)."""
        late_bytes = np.maximum(0.0, self._moved.at(positions) - gamma * (self._early_bytes.value or 0.0))
        moved_s = late_bytes / self._rate.value if self._rate.value else 0.0
        exposed = np.where(np.asarray(gamma) > 0, self._exposure(True), self._exposure(False))
        draft_s = gamma * self._step_s(gamma, positions, rows)
        return draft_s + self._verify_s.at(positions) + exposed * moved_s + self.other_s

    def _exposure(self, drafting: bool) -> float:
        """Share of the link's time that a cycle waits for: more positions and a queue filled early hide more of it."""
        seen = [e.value for e in (self._exposed[drafting], self._exposed[not drafting]) if e.value is not None]
        return seen[0] if seen else 1.0

    def _step_s(
        self, gamma: float | np.ndarray, positions: float | np.ndarray, rows: float | np.ndarray
    ) -> float | np.ndarray:
        """One of ``gamma`` draft steps, of which not every row takes part in each."""
        if not self._draft_step_s.seen:  # like verifying one position per row, without its waits
            return self._verify_s.at(rows)
        return self._draft_step_s.at(np.maximum(1.0, (positions - rows) / np.maximum(1.0, gamma)))

    @property
    def other_s(self) -> float:
        """What a cycle takes beside drafting and verification."""
        return self._other_s.value or 0.0

    def explain(self, gamma: int, positions: float, rows: int) -> str:
        step_ms = 1e3 * self._step_s(gamma, positions, rows)
        verify_ms, moved_mb = 1e3 * self._verify_s.at(positions), self._moved.at(positions) / 1e6
        return f"draft {step_ms:.1f} ms/token, verify {verify_ms:.1f} ms, {moved_mb:.1f} MB"


class Trials:
    """When to try another gamma than the best known: rarely, and only while it costs next to nothing.

    A trial's expected loss is paid from an allowance of ``SHARE`` of all time; between two lie at least so many
    cycles, twice as many each time nothing came of it.
    """

    SHARE = 0.02
    FEWEST, MOST = 4, 64

    def __init__(self) -> None:
        self._allowance_s = 0.0
        self._gap = self._in = self.FEWEST
        self._longer = False

    def passed(self) -> None:
        """A cycle begins."""
        self._in -= 1

    def spent(self, seconds: float) -> None:
        """A cycle took so long."""
        self._allowance_s += self.SHARE * seconds

    def soon(self) -> None:
        """Something changed: what is known of other gammas is old."""
        self._gap = self.FEWEST
        self._in = min(self._in, self._gap)

    def due(self, gamma: int, longest: int, loss_s: Callable[[int], float]) -> int | None:
        """A gamma to try for one cycle instead of ``gamma``, up to ``longest``; ``loss_s(g)`` is what it may cost."""
        if self._in > 0 or longest < 1:
            return None
        longer = gamma == 0 or (not self._longer and gamma < longest)
        tried = min(longest, 2 * max(1, gamma)) if longer else gamma // 2 if gamma > 2 else 0
        loss = max(0.0, loss_s(tried))
        if loss > self._allowance_s:
            return None
        self._allowance_s -= loss
        self._longer = longer
        self._gap = min(self.MOST, 2 * self._gap)
        self._in = self._gap
        return tried


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

    def choose(self, index: torch.Tensor, most: torch.Tensor) -> Setting:
        self._cycle += 1
        self._trials.passed()
        if self._cycle <= 2:
            lengths, why = self._finding_out(most)
        else:
            lengths, why = self._stands(len(index)) or self._weighed(index, most)
            lengths = torch.minimum(lengths, most)
        experts, interval = self._knobs.draft_experts, self._knobs.refresh_interval
        if not int(lengths.max()):
            idle = self.SHRUNK_INTERVAL if self._shrinks else self.IDLE_INTERVAL
            experts, interval = 1 if self._shrinks else experts, max(interval, idle)
        return Setting(lengths, experts, interval, why)

    def _finding_out(self, most: torch.Tensor) -> tuple[torch.Tensor, str]:
        """One cycle of each kind tells what both cost."""
        gamma = min(2, self._longest) if self._cycle == 1 else 0
        return most.clamp_max(gamma), f"finding out what a cycle {'with' if gamma else 'without'} a draft costs"

    def _stands(self, rows: int) -> tuple[torch.Tensor, str] | None:
        """The latest choice, while it is young and of the same rows."""
        if self._standing is None or self._stands_s <= 0 or len(self._standing[0]) != rows:
            return None
        return self._standing

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
        tried = self._trials.due(best, len(rates) - 1, lambda g: times[g] * (1 - rates[g] / rates[best]))
        if tried is not None:
            why = f"trial of gamma {tried}: {rates[tried]:.0f} tok/s expected, {rates[best]:.0f} with {best}"
            return most.clamp_max(tried), why
        if best == 0:
            second = max(range(1, len(rates)), key=rates.__getitem__, default=0)
            lengths, why = (
                most.clamp_max(0),
                (
                    f"off: {rates[0]:.0f} tok/s expected, at best {rates[second]:.0f} with gamma {second}; "
                    f"acceptance {self._acceptance.mean:.2f}"
                ),
            )
        else:
            positions = len(index) + float(most.clamp_max(best).sum())
            lengths, why = (
                self._lengths(index, most, best),
                (
                    f"{rates[best]:.0f} tok/s expected, {rates[0]:.0f} without a draft; "
                    f"acceptance {self._acceptance.mean:.2f}, {self._costs.explain(best, positions, len(index))}"
                ),
            )
        self._standing, self._stands_s = (lengths, why), self.LOOK_S * self._confirmed
        return lengths, why

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
