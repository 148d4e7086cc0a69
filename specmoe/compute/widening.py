"""Widens weights that rest in a narrower dtype than the one computed in, into memory that is used again."""

from __future__ import annotations

import torch


class Widening:
    """Memory for one weight matrix at a time: what it returned before is overwritten by the next call.

    Products of one thread follow each other, so one object serves a whole model; it grows to the largest matrix.
    """

    def __init__(self) -> None:
        self._memory: torch.Tensor | None = None

    def __call__(self, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """``weight`` in ``dtype``, with the same shape and order in memory."""
        if weight.ndim == 2 and not weight.is_contiguous() and weight.t().is_contiguous():
            return self(weight.t(), dtype).t()
        return self._take(weight, dtype).view(weight.shape).copy_(weight)

    def _take(self, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Uninitialised memory for as many values as ``weight`` has."""
        held, values = self._memory, weight.numel()
        if held is None or held.dtype != dtype or held.device != weight.device or held.numel() < values:
            with torch.inference_mode(False):  # a tensor of inference mode could not be written outside of it
                held = self._memory = torch.empty(values, dtype=dtype, device=weight.device)
        return held[:values]
