"""Greedy output equals transformers' ``generate(do_sample=False)`` token for token in float32."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cache as memoise
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from specmoe import SpecMoE
from specmoe.model.convert import open_or_build
from tests.conftest import FAMILIES, build, prompts, reference
from workloads import models
from workloads import prompts as prompt_sets

NEW_TOKENS = 12


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("gamma", [0, 4])
def test_every_family_matches_the_reference(family: str, gamma: int, tmp_path: Path) -> None:
    model = build(family, tmp_path / "model")
    ids, mask = prompts(3)
    expected = reference(model, ids, mask, NEW_TOKENS)
    with SpecMoE.from_pretrained(
        tmp_path / "model", gamma=gamma, draft_experts=2, expert_budget="60%", store=tmp_path / "store"
    ) as engine:
        output = engine.generate(ids, mask, max_new_tokens=NEW_TOKENS)
    assert output.sequences.tolist() == expected.tolist()


def test_the_cache_argument_is_named_as_in_the_installed_transformers(tiny: tuple[Path, PreTrainedModel]) -> None:
    ids, mask = prompts(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # transformers 5.24 renamed the cache's argument
        with SpecMoE.from_pretrained(tiny[0], store=tiny[0] / "store", gamma=2, draft_experts=2) as engine:
            engine.generate(ids, mask, max_new_tokens=3)


@memoise
def _expected(folder: Path, rows: int) -> torch.Tensor:
    ids, mask = prompts(rows, seed=rows)
    return reference(Qwen3MoeForCausalLM.from_pretrained(folder, dtype=torch.float32), ids, mask, NEW_TOKENS)


@pytest.mark.slow
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_any_gamma_budget_and_policy_matches_the_reference(
    data: st.DataObject, tiny: tuple[Path, PreTrainedModel]
) -> None:
    folder, _ = tiny
    rows = data.draw(st.sampled_from([1, 3, 16]), label="batch")
    gamma = data.draw(st.integers(0, 8), label="gamma")
    draft_experts = data.draw(st.integers(1, 9), label="draft experts")
    store = open_or_build(folder, folder / "store")
    pinned = sum(min(draft_experts, spec.experts) for spec in store.layers) if gamma else 0
    slots = data.draw(st.integers(min(pinned + 1, store.total_experts), store.total_experts), label="slots")
    ids, mask = prompts(rows, seed=rows)
    with SpecMoE.from_pretrained(
        folder,
        store=folder / "store",
        gamma=gamma,
        draft_experts=draft_experts,
        expert_budget=slots * store.slot_bytes,
        placement=data.draw(st.sampled_from(["on-demand", "lru", "lfu", "top-fraction"]), label="placement"),
        selection=data.draw(st.sampled_from(["hot-temporal", "hot-prefill", "random"]), label="selection"),
        hot_decay=data.draw(st.sampled_from([0.0, 0.5, 1.0]), label="decay"),
    ) as engine:
        for _ in range(2):  # the second call starts with a warm arena
            output = engine.generate(ids, mask, max_new_tokens=NEW_TOKENS)
            assert output.sequences.tolist() == _expected(folder, rows).tolist()
        assert engine.arena.peak_slots <= slots


@pytest.fixture(scope="module")
def embedded() -> PreTrainedModel:
    return Qwen3MoeForCausalLM.from_pretrained(models.path("embedded"), dtype=torch.float32).eval()


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 3, 16])
def test_trained_model_with_real_acceptance_matches_the_reference(
    rows: int, embedded: PreTrainedModel, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(models.path("embedded"), padding_side="left")
    texts = [p.text for p in prompt_sets.select(rows, offset=40)]
    encoded = tokenizer(texts, return_tensors="pt", padding=True)
    expected = reference(embedded, encoded["input_ids"], encoded["attention_mask"], 32)
    with SpecMoE.from_pretrained(
        models.path("embedded"),
        dtype=torch.float32,
        store=tmp_path / "store",
        gamma=5,
        draft_experts=8,
        expert_budget="25%",
    ) as engine:
        output = engine.generate(encoded["input_ids"], encoded["attention_mask"], max_new_tokens=32, eos_token_id=None)
    assert output.sequences.tolist() == expected.tolist()
    assert output.stats.tokens_per_step > 1.5, "most drafted tokens of a trained model must be accepted"


class _WiderLayerConfig(Qwen3MoeConfig):
    model_type = "qwen3-moe-with-a-wider-layer"


class _WiderLayer(Qwen3MoeForCausalLM):
    """A Qwen3-MoE in which layer 1 has wider experts."""

    config_class = _WiderLayerConfig

    def __init__(self, config: Qwen3MoeConfig) -> None:
        super().__init__(config)
        wider = Qwen3MoeConfig(**{**config.to_dict(), "moe_intermediate_size": 40})
        layer = self.model.layers[1]
        layer.mlp.experts = type(layer.mlp.experts)(wider)
        layer.mlp.experts.config = config


@pytest.fixture
def wider_layer() -> Iterator[None]:
    """transformers' auto classes know the model with a wider layer."""
    AutoConfig.register(_WiderLayerConfig.model_type, _WiderLayerConfig)
    AutoModelForCausalLM.register(_WiderLayerConfig, _WiderLayer)
    yield
    CONFIG_MAPPING._extra_content.pop(_WiderLayerConfig.model_type)
    AutoModelForCausalLM._model_mapping._extra_content.pop(_WiderLayerConfig)


@pytest.mark.usefixtures("wider_layer")
def test_expert_sizes_may_differ_by_layer(tmp_path: Path) -> None:
    config = build("qwen3", tmp_path / "unused").config.to_dict()
    model = _WiderLayer(_WiderLayerConfig(**{k: v for k, v in config.items() if k != "model_type"})).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "model")
    ids, mask = prompts(2)
    with SpecMoE.from_pretrained(
        tmp_path / "model", store=tmp_path / "store", gamma=3, draft_experts=2, expert_budget="50%"
    ) as engine:
        sizes = {spec.expert_bytes for spec in engine.store.layers}
        output = engine.generate(ids, mask, max_new_tokens=NEW_TOKENS)
    assert len(sizes) == 2
    assert output.sequences.tolist() == reference(model, ids, mask, NEW_TOKENS).tolist()


def test_rows_stop_at_their_stop_token_as_in_transformers(tiny: tuple[Path, PreTrainedModel]) -> None:
    folder, model = tiny
    ids, mask = prompts(4, seed=5)
    free = reference(model, ids, mask, 20)[:, ids.shape[1] :]
    stop = int(free[0, 6])  # a token that some rows reach early
    expected = model.generate(
        ids, attention_mask=mask, max_new_tokens=20, do_sample=False, eos_token_id=stop, pad_token_id=0
    )
    with SpecMoE.from_pretrained(folder, store=folder / "store", gamma=3, draft_experts=3) as engine:
        output = engine.generate(ids, mask, max_new_tokens=20, eos_token_id=stop, pad_token_id=0)
    assert output.sequences.tolist() == expected.tolist()


def test_a_single_new_token_needs_no_decode_pass(tiny: tuple[Path, PreTrainedModel]) -> None:
    folder, model = tiny
    ids, mask = prompts(3)
    with SpecMoE.from_pretrained(folder, store=folder / "store", gamma=3, draft_experts=3) as engine:
        output = engine.generate(ids, mask, max_new_tokens=1)
    assert output.sequences.tolist() == reference(model, ids, mask, 1).tolist()
    assert output.stats.target_passes == 0


def test_bfloat16_runs_and_agrees_on_shape(tiny: tuple[Path, PreTrainedModel], tmp_path: Path) -> None:
    folder, _ = tiny
    ids, mask = prompts(2)
    with SpecMoE.from_pretrained(
        folder, dtype=torch.bfloat16, store=tmp_path / "store", gamma=2, draft_experts=2
    ) as engine:
        output = engine.generate(ids, mask, max_new_tokens=5)
        assert engine.store.dtype == torch.bfloat16
    assert output.sequences.shape == (2, ids.shape[1] + 5)
