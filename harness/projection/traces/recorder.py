"""Records a trace of a run: pass it as ``SpecMoE.generate(recorder=...)``."""

from __future__ import annotations

import torch

from harness.projection.traces.trace import Geometry, Pass, Phase, Trace


class TraceRecorder:
    """Collects passes on the CPU as the engine reports them; ``trace`` holds the finished ones.

    Picks are kept until the cycle ends, since only then it is known which rows took part and what they kept.
    """

    def __init__(self, geometry: Geometry) -> None:
        self.trace = Trace(geometry)
        self._layers = len(geometry.experts)
        self._pending: list[tuple[Phase, torch.Tensor, list[torch.Tensor]]] = []
        self._call, self._cycle = -1, 0
        self._committed = torch.zeros(0, dtype=torch.long)  # tokens of each request row in the KV cache

    def routed(self, layer: int, mode: str, index: torch.Tensor, valid: torch.Tensor) -> None:
        """As ``specmoe.recorder.Recorder`` says."""
        phase: Phase = "draft" if mode == "draft" else "verify"
        if layer == 0:
            self._pending.append((phase, valid.cpu(), []))
        self._pending[-1][2].append(index.cpu())

    def ended(self, phase: str, rows: torch.Tensor, accepted: torch.Tensor) -> None:
        """As ``specmoe.recorder.Recorder`` says."""
        rows, accepted = rows.cpu(), accepted.cpu()
        if phase == "prefill":
            self._call, self._cycle = self._call + 1, 0
            self._committed = torch.zeros(len(rows), dtype=torch.long)
        else:
            self._cycle += 1
        step = 0
        for kind, valid, picks in self._pending:
            named: Phase = "prefill" if phase == "prefill" else kind
            start = self._committed[rows] + (step if named == "draft" else 0)
            self.trace.passes.append(
                self._pass(named, step if named == "draft" else 0, rows, start, valid, picks, accepted)
            )
            step += named == "draft"
        self._pending = []
        self._committed[rows] += accepted + 1

    def _pass(
        self,
        phase: Phase,
        step: int,
        rows: torch.Tensor,
        start: torch.Tensor,
        valid: torch.Tensor,
        picks: list[torch.Tensor],
        accepted: torch.Tensor,
    ) -> Pass:
        seen = valid.view(len(rows), -1)  # [B, Q]
        shaped = [(p * valid[:, None]).view(*seen.shape, -1) for p in picks]  # [B, Q, K] each
        return Pass(self._call, self._cycle, phase, step, rows, start, seen, shaped, accepted)
