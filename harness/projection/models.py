"""Sizes of public models per layer, from their published configurations.

A *layer* is what a decoder layer reads besides its routed experts: attention, dense or shared feed-forward, router.
Only what takes part in decoding is counted: of NLLB-MoE only the decoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import yaml
from pydantic import BaseModel, ConfigDict, model_validator

from harness.projection.traces import Geometry


@dataclass(frozen=True)
class ModelSizes:
    """Parameters of a decoder and the bytes they take.

    Args:
        dense_params: of each layer, everything that is not a routed expert.
        moe_layers: indices of the layers that have routed experts.
        expert_params: of one routed expert.
        expert_bytes: of one routed expert as stored and moved.
        weight_bytes: per parameter of everything else.
        kv_bytes: keys and values of one token in one layer.
        head_params: of the output projection, read once per pass.
        other_params: held, but not read by a decode step (input embeddings).
        published_gb: total size by the publishers or the paper, in 1e9 bytes.
    """

    name: str
    title: str
    dense_params: tuple[int, ...]
    moe_layers: tuple[int, ...]
    experts: int
    top_k: int
    expert_params: int
    expert_bytes: int
    weight_bytes: float
    kv_bytes: int
    head_params: int
    other_params: int
    published_gb: float
    source: str

    @property
    def geometry(self) -> Geometry:
        """For traces and replays."""
        return Geometry.even(len(self.moe_layers), self.experts, self.top_k, self.expert_bytes)

    def device_bytes(self, pinned_per_layer: int) -> float:
        """Everything but routed experts, plus ``pinned_per_layer`` of those in each MoE layer; without the KV cache."""
        experts = len(self.moe_layers) * pinned_per_layer * self.expert_bytes
        return (sum(self.dense_params) + self.head_params + self.other_params) * self.weight_bytes + experts

    @property
    def total_bytes(self) -> float:
        return self.device_bytes(self.experts)


def _attention(hidden: int, heads: int, kv_heads: int, head_dim: int) -> int:
    """Query, key, value and output projections."""
    return 2 * hidden * heads * head_dim + 2 * hidden * kv_heads * head_dim


def _gated(hidden: int, intermediate: int) -> int:
    """Gate, up and down projections."""
    return 3 * hidden * intermediate


def nllb_moe() -> ModelSizes:
    """facebook/nllb-moe-54b, decoder: 24 layers, every fourth with 128 experts, ReLU feed-forward with biases."""
    hidden, ffn, layers = 2048, 8192, 24
    expert = 2 * hidden * ffn + hidden + ffn
    attention = 2 * 4 * (hidden * hidden + hidden)  # self and cross
    moe = tuple(range(3, layers, 4))
    dense = tuple(attention + (128 * hidden if i in moe else expert) for i in range(layers))
    return ModelSizes(
        "nllb-moe",
        "NLLB-MoE-54B (decoder)",
        dense,
        moe,
        experts=128,
        top_k=2,
        expert_params=expert,
        expert_bytes=2 * expert,
        weight_bytes=2,
        kv_bytes=2 * 2 * 2 * hidden,  # self and cross attention, keys and values, 16 bits
        head_params=256206 * hidden,
        other_params=0,  # embeddings are tied
        published_gb=54,
        source="facebook/nllb-moe-54b config; 54 GB as the paper counts it (its 6 MoE blocks are the decoder's)",
    )


class Attention(BaseModel):
    """Grouped-query attention; heads and their size."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    heads: int
    kv_heads: int
    head_dim: int

    def params(self, hidden: int) -> int:
        return _attention(hidden, self.heads, self.kv_heads, self.head_dim)

    @property
    def kv_values(self) -> int:
        """Numbers in the KV cache per token and layer."""
        return 2 * self.kv_heads * self.head_dim


class LatentAttention(BaseModel):
    """Multi-head latent attention (DeepSeek-V2): ranks of the projections and sizes of the parts of a head."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    heads: int
    query: int
    latent: int
    nope: int
    rope: int
    value: int

    def params(self, hidden: int) -> int:
        down = hidden * self.query + hidden * (self.latent + self.rope)
        up = self.query * self.heads * (self.nope + self.rope) + self.latent * self.heads * (self.nope + self.value)
        return down + up + self.heads * self.value * hidden

    @property
    def kv_values(self) -> int:
        """Numbers in the KV cache per token and layer."""
        return self.latent + self.rope


class Decoder(BaseModel):
    """A decoder-only model of ``models.yaml``: untied embeddings, gated experts, a 16-bit KV cache.

    The first ``dense_layers`` have a dense feed-forward block of width ``dense_ffn`` and no routed experts.
    ``expert_biases`` are parameters of one expert besides its matrices, ``expert_bits`` of each of its parameters
    as stored (default: as ``weight_bytes`` says).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    layers: int
    hidden: int
    attention: Attention | None = None
    latent_attention: LatentAttention | None = None
    experts: int
    top_k: int
    ffn: int
    shared_ffn: int = 0
    dense_layers: int = 0
    dense_ffn: int = 0
    expert_biases: int = 0
    vocabulary: int
    weight_bytes: float = 2
    expert_bits: float | None = None
    published_gb: float
    source: str

    @model_validator(mode="after")
    def _one_attention(self) -> Self:
        if (self.attention is None) == (self.latent_attention is None):
            raise ValueError("give either attention or latent_attention")
        return self

    def sizes(self, name: str) -> ModelSizes:
        """Parameters and bytes of its layers."""
        attention = self.attention or self.latent_attention
        if attention is None:
            raise ValueError(f"{name} has no attention")
        params = attention.params(self.hidden)
        routed = params + _gated(self.hidden, self.shared_ffn) + self.experts * self.hidden
        dense = params + _gated(self.hidden, self.dense_ffn)
        expert = _gated(self.hidden, self.ffn) + self.expert_biases
        bytes_each = self.weight_bytes if self.expert_bits is None else self.expert_bits / 8
        return ModelSizes(
            name,
            self.title,
            (dense,) * self.dense_layers + (routed,) * (self.layers - self.dense_layers),
            tuple(range(self.dense_layers, self.layers)),
            self.experts,
            self.top_k,
            expert_params=expert,
            expert_bytes=round(expert * bytes_each),
            weight_bytes=self.weight_bytes,
            kv_bytes=2 * attention.kv_values,
            head_params=self.vocabulary * self.hidden,
            other_params=self.vocabulary * self.hidden,
            published_gb=self.published_gb,
            source=self.source,
        )


def embedded(factor: int = 32) -> ModelSizes:
    """The model in this repository with experts ``factor`` times wider, in float32, as in the measured cells."""
    hidden, vocabulary = 256, 4096
    expert = _gated(hidden, 40 * factor)
    layer = _attention(hidden, 4, 2, 64) + 64 * hidden
    return ModelSizes(
        f"embedded-x{factor}",
        f"embedded, {factor} times wider",
        (layer,) * 6,
        tuple(range(6)),
        experts=64,
        top_k=2,
        expert_params=expert,
        expert_bytes=4 * expert,
        weight_bytes=4,
        kv_bytes=2 * 4 * 2 * 64,
        head_params=vocabulary * hidden,
        other_params=0,
        published_gb=64 * 6 * 4 * expert / 1e9,
        source="workloads/embedded/config.json",
    )


def _public() -> dict[str, ModelSizes]:
    """NLLB-MoE and the decoders of ``models.yaml``, by name."""
    listed = yaml.safe_load(Path(__file__).with_name("models.yaml").read_text(encoding="utf-8"))
    sizes = [nllb_moe(), *(Decoder.model_validate(fields).sizes(name) for name, fields in listed.items())]
    return {model.name: model for model in sizes}


PUBLIC = _public()
