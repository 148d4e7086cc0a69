"""How one expert is multiplied: all expert arithmetic of the engine goes through ``expert_mlp``.

The way a product is computed may depend on device, dtype and number of tokens; the result differs by rounding at most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class ExpertTraits:
    """What the experts of a model family have in common, named as transformers' experts modules name it.

    ``has_gate``: ``gate_up_proj`` [2I, H] instead of ``up_proj`` [I, H].  ``is_transposed``: weights are stored
    [in, out] instead of [out, in].  ``activation`` maps the first product ([n, 2I] or [n, I]) to [n, I].
    """

    has_gate: bool
    is_transposed: bool
    activation: Callable[[torch.Tensor], torch.Tensor]

    @classmethod
    def of(cls, module: Any) -> ExpertTraits:
        """The traits of a transformers experts module."""
        return cls(module.has_gate, module.is_transposed, module._apply_gate if module.has_gate else module.act_fn)


def expert_mlp(x: torch.Tensor, weights: Mapping[str, torch.Tensor], traits: ExpertTraits) -> torch.Tensor:
    """One expert on its tokens: [n, H] -> [n, H].

    Args:
        x: hidden states.
        weights: ``gate_up_proj`` or ``up_proj``, ``down_proj``, and each one's ``NAME_bias`` where the family has them.
        traits: of the expert's module.
    """
    first = "gate_up_proj" if traits.has_gate else "up_proj"
    hidden = traits.activation(_linear(x, weights, first, traits.is_transposed))
    return _linear(hidden, weights, "down_proj", traits.is_transposed)


def _linear(x: torch.Tensor, weights: Mapping[str, torch.Tensor], name: str, is_transposed: bool) -> torch.Tensor:
    """``x`` [n, in] times one weight matrix: [n, out]."""
    weight = weights[name].t() if is_transposed else weights[name]
    bias = weights.get(f"{name}_bias")
    if bias is None and 2 <= len(x) <= 4 and x.device.type == "cpu" and x.dtype == torch.float32:
        # The same product transposed: the GEMM library then reads the weights 1.5 times as fast, and with so few
        # tokens per expert the time is that of reading them.
        return (weight @ x.t()).t()
    return F.linear(x, weight, bias)
