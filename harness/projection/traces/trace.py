"""A trace in memory: every forward pass of a run with the gate's picks, and what each cycle accepted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal

import torch

Phase = Literal["prefill", "draft", "verify"]
PHASES: tuple[Phase, ...] = ("prefill", "draft", "verify")


class TraceError(ValueError):
    """A trace that cannot be read, recorded or made; the message names cause and mend."""


@dataclass(frozen=True)
class Geometry:
    """The MoE layers of a model: ``experts[i]`` experts of ``stride_bytes[i]`` (whole pages) in layer ``i``."""

    experts: tuple[int, ...]
    stride_bytes: tuple[int, ...]
    top_k: int

    @classmethod
    def even(cls, layers: int, experts: int, top_k: int, expert_bytes: int) -> Geometry:
        """``layers`` MoE layers, all alike."""
        return cls((experts,) * layers, (expert_bytes,) * layers, top_k)

    @property
    def slot_bytes(self) -> int:
        """Bytes of a slot that any expert fits."""
        return max(self.stride_bytes)

    @property
    def total_experts(self) -> int:
        return sum(self.experts)


@dataclass
class Pass:
    """One forward pass.

    Args:
        call: number of the ``generate`` call; a warm-up is a call of its own.
        cycle: number of the cycle within the call; the prefill is cycle 0, the first decode cycle 1.
        step: number of the draft step; 0 in other phases.
        rows: long [B], rows of the request that were in the pass.
        start: long [B], place in its sequence of each row's first token of the pass.
        valid: bool [B, Q]; False is padding, or a row that did not take part in a draft step.
        picks: one long [B, Q, K] per MoE layer, zero where not valid.
        accepted: long [B]; prefill: tokens after the first; other phases: drafted tokens the target kept.
    """

    call: int
    cycle: int
    phase: Phase
    step: int
    rows: torch.Tensor
    start: torch.Tensor
    valid: torch.Tensor
    picks: list[torch.Tensor]
    accepted: torch.Tensor

    @property
    def positions(self) -> int:
        """Tokens that took part."""
        return int(self.valid.sum())

    @property
    def kept(self) -> torch.Tensor:
        """Bool [B, Q]: tokens of the pass whose place in the KV cache stays (draft: whose draft was accepted)."""
        places = torch.arange(self.valid.shape[1])
        last = self.accepted[:, None] - (1 if self.phase == "draft" else 0)
        return (places + self.step <= last) & self.valid


@dataclass
class Trace:
    """A run: geometry, passes in order, and ``meta`` (model, options, seed, what was measured; plain data)."""

    geometry: Geometry
    passes: list[Pass] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def calls(self) -> list[int]:
        """Numbers of the generate calls, in order."""
        return list(dict.fromkeys(p.call for p in self.passes))

    @property
    def target_passes(self) -> list[Pass]:
        """Prefills and verifications."""
        return [p for p in self.passes if p.phase != "draft"]

    def cycles(self, call: int) -> Iterator[tuple[list[Pass], Pass]]:
        """(draft steps, verification) of each decode cycle of a call, in order."""
        decoding = (p for p in self.passes if p.call == call and p.phase != "prefill")
        for _, group in groupby(decoding, key=lambda p: p.cycle):
            *drafts, verify = group
            yield drafts, verify

    def tokens_per_step(self, call: int | None = None) -> float:
        """T(gamma): accepted tokens and the target's own, per row and verification; NaN without a cycle."""
        verifies = [
            p for p in self.passes if p.phase == "verify" and p.call == (self.calls[-1] if call is None else call)
        ]
        rows = sum(len(p.rows) for p in verifies)
        return 1 + sum(int(p.accepted.sum()) for p in verifies) / rows if rows else float("nan")
