"""Simulated machines for the controller: their own costs and luck, and no clock but the cycles they hand back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from specmoe.control.controller import Controller, CycleChoice
from specmoe.stats import CycleStats

EXPERT_BYTES = 1_000_000
LONGEST = 10
"""Of `Machine`."""

DECISION_S = 0.0007
"""Python time of one decision of the controller (batch 1, caches cold)."""


@dataclass
class Machine:
    """Costs of a cycle in seconds, and how often each row's draft tokens are kept.

    P positions pick 2 of ``union`` experts each; every distinct one is 1 MB and crosses the link.
    """

    acceptance: list[float]
    draft_step_s: float = 0.002
    verify_s: float = 0.01
    position_s: float = 0.0002
    link_bytes_s: float = 1e9
    union: int = 64
    room: int = 10**6
    seed: int = 0
    cycles: list[CycleStats] = field(default_factory=list)
    choices: list[CycleChoice] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(self.seed)
        self._rates = torch.tensor(self.acceptance)

    @property
    def rows(self) -> int:
        return len(self.acceptance)

    def moved_bytes(self, positions: int) -> int:
        return round(self.union * (1 - (1 - 2 / self.union) ** positions) * EXPERT_BYTES)

    def time_s(self, gamma: int, positions: int) -> float:
        wait_s = self.moved_bytes(positions) / self.link_bytes_s
        return gamma * self.draft_step_s + self.verify_s + positions * self.position_s + wait_s

    def expected(self, lengths: torch.Tensor) -> float:
        """Tokens that a cycle gives on average."""
        powers = self._rates[:, None] ** torch.arange(1, LONGEST + 1)
        return self.rows + float((powers * (torch.arange(LONGEST) < lengths[:, None])).sum())

    def best_fixed(self) -> float:
        """Tokens per second of the best single gamma."""
        return max(self.rate_of(g) for g in range(LONGEST + 1))

    def rate_of(self, gamma: int) -> float:
        lengths = torch.full((self.rows,), gamma)
        return self.expected(lengths) / self.time_s(gamma, self.rows * (gamma + 1))

    def run(self, controller: Controller, cycles: int) -> float:
        """Tokens per second over some cycles; luck is drawn for the controller, tokens counted as expected."""
        most = torch.full((self.rows,), self.room)
        seconds = tokens = 0.0
        for _ in range(cycles):
            choice = controller.choose(most)
            lengths = choice.lengths
            kept = torch.rand(self.rows, LONGEST, generator=self._generator) < self._rates[:, None]
            kept &= torch.arange(LONGEST) < lengths[:, None]
            accepted = kept.long().cumprod(dim=1).sum(dim=1)
            cycle = self.cycle(choice, accepted)
            controller.learn(cycle, lengths, accepted)
            self.choices.append(choice)
            self.cycles.append(cycle)
            seconds += cycle.total_s
            tokens += self.expected(lengths)
        return tokens / seconds

    def cycle(self, choice: CycleChoice, accepted: torch.Tensor) -> CycleStats:
        gamma, positions = int(choice.lengths.max()), self.rows + int(choice.lengths.sum())
        moved = self.moved_bytes(positions)
        wait_s = moved / self.link_bytes_s
        return CycleStats(
            gamma,
            choice.draft_experts,
            choice.refresh_interval,
            self.rows,
            positions=positions,
            drafted=int(choice.lengths.sum()),
            accepted=int(accepted.sum()),
            tokens=self.rows + int(accepted.sum()),
            moved_bytes=moved,
            draft_s=gamma * self.draft_step_s,
            verify_s=self.time_s(0, positions),
            wait_s=wait_s,
            busy_s=wait_s,
        )

    def gammas(self, last: int) -> list[int]:
        return [c.gamma for c in self.cycles[-last:]]


@dataclass
class Request:
    """A batch that decodes ``tokens`` tokens a row on some machine, until the last row has ended.

    ``chance[b, i]`` is the probability that row b keeps its draft token i, given that it kept those before.
    """

    chance: np.ndarray  # float64 [B, longest]
    tokens: int
    cycle: Callable[[np.random.Generator, int, int, int, float], CycleStats]
    """What a cycle costs: (generator, gamma, drafted, rows, share of the request that is done)."""
    late_chance: np.ndarray | None = None
    """``chance`` in the second half of the request, where it changes."""

    @property
    def longest(self) -> int:
        return self.chance.shape[1]

    def seconds(self, controller: Controller, seed: int, decision_s: float = DECISION_S) -> float:
        """Duration of the request; ``decision_s`` is charged for every decision that it counts in ``decisions``."""
        generator = np.random.default_rng(seed)
        rows, places = len(self.chance), np.arange(self.longest)
        remaining, index = np.full(rows, self.tokens), np.arange(rows)
        seconds, refresh_due = 0.0, 0
        while len(index):
            decisions = getattr(controller, "decisions", 0)
            choice = controller.choose(torch.from_numpy(remaining[index] - 1))
            lengths = choice.lengths.numpy(force=True)
            done = 1 - float(remaining.sum()) / (rows * self.tokens)
            chance = self.chance if self.late_chance is None or done < 0.5 else self.late_chance
            kept = (generator.random((len(index), self.longest)) < chance[index]) & (places < lengths[:, None])
            accepted = kept.cumprod(axis=1).sum(axis=1)
            cycle = self.cycle(generator, int(lengths.max()), int(lengths.sum()), len(index), done)
            cycle.accepted, cycle.tokens = int(accepted.sum()), len(index) + int(accepted.sum())
            refresh_due -= 1
            if refresh_due <= 0 and (cycle.refresh_s or cycle.gamma):
                refresh_due = choice.refresh_interval
                cycle.verify_s += cycle.refresh_s
            cycle.other_s += decision_s * (getattr(controller, "decisions", 0) - decisions)
            controller.learn(cycle, choice.lengths, torch.from_numpy(accepted))
            seconds += cycle.total_s
            remaining[index] -= accepted + 1
            index = index[remaining[index] > 0]
        return seconds


class FixedGamma:
    """One gamma for every cycle; without a draft there is no draft set to refresh."""

    def __init__(self, gamma: int) -> None:
        self._gamma = gamma

    def choose(self, most: torch.Tensor) -> CycleChoice:
        return CycleChoice(most.clamp_max(self._gamma), 8, 1 if self._gamma else 10**9, "fixed")

    def learn(self, *_: Any) -> None:
        pass


def _chance(rate: float, rows: int, longest: int, spread: float, seed: int = 0) -> np.ndarray:
    """Rows whose chances scatter by ``spread`` (a standard deviation of the logit) about ``rate``."""
    scatter = spread * np.random.default_rng(seed).standard_normal(rows)
    logit = math.log(rate / (1 - rate)) + scatter - scatter.mean()
    return np.repeat(1 / (1 + np.exp(-logit))[:, None], longest, axis=1)


# Two models, three budgets, three batches, two links


@dataclass(frozen=True)
class Geometry:
    layers: int
    experts: int
    top_k: int
    expert_bytes: int
    pass_s: float  # of one position


GEOMETRIES = {
    "embedded-x8": Geometry(6, 64, 2, 983_040, 0.0075),
    "embedded-x32": Geometry(6, 64, 2, 3_932_160, 0.012),
}
BUDGETS = {5: 0.6, 20: 0.85, 60: 0.97}
"""Acceptance by budget in percent: larger draft sets guess better."""


@dataclass(frozen=True)
class Costs:
    geometry: Geometry
    budget: float  # share of experts on the device
    link_bytes_s: float
    late_link_bytes_s: float | None = None
    noise: float = 0.12

    @property
    def absent_bytes(self) -> float:
        g = self.geometry
        return g.layers * g.experts * (1 - self.budget) * g.expert_bytes

    def __call__(self, generator: np.random.Generator, gamma: int, drafted: int, rows: int, done: float) -> CycleStats:
        g, positions = self.geometry, rows + drafted
        compute_noise, byte_noise = np.exp(self.noise * generator.standard_normal(2) * (1.0, 1.5))
        moved = self.absent_bytes * min(1.0, byte_noise * (1 - (1 - g.top_k / g.experts) ** positions))
        early = min(0.6 * moved, 1.5 * g.expert_bytes * gamma)
        rate = self.late_link_bytes_s if self.late_link_bytes_s and done >= 0.5 else self.link_bytes_s
        compute_s = g.pass_s * positions**0.55 * compute_noise
        late_s = (moved - early) / rate
        wait_s = max(0.3 * late_s, late_s - 0.6 * compute_s)
        per_step = drafted / gamma if gamma else 0.0
        return CycleStats(
            gamma, 8, 1, rows, positions=positions, drafted=drafted, moved_bytes=round(moved), early_bytes=round(early),
            draft_s=gamma * 0.9 * g.pass_s * per_step**0.4 * compute_noise, verify_s=compute_s + wait_s, wait_s=wait_s,
            busy_s=moved / rate, refresh_s=0.0008, other_s=0.0004,
        )  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """A request that is repeated with several seeds; what the engine tells the controller about the model."""

    name: str
    requests: tuple[Request, ...]  # seed s runs requests[s % len]
    expert_bytes: int
    absent_bytes: float


def grid_cells() -> Iterator[Cell]:
    for model, geometry in GEOMETRIES.items():
        for percent, rate in BUDGETS.items():
            for rows in (1, 16, 128):
                for link, rate_bytes_s in (("cheap", 1.2e10), ("dear", 1.5e9)):
                    costs = Costs(geometry, percent / 100, rate_bytes_s)
                    request = Request(_chance(rate, rows, 16, 1.0), 64, costs)
                    name = f"{model} {percent} % batch {rows} {link} link"
                    yield Cell(name, (request,), geometry.expert_bytes, costs.absent_bytes)


def drift_cells() -> Iterator[Cell]:
    geometry = GEOMETRIES["embedded-x32"]
    for rows in (1, 16):
        for name, rates, links in (
            ("acceptance rises", (0.1, 0.95), (1.5e9, 1.5e9)),
            ("acceptance falls", (0.95, 0.1), (1.5e9, 1.5e9)),
            ("link slows down", (0.8, 0.8), (1.2e10, 5e8)),
            ("link speeds up", (0.8, 0.8), (5e8, 1.2e10)),
        ):
            costs = Costs(geometry, 0.2, links[0], links[1])
            first, late = (_chance(rate, rows, 16, 0.5) for rate in rates)
            request = Request(first, 256, costs, late)
            yield Cell(f"{name}, batch {rows}", (request,), geometry.expert_bytes, costs.absent_bytes)
