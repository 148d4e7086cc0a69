"""Sizes of public models agree with their publishers; costs follow the roofline."""

from __future__ import annotations

import json

import pytest

from harness.projection.cost import Cost
from harness.projection.models import PUBLIC, ModelSizes, embedded
from reports.results import paper
from tests.harness.projection.small_model import RECORDS, SMALL, machine


@pytest.mark.parametrize("model", PUBLIC.values(), ids=PUBLIC.keys())
def test_layer_sizes_add_up_to_the_published_size(model: ModelSizes) -> None:
    assert model.total_bytes / 1e9 == pytest.approx(model.published_gb, rel=0.03)


def test_sizes_agree_with_the_papers_table() -> None:
    for known in paper.MODELS:
        model = PUBLIC[known.id]
        assert (model.experts, model.top_k, len(model.moe_layers)) == (known.experts, known.top_k, known.moe_blocks)
        assert len(model.dense_params) == known.layers
        assert model.published_gb == known.size_gb


def test_sizes_of_the_embedded_model_are_those_of_its_files() -> None:
    config = json.loads((RECORDS.parent.parent / "workloads" / "embedded" / "config.json").read_text())
    model = embedded(1)
    assert len(model.moe_layers) == config["num_hidden_layers"]
    assert model.expert_params == 3 * config["hidden_size"] * config["moe_intermediate_size"]
    weights = RECORDS.parent.parent / "workloads" / "embedded" / "model.safetensors"
    assert model.total_bytes / 2 == pytest.approx(weights.stat().st_size, rel=0.02)  # on disk in 16 bits


def test_one_token_is_bound_by_memory_and_many_by_arithmetic() -> None:
    cost = Cost(machine(memory_gb_s=1000.0, gemm_tflop_s=1.0), SMALL)
    assert cost.expert_s(1) == pytest.approx(1_000_000 / 1e12)
    assert cost.expert_s(1000) == pytest.approx(2 * 500_000 * 1000 / 1e12)
    assert cost.expert_s(0) == 0.0
