"""How one expert is multiplied: two products around an activation.

The kernel of the products may depend on device, dtype and number of tokens; the result differs by rounding at most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from specmoe.compute.products import product
from specmoe.compute.table import Kernel
from specmoe.compute.widening import Widening


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


def expert_mlp(
    x: torch.Tensor,
    weights: Mapping[str, torch.Tensor],
    traits: ExpertTraits,
    kernel: Kernel = "torch",
    widening: Widening | None = None,
) -> torch.Tensor:
    """One expert on its tokens: [n, H] -> [n, H] in the dtype of ``x``.

    Args:
        x: hidden states.
        weights: ``gate_up_proj`` or ``up_proj``, ``down_proj``, and each one's ``NAME_bias`` where the family has them.
        traits: of the expert's module.
        kernel: of both products.
        widening: memory for weights in a narrower dtype than ``x``; without it they are widened in new memory.
    """
    first = "gate_up_proj" if traits.has_gate else "up_proj"
    hidden = traits.activation(_linear(x, weights, first, traits.is_transposed, kernel, widening))
    return _linear(hidden, weights, "down_proj", traits.is_transposed, kernel, widening)


def _linear(
    x: torch.Tensor,
    weights: Mapping[str, torch.Tensor],
    name: str,
    is_transposed: bool,
    kernel: Kernel,
    widening: Widening | None,
) -> torch.Tensor:
    """``x`` [n, in] times one weight matrix: [n, out]."""
    weight = weights[name].t() if is_transposed else weights[name]
    return product(x, weight, weights.get(f"{name}_bias"), "torch" if is_transposed else kernel, widening)
