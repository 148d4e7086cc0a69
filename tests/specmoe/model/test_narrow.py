"""Matrices that rest in bfloat16 give the float32 result, bit for bit where they are streamed; inexact ones stay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from specmoe.compute.linear import KernelLinear, replace_linears
from specmoe.compute.norm import replace_norms
from specmoe.compute.table import TORCH, KernelTable
from specmoe.compute.threads import available
from specmoe.model.fused_attention import FusedAttention, fuse_attention
from specmoe.model.fused_layer import FusedLayer, fuse_layers
from specmoe.model.kv_cache import RaggedCache
from specmoe.model.narrow import NarrowEmbedding, narrow
from tests.conftest import FAMILIES, VOCAB
from tests.specmoe.model.test_fused_attention import DTYPES, ROWS, _pass

pytestmark = pytest.mark.skipif(not available(), reason="needs Linux on x86-64 or 64-bit Arm")
PAIRS = [*map(str, DTYPES), "torch.bfloat16 in float32", "torch.float16 in float32"]
STREAMING = KernelTable("test", {f"linear {p.removeprefix('torch.')}": ["streaming"] * len(ROWS) for p in PAIRS})


def _model(family: str = "qwen3", table: KernelTable = STREAMING, **settings: Any) -> PreTrainedModel:
    torch.manual_seed(3)
    make: Any = FAMILIES["mixtral-sliding-window" if family == "mixtral" else family]
    settings |= {"sliding_window": None} if family == "mixtral" else {}
    model: PreTrainedModel = make(**settings).bfloat16().float().eval()
    model.config.dtype = torch.float32
    replace_linears(model, table, smallest=100)
    fuse_attention(model, table)
    replace_norms(model)
    return model


def _logits(model: PreTrainedModel, queries: int) -> torch.Tensor:
    cache = RaggedCache(model.config, 3, 70, torch.device("cpu"))
    ids = torch.randint(0, VOCAB, (3, queries), generator=torch.Generator().manual_seed(0))
    return _pass(model, cache, ids, torch.float32)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["qwen3", "mixtral"])
def test_streamed_products_are_the_same_numbers(family: str, tied: bool) -> None:
    wide, narrowed = (_model(family, tie_word_embeddings=tied) for _ in range(2))
    fuse_layers(wide)
    assert narrow(narrowed, torch.bfloat16) == 2 * 3 + 1
    assert fuse_layers(narrowed) == 3
    head: Any = narrowed.get_output_embeddings()
    assert head.weight.dtype == torch.bfloat16
    for queries in (1, 4):
        assert torch.equal(_logits(narrowed, queries), _logits(wide, queries))
    torch.testing.assert_close(_logits(narrowed, 33), _logits(wide, 33), rtol=1e-4, atol=1e-4)


def test_many_rows_are_widened_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specmoe.compute.linear.WIDENED_ELEMENTS", 300)
    wide, narrowed = _model(table=TORCH), _model(table=TORCH)
    assert narrow(narrowed, torch.bfloat16) == 7
    torch.testing.assert_close(_logits(narrowed, 7), _logits(wide, 7), rtol=1e-4, atol=1e-4)


def test_an_embedding_goes_on_sharing_the_head_s_weight() -> None:
    model = _model(tie_word_embeddings=True)
    narrow(model, torch.bfloat16)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    assert isinstance(embedding, NarrowEmbedding)
    assert embedding.weight is head.weight  # type: ignore[union-attr]
    assert embedding(torch.tensor([3])).dtype == torch.float32


def test_projections_share_the_joined_weight() -> None:
    model = _model()
    narrow(model, torch.bfloat16)
    layer = next(m for m in model.modules() if isinstance(m, FusedAttention))
    parts = [layer.q_proj, layer.k_proj, layer.v_proj]
    assert torch.equal(torch.cat([part.weight for part in parts]), layer.joined.weight)
    assert {p.weight.untyped_storage().data_ptr() for p in parts} == {layer.joined.weight.untyped_storage().data_ptr()}


def test_numbers_that_would_be_rounded_stay() -> None:
    model = _model()
    head: Any = model.get_output_embeddings()
    with torch.no_grad():
        head.weight[0, 0] = 1 + 2.0**-20
    assert narrow(model, torch.bfloat16) == 6
    assert head.weight.dtype == torch.float32


def test_an_embedding_that_does_more_keeps_the_shared_weight_wide() -> None:
    model = _model(tie_word_embeddings=True)
    embedding: Any = model.get_input_embeddings()
    embedding.register_forward_hook(lambda module, inputs, output: 2 * output)
    assert narrow(model, torch.bfloat16) == 6
    assert embedding.weight.dtype == torch.float32


def test_narrowing_again_changes_nothing() -> None:
    model = _model()
    narrow(model, torch.bfloat16)
    fuse_layers(model)
    assert narrow(model, torch.bfloat16) == 0
    assert narrow(_model(), torch.float32) == 0
    assert sum(isinstance(m, FusedLayer) for m in model.modules()) == 3
    assert isinstance(model.get_output_embeddings(), KernelLinear)
