"""Attention layers of a decoder in three calls: projections, heads, output, in place of some forty small operations.

A layer is recognised by what it computes: the fused form must give the layer's own result on random tokens, and leave
the same keys and values in the cache.  Prompts, and layers of any other kind, are left to transformers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from specmoe.compute.attention import Attention, Heads
from specmoe.compute.linear import KernelLinear
from specmoe.compute.norm import RmsNorm, recognise
from specmoe.compute.table import KernelTable
from specmoe.model.kv_cache import RaggedCache, RaggedLayer, layer_types

MOST_QUERIES = 32
"""Most tokens per row; transformers' kernels are better for more."""
_PROJECTIONS = ("q_proj", "k_proj", "v_proj")


class FusedAttention(nn.Module):
    """An attention layer with the parameters, submodules and attributes of a transformers one."""

    @classmethod
    def of(cls, layer: Any, heads: Heads, joined: KernelLinear) -> FusedAttention:
        """``joined`` computes queries, keys and values at once."""
        made = cls.__new__(cls)
        made.__dict__.update(layer.__dict__)
        made.__dict__["_parts"] = layer, Attention(heads), joined  # unregistered: their parameters are the layer's own
        return made

    @property
    def joined(self) -> KernelLinear:
        """Queries, keys and values at once; the three layers' weights are views of its own."""
        joined: KernelLinear = self.__dict__["_parts"][2]
        return joined

    @property
    def heads(self) -> Heads:
        heads: Heads = self.__dict__["_parts"][1].heads
        return heads

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        **arguments: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[B, Q, H] -> [B, Q, H]; the mask must be that of the cache, a causal one."""
        layer, attention, joined = self.__dict__["_parts"]
        where = self.where(hidden_states, position_embeddings, arguments)
        if where is None:
            output: tuple[torch.Tensor, torch.Tensor | None] = layer(
                hidden_states=hidden_states,
                position_embeddings=position_embeddings,
                attention_mask=attention_mask,
                **arguments,
            )
            return output
        rows, queries = hidden_states.shape[:2]
        longest = cache_of(arguments).lengths.next(queries).longest
        out = attention(joined(hidden_states.reshape(rows * queries, -1)), *where, longest)
        return layer.o_proj(out.view(rows, queries, -1)), None

    def where(
        self, hidden: torch.Tensor, turns: tuple[torch.Tensor, ...] | None, arguments: dict[str, Any]
    ) -> tuple[torch.Tensor, ...] | None:
        """Cosines, sines, cached keys and values, and positions, as ``Attention`` takes them; None to use the layer.

        ``hidden`` [B, Q, H]; ``arguments`` are those of the layer by name.
        """
        layer, attention, _ = self.__dict__["_parts"]
        heads, queries, cache = attention.heads, hidden.shape[1], cache_of(arguments)
        if queries > MOST_QUERIES or not isinstance(cache, RaggedCache) or torch.is_grad_enabled():
            return None
        if turns is None or len(turns) != 2 or any(turn.shape[1:] != (queries, heads.width) for turn in turns):
            return None
        cos, sin = turns
        keys, values = _storage(cache.layers[layer.layer_idx], hidden, heads)
        return cos.contiguous(), sin.contiguous(), keys, values, cache.lengths.next(queries).positions


def cache_of(arguments: dict[str, Any]) -> Any:
    """The cache among the arguments of a layer; transformers 5.24 renamed it."""
    return arguments.get("cache", arguments.get("past_key_values"))


def _storage(layer: Any, like: torch.Tensor, heads: Heads) -> tuple[torch.Tensor, torch.Tensor]:
    """The keys and values of a cache layer, [B, key heads, most positions, width]."""
    if layer.keys is None or layer.values is None:
        empty = like.new_empty(len(like), heads.keys, 0, heads.width)
        layer.lazy_initialization(empty, empty)
    return layer.keys, layer.values


def fuse_attention(model: PreTrainedModel, table: KernelTable) -> int:
    """Replace the attention layers of ``model`` that the fused form equals; returns how many."""
    config = model.config.get_text_config()
    if not _plain_causal(config):
        return 0
    replaced = 0
    for name, module in list(model.named_modules()):
        if isinstance(module, FusedAttention):  # of a model that is assembled again
            continue
        if all(isinstance(getattr(module, part, None), nn.Linear) for part in (*_PROJECTIONS, "o_proj")):
            fused = _fused(module, table)
            if fused is not None and are_equal(module, fused, module, fused.heads, config):
                model.set_submodule(name, fused)
                replaced += 1
    return replaced


def _plain_causal(config: PreTrainedConfig) -> bool:
    """Whether every layer attends to all earlier tokens, by sdpa or eager attention."""
    return not getattr(config, "is_encoder_decoder", False) and layer_types(config) == {"full_attention"}


def _fused(module: Any, table: KernelTable) -> FusedAttention | None:
    """The fused form of a layer, if it has the attributes that this takes."""
    parts = [getattr(module, name) for name in _PROJECTIONS]
    width, scaling = getattr(module, "head_dim", None), getattr(module, "scaling", None)
    if (
        not isinstance(width, int)
        or not isinstance(scaling, float)
        or width % 2
        or not isinstance(module.layer_idx, int)
    ):
        return None
    if any(part.weight.dtype != torch.float32 or part.weight.device.type != "cpu" for part in parts):
        return None
    norms = [getattr(module, name, None) for name in ("q_norm", "k_norm")]
    found = [None if norm is None else recognise(norm) for norm in norms]
    if any((norm is None) != (rms is None) for norm, rms in zip(norms, found, strict=True)):
        return None
    scales = [rms.scale if rms is not None and len(rms.scale) == width else None for rms in found]
    if [s is None for s in scales] != [n is None for n in norms] or len({r.eps for r in found if r is not None}) > 1:
        return None
    query, key = parts[0].out_features // width, parts[1].out_features // width
    if not key or query % key or parts[1].out_features != parts[2].out_features:
        return None
    eps = next((rms.eps for rms in found if isinstance(rms, RmsNorm)), 0.0)
    heads = Heads(query, key, width, scaling, scales[0], scales[1], eps)
    return FusedAttention.of(module, heads, _join(parts, table))


def _join(parts: list[nn.Linear], table: KernelTable) -> KernelLinear:
    """One layer of all output features of ``parts``, whose weights become views of its own."""
    joined = nn.Linear(parts[0].in_features, sum(part.out_features for part in parts), bias=False, device="meta")
    with torch.no_grad():
        joined.weight = nn.Parameter(torch.cat(tuple(part.weight for part in parts)), requires_grad=False)
        if any(part.bias is not None for part in parts):
            biases = tuple(p.weight.new_zeros(p.out_features) if p.bias is None else p.bias for p in parts)
            joined.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
        for part, view in zip(parts, joined.weight.split([p.out_features for p in parts]), strict=True):
            part.weight = nn.Parameter(view, requires_grad=False)
    return KernelLinear.of(joined, table)


@torch.inference_mode()
def are_equal(one: nn.Module, other: nn.Module, attention: Any, heads: Heads, config: PreTrainedConfig) -> bool:
    """Whether two layers give the same outputs and cache for rows of different lengths, in two passes.

    ``attention``: the transformers layer with ``heads`` that both of them are or hold.
    """
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 4, attention.q_proj.in_features, generator=generator)
    angles = torch.randn(2, 4, heads.width // 2, generator=generator).repeat(1, 1, 2)
    outputs, caches = [], [RaggedCache(config, 2, 8, hidden.device) for _ in range(2)]
    try:
        for layer, cache in zip((one, other), caches, strict=True):
            for queries in (4, 3):
                mask = cache.attention_mask(queries, hidden.dtype, config._attn_implementation == "sdpa")
                turned = angles[:, :queries].cos().contiguous(), angles[:, :queries].sin().contiguous()
                x = hidden[:, :queries].contiguous()
                found = layer(x, position_embeddings=turned, attention_mask=mask, **{_cache_name(attention): cache})
                outputs.append(found[0] if isinstance(found, tuple) else found)
                cache.commit(torch.tensor([4, 2]))
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return False
    pairs = [*zip(outputs[:2], outputs[2:], strict=True)]
    at = slice(attention.layer_idx, attention.layer_idx + 1)
    for first, second in zip(*(cache.layers[at] for cache in caches), strict=True):
        if not (isinstance(first, RaggedLayer) and isinstance(second, RaggedLayer)):
            return False
        pairs += [(first.keys, second.keys), (first.values, second.values)]
    return all(_close(a, b) for a, b in pairs)


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two results differ by rounding only; False for any that is not finite."""
    return bool(a.isfinite().all()) and torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(a.abs().max()))


def _cache_name(module: Any) -> str:
    """What the layer's ``forward`` calls its cache; transformers 5.24 renamed it."""
    import inspect

    return "cache" if "cache" in inspect.signature(type(module).forward).parameters else "past_key_values"
