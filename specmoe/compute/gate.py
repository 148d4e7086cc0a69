"""The activation of a family's experts as numbers that the streaming kernels take, recognised by what it computes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from specmoe.compute.expert import ExpertTraits
from specmoe.compute.fields import INTERLEAVED, UNGATED

NAMES = ("silu", "gelu", "gelu_tanh", "relu", "relu_squared")
"""In the order of their numbers in ``specmoe.compute.fields``."""


@dataclass(frozen=True)
class Gate:
    """``act(min(gate, limit)) * (clamp(up, -limit, limit) + offset)``; ``silu`` is ``x * sigmoid(alpha * x)``.

    ``layout``: ``concatenated`` (gate rows, then up rows), ``interleaved`` (gate, up, gate, up, ...), or ``ungated``:
    ``act(x)``.
    """

    name: str
    layout: str = "concatenated"
    alpha: float = 1.0
    limit: float = math.inf
    offset: float = 0.0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[n, 2I] (ungated: [n, I]) -> [n, I]."""
        if self.layout == "ungated":
            return self._activated(x)
        gate, up = x.chunk(2, dim=-1) if self.layout == "concatenated" else (x[..., ::2], x[..., 1::2])
        return self._activated(gate.clamp(max=self.limit)) * (up.clamp(-self.limit, self.limit) + self.offset)

    def _activated(self, x: torch.Tensor) -> torch.Tensor:
        if self.name == "silu":
            return x * torch.sigmoid(self.alpha * x)
        if self.name.startswith("gelu"):
            return F.gelu(x, approximate="tanh" if self.name == "gelu_tanh" else "none")
        return F.relu(x) if self.name == "relu" else F.relu(x).square()

    @property
    def code(self) -> int:
        """Activation and layout as the kernels take them."""
        return NAMES.index(self.name) + {"concatenated": 0, "interleaved": INTERLEAVED, "ungated": UNGATED}[self.layout]

    def numbers(self) -> np.ndarray:
        """alpha, limit and offset, float32 [3]."""
        return np.array([self.alpha, self.limit, self.offset], dtype=np.float32)


def recognise(traits: ExpertTraits, module: Any) -> Gate | None:
    """The gate that computes what the module's activation does on a range of values; None when there is none.

    Limits and factors are read from the module's attributes.  Values are float64, as float32 functions of torch differ
    by processor and memory layout.
    """
    limits = [n for n in (_number(module, "limit"), _number(module, "swiglu_limit")) if n is not None]
    largest = math.log10(4 * max([8.0, *limits]))  # values on both sides of a limit
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, largest, 64)[:, None]
    x = x.double()
    try:
        with torch.inference_mode():
            expected = traits.activation(x)
    except (RuntimeError, TypeError, NotImplementedError):  # an activation with parameters of its own
        return None
    for gate in _candidates(module, traits.has_gate, limits):
        found = gate(x)
        if found.shape == expected.shape and torch.allclose(found, expected.to(found), rtol=1e-5, atol=1e-6):
            return gate
    return None


def _candidates(module: Any, has_gate: bool, limits: list[float]) -> Iterator[Gate]:
    alphas = [n for n in (_number(module, "alpha"), _number(module, "swiglu_alpha")) if n is not None]
    for layout in ("concatenated", "interleaved") if has_gate else ("ungated",):
        for name in NAMES:
            for limit in [*limits, math.inf] if has_gate else [math.inf]:
                for alpha in [*alphas, 1.0, 1.702] if name == "silu" else [1.0]:
                    yield from (Gate(name, layout, alpha, limit, offset) for offset in (0.0, 1.0)[: 1 + has_gate])


def _number(module: Any, name: str) -> float | None:
    value = getattr(module, name, None)
    return float(value) if isinstance(value, (int, float)) else None
