"""What an observer of routing and acceptance is told.  The engine knows this protocol and no recorder."""

from __future__ import annotations

from typing import Literal, Protocol

import torch

Mode = Literal["target", "draft"]
Phase = Literal["prefill", "decode"]


class Recorder(Protocol):
    """Given to ``SpecMoE.generate``; called in the order of the computation."""

    def routed(self, layer: int, mode: Mode, index: torch.Tensor, valid: torch.Tensor) -> None:
        """The gate of MoE layer ``layer`` picked ``index`` (long [B * Q, K], row after row) for the tokens of a pass.

        ``valid`` (bool [B * Q]) leaves padding out.  Picks of a draft pass are the gate's own, before others
        stand in for them.
        """
        ...

    def ended(self, phase: Phase, rows: torch.Tensor, accepted: torch.Tensor) -> None:
        """The prefill or one cycle is over: rows ``rows`` (long [B], of the request) were in its passes.

        ``accepted`` (long [B]) of each row's tokens after the first stay in the cache; stop tokens are not looked at.
        """
        ...
