"""Each substitution rule maps picks to draft experts as it says and keeps the gate's weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specmoe import SpecMoE
from specmoe.drafting.substitution import BestGate, Picks, make_rule, merge_collisions, rescale
from specmoe.errors import UnsupportedModelError
from tests.conftest import FAMILIES, build, prompts

EXPERTS, TOP_K, TOKENS = 8, 3, 40


CPU = torch.device("cpu")


def _picks(seed: int = 0) -> Picks:
    """What a softmax gate that renormalises its top k would pick."""
    logits = torch.randn(TOKENS, EXPERTS, generator=torch.Generator().manual_seed(seed))
    best = logits.topk(TOP_K, dim=-1)
    return Picks(best.indices, best.values.softmax(dim=-1), logits)


def _rule(name: Any, drafting: list[int], seed: int = 0, slices: torch.Tensor | None = None) -> Any:
    table = torch.rand(EXPERTS, EXPERTS, generator=torch.Generator().manual_seed(1))
    table = (table + table.t()).fill_diagonal_(0)
    return make_rule(name, drafting, table, slices, torch.Generator().manual_seed(seed), CPU)


def _dense(index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weight per expert, [T, E]."""
    return torch.zeros(len(index), EXPERTS).scatter_add_(1, index, weights)


RULES = ["affinity", "random", "best-gate", "drop"]


@given(st.sampled_from(RULES), st.lists(st.integers(0, 7), min_size=1, max_size=8, unique=True), st.integers(0, 9))
def test_only_draft_experts_ever_draft(name: str, drafting: list[int], seed: int) -> None:
    index, weights = _rule(name, drafting)(_picks(seed))
    used = weights > 0
    assert set(index[used].tolist()) <= set(drafting)
    assert set(index.flatten().tolist()) <= set(drafting)  # even picks of weight zero need a resident expert


@given(st.sampled_from(RULES), st.lists(st.integers(0, 7), min_size=1, max_size=8, unique=True), st.integers(0, 9))
def test_every_rule_keeps_the_gates_sum(name: str, drafting: list[int], seed: int) -> None:
    picks = _picks(seed)
    _, weights = _rule(name, drafting)(picks)
    total = weights.sum(dim=-1)
    if name == "drop":  # nothing is left where no pick can draft
        total = torch.where(torch.isin(picks.index, torch.tensor(drafting)).any(dim=-1), total, 1.0)
    torch.testing.assert_close(total, picks.weights.sum(dim=-1))


@pytest.mark.parametrize("name", RULES)
def test_a_full_draft_set_changes_no_weight(name: str) -> None:
    picks = _picks()
    torch.testing.assert_close(_dense(*_rule(name, list(range(EXPERTS)))(picks)), _dense(picks.index, picks.weights))


def test_affinity_maps_to_the_nearest_draft_expert() -> None:
    table = torch.tensor([[0.0, 0.9, 0.2], [0.9, 0.0, 0.8], [0.2, 0.8, 0.0]])
    rule = make_rule("affinity", [1, 2], table, None, torch.Generator(), CPU)
    index, _ = rule(Picks(torch.tensor([[0, 1, 2]]), torch.ones(1, 3)))
    assert index.tolist() == [[2, 1, 2]]


def test_drop_removes_picks_that_cannot_draft_and_rescales_the_others() -> None:
    picks = Picks(torch.tensor([[0, 1, 2], [5, 6, 7]]), torch.tensor([[0.5, 0.3, 0.1], [0.4, 0.3, 0.2]]))
    index, weights = _rule("drop", [1, 2])(picks)
    expected = torch.zeros(2, EXPERTS)
    expected[0, 1], expected[0, 2] = 0.9 * 3 / 4, 0.9 * 1 / 4
    torch.testing.assert_close(_dense(index, weights), expected)


@given(st.lists(st.integers(0, 7), min_size=1, max_size=8, unique=True))
def test_best_gate_is_the_gates_own_ranking_among_draft_experts(drafting: list[int]) -> None:
    """What the gate would have picked, and weighed, had there been no other experts."""
    picks = _picks()
    assert picks.logits is not None
    masked = picks.logits.clone()
    masked[:, [e for e in range(EXPERTS) if e not in drafting]] = -torch.inf
    best = masked.topk(min(TOP_K, len(drafting)), dim=-1)
    expected = _dense(best.indices, best.values.softmax(dim=-1))
    torch.testing.assert_close(_dense(*_rule("best-gate", drafting)(picks)), expected)


def test_best_gate_without_logits_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="needs router logits"):
        BestGate([0, 1], CPU)(Picks(torch.tensor([[0]]), torch.ones(1, 1)))


def test_random_repeats_with_its_seed_and_keeps_draft_experts() -> None:
    drafting = [1, 4, 6]
    picks = Picks(torch.arange(EXPERTS)[:, None], torch.ones(EXPERTS, 1))
    first, _ = _rule("random", drafting, seed=3)(picks)
    again, _ = _rule("random", drafting, seed=3)(picks)
    assert torch.equal(first, again)
    assert first[drafting, 0].tolist() == drafting
    others = {tuple(_rule("random", drafting, seed=s)(picks)[0].flatten().tolist()) for s in range(8)}
    assert len(others) > 1


def test_merged_maps_to_slices_and_keeps_draft_experts() -> None:
    slices = torch.tensor([8, 8, 9, 9, 10, 10, 8, 9])
    picks = Picks(torch.arange(EXPERTS)[:, None], torch.ones(EXPERTS, 1))
    index, _ = _rule("merged", [2, 7], slices=slices)(picks)
    assert index.flatten().tolist() == [8, 8, 2, 9, 10, 10, 8, 7]
    index, _ = _rule("merged", [], slices=slices)(picks)
    assert index.flatten().tolist() == slices.tolist()


def test_colliding_picks_add_their_weights() -> None:
    index, weights = merge_collisions(
        torch.tensor([[4, 4, 1], [2, 3, 2]]), torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.2, 0.7]]), "add"
    )
    torch.testing.assert_close(weights, torch.tensor([[0.7, 0.0, 0.3], [0.8, 0.2, 0.0]]))
    assert index.tolist() == [[4, 4, 1], [2, 3, 2]]


def test_colliding_picks_count_once_and_are_rescaled() -> None:
    _, weights = merge_collisions(torch.tensor([[4, 4, 1]]), torch.tensor([[0.5, 0.2, 0.3]]), "once")
    torch.testing.assert_close(weights, torch.tensor([[0.5, 0.0, 0.3]]) / 0.8)


@given(st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=1, max_size=6))
def test_adding_collisions_changes_no_sum(index: list[list[int]]) -> None:
    picks, weights = torch.tensor(index), torch.rand(len(index), 3)
    _, merged = merge_collisions(picks, weights, "add")
    torch.testing.assert_close(_dense(picks, merged), _dense(picks, weights))
    per_token = [[e for e, w in zip(row, kept, strict=True) if w > 0] for row, kept in zip(index, merged, strict=True)]
    assert all(len(row) == len(set(row)) for row in per_token)


def test_rows_of_zeros_stay_zero_when_rescaled() -> None:
    assert rescale(torch.zeros(1, 2), torch.ones(1, 2)).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "deepseek-v3"])
def test_best_gate_over_all_experts_is_the_target(family: str, tmp_path: Path) -> None:
    """With every expert drafting, nothing is substituted and every token is accepted, in each family."""
    build(family, tmp_path / "model")
    ids, mask = prompts(2)
    with SpecMoE.from_pretrained(
        tmp_path / "model",
        store=tmp_path / "store",
        gamma=3,
        draft_experts=8,
        selection="random",  # all of them, from the first pass on
        substitution="best-gate",
    ) as engine:
        stats = engine.generate(ids, mask, max_new_tokens=13).stats
    assert stats.acceptance_rate == 1.0
