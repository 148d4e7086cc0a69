"""Decoder layers whose attention block is one call: norms, projections, heads and sums between two modules' calls.

As with attention, a layer is recognised by what it computes, with its feed-forward part replaced by something simple.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from specmoe.compute.attention_block import AttentionBlock
from specmoe.compute.calls import MANY_ROWS
from specmoe.compute.linear import KernelLinear
from specmoe.compute.norm import MOST_ELEMENTS, KernelNorm
from specmoe.compute.products import can_stream
from specmoe.model.fused_attention import FusedAttention, are_equal

_PARTS = ("input_layernorm", "self_attn", "post_attention_layernorm")


class FusedLayer(nn.Module):
    """A decoder layer with the submodules and attributes of a transformers one."""

    @classmethod
    def of(cls, layer: Any, block: AttentionBlock, linears: tuple[KernelLinear, KernelLinear], rest: str) -> FusedLayer:
        """``linears`` are those of ``block``; ``rest`` names the module that follows it."""
        made = cls.__new__(cls)
        made.__dict__.update(layer.__dict__)  # the submodules too: what is replaced in one is replaced in both
        made.__dict__["_parts"] = layer, block, linears, rest
        return made

    def forward(self, hidden_states: torch.Tensor, **arguments: Any) -> torch.Tensor:
        """[B, Q, H] -> [B, Q, H]; the mask must be that of the cache, a causal one."""
        layer, block, linears, rest = self.__dict__["_parts"]
        where, tokens = None, hidden_states.shape[0] * hidden_states.shape[1]
        is_small = hidden_states.numel() <= MOST_ELEMENTS and hidden_states.is_contiguous()
        if is_small and tokens < MANY_ROWS and all(linear.kernel(tokens) == "streaming" for linear in linears):
            attention: FusedAttention = self._modules["self_attn"]  # type: ignore[assignment]
            where = attention.where(hidden_states, arguments.get("position_embeddings"), arguments)
        if where is None:
            output: torch.Tensor = layer(hidden_states, **arguments)
            return output
        total: torch.Tensor
        total, normed = block(hidden_states, *where)
        total += self._modules[rest](normed)  # type: ignore[misc]
        return total


class _Half(nn.Module):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return 0.5 * hidden_states


def fuse_layers(model: PreTrainedModel) -> int:
    """Replace the decoder layers of ``model`` that the fused form equals; returns how many.

    Linear layers, attention and norms must have been replaced before.
    """
    replaced = 0
    for name, module in list(model.named_modules()):
        others = [child for child in module._modules if child not in _PARTS]
        if isinstance(module, FusedLayer) or len(others) != 1 or len(module._modules) != len(_PARTS) + 1:
            continue
        fused = _fused(module, others[0])
        if fused is None:
            continue
        rest, module._modules[others[0]] = module._modules[others[0]], _Half()
        try:
            attention: Any = fused.self_attn
            layer = attention.__dict__["_parts"][0]
            equal = are_equal(module, fused, layer, attention.heads, model.config.get_text_config())
        finally:
            module._modules[others[0]] = rest
        if equal:
            model.set_submodule(name, fused)
            replaced += 1
    return replaced


def _fused(module: nn.Module, rest: str) -> FusedLayer | None:
    """The fused form of a layer, if its parts have kernels."""
    first, attention, second = (module._modules.get(part) for part in _PARTS)
    if not (isinstance(attention, FusedAttention) and isinstance(first, KernelNorm) and isinstance(second, KernelNorm)):
        return None
    layer, heads, joined = attention.__dict__["_parts"]
    output = layer.o_proj
    if not isinstance(output, KernelLinear) or not all(can_stream(p.weight, p.bias) for p in (joined, output)):
        return None
    block = AttentionBlock(first.rms, joined.streamed(), heads, output.streamed(), second.rms)
    return FusedLayer.of(module, block, (joined, output), rest)
