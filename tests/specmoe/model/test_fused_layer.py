"""Fused decoder layers give the layer's own logits for rows of any length; other layers stay as they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from specmoe.compute.linear import replace_linears
from specmoe.compute.norm import replace_norms
from specmoe.compute.table import TORCH, KernelTable
from specmoe.compute.threads import available
from specmoe.model.fused_attention import fuse_attention
from specmoe.model.fused_layer import FusedLayer, fuse_layers
from specmoe.model.kv_cache import RaggedCache
from tests.conftest import VOCAB
from tests.specmoe.model.test_fused_attention import FUSED, STREAMING, _model, _pass

pytestmark = pytest.mark.skipif(not available(), reason="needs Linux on x86-64 or 64-bit Arm")


def _fused(family: str, table: KernelTable = STREAMING) -> PreTrainedModel:
    model = _model(family)
    replace_linears(model, table, smallest=100)
    fuse_attention(model, table)
    replace_norms(model)
    return model


@pytest.mark.parametrize("family", FUSED)
@pytest.mark.parametrize("threads", [1, 2])
def test_every_pass_gives_the_same_logits(family: str, threads: int) -> None:
    plain, fused = _model(family), _fused(family)
    assert fuse_layers(fused) == FUSED[family]
    caches = [RaggedCache(plain.config, 3, 70, torch.device("cpu")) for _ in range(2)]
    generator, before = torch.Generator().manual_seed(0), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for queries, kept in ((5, [5, 3, 1]), (1, [1, 1, 1]), (4, [0, 2, 4]), (33, [33, 7, 1]), (1, [1, 1, 1])):
            ids = torch.randint(0, VOCAB, (3, queries), generator=generator)
            expected, found = (_pass(m, c, ids) for m, c in zip((plain, fused), caches, strict=True))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-4)
            for cache in caches:
                cache.commit(torch.tensor(kept))
    finally:
        torch.set_num_threads(before)


def test_a_decode_step_is_computed_by_the_fused_form() -> None:
    model = _fused("qwen3")
    fuse_layers(model)
    layers = [m for m in model.modules() if isinstance(m, FusedLayer)]
    for layer in layers:
        layer.__dict__["_parts"][0].forward = None  # the layer's own form would fail
    cache = RaggedCache(model.config, 2, 8, torch.device("cpu"))
    assert _pass(model, cache, torch.tensor([[5], [6]])).isfinite().all()


def test_what_the_table_gives_to_torch_stays_there() -> None:
    plain, fused = _model("qwen3"), _fused("qwen3", TORCH)
    fuse_layers(fused)
    ids = torch.tensor([[5], [6]])
    expected, found = (_pass(m, RaggedCache(m.config, 2, 8, torch.device("cpu")), ids) for m in (plain, fused))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_layer_that_adds_in_another_way_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _fused("qwen3")
    changed: Any = next(m for m in model.modules() if type(m).__name__ == "Qwen3MoeDecoderLayer")
    forward = type(changed).forward
    monkeypatch.setattr(type(changed), "forward", lambda self, *a, **k: 2 * forward(self, *a, **k))
    assert fuse_layers(model) == 0


def test_layers_are_replaced_once_and_keep_their_parameters() -> None:
    model = _fused("mixtral")
    names = {name for name, _ in model.named_parameters()}
    assert fuse_layers(model) == 3
    assert fuse_layers(model) == 0
    assert {name for name, _ in model.named_parameters()} == names


@pytest.mark.parametrize("family", ["mixtral-sliding-window", "olmoe", "deepseek-v3"])
def test_other_kinds_of_attention_stay(family: str) -> None:
    assert fuse_layers(_fused(family)) == 0
