"""Hybrids whose linear-attention layers are gated delta nets: Qwen3-Next, Qwen3.5-MoE and their relatives.

Prompts go through transformers' own forward (the chunked rule), padded on the left as ``generate`` pads them.  Decoding
uses the recurrent rule for every token, as transformers does token by token, also where a pass verifies several.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from specmoe.model.families.base import Family, replace_modules
from specmoe.model.recurrent import DeltaSteps, LayerState, RecurrentLayer

Projected = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""Queries, keys and values before the convolution [B, Q, C], z [B, Q, heads, dim], b and a [B, Q, heads]."""


class RaggedDeltaNet:
    """Mixin that overrides the forward of transformers' gated delta nets; parameters and their names stay the same."""

    functions: Any  # transformers' module of the family, with the rules that its own forward uses
    project: Callable[[Any, torch.Tensor], Projected]

    def forward(
        self: Any, hidden_states: torch.Tensor, cache: Any, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """[B, Q, H] -> [B, Q, H]; ``attention_mask`` (bool [B, Q]) is False on padding, which is on the right.

        With another cache than a ``RaggedCache`` it is transformers' own forward.
        """
        original: Callable[..., torch.Tensor] = super().forward  # type: ignore[misc]
        layer = None if cache is None else cache.layers[self.layer_idx]
        if isinstance(layer, RecurrentLayer) and layer.state is not None:
            decoded: torch.Tensor = self._decode(hidden_states, layer, layer.state)
            return decoded
        if not isinstance(layer, RecurrentLayer) or attention_mask is None:
            return original(hidden_states, cache=cache, attention_mask=attention_mask, **kwargs)
        places = torch.arange(attention_mask.shape[1], device=attention_mask.device)
        padding = (~attention_mask).sum(1, keepdim=True)  # [B, 1]
        to_left, to_right = (places - padding) % len(places), (places + padding) % len(places)  # [B, Q]
        left = _rearranged(hidden_states, to_left)
        out = original(left, cache=cache, attention_mask=attention_mask.gather(1, to_left), **kwargs)
        return _rearranged(out, to_right)

    def _decode(self: Any, hidden: torch.Tensor, layer: RecurrentLayer, state: LayerState) -> torch.Tensor:
        """One pass over Q tokens after ``state``, which ``layer`` keeps until the accepted ones are known."""
        inputs, z, b, a = self.project(hidden)
        inputs = inputs.transpose(1, 2)
        conv = state.conv.clone()  # updated in place
        convolved = self.functions.causal_conv1d_update(
            inputs, conv, self.conv1d.weight.squeeze(1), self.conv1d.bias, self.activation
        )
        query, key, value = convolved.transpose(1, 2).split([self.key_dim, self.key_dim, self.value_dim], dim=-1)
        query, key = (x.unflatten(-1, (-1, self.head_k_dim)) for x in (query, key))
        value = value.unflatten(-1, (-1, self.head_v_dim))
        beta = b.sigmoid()
        decay = -self.A_log.float().exp() * functional.softplus(a.float() + self.dt_bias)
        rule = self.functions.torch_recurrent_gated_delta_rule
        out, recurrent = rule(
            query,
            key,
            value,
            g=decay,
            beta=beta,
            initial_state=state.recurrent,
            output_final_state=True,
            use_qk_l2norm_in_kernel=True,
        )
        layer.record(DeltaSteps(state, LayerState(conv, recurrent), inputs, key, value, decay, beta, rule))
        out = self.norm(out.reshape(-1, self.head_v_dim), z.reshape(-1, self.head_v_dim))
        projected: torch.Tensor = self.out_proj(out.view(*hidden.shape[:2], -1))
        return projected


def _rearranged(tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Tokens [B, Q, H] of each row at ``places`` (long [B, Q])."""
    return tokens.gather(1, places[..., None].expand_as(tokens))


def _joint_projections(net: Any, hidden: torch.Tensor) -> Projected:
    """Qwen3-Next: two projections, whose outputs are grouped by key head."""
    parts = net.fix_query_key_value_ordering(net.in_proj_qkvz(hidden), net.in_proj_ba(hidden))
    query, key, value, z, b, a = parts
    return torch.cat([x.flatten(2) for x in (query, key, value)], dim=-1), z, b, a


def _separate_projections(net: Any, hidden: torch.Tensor) -> Projected:
    """Qwen3.5 and later: one projection each."""
    return net.in_proj_qkv(hidden), net.in_proj_z(hidden), net.in_proj_b(hidden), net.in_proj_a(hidden)


def _family(module: str, name: str, project: Callable[[Any, torch.Tensor], Projected]) -> Family:
    """The family with gated delta nets of class ``name`` in ``transformers.models.MODULE``."""

    def adapt(model: PreTrainedModel) -> None:
        functions = importlib.import_module(f"transformers.models.{module}.modeling_{module}")
        original: type[nn.Module] = getattr(functions, name)
        kind = type(f"Ragged{name}", (RaggedDeltaNet, original), {"functions": functions, "project": project})

        def make(net: Any) -> nn.Module:
            replacement: nn.Module = kind(model.config.get_text_config(), net.layer_idx)
            replacement.load_state_dict(net.state_dict(), assign=True)
            return replacement

        replace_modules(model, original, make)

    return Family(adapt, restores_state=True)


QWEN3_NEXT = _family("qwen3_next", "Qwen3NextGatedDeltaNet", _joint_projections)
QWEN3_5_MOE = _family("qwen3_5_moe", "Qwen3_5MoeGatedDeltaNet", _separate_projections)
LARA_MINI = _family("lara_mini", "LaraMiniGatedDeltaNet", _separate_projections)
