"""Routers of a model in one call each, in place of the ten small ones that transformers makes.

A router is recognised by what it computes, as norms are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from specmoe.compute.threads import available

MOST_PRODUCTS = 1 << 18
"""Most multiplications of a call for our kernel, which has one thread: some 20 microseconds."""
Routed = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Logits [T, E], weights [T, K] and experts (long [T, K])."""


class KernelRouter(nn.Module):
    """A softmax router for inference; it ``normalises`` the chosen experts' weights, or takes probabilities."""

    weight: torch.Tensor
    top_k: int
    normalises: bool

    @classmethod
    def of(cls, layer: nn.Module, normalises: bool) -> KernelRouter:
        """A module with the parameters, attributes and hooks of ``layer``, which it leaves many tokens to."""
        made = cls.__new__(cls)
        made.__dict__.update(layer.__dict__)
        made.__dict__["_layer"], made.normalises = layer, normalises
        return made

    def forward(self, hidden_states: torch.Tensor) -> Routed:
        """[..., H] -> logits, weights and experts."""
        weight = self._parameters["weight"]
        if weight is None:
            raise RuntimeError("the router's weight was taken away")
        experts, width = weight.shape
        few = hidden_states.numel() * experts <= MOST_PRODUCTS and hidden_states.is_contiguous()
        if not few or hidden_states.dtype != torch.float32 or hidden_states.device.type != "cpu":
            return self._by_layer(hidden_states)
        if torch.is_grad_enabled() or not available():
            return self._by_layer(hidden_states)
        tokens, k = hidden_states.numel() // width, self.top_k
        logits, shares = hidden_states.new_empty(tokens, experts), hidden_states.new_empty(tokens, k)
        picks = torch.empty(tokens, k, dtype=torch.long)
        addresses = (t.data_ptr() for t in (hidden_states, weight, logits, shares, picks))
        _compiled()(*addresses, tokens, experts, width, k, self.normalises)
        return logits, shares, picks

    def _by_layer(self, hidden_states: torch.Tensor) -> Routed:
        routed: Routed = self.__dict__["_layer"](hidden_states)
        return routed


@functools.cache
def _compiled() -> Callable[..., None]:
    from specmoe.compute import router_kernel  # numba is imported when it is first needed

    return router_kernel.compiled()


def replace_routers(model: nn.Module) -> int:
    """Replace the float32 softmax routers of ``model``; returns how many."""
    others = [(name, module) for name, module in model.named_modules() if not isinstance(module, KernelRouter)]
    found = [(name, router) for name, module in others if (router := recognise(module)) is not None]
    for name, router in found:
        model.set_submodule(name, router)
    return len(found)


def recognise(module: Any) -> KernelRouter | None:
    """A module's other form, if that gives its own logits, weights and experts; else None."""
    weight, top_k = module._parameters.get("weight"), getattr(module, "top_k", None)
    if len(module._parameters) != 1 or module._buffers or module._modules or not isinstance(top_k, int):
        return None
    if weight is None or weight.dim() != 2 or weight.dtype != torch.float32 or weight.device.type != "cpu":
        return None
    x = torch.randn(4, weight.shape[1], generator=torch.Generator().manual_seed(0))
    x = x / weight.detach().norm(dim=1).max().clamp_min(1e-6)  # logits of about one: experts that differ clearly
    with torch.inference_mode():
        try:
            expected = module(x)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return None
        if not isinstance(expected, tuple) or [getattr(t, "ndim", 0) for t in expected] != [2, 2, 2]:
            return None
        for normalises in (True, False):
            router = KernelRouter.of(module, normalises)
            if 1 <= top_k <= len(weight) and _same(router(x), expected):
                return router
    return None


def _same(found: Routed, expected: Routed) -> bool:
    pairs = [*zip(found, expected, strict=True)]
    if any(a.shape != b.shape or a.dtype != b.dtype for a, b in pairs) or not torch.equal(found[2], expected[2]):
        return False
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in pairs[:2])
