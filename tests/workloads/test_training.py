"""The fast experts formulation equals transformers' own, and a short training run learns."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from workloads.train import corpus, loop, prompts, publish, routing, sorted_experts
from workloads.train.architectures import build_model
from workloads.train.prepare import prepare
from workloads.train.recipe import RECIPES, Recipe

SMALL = replace(
    Recipe(),
    vocab_size=512,
    hidden_size=64,
    layers=2,
    attention_heads=2,
    key_value_heads=1,
    head_dim=32,
    experts=8,
    expert_intermediate_size=16,
    sequence_length=64,
    sequences_per_step=8,
    steps=120,
    warmup_steps=10,
)


def test_sorted_experts_equal_the_eager_ones_in_value_and_gradient() -> None:
    torch.manual_seed(0)
    model = build_model(SMALL)
    experts = model.model.layers[0].mlp.experts
    torch.nn.init.normal_(experts.gate_up_proj, std=0.1)
    torch.nn.init.normal_(experts.down_proj, std=0.1)
    index = torch.randint(0, 8, (50, 2))
    index[:, 1] = (index[:, 0] + 1) % 8
    weights = torch.rand(50, 2)
    results = []
    for name in (sorted_experts.NAME, "eager"):
        model.set_experts_implementation(name)
        x = torch.randn(50, 64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        experts.zero_grad()
        out = experts(x, index, weights)
        out.square().sum().backward()
        results.append([out.detach(), x.grad, experts.gate_up_proj.grad.clone(), experts.down_proj.grad.clone()])
    for fast, eager in zip(*results, strict=True):
        scale = eager.abs().max()
        torch.testing.assert_close(fast / scale, eager / scale, atol=2e-2, rtol=0)  # bfloat16 products


def test_experts_without_a_token_get_no_gradient() -> None:
    model = build_model(SMALL)
    experts = model.model.layers[0].mlp.experts
    index = torch.tensor([[1, 2], [1, 2]])
    experts(torch.randn(2, 64), index, torch.ones(2, 2)).sum().backward()
    used = experts.down_proj.grad.abs().amax(dim=(1, 2)) > 0
    assert used.nonzero().flatten().tolist() == [1, 2]


@pytest.mark.slow
def test_a_short_run_learns_and_publishes_a_loadable_model(tmp_path: Path) -> None:
    text = corpus.standard_library()
    part = replace(text, train=text.train[:60], held_out=text.held_out[:8])
    tokenizer, data = prepare(SMALL, part)
    tokenizer.save_pretrained(tmp_path)
    written = prompts.write_prompts(part, tokenizer, tmp_path / "prompts.jsonl", seed=0)
    model, result = loop.train(SMALL, data, tmp_path)
    publish.publish(SMALL, part, tokenizer, data, result, tmp_path / "prompts.jsonl", tmp_path)
    assert written == prompts.COUNT
    assert result["held_out_loss_nats"] < np.log(SMALL.vocab_size) - 1.0
    log = (tmp_path / "training_log.jsonl").read_text().splitlines()
    assert len(log) == 3  # steps 50, 100 and the last
    assert "held-out loss" in (tmp_path / "README.md").read_text()
    skew = routing.measure_skew(model, SMALL, itertools.islice(data.routed(), 1))
    assert [s.layer for s in skew] == [0, 1]
    assert all(1 / 8 <= s.top_10_percent_share <= 1 for s in skew)


def test_files_are_held_out_whole_and_by_name() -> None:
    first, second = corpus.standard_library(), corpus.standard_library()
    assert first == second
    shared = sum(len(text) for text in set(first.held_out) & set(first.train))  # boilerplate __init__ files
    assert shared < 1e-3 * sum(len(text) for text in first.held_out)
    assert 0.01 < len(first.held_out) / len(first.train) < 0.05


def test_the_published_recipe_is_the_default_one() -> None:
    assert RECIPES["embedded"] == Recipe()
