"""Replays a trace through the engine's own placement code, without the model and without a byte moved.

Arena, residency, placement policy and draft selection are those of ``specmoe``; only the link is a ledger that
writes down what it was asked for.  A run recorded with some options and replayed with the same has the same hits
and the same bytes.  Replayed with others it says what they would have cost for the same tokens, which is exact
where routing does not depend on them (a greedy target without a draft) and where the draft stays the same.

Not replayed: the controller, whose decisions depend on the clock, and merged experts.  Prefetch depends on the clock
too; given how many transfers fit beside a draft step it is replayed as an ideal: the most wanted come first, in time.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch

from harness.projection.traces import Geometry, Pass, Trace, TraceError
from specmoe import SpecOptions
from specmoe.drafting.calibration import Calibration
from specmoe.model import pass_state
from specmoe.model.assemble import make_policies
from specmoe.model.pass_state import PassState, prompt_pass
from specmoe.offload.arena import ExpertArena, Key
from specmoe.offload.device import CpuDevice
from specmoe.offload.link import Transfer
from specmoe.offload.placement import Placement
from specmoe.offload.residency import Residency
from specmoe.offload.store import ExpertStore, LayerSpec


@dataclass(frozen=True)
class Visit:
    """One MoE layer of one pass: tokens per expert, ``hits`` in the order computed, ``misses`` as they move.

    A miss may have no token (an expert pinned anew).  In a draft pass ``hits`` are the experts that draft and
    ``covered`` counts the gate's picks that fell on one of them.
    """

    hits: dict[int, int]
    misses: dict[int, int]
    covered: int = 0


@dataclass(frozen=True)
class ReplayedPass:
    """A pass of the trace and what each MoE layer did in it; ``ahead`` experts were prefetched beside it."""

    source: Pass
    visits: list[Visit]
    ahead: int = 0


@dataclass(frozen=True)
class Totals:
    """Counters as the engine keeps them, over the target passes of one phase of one call."""

    requests: int
    hits: int
    moved_bytes: int

    @property
    def hit_rate(self) -> float | None:
        return self.hits / self.requests if self.requests else None


@dataclass
class Replayed:
    """Every pass with its visits, in order."""

    geometry: Geometry
    passes: list[ReplayedPass] = field(default_factory=list)

    def of_call(self, call: int) -> Replayed:
        """One ``generate`` call alone."""
        return Replayed(self.geometry, [p for p in self.passes if p.source.call == call])

    def totals(self, phase: str) -> Totals:
        """Counters of ``prefill`` or ``verify`` passes."""
        visits = [(i, v) for p in self.passes if p.source.phase == phase for i, v in enumerate(p.visits)]
        hits = sum(len(v.hits) for _, v in visits)
        misses = sum(len(v.misses) for _, v in visits)
        moved = sum(len(v.misses) * self.geometry.stride_bytes[i] for i, v in visits)
        return Totals(hits + misses, hits, moved)

    @property
    def coverage(self) -> float:
        """Part of the draft gate's picks that fell on experts that draft; NaN without drafts."""
        drafts = [p for p in self.passes if p.source.phase == "draft"]
        picks = sum(p.source.positions * len(p.visits) * self.geometry.top_k for p in drafts)
        return sum(v.covered for p in drafts for v in p.visits) / picks if picks else float("nan")


class _Ledger:
    """A link that moves nothing: every transfer is written down, and over at once (one object stands for all)."""

    def __init__(self) -> None:
        self.moved: list[Key] = []
        self._over = Transfer(-1, -1, torch.empty(0))
        self._over.finish(None, None)

    def submit(self, layer: int, expert: int, slot: torch.Tensor, ahead: bool = False) -> Transfer:
        self.moved.append((layer, expert))
        return self._over

    def promote(self, transfer: Transfer) -> None:
        pass

    def withdraw(self, transfer: Transfer) -> bool:
        return False

    def wait(self, transfer: Transfer) -> None:
        pass


class _NoMemory(CpuDevice):
    """Slots without memory behind them, so that a budget may be larger than this machine."""

    def allocate(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device="meta")


def replay(
    trace: Trace,
    options: SpecOptions,
    budget_bytes: int,
    counts: list[torch.Tensor] | None = None,
    placement: Placement | None = None,
    ahead_per_step: float | None = None,
) -> Replayed:
    """Run the trace's passes through placement and draft selection.

    Args:
        trace: recorded or synthetic.
        options: those of the run, or others to try on the same tokens.
        budget_bytes: device memory for experts.
        counts: use of each expert ([E] per layer) on calibration prompts, for ``selection="hot-global"``.
        placement: a policy instead of the one the options name, such as a cache with room for transit beside it.
        ahead_per_step: transfers that fit beside one draft step, for an ideal ``prefetch="draft"``.

    Raises:
        TraceError: options whose decisions depend on time or on weights.
        BudgetError: the budget cannot hold the draft experts and one more.
        OptionError: ``hot-global`` without counts.
    """
    _refuse_what_depends_on_time(options, "draft" if ahead_per_step is not None else "none")
    return _Replay(trace, options, budget_bytes, counts, placement, ahead_per_step).run()


def _refuse_what_depends_on_time(options: SpecOptions, prefetch: str) -> None:
    for name, harmless in (("prefetch", prefetch), ("controller", "fixed"), ("merged_experts", 0)):
        if getattr(options, name) != harmless:
            raise TraceError(
                f"{name}={getattr(options, name)!r} cannot be replayed: what it does depends on time or on weights; "
                f"set {name}={harmless!r}"
            )


class _Replay:
    def __init__(
        self,
        trace: Trace,
        options: SpecOptions,
        budget_bytes: int,
        counts: list[torch.Tensor] | None,
        placement: Placement | None,
        ahead_per_step: float | None,
    ) -> None:
        self._trace, self._options = trace, options
        geometry = trace.geometry
        sizes = list(geometry.experts)
        self._ledger = _Ledger()
        arena = ExpertArena(_NoMemory(), geometry.slot_bytes, budget_bytes, geometry.total_experts)
        calibration = Calibration(0, counts, []) if counts is not None else None
        chosen = make_policies(sizes, options, arena, calibration)
        policy = placement or chosen.placement
        self._residency = Residency(_store(geometry), arena, self._ledger, policy)
        self._ahead = None
        if ahead_per_step is not None:
            most = int(options.prefetch_share * budget_bytes) // geometry.slot_bytes
            self._ahead = _Ahead(self._residency, ahead_per_step, most)
        tables = [torch.empty(n, 0) for n in sizes]  # distances say who stands in, which a replay does not ask
        self._state = PassState(options, self._residency, policy, chosen.selection, tables)

    def run(self) -> Replayed:
        result = Replayed(self._trace.geometry)
        for one in self._trace.passes:
            visits = self._draft(one) if one.phase == "draft" else self._target(one)
            ahead = self._ahead.step() if self._ahead is not None and one.phase == "draft" else 0
            result.passes.append(ReplayedPass(one, visits, ahead))
            if one.phase == "verify":
                self._state.count_accepted(one.kept.flatten())
                if self._ahead is not None:
                    self._ahead.end()
        return result

    def _target(self, one: Pass) -> list[Visit]:
        """A prefill or verification, as ``specmoe.model.experts`` runs its layers."""
        if one.phase == "prefill":
            current = prompt_pass(one.valid, self._options)
        else:
            current = pass_state.Pass("target", one.valid.flatten())
        return [self._stream(layer, picks.flatten(0, 1), current) for layer, picks in enumerate(one.picks)]

    def _stream(self, layer: int, index: torch.Tensor, current: pass_state.Pass) -> Visit:
        experts = self._trace.geometry.experts[layer]
        tokens = torch.bincount(index[current.valid].flatten(), minlength=experts).tolist()
        wanted = self._state.target(layer, index, current)
        before = len(self._ledger.moved)
        order = [expert for expert, _ in self._residency.stream(layer, wanted)]
        misses = {expert: tokens[expert] for _, expert in self._ledger.moved[before:]}
        return Visit({e: tokens[e] for e in order if e not in misses}, misses)

    def _draft(self, one: Pass) -> list[Visit]:
        """A draft step: who may draft, and how many picks they cover; it moves nothing."""
        visits = []
        for layer, picks in enumerate(one.picks):
            index = picks[one.valid].flatten()
            drafting = self._state.drafting(layer)
            covered = int(torch.isin(index, torch.tensor(drafting)).sum())
            visits.append(Visit(_spread(drafting, index), {}, covered))
            if self._ahead is not None:
                self._ahead.wanted(layer, index)
        return visits


class _Ahead:
    """Ideal prefetch: beside every draft step the link takes the most wanted absentees, as many as fit.

    Args:
        per_step: transfers that fit beside one step; time that nothing is wanted in is lost.
        most: of one cycle.
    """

    def __init__(self, residency: Residency, per_step: float, most: int) -> None:
        self._residency, self._per_step, self._most = residency, per_step, most
        self._demand: Counter[Key] = Counter()
        self._credit, self._left = 0.0, most

    def wanted(self, layer: int, index: torch.Tensor) -> None:
        """A draft step's gate picked ``index`` (long [n])."""
        for expert in index.tolist():
            self._demand[layer, expert] += 1

    def step(self) -> int:
        """A draft step is over; returns how many experts came beside it."""
        self._credit += self._per_step
        came = 0
        for key, demand in sorted(self._demand.items(), key=lambda item: (-item[1], item[0])):
            if self._residency.slots.holds(*key):
                continue
            if self._credit < 1 or not self._left:
                break
            if self._residency.prefetched.start(key, float(demand), self._demand.__contains__):
                self._credit, self._left, came = self._credit - 1, self._left - 1, came + 1
        self._credit = min(self._credit, 1.0)
        return came

    def end(self) -> None:
        """A verification is over; what it did not ask for is given up."""
        self._residency.prefetched.end()
        self._demand.clear()
        self._credit, self._left = 0.0, self._most


def _spread(drafting: list[int], index: torch.Tensor) -> dict[int, int]:
    """Tokens per drafting expert: its own picks, and an even share of those that it stands in for."""
    picked, counts = index.unique(return_counts=True)
    tokens = dict(zip(picked.tolist(), counts.tolist(), strict=True))
    used = sorted(drafting, key=lambda e: -tokens.get(e, 0))[: len(tokens)]
    missing = sum(n for e, n in tokens.items() if e not in set(used))
    return {e: tokens.get(e, 0) + missing // len(used) + (i < missing % len(used)) for i, e in enumerate(used)}


def _store(geometry: Geometry) -> ExpertStore:
    """Sizes alone: a store whose experts hold no tensors."""
    layers = [
        LayerSpec(i, "", experts, stride, stride, "", (), ())
        for i, (experts, stride) in enumerate(zip(geometry.experts, geometry.stride_bytes, strict=True))
    ]
    return ExpertStore(Path(), torch.uint8, layers, {})
