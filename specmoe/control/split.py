"""Splits the expert budget between full slots and low-bit copies, by the speed expected of each draft.

A pass over n tokens asks for expert e with probability ``1 - (1 - p_e)^n``, p_e from the calibration; the most used
experts are on the device.  With drafts of g tokens in B rows and agreement a::

    draft(g)  = g * (outside the experts + experts that draft, each read once a step)
    verify(g) = outside the experts + experts that B (g + 1) tokens ask for + missing ones over the link, less what the
                draft hides - what of both happens at the same time
    rate(g)   = B * LENGTH / (cycles until the last row ends * (draft(g) + verify(g)) with their mean number of rows)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from specmoe.control.costs import cycles_to_come
from specmoe.drafting.agreement import Agreement

DEFAULT_ROWS = 8
"""Rows that a split is made for when the caller expects no number: a split for few rows loses most with many."""
LENGTH = 64
"""New tokens of a row that a split is made for: long drafts spread the ends of rows, which counts in short texts."""
OVERLAP = 0.8
"""Share of a pass's computation of experts that can happen during transfers: each layer waits for its last ones."""
LOAD = 0.25
"""Seconds by which a second of transfers slows computation: the link's thread needs a core, and its bytes memory."""
LAYER_S = 3e-4
"""Seconds of a layer in any pass beyond the parts that are timed, each by itself: between them threads fall asleep."""
MARGIN = 1.1
"""A draft that needs more than the one before must promise this many times its speed."""
FEWEST_SLOTS = 2
"""Full slots that copies leave: one is filled while the other is in use."""

Draft = Literal["none", "resident", "low-bit"]


@dataclass(frozen=True)
class Cost:
    """Seconds of something that takes ``first_s`` for one token and ``more_s`` for each further one."""

    first_s: float
    more_s: float

    def at(self, tokens: float, things: float = 1.0) -> float:
        """Of ``things`` such things with ``tokens`` tokens in all, at least one each."""
        return things * self.first_s + max(0.0, tokens - things) * self.more_s


@dataclass(frozen=True)
class Rates:
    """What passes cost on this machine: ``outside`` the experts (attention, router, head), an expert with all its
    bits, and a copy of it by bits."""

    link_bytes_s: float
    outside: Cost
    full: Cost
    packed: Mapping[int, Cost]


@dataclass(frozen=True)
class Memory:
    """What the budget may hold: ``slot_bytes`` of a full expert, ``copies_bytes`` of copies of all, by bits offered."""

    budget_bytes: int
    slot_bytes: int
    copies_bytes: Mapping[int, int]


@dataclass(frozen=True)
class Demand:
    """``chances`` (float64 [experts of all ``layers``]) that a token picks an expert; ``rows`` decode together and
    draft at most ``longest`` tokens.  ``ahead_bytes``: most that a draft prefetches."""

    chances: np.ndarray
    layers: int
    rows: int
    longest: int
    ahead_bytes: int = 0


@dataclass(frozen=True)
class Plan:
    """One way to use the budget, at its best draft length ``gamma``, with what is expected of it.

    ``draft_step_s`` is that of all ``rows``; ``verify_s`` (positions, seconds) without a draft and after the longest.
    """

    draft: Draft
    bits: int | None
    slots: int
    copies_bytes: int
    gamma: int
    agreement: float
    tok_s: float
    rows: int
    draft_step_s: float
    verify_s: tuple[tuple[int, float], ...]

    def __str__(self) -> str:
        if self.draft == "none":
            return f"no draft: {self.tok_s:.0f} tok/s"
        kind = f"{self.bits}-bit copies" if self.draft == "low-bit" else "residents draft"
        return f"{kind}: {self.tok_s:.0f} tok/s at gamma {self.gamma} (agreement {self.agreement:.2f})"


@dataclass(frozen=True)
class Split:
    """The plan chosen, the others that fit, and the reason as text."""

    chosen: Plan
    others: tuple[Plan, ...]
    reason: str

    @property
    def drafting(self) -> Plan:
        """The plan of the draft that cycles may use: where none is expected to pay, that of the residents."""
        return next(plan for plan in (self.chosen, *self.others) if plan.draft != "none")


def chances(counts: Sequence[np.ndarray] | None, experts: Sequence[int], picks: Sequence[float]) -> np.ndarray:
    """Probability that a token picks an expert, float64 [experts of all layers].

    Args:
        counts: how often a calibration saw each expert picked, [E] by MoE layer; None: all alike.
        experts: number of experts by layer.
        picks: of a token, by layer; 0 for a layer that does not take part in decoding.
    """
    shares = [np.ones(n) for n in experts] if counts is None else [c.astype(np.float64) for c in counts]
    return np.concatenate([np.minimum(1.0, k * s / max(1e-9, s.sum())) for s, k in zip(shares, picks, strict=True)])


def choose(demand: Demand, memory: Memory, rates: Rates, agreement: Agreement) -> Split:
    """The plan of the highest expected speed; one that needs more must promise ``MARGIN`` times the speed."""
    plans = list(_plans(demand, memory, rates, agreement))
    chosen = plans[0]
    for plan in plans[1:]:
        if plan.tok_s > chosen.tok_s * (1.0 if plan.draft == chosen.draft else MARGIN):
            chosen = plan
    too_large = [bits for bits in memory.copies_bytes if bits not in {plan.bits for plan in plans}]
    others = tuple(plan for plan in plans if plan is not chosen)
    held = f" beside {chosen.copies_bytes / 1e6:.0f} MB of copies" if chosen.copies_bytes else ""
    parts = [
        f"{chosen}, {chosen.slots} full slots{held}",
        *map(str, others),
        *(f"{bits}-bit copies do not fit" for bits in too_large),
        f"expected for {demand.rows} rows with a link of {rates.link_bytes_s / 1e9:.2f} GB/s",
        f"agreement {agreement.origin}",
    ]
    return Split(chosen, others, "; ".join(parts))


def _plans(demand: Demand, memory: Memory, rates: Rates, agreement: Agreement) -> Iterator[Plan]:
    experts = len(demand.chances)
    slots = min(experts, memory.budget_bytes // memory.slot_bytes)
    model = _Model(demand, memory.slot_bytes, rates, slots)
    yield model.plan("none", None, 0, 0.0, lambda rows: 0.0, longest=0)
    residents = agreement.of_residents(slots / experts)
    yield model.plan("resident", None, 0, residents, model.residents_step_s, demand.longest)
    for bits, copies_bytes in sorted(memory.copies_bytes.items()):
        slots = min(experts, (memory.budget_bytes - copies_bytes) // memory.slot_bytes)
        if slots >= FEWEST_SLOTS and bits in agreement.by_bits and bits in rates.packed:
            model = _Model(demand, memory.slot_bytes, rates, slots)
            step_s = partial(model.step_s, demand.chances, rates.packed[bits])
            yield model.plan("low-bit", bits, copies_bytes, agreement.by_bits[bits], step_s, demand.longest)


class _Model:
    """Times of passes with the ``slots`` most used experts on the device."""

    def __init__(self, demand: Demand, slot_bytes: int, rates: Rates, slots: int) -> None:
        self._demand, self._slot_bytes, self._rates, self._slots = demand, slot_bytes, rates, slots
        ordered = np.sort(demand.chances)[::-1]
        self._hot, self._cold = ordered[:slots], ordered[slots:]
        self._picks = float(demand.chances.sum())  # of a token, over all layers

    def step_s(self, chances: np.ndarray, expert: Cost, rows: float) -> float:
        """A draft step of ``rows`` rows with experts picked by ``chances``."""
        return self._outside_s(rows) + expert.at(rows * self._picks, asked_for(chances, rows))

    def residents_step_s(self, rows: float) -> float:
        """The experts on the device take the picks of all."""
        share = float(self._hot.sum()) / max(self._picks, 1e-9)
        return self.step_s(np.minimum(1.0, self._hot / max(share, 1e-9)), self._rates.full, rows)

    def verify_s(self, tokens: float, drafting_s: float) -> float:
        """A target pass over ``tokens`` after ``drafting_s`` of draft steps, in which the link already works for it.

        What that slows the draft is counted here.
        """
        missing = asked_for(self._cold, tokens)
        link_s = missing * self._slot_bytes / self._rates.link_bytes_s
        ahead_bytes = min(self._demand.ahead_bytes, self._slots * self._slot_bytes // 2)
        ahead_s = min(link_s, drafting_s, ahead_bytes / self._rates.link_bytes_s)
        link_s -= ahead_s
        experts_s = LOAD * link_s + self._rates.full.at(tokens * self._picks, asked_for(self._hot, tokens) + missing)
        waiting = -math.expm1(-missing / self._demand.layers)  # share of layers that wait at all
        overlap_s = min(link_s, OVERLAP * experts_s) * waiting
        return self._outside_s(tokens) + LOAD * ahead_s + experts_s + link_s - overlap_s

    def _outside_s(self, tokens: float) -> float:
        return self._rates.outside.at(tokens) + LAYER_S * self._demand.layers

    def plan(
        self,
        draft: Draft,
        bits: int | None,
        copies_bytes: int,
        agreement: float,
        step_s: Callable[[float], float],
        longest: int,
    ) -> Plan:
        """The draft of this kind at the length of the highest rate, of 1 to ``longest`` tokens (0 without drafts).

        ``step_s``: of a draft step, by its number of rows.
        """
        rows, now_s = self._demand.rows, step_s(self._demand.rows)
        by_gamma = {}
        for gamma in range(min(1, longest), longest + 1):
            reach = agreement ** np.arange(1.0, gamma + 1)
            cycles, mean_rows = (float(found[-1]) for found in cycles_to_come(reach, np.full(rows, float(LENGTH))))
            drafting_s = gamma * step_s(mean_rows)
            cycle_s = drafting_s + self.verify_s(mean_rows * (gamma + 1), drafting_s)
            by_gamma[gamma] = rows * LENGTH / (cycles * cycle_s)
        gamma = max(by_gamma, key=lambda g: by_gamma[g])
        verify_s = tuple((rows * (g + 1), self.verify_s(rows * (g + 1), g * now_s)) for g in {0, gamma, longest})
        tok_s = by_gamma[gamma]
        return Plan(draft, bits, self._slots, copies_bytes, gamma, agreement, tok_s, rows, now_s, verify_s)


def asked_for(chances: np.ndarray, tokens: float) -> float:
    """Expected number of distinct experts that ``tokens`` tokens pick."""
    return float((1 - (1 - chances) ** tokens).sum())
