"""NLLB-MoE: an encoder-decoder with two experts per token, ReLU and biases.

transformers 5.24 takes the router's 0/1 mask of first experts for expert numbers: every token is computed by experts
1 (with the weight of its first expert) and 0 (with that of its second).  This engine gives the same tokens as
transformers; ``"experts_follow_router": true`` in a checkpoint's config.json asks for the experts that the router
picks, as in fairseq and transformers 4, and ``follow_router`` corrects a transformers model in the same way.
"""

from __future__ import annotations

import math
import warnings
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import NllbMoeConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.nllb_moe.modeling_nllb_moe import (
    NllbMoeExperts,
    NllbMoeSinusoidalPositionalEmbedding,
    NllbMoeSparseMLP,
)

from specmoe.errors import UnsupportedModelError
from specmoe.model.families.base import Family, replace_modules
from specmoe.model.families.encoder_decoder import EncoderDecoder, FeedForwardExperts, stacking

_LAYERS = ("fc1", "fc2")
_FLAG = "experts_follow_router"
_PER_TOKEN = 2


class NllbMoeBlock(nn.Module):
    """The MoE block of a layer with streamed experts.

    In the decoder, verification computes several tokens of a row at once, where transformers' ``generate`` computes
    one: capacity, which no step of ``generate`` reaches (``check_rows``), is not applied, nor is any token padding.
    """

    def __init__(self, original: NllbMoeSparseMLP, in_decoder: bool, follows_router: bool) -> None:
        super().__init__()
        self.router = original.router
        self.experts = FeedForwardExperts(original.experts, _LAYERS, drafts=in_decoder)
        self._in_decoder, self._follows_router = in_decoder, follows_router
        self._scale = 1.0 - original.experts.moe_token_dropout
        if in_decoder:
            self.router.moe_eval_capacity_token_fraction = 1.0  # as many places per expert as tokens

    def forward(self, hidden_states: torch.Tensor, padding_mask: torch.Tensor | None = None) -> torch.Tensor:
        """[B, S, H] -> [B, S, H]; ``padding_mask`` is the layer's attention mask."""
        hidden = hidden_states.reshape(-1, hidden_states.shape[-1])
        first, probs, logits = self.router(hidden, None if self._in_decoder else padding_mask)
        index, weights = self._picks(first, probs)
        if not self._in_decoder:
            index = index.masked_fill(weights == 0, self.experts.num_experts)  # padding, or beyond the capacity
        out: torch.Tensor = self.experts(hidden, index, weights, logits) * self._scale
        return out.view(hidden_states.shape)

    def _picks(self, first: torch.Tensor, probs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Experts and weights [T, 2] from the mask of first experts and the weights of both, [T, E] each."""
        if self._follows_router:
            weights, index = probs.topk(_PER_TOKEN, dim=1)
            return index, weights
        weights = torch.stack([(probs * first).sum(dim=1), (probs * (1 - first)).sum(dim=1)], dim=1)
        return torch.tensor([1, 0], device=probs.device).expand(len(probs), _PER_TOKEN), weights


class RaggedPositions(NllbMoeSinusoidalPositionalEmbedding):  # type: ignore[misc]
    """The decoder's positions for rows of different lengths, as if every token were computed by itself."""

    def forward(
        self, input_ids: torch.Tensor, inputs_embeds: torch.Tensor | None = None, cache_length: Any = 0
    ) -> torch.Tensor:
        """[B, Q, H] of ids [B, Q]; ``cache_length`` is long [B, 1]."""
        queries = input_ids.shape[1]
        positions = cache_length + torch.arange(1, queries + 1, device=input_ids.device)  # [B, Q]
        positions = positions * input_ids.ne(self.padding_idx) + self.padding_idx
        longest = int(positions.max()) + 1
        if longest > len(self.weights):
            self.make_weights(longest + self.offset, self.embedding_dim, self.padding_idx)
        embedded: torch.Tensor = self.weights[positions]
        return embedded


def follow_router(model: PreTrainedModel) -> None:
    """Have a transformers NLLB-MoE model compute the experts that its routers pick."""
    for module in model.modules():
        if isinstance(module, NllbMoeSparseMLP):
            module.experts = RoutedExperts(module.experts)


class RoutedExperts(nn.ModuleDict):
    """transformers' experts, each on the tokens whose router weight for it is not zero."""

    def __init__(self, original: NllbMoeExperts) -> None:
        super().__init__(original.items())
        self.moe_token_dropout = original.moe_token_dropout
        self.train(original.training)

    def forward(self, hidden: torch.Tensor, first: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
        """[T, H] -> [T, H] from the router's weights ``probs`` [T, E]; ``first`` is not needed."""
        out = torch.zeros_like(hidden)
        for number in (probs != 0).any(dim=0).nonzero().flatten().tolist():
            tokens = probs[:, number].nonzero().flatten()
            result = self[f"expert_{number}"](hidden[tokens]) * probs[tokens, number, None]
            result = self["token_dropout"](result) if self.training else result * (1 - self.moe_token_dropout)
            out.index_add_(0, tokens, result.to(hidden.dtype))
        return out


@cache
def transformers_follows_router() -> bool:
    """Whether the installed transformers computes the experts that the router picks.

    Raises:
        UnsupportedModelError: it computes neither these nor experts 1 and 0.
    """
    with torch.device("cpu"), torch.inference_mode():
        experts = NllbMoeExperts(NllbMoeConfig(d_model=1, num_experts=4, moe_token_dropout=0.0), 1).eval().float()
        for parameter in experts.parameters():
            parameter.zero_()
        for number in range(4):
            experts[f"expert_{number}"].fc2.bias.fill_(float(number))  # so that expert N gives N
        first, weights = torch.tensor([[0, 0, 0, 1]]), torch.tensor([[0.0, 0.0, 0.25, 0.75]], dtype=torch.float32)
        found = float(experts(torch.ones(1, 1, dtype=torch.float32), first, weights))
    if found == 0.75 * 3 + 0.25 * 2:
        return True
    if found == 0.75 * 1 + 0.25 * 0:
        return False
    raise UnsupportedModelError(
        "the installed transformers computes NLLB-MoE's experts in a way that this release does not know: install "
        "transformers 5.24"
    )


def _follows_router(config: PreTrainedConfig) -> bool:
    return bool(getattr(config, _FLAG, False)) or transformers_follows_router()


def _correct(model: PreTrainedModel) -> None:
    if _follows_router(model.config) and not transformers_follows_router():
        follow_router(model)


def _adapt(model: PreTrainedModel) -> None:
    follows = _follows_router(model.config)
    if not follows:
        warnings.warn(
            f"transformers computes NLLB-MoE with experts 0 and 1 only, and so does this engine: set {_FLAG} to true "
            "in config.json for the experts that the router picks",
            stacklevel=2,
        )
    encoder, decoder = model.get_encoder(), model.get_decoder()
    replace_modules(encoder, NllbMoeSparseMLP, lambda m: NllbMoeBlock(m, in_decoder=False, follows_router=follows))
    replace_modules(decoder, NllbMoeSparseMLP, lambda m: NllbMoeBlock(m, in_decoder=True, follows_router=follows))
    old = decoder.embed_positions
    decoder.embed_positions = RaggedPositions(old.num_positions, old.embedding_dim, old.padding_idx)


def _check_config(config: PreTrainedConfig) -> None:
    if config.num_experts < _PER_TOKEN:
        raise UnsupportedModelError(
            f"num_experts={config.num_experts} leaves no second expert for a token: use a checkpoint with at least two "
            "experts per layer"
        )
    flag = getattr(config, _FLAG, False)
    if not isinstance(flag, bool):
        raise UnsupportedModelError(f"{_FLAG} is {flag!r} in config.json: write true or false, without quotes")
    if config.second_expert_policy in ("sampling", "random"):
        raise UnsupportedModelError(
            f"second_expert_policy={config.second_expert_policy!r} chooses second experts at random, so no two runs "
            'agree: set it to "all" in config.json'
        )


def _capacity(config: PreTrainedConfig, tokens: int) -> int:
    """Places of each expert in a pass over so many tokens."""
    fraction = config.moe_eval_capacity_token_fraction
    return math.ceil(fraction * tokens) if fraction > 0 else int(config.expert_capacity)


def _check_rows(config: PreTrainedConfig, rows: int) -> None:
    capacity = _capacity(config, rows)
    if capacity < rows:
        fraction = f"moe_eval_capacity_token_fraction={config.moe_eval_capacity_token_fraction}"
        raise UnsupportedModelError(
            f"with {fraction} an expert takes {capacity} of {rows} rows per step, and which ones depends on rows that "
            "have ended: generate one row at a time, or set it to 1.0 in config.json"
        )


def _routed(config: PreTrainedConfig, mask: torch.Tensor) -> torch.Tensor:
    """Padding takes part only where it can take an expert's place from a token."""
    if config.router_ignore_padding_tokens and _capacity(config, mask.numel()) < mask.numel():
        return torch.ones_like(mask, dtype=torch.bool)
    return mask.bool()


FAMILY = Family(_adapt, lambda model: stacking(_LAYERS, biases=True))
ENCODER_DECODER = EncoderDecoder(_check_config, _check_rows, _routed, _correct)
