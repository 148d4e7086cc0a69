"""A trace in memory: every forward pass of a run with the experts picked, and the tokens each cycle accepted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal

import torch

Phase = Literal["prefill", "draft", "verify"]
PHASES: tuple[Phase, ...] = ("prefill", "draft", "verify")


class TraceError(ValueError):
    """A trace cannot be read, recorded or made; the message gives cause and fix."""


@dataclass(frozen=True)
class Geometry:
    """The MoE layers of a model: ``experts[i]`` experts of ``stride_bytes[i]`` (whole pages) in layer ``i``."""

    experts: tuple[int, ...]
    stride_bytes: tuple[int, ...]
    top_k: int

    @classmethod
    def even(cls, layers: int, experts: int, top_k: int, expert_bytes: int) -> Geometry:
        """``layers`` equal MoE layers."""
        return cls((experts,) * layers, (expert_bytes,) * layers, top_k)

    @classmethod
    def parse(cls, text: str) -> Geometry:
        """From ``6x64,2,3932160``: six MoE layers of 64 experts, top-2, 3,932,160 bytes per expert.

        Raises:
            TraceError: malformed.
        """
        match = re.fullmatch(r"(\d+)x(\d+),(\d+),(\d+)", text)
        if match is None:
            raise TraceError(f"geometry {text!r}: write LAYERSxEXPERTS,TOP_K,EXPERT_BYTES, such as 6x64,2,3932160")
        return cls.even(*(int(part) for part in match.groups()))

    @property
    def slot_bytes(self) -> int:
        """Bytes of a slot that fits any expert."""
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
        start: long [B], position in its sequence of each row's first token of the pass.
        valid: bool [B, Q]; False for padding, and for rows that take no part in a draft step.
        picks: one long [B, Q, K] per MoE layer, zero where not valid.
        accepted: long [B]; prefill: tokens after the first; other phases: drafted tokens that the target accepted.
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
    def tokens(self) -> int:
        """Number of valid tokens."""
        return int(self.valid.sum())

    @property
    def kept(self) -> torch.Tensor:
        """Bool [B, Q]: tokens that stay in the KV cache (in a draft step: whose proposal was accepted)."""
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
        """The numbers of the ``generate`` calls, in order."""
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
        """T(gamma): accepted tokens plus the target's own, per row and verification; NaN without a cycle."""
        verifies = [
            p for p in self.passes if p.phase == "verify" and p.call == (self.calls[-1] if call is None else call)
        ]
        rows = sum(len(p.rows) for p in verifies)
        return 1 + sum(int(p.accepted.sum()) for p in verifies) / rows if rows else float("nan")
