"""Sizes of public models per layer, from their published configurations.

A *layer* is what a decoder layer reads besides its routed experts: attention, dense or shared feed-forward, router.
Only what takes part in decoding is counted: of NLLB-MoE only the decoder.
"""

from __future__ import annotations

from dataclasses import dataclass

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


def _decoder(
    name: str,
    title: str,
    *,
    layers: int,
    hidden: int,
    attention: int,
    kv_bytes: int,
    experts: int,
    top_k: int,
    expert_params: int,
    vocabulary: int,
    published_gb: float,
    source: str,
    shared_params: int = 0,
    dense_layers: int = 0,
    dense_ffn: int = 0,
    weight_bytes: float = 2,
    expert_bytes: float | None = None,
) -> ModelSizes:
    """A decoder-only model whose first ``dense_layers`` have no routed experts; untied embeddings."""
    moe = tuple(range(dense_layers, layers))
    routed = attention + shared_params + experts * hidden
    dense = tuple(attention + dense_ffn if i < dense_layers else routed for i in range(layers))
    return ModelSizes(
        name,
        title,
        dense,
        moe,
        experts,
        top_k,
        expert_params,
        round(expert_params * (weight_bytes if expert_bytes is None else expert_bytes)),
        weight_bytes,
        kv_bytes,
        head_params=vocabulary * hidden,
        other_params=vocabulary * hidden,
        published_gb=published_gb,
        source=source,
    )


def mixtral() -> ModelSizes:
    """mistralai/Mixtral-8x7B."""
    return _decoder(
        "mixtral-8x7b",
        "Mixtral-8x7B",
        layers=32,
        hidden=4096,
        attention=_attention(4096, 32, 8, 128),
        kv_bytes=2 * 2 * 8 * 128,
        experts=8,
        top_k=2,
        expert_params=_gated(4096, 14336),
        vocabulary=32000,
        published_gb=94,
        source="mistralai/Mixtral-8x7B-v0.1 config; size by the paper",
    )


def llama4_scout() -> ModelSizes:
    """meta-llama/Llama-4-Scout-17B-16E, text part: every layer with 16 experts and a shared one."""
    return _decoder(
        "llama-4-scout",
        "Llama-4-Scout",
        layers=48,
        hidden=5120,
        attention=_attention(5120, 40, 8, 128),
        kv_bytes=2 * 2 * 8 * 128,
        experts=16,
        top_k=1,
        expert_params=_gated(5120, 8192),
        shared_params=_gated(5120, 8192),
        vocabulary=202048,
        published_gb=218,
        source="meta-llama/Llama-4-Scout-17B-16E config; size by the paper (vision encoder included)",
    )


def qwen3_30b_a3b() -> ModelSizes:
    """Qwen/Qwen3-30B-A3B."""
    return _decoder(
        "qwen3-30b-a3b",
        "Qwen3-30B-A3B",
        layers=48,
        hidden=2048,
        attention=_attention(2048, 32, 4, 128),
        kv_bytes=2 * 2 * 4 * 128,
        experts=128,
        top_k=8,
        expert_params=_gated(2048, 768),
        vocabulary=151936,
        published_gb=61,
        source="Qwen/Qwen3-30B-A3B config; 30.5 B parameters in 16 bits",
    )


def deepseek_v3() -> ModelSizes:
    """deepseek-ai/DeepSeek-V3, in its own 8-bit weights; latent attention, three dense layers, one shared expert."""
    hidden, heads, query, latent, nope, rope, value = 7168, 128, 1536, 512, 128, 64, 128
    attention = (
        hidden * query
        + query * heads * (nope + rope)
        + hidden * (latent + rope)
        + latent * heads * (nope + value)
        + heads * value * hidden
    )
    return _decoder(
        "deepseek-v3",
        "DeepSeek-V3",
        layers=61,
        hidden=hidden,
        attention=attention,
        kv_bytes=2 * (latent + rope),
        experts=256,
        top_k=8,
        expert_params=_gated(hidden, 2048),
        shared_params=_gated(hidden, 2048),
        dense_layers=3,
        dense_ffn=_gated(hidden, 18432),
        vocabulary=129280,
        weight_bytes=1,
        published_gb=671,
        source="deepseek-ai/DeepSeek-V3 config; 671 B parameters in 8 bits, the prediction layer not counted",
    )


def gpt_oss_120b() -> ModelSizes:
    """openai/gpt-oss-120b: experts in MXFP4 (4.25 bits), the rest in 16 bits."""
    return _decoder(
        "gpt-oss-120b",
        "gpt-oss-120b",
        layers=36,
        hidden=2880,
        attention=_attention(2880, 64, 8, 64),
        kv_bytes=2 * 2 * 8 * 64,
        experts=128,
        top_k=4,
        expert_params=_gated(2880, 2880) + 3 * 2880,
        vocabulary=201088,
        expert_bytes=4.25 / 8,
        published_gb=65.2,
        source="openai/gpt-oss-120b config; 60.8 GiB checkpoint by its model card",
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


PUBLIC = {m.name: m for m in (nllb_moe(), mixtral(), llama4_scout(), qwen3_30b_a3b(), deepseek_v3(), gpt_oss_120b())}
