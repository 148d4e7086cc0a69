"""Rows of different lengths in one cache give the same logits as each row alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, PreTrainedModel
from transformers.cache_utils import DynamicCache

from specmoe.errors import UnsupportedModelError
from specmoe.model.kv_cache import RaggedCache
from tests.conftest import FAMILIES, VOCAB


def _forward(model: PreTrainedModel, cache: RaggedCache, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(
            input_ids=ids,
            attention_mask=cache.attention_mask(ids.shape[1], model.dtype, boolean=True),
            position_ids=cache.lengths.positions(ids.shape[1]),
            past_key_values=cache,
            use_cache=True,
        ).logits
    return logits


def _alone(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=ids[None], past_key_values=DynamicCache(config=model.config)).logits[0]
    return logits


@pytest.fixture(scope="module", params=["qwen3", "mixtral-sliding-window", "deepseek-v3"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(1)
    return FAMILIES[request.param]().float().eval()


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_ragged_rows_equal_rows_run_alone(data: st.DataObject, model: PreTrainedModel) -> None:
    rows = data.draw(st.integers(1, 4))
    steps = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    cache = RaggedCache(model.config, rows, 40, torch.device("cpu"))
    kept: list[list[int]] = [[] for _ in range(rows)]
    for queries in steps:
        ids = torch.tensor(
            data.draw(st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=queries, max_size=queries),
                               min_size=rows, max_size=rows))
        )  # fmt: skip
        logits = _forward(model, cache, ids)
        for row in range(rows):
            expected = _alone(model, torch.tensor(kept[row] + ids[row].tolist()))[-queries:]
            torch.testing.assert_close(logits[row], expected, atol=2e-4, rtol=1e-4)
        accepted = torch.tensor(data.draw(st.lists(st.integers(0, queries), min_size=rows, max_size=rows)))
        cache.commit(accepted)
        for row in range(rows):
            kept[row] += ids[row, : int(accepted[row])].tolist()


def test_rejected_tokens_are_overwritten(model: PreTrainedModel) -> None:
    cache = RaggedCache(model.config, 1, 20, torch.device("cpu"))
    _forward(model, cache, torch.tensor([[5, 6, 7]]))
    cache.commit(torch.tensor([3]))
    _forward(model, cache, torch.tensor([[8, 9, 10, 11]]))  # all rejected
    logits = _forward(model, cache, torch.tensor([[12, 13]]))
    torch.testing.assert_close(logits[0], _alone(model, torch.tensor([5, 6, 7, 12, 13]))[-2:], atol=2e-4, rtol=1e-4)


def test_selected_rows_keep_their_content(model: PreTrainedModel) -> None:
    cache = RaggedCache(model.config, 3, 20, torch.device("cpu"))
    ids = torch.tensor([[5, 6, 7], [8, 9, 10], [11, 12, 13]])
    _forward(model, cache, ids)
    cache.commit(torch.tensor([1, 2, 3]))
    cache.select(torch.tensor([0, 2]))
    logits = _forward(model, cache, torch.tensor([[20], [21]]))
    torch.testing.assert_close(logits[0, 0], _alone(model, torch.tensor([5, 20]))[-1], atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(logits[1, 0], _alone(model, torch.tensor([11, 12, 13, 21]))[-1], atol=2e-4, rtol=1e-4)


def test_eager_masks_add_nothing_where_attention_is_allowed() -> None:
    torch.manual_seed(0)
    model = FAMILIES["qwen3"]()
    cache = RaggedCache(model.config, 2, 10, torch.device("cpu"))
    cache.lengths.values = torch.tensor([2, 0])
    boolean = cache.attention_mask(2, torch.float32, boolean=True)
    added = cache.attention_mask(2, torch.float32, boolean=False)
    assert isinstance(boolean, torch.Tensor)
    assert isinstance(added, torch.Tensor)
    assert boolean[:, 0].tolist() == [
        [[True, True, True, False], [True, True, True, True]],
        [[True, False, False, False], [True, True, False, False]],
    ]
    assert torch.equal(added == 0, boolean)


def test_unsupported_attention_types_are_refused(tmp_path: Path) -> None:
    config = GPT2Config(n_layer=1)
    config.layer_types = ["linear_attention"]
    with pytest.raises(UnsupportedModelError, match="linear_attention"):
        RaggedCache(config, 1, 10, torch.device("cpu"))
