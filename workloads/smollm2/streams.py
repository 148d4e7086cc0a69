"""Residual streams of the same text through the dense model and the model with experts, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

CHUNK = 8  # sequences


@dataclass
class Streams:
    """Residual streams in front of a layer, [S, L, H] float32: ``dense`` and ``experts`` for the same tokens."""

    dense: Tensor
    experts: Tensor

    @classmethod
    @torch.no_grad()
    def begin(cls, model: LlamaForCausalLM, tokens: Tensor) -> Streams:
        """Embed ``tokens`` [S, L]."""
        embedded = model.model.embed_tokens(tokens).float()
        return cls(embedded, embedded.clone())


@dataclass
class Task:
    """Training data of one layer's experts: ``inputs`` [T, H] (bfloat16) and ``targets`` [T, H] (float32)."""

    inputs: Tensor
    targets: Tensor

    def part(self, rows: slice) -> Task:
        return Task(self.inputs[rows], self.targets[rows])


@torch.no_grad()
def advance_dense(model: LlamaForCausalLM, layer: int, streams: Streams) -> Task:
    """Advance the dense stream by a whole layer and the experts' stream by its attention.

    The targets are the dense stream behind the layer minus the experts' stream, so that a layer also corrects errors
    of the layers before it.
    """
    block = model.model.layers[layer]
    dtype = block.mlp.down_proj.weight.dtype
    inputs = torch.empty(streams.dense.shape, dtype=torch.bfloat16)
    for rows in _chunks(len(streams.dense)):
        positions = torch.arange(streams.dense.shape[1])[None]
        rotary = model.model.rotary_emb(streams.dense[rows].to(dtype), positions)
        middle = _attend(block, streams.dense[rows], rotary)
        read = block.post_attention_layernorm(middle).to(dtype)
        streams.dense[rows] = middle + block.mlp(read).float()
        streams.experts[rows] = _attend(block, streams.experts[rows], rotary)
        inputs[rows] = block.post_attention_layernorm(streams.experts[rows]).bfloat16()
    width = inputs.shape[-1]
    return Task(inputs.view(-1, width), (streams.dense - streams.experts).view(-1, width))


@torch.no_grad()
def advance_experts(streams: Streams, task: Task, experts: Callable[[Tensor], Tensor]) -> None:
    """Add the experts' output to their stream, in place."""
    flat = streams.experts.view(-1, streams.experts.shape[-1])
    for start in range(0, len(flat), 4096):
        rows = slice(start, start + 4096)
        flat[rows] += experts(task.inputs[rows]).float()


@torch.no_grad()
def loss(model: LlamaForCausalLM, stream: Tensor, tokens: Tensor) -> float:
    """Mean next-token loss in nats of a stream behind the last layer, [S, L, H], for ``tokens`` [S, L]."""
    total = 0.0
    dtype = model.lm_head.weight.dtype
    for row, ids in zip(stream, tokens, strict=True):
        logits = model.lm_head(model.model.norm(row).to(dtype)).float()
        total += float(F.cross_entropy(logits[:-1], ids[1:]))
    return total / len(stream)


def _attend(block: LlamaDecoderLayer, hidden: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    dtype = block.mlp.down_proj.weight.dtype
    normed = block.input_layernorm(hidden).to(dtype)
    mixed, _ = block.self_attn(hidden_states=normed, position_embeddings=rotary, attention_mask=None)
    attended: Tensor = hidden + mixed.float()
    return attended


def _chunks(count: int) -> Iterator[slice]:
    for start in range(0, count, CHUNK):
        yield slice(start, min(start + CHUNK, count))
