"""A resized engine is one that was loaded with that budget: same tokens, old memory gone, and errors change nothing."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from specmoe import BudgetError, SpecMoE
from tests.conftest import prompts, reference

Tiny = tuple[Path, PreTrainedModel]
DRAFTS = {
    "none": {"gamma": 0, "placement": "lfu"},
    "pinned": {"gamma": 3, "draft_experts": 2},
    "residents": {"gamma": 3, "draft_experts": 2, "draft_pool": "resident", "prefetch": "draft", "placement": "lfu"},
    "low-bit": {"gamma": 3, "draft_pool": "low-bit", "draft_bits": 4},
    "best-gate": {"gamma": 3, "draft_experts": 2, "substitution": "best-gate"},
}


def _engine(tiny: Tiny, budget: str | None = "60%", **options: object) -> SpecMoE:
    return SpecMoE.from_pretrained(tiny[0], store=tiny[0] / "store", expert_budget=budget, **options)  # type: ignore[arg-type]


def _generated(engine: SpecMoE) -> torch.Tensor:
    return engine.generate(*prompts(3), max_new_tokens=8).sequences


@pytest.mark.parametrize("draft", DRAFTS)
def test_tokens_are_those_of_transformers_before_and_after(tiny: Tiny, draft: str) -> None:
    expected = reference(tiny[1], *prompts(3), 8)
    with _engine(tiny, **DRAFTS[draft]) as engine:
        for budget in ("60%", "50%", None):
            engine.resize(budget)
            assert engine.arena.budget_bytes == engine.store.budget_bytes(budget)
            assert torch.equal(_generated(engine), expected)


@pytest.mark.parametrize("draft", DRAFTS)
def test_the_old_memory_is_given_back_at_once(tiny: Tiny, draft: str) -> None:
    with _engine(tiny, **DRAFTS[draft]) as engine:
        _generated(engine)
        memory = weakref.ref(engine.arena)
        gc.disable()
        try:
            engine.resize("50%")
            assert memory() is None
        finally:
            gc.enable()


def test_a_resized_engine_counts_as_one_loaded_with_its_budget(tiny: Tiny) -> None:
    options = {"gamma": 3, "draft_experts": 2}
    with _engine(tiny, "50%", **options) as loaded, _engine(tiny, **options) as engine:
        _generated(engine)
        engine.resize("50%")
        ours, theirs = (e.generate(*prompts(3), max_new_tokens=8).stats for e in (engine, loaded))
    assert ours.decode.experts == theirs.decode.experts
    assert ours.decode.link.moved_bytes == theirs.decode.link.moved_bytes
    assert ours.accepted_by_position == theirs.accepted_by_position


@pytest.mark.parametrize("draft", DRAFTS)
def test_a_budget_that_is_too_small_leaves_the_engine_as_it_was(tiny: Tiny, draft: str) -> None:
    with _engine(tiny, **DRAFTS[draft]) as engine:
        before = engine.arena.budget_bytes
        with pytest.raises(BudgetError, match="raise"):
            engine.resize(1)
        with pytest.raises(ValueError, match="is not a size"):
            engine.resize("much")
        assert engine.arena.budget_bytes == before
        assert torch.equal(_generated(engine), reference(tiny[1], *prompts(3), 8))
