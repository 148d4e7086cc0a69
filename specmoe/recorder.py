"""What the engine reports about routing and acceptance: the protocol of a recorder, and one that ignores it all."""

from __future__ import annotations

from typing import Literal, Protocol

import torch

Mode = Literal["target", "draft"]
Phase = Literal["prefill", "decode"]


class Recorder(Protocol):
    """Given to ``SpecMoE.generate``; called in the order of the computation, for the decoder's passes alone."""

    def routed(self, layer: int, mode: Mode, index: torch.Tensor, valid: torch.Tensor) -> None:
        """The gate of MoE layer ``layer`` picked ``index`` (long [B * Q, K], row after row) for the tokens of a pass.

        ``valid`` (bool [B * Q]) excludes padding.  Picks of a draft pass are the gate's own, before substitution.
        """
        ...

    def ended(self, phase: Phase, rows: torch.Tensor, accepted: torch.Tensor) -> None:
        """The prefill or one cycle is over: rows ``rows`` (long [B], of the request) were in its passes.

        ``accepted`` (long [B]) of each row's tokens after the first stay in the cache, whether or not one of them is
        a stop token.
        """
        ...


class NoRecorder:
    """Ignores what it is told."""

    def routed(self, layer: int, mode: Mode, index: torch.Tensor, valid: torch.Tensor) -> None:
        pass

    def ended(self, phase: Phase, rows: torch.Tensor, accepted: torch.Tensor) -> None:
        pass
