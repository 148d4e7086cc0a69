"""Fused attention gives the layer's own logits for rows of any length; layers that it cannot equal stay as they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from specmoe.compute.linear import KernelLinear, replace_linears
from specmoe.compute.table import DTYPES, ROWS, KernelTable
from specmoe.compute.threads import available
from specmoe.model.fused_attention import FusedAttention, fuse_attention
from specmoe.model.kv_cache import RaggedCache
from tests.conftest import FAMILIES, VOCAB

pytestmark = pytest.mark.skipif(not available(), reason="needs Linux on x86-64 or 64-bit Arm")
STREAMING = KernelTable("test", {f"linear {str(d).removeprefix('torch.')}": ["streaming"] * len(ROWS) for d in DTYPES})
FUSED = {"qwen3": 3, "qwen3-dense-between": 4, "qwen2-shared-expert": 3, "mixtral": 3}


def _model(family: str) -> PreTrainedModel:
    torch.manual_seed(3)
    make: Any = FAMILIES["mixtral-sliding-window" if family == "mixtral" else family]
    model: PreTrainedModel = make(**({"sliding_window": None} if family == "mixtral" else {})).float().eval()
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:
            nn.init.normal_(parameter, mean=0.5, std=0.5)
    return model


def _pass(
    model: PreTrainedModel, cache: RaggedCache, ids: torch.Tensor, dtype: torch.dtype | None = None
) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(
            input_ids=ids,
            attention_mask=cache.attention_mask(ids.shape[1], dtype or model.dtype, boolean=True),
            position_ids=cache.lengths.positions(ids.shape[1]),
            past_key_values=cache,
            use_cache=True,
        ).logits
    return logits


@pytest.mark.parametrize("family", FUSED)
def test_every_pass_gives_the_same_logits(family: str) -> None:
    plain, fused = _model(family), _model(family)
    replace_linears(fused, STREAMING, smallest=100)
    assert fuse_attention(fused, STREAMING) == FUSED[family]
    caches = [RaggedCache(plain.config, 3, 70, torch.device("cpu")) for _ in range(2)]
    generator = torch.Generator().manual_seed(0)
    for queries, kept in ((5, [5, 3, 1]), (1, [1, 1, 1]), (4, [0, 2, 4]), (33, [33, 7, 1]), (1, [1, 1, 1])):
        ids = torch.randint(0, VOCAB, (3, queries), generator=generator)
        expected, found = (_pass(m, c, ids) for m, c in zip((plain, fused), caches, strict=True))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-4)
        for cache in caches:
            cache.commit(torch.tensor(kept))


def test_the_joined_projections_share_the_layer_s_weights() -> None:
    model = _model("qwen3")
    before = sum(p.numel() for p in model.parameters())
    fuse_attention(model, STREAMING)
    layer: Any = next(m for m in model.modules() if isinstance(m, FusedAttention))
    joined: KernelLinear = layer.__dict__["_parts"][2]
    assert sum(p.numel() for p in model.parameters()) == before
    assert layer.k_proj.weight.untyped_storage().data_ptr() == joined.weight.untyped_storage().data_ptr()


def test_a_model_called_with_another_cache_or_none_is_unchanged() -> None:
    plain, fused = _model("qwen3"), _model("qwen3")
    fuse_attention(fused, STREAMING)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        torch.testing.assert_close(fused(ids).logits, plain(ids).logits, rtol=1e-5, atol=1e-5)
        settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
        assert torch.equal(fused.generate(ids, **settings), plain.generate(ids, **settings))


@pytest.mark.parametrize("family", ["mixtral-sliding-window", "olmoe", "deepseek-v3"])
def test_windows_and_other_kinds_of_attention_stay(family: str) -> None:
    assert fuse_attention(_model(family), STREAMING) == 0


def test_a_layer_that_computes_something_else_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model("qwen3")
    changed: Any = next(m for m in model.modules() if type(m).__name__ == "Qwen3MoeAttention")
    forward = type(changed).forward
    monkeypatch.setattr(type(changed), "forward", lambda self, *a, **k: (2 * forward(self, *a, **k)[0], None))
    assert fuse_attention(model, STREAMING) == 0


def test_models_in_other_dtypes_stay() -> None:
    assert fuse_attention(_model("qwen3").bfloat16(), STREAMING) == 0


def test_rotation_of_a_part_of_a_head_is_left_to_the_layer() -> None:
    model = _model("qwen3")
    plain: Any = next(m for m in model.modules() if type(m).__name__ == "Qwen3MoeAttention")
    fuse_attention(model, STREAMING)
    fused = next(m for m in model.modules() if isinstance(m, FusedAttention))
    cache, x = RaggedCache(model.config, 1, 8, torch.device("cpu")), torch.randn(1, 1, 32)
    half = torch.ones(1, 1, 4)
    with torch.inference_mode(), pytest.raises(RuntimeError):  # the layer's own error: this family rotates whole heads
        plain(x, position_embeddings=(half, half), attention_mask=None, past_key_values=cache)
    with torch.inference_mode(), pytest.raises(RuntimeError):
        fused(x, position_embeddings=(half, half), attention_mask=None, past_key_values=cache)
