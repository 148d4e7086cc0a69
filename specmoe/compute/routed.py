"""Tokens of a pass and the experts their picks name, grouped by expert in plain numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True)
class Routed:
    """Tokens and picks of a pass over a layer.

    ``hidden`` [T, H]; ``order`` (int64 [n]) are the picks to compute, as indices into the flattened [T, K], one expert
    after another; ``bounds`` the run of each expert in it.  ``scales``: [T * K], where weights multiply the input.
    """

    hidden: torch.Tensor
    order: NDArray[np.int64]
    bounds: Mapping[int, tuple[int, int]]
    top_k: int
    scales: torch.Tensor | None = None

    @classmethod
    def of(
        cls,
        hidden: torch.Tensor,
        picks: NDArray[np.int64],
        used: NDArray[np.bool_] | None = None,
        scales: torch.Tensor | None = None,
    ) -> Routed:
        """Group ``picks`` [T, K]; ``used`` (bool [T, K]) says which of them to compute, None means all."""
        flat = picks.reshape(-1)
        if used is None:
            order = flat.argsort(kind="stable")
        else:
            chosen = used.reshape(-1).nonzero()[0]
            order = chosen[flat[chosen].argsort(kind="stable")]
        counts = np.bincount(flat[order])
        experts = counts.nonzero()[0]
        ends = counts[experts].cumsum().tolist()
        runs = zip([0, *ends], ends, strict=False)  # the last end starts no run
        return cls(hidden, order, dict(zip(experts.tolist(), runs, strict=True)), picks.shape[1], scales)

    @cached_property
    def tokens(self) -> NDArray[np.int64]:
        """The token of each pick of ``order``: int64 [n]."""
        return self.order // self.top_k

    @cached_property
    def order_address(self) -> int:
        """The address of ``order``."""
        return address(self.order)

    @cached_property
    def single(self) -> torch.Tensor:
        """The tokens as the streaming kernel reads them: float32, contiguous."""
        hidden = self.hidden
        if hidden.dtype == torch.float32 and hidden.is_contiguous():
            return hidden
        return hidden.float().contiguous()

    @cached_property
    def _indices(self) -> tuple[torch.Tensor, torch.Tensor]:
        """``order`` and ``tokens`` where the hidden states are: long [n] each, moved once for all experts."""
        order, tokens = (torch.from_numpy(found).to(self.hidden.device) for found in (self.order, self.tokens))
        return order, tokens

    def rows(self, start: int, end: int) -> torch.Tensor:
        """A run of picks as an index of output rows: long [n]."""
        return self._indices[0][start:end]

    def input(self, start: int, end: int) -> torch.Tensor:
        """The expert inputs of a run of picks: [n, H]."""
        x = self.hidden[self._indices[1][start:end]]
        return x if self.scales is None else x * self.scales[self.rows(start, end)][:, None]


def address(numbers: NDArray[Any]) -> int:
    """The address of contiguous numbers, which must outlive its use."""
    start: int = numbers.__array_interface__["data"][0]
    return start
