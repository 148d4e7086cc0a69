"""Root-mean-square norms of a model in one call each, in place of the half a dozen small ones that transformers makes.

A norm is recognised by what it computes, so the families' own modules, whatever their names, are all replaced.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from specmoe.compute.threads import available

_EPSILONS = ("variance_epsilon", "eps", "epsilon")


MOST_ELEMENTS = 1 << 15
"""Most elements for our kernel, which has one thread; waking torch's threads costs more than this many."""


@dataclass(frozen=True)
class RmsNorm:
    """``x * rsqrt(mean(x²) + eps) * scale``; ``scale`` [width]."""

    scale: torch.Tensor
    eps: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[..., width] -> [..., width]."""
        few = x.numel() <= MOST_ELEMENTS and not torch.is_grad_enabled() and available()
        if not few or x.dtype != torch.float32 or x.device.type != "cpu" or not x.is_contiguous():
            return F.rms_norm(x, self.scale.shape, self.scale, self.eps)
        out, width = torch.empty_like(x), len(self.scale)
        rows = x.numel() // width
        _compiled()(x.data_ptr(), self.scale.data_ptr(), out.data_ptr(), rows, width, self.eps)
        return out


@functools.cache
def _compiled() -> Callable[[int, int, int, int, int, float], None]:
    from specmoe.compute import norm_kernel  # numba is imported when it is first needed

    return norm_kernel.compiled()


class KernelNorm(nn.Module):
    """A root-mean-square norm for inference in float32."""

    rms: RmsNorm

    @classmethod
    def of(cls, layer: nn.Module, rms: RmsNorm) -> KernelNorm:
        """A module that computes ``rms`` with the parameters and hooks of ``layer``."""
        made = cls.__new__(cls)
        made.__dict__.update(layer.__dict__)
        made.rms = rms
        return made

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[..., width] -> [..., width]."""
        return self.rms(hidden_states)


def replace_norms(model: nn.Module) -> int:
    """Replace the float32 root-mean-square norms of ``model``; returns how many."""
    others = [(name, module) for name, module in model.named_modules() if not isinstance(module, KernelNorm)]
    found = [(name, rms) for name, module in others if (rms := recognise(module)) is not None]
    for name, rms in found:
        model.set_submodule(name, KernelNorm.of(model.get_submodule(name), rms))
    return len(found)


def recognise(module: Any) -> RmsNorm | None:
    """A module as a root-mean-square norm, its scale being its only parameter or one more than it; else None."""
    weight, takes = module._parameters.get("weight"), inspect.signature(type(module).forward).parameters
    if len(module._parameters) != 1 or module._buffers or module._modules or len(takes) != 2:
        return None
    if weight is None or weight.dim() != 1 or weight.dtype != torch.float32 or weight.is_meta or not len(weight):
        return None
    epsilons = [float(eps) for name in _EPSILONS if isinstance(eps := getattr(module, name, None), float)]
    generator = torch.Generator().manual_seed(0)
    sizes = torch.logspace(-4, 2, 6)[:, None]  # the smallest show eps
    x = (torch.randn(6, len(weight), generator=generator) * sizes).to(weight.device).view(2, 1, 3, -1)
    try:
        with torch.inference_mode():
            expected = module(x)
    except (RuntimeError, TypeError, ValueError):
        return None
    for eps in epsilons:
        for scale in (weight.detach(), 1 + weight.detach()):
            rms = RmsNorm(scale, eps)
            found = rms(x)
            same = isinstance(expected, torch.Tensor) and expected.shape == found.shape
            if same and torch.allclose(found, expected, rtol=1e-5, atol=1e-6):
                return rms
    return None
