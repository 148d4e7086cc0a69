"""Replays a trace through the engine's own placement code, without the model and without moving bytes.

Arena, residency, placement policy and draft selection are those of ``specmoe``; only the link is replaced, by one that
lists the transfers.  Replayed with the options it was recorded with, a run has the same hits and bytes.  Replayed with
other options, it shows their hits and bytes for the same tokens: exactly, if routing does not depend on the options (a
greedy target without drafts) or the draft stays the same.

Not replayed: merged experts, and the controller, whose decisions depend on the clock.  Prefetch depends on the clock
too, so it is replayed as an ideal prefetch (``ideal_prefetch``), given how many transfers fit in a draft step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from harness.projection.ideal_prefetch import IdealPrefetch
from harness.projection.traces import Geometry, Pass, Trace, TraceError
from specmoe import SpecOptions
from specmoe.drafting.calibration import Calibration
from specmoe.model import pass_state
from specmoe.model.assemble import make_policies
from specmoe.model.pass_state import PassState, prompt_pass
from specmoe.offload.arena import ExpertArena, Key
from specmoe.offload.device import CpuDevice
from specmoe.offload.placement import Placement
from specmoe.offload.residency import Residency
from specmoe.offload.store import ExpertStore, LayerSpec
from specmoe.offload.transfers import Transfer


@dataclass(frozen=True)
class Visit:
    """One MoE layer of one pass: tokens per expert, ``hits`` in compute order, ``misses`` in transfer order.

    A miss without tokens is a newly pinned expert.  In a draft pass ``hits`` are the draft experts and ``covered``
    counts the gate's picks among them.
    """

    hits: dict[int, int]
    misses: dict[int, int]
    covered: int = 0


@dataclass(frozen=True)
class ReplayedPass:
    """A pass of the trace with its visits, one per MoE layer; ``ahead`` experts were prefetched during it."""

    source: Pass
    visits: list[Visit]
    ahead: int = 0


@dataclass(frozen=True)
class Totals:
    """The engine's counters over the target passes of a phase."""

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
        """The passes of one ``generate`` call."""
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
        """Share of the draft gate's picks that are draft experts; NaN without drafts."""
        drafts = [p for p in self.passes if p.source.phase == "draft"]
        picks = sum(p.source.tokens * len(p.visits) * self.geometry.top_k for p in drafts)
        return sum(v.covered for p in drafts for v in p.visits) / picks if picks else float("nan")


class _TransferLog:
    """A link that moves nothing: it lists the transfers, each of which is finished at once (one shared object)."""

    def __init__(self) -> None:
        self.moved: list[Key] = []
        self._over = Transfer(-1, -1, torch.empty(0))
        self._over.finish()

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
    """Allocates slots without memory, so that the budget may exceed this machine's memory."""

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
    """Replay the passes of a trace through placement and draft selection.

    Args:
        trace: recorded or synthetic.
        options: those of the recorded run, or others.
        budget_bytes: device memory for experts.
        counts: use of each expert ([E] per layer) on calibration prompts, for ``selection="hot-global"``.
        placement: a policy that replaces the one in the options.
        ahead_per_step: transfers that fit in one draft step, for an ideal ``prefetch="draft"``.

    Raises:
        TraceError: options that depend on time or weights.
        BudgetError: the budget cannot hold the draft experts and one more.
        OptionError: ``hot-global`` without counts.
    """
    _check_replayable(options, "draft" if ahead_per_step is not None else "none")
    return _Replay(trace, options, budget_bytes, counts, placement, ahead_per_step).run()


def _check_replayable(options: SpecOptions, prefetch: str) -> None:
    for name, harmless in (("prefetch", prefetch), ("controller", "fixed"), ("merged_experts", 0)):
        if getattr(options, name) != harmless:
            raise TraceError(
                f"{name}={getattr(options, name)!r} cannot be replayed, since it depends on time or weights: "
                f"set {name}={harmless!r}"
            )


class _Replay:
    """The engine's placement objects over a transfer log, and the state of a replay."""

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
        self._log = _TransferLog()
        arena = ExpertArena(_NoMemory(), geometry.slot_bytes, budget_bytes, geometry.total_experts)
        calibration = Calibration(0, counts, []) if counts is not None else None
        chosen = make_policies(sizes, options, arena, calibration)
        policy = placement or chosen.placement
        self._residency = Residency(_store(geometry), arena, self._log, policy)
        self._prefetch = None
        if ahead_per_step is not None:
            most = int(options.prefetch_share * budget_bytes) // geometry.slot_bytes
            self._prefetch = IdealPrefetch(self._residency, ahead_per_step, most)
        tables = [torch.empty(n, 0) for n in sizes]  # no distances: a replay does not need the substitutes
        self._state = PassState(options, self._residency, policy, chosen.selection, tables)

    def run(self) -> Replayed:
        result = Replayed(self._trace.geometry)
        for one in self._trace.passes:
            visits = self._draft(one) if one.phase == "draft" else self._target(one)
            ahead = self._prefetch.step() if self._prefetch is not None and one.phase == "draft" else 0
            result.passes.append(ReplayedPass(one, visits, ahead))
            if one.phase == "verify":
                self._state.count_accepted(one.kept.flatten())
                if self._prefetch is not None:
                    self._prefetch.end()
        return result

    def _target(self, one: Pass) -> list[Visit]:
        """A prefill or verification, layer by layer as in ``specmoe.model.experts``."""
        if one.phase == "prefill":
            current = prompt_pass(one.valid, self._options)
        else:
            current = pass_state.Pass("target", one.valid.flatten())
        return [self._stream(layer, picks.flatten(0, 1), current) for layer, picks in enumerate(one.picks)]

    def _stream(self, layer: int, index: torch.Tensor, current: pass_state.Pass) -> Visit:
        experts = self._trace.geometry.experts[layer]
        tokens = torch.bincount(index[current.valid].flatten(), minlength=experts).tolist()
        wanted = self._state.target(layer, index, current)
        before = len(self._log.moved)
        order = [expert for expert, _ in self._residency.stream(layer, wanted)]
        misses = {expert: tokens[expert] for _, expert in self._log.moved[before:]}
        return Visit({e: tokens[e] for e in order if e not in misses}, misses)

    def _draft(self, one: Pass) -> list[Visit]:
        """A draft step, which moves nothing: the draft experts, and how many picks they cover."""
        visits = []
        for layer, picks in enumerate(one.picks):
            index = picks[one.valid].flatten()
            drafting = self._state.drafting(layer)
            covered = int(torch.isin(index, torch.tensor(drafting)).sum())
            visits.append(Visit(_spread(drafting, index), {}, covered))
            if self._prefetch is not None:
                self._prefetch.wanted(layer, index)
        return visits


def _spread(drafting: list[int], index: torch.Tensor) -> dict[int, int]:
    """Tokens per draft expert: those that picked it, and an even share of those whose picks are substituted."""
    picked, counts = index.unique(return_counts=True)
    tokens = dict(zip(picked.tolist(), counts.tolist(), strict=True))
    used = sorted(drafting, key=lambda e: -tokens.get(e, 0))[: len(tokens)]
    missing = sum(n for e, n in tokens.items() if e not in set(used))
    return {e: tokens.get(e, 0) + missing // len(used) + (i < missing % len(used)) for i, e in enumerate(used)}


def _store(geometry: Geometry) -> ExpertStore:
    """A store with the sizes of the experts and no tensors."""
    layers = [
        LayerSpec(i, "", experts, stride, stride, "", (), ())
        for i, (experts, stride) in enumerate(zip(geometry.experts, geometry.stride_bytes, strict=True))
    ]
    return ExpertStore(Path(), torch.uint8, layers, {})
