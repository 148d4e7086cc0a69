"""Who stands in for an expert that cannot draft: each rule does what it claims."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from specmoe import SpecMoE
from specmoe.drafting import calibration as calibrate
from specmoe.drafting import merged as merge
from specmoe.drafting.substitution import BestGate, Picks, make_rule, merge_collisions, rescale
from specmoe.errors import StoreError, UnsupportedModelError
from specmoe.model.convert import open_or_build
from specmoe.offload.device import allocate_pages
from specmoe.offload.sources import DiskSource
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
def test_a_full_draft_set_leaves_the_gate_alone(name: str) -> None:
    picks = _picks()
    torch.testing.assert_close(_dense(*_rule(name, list(range(EXPERTS)))(picks)), _dense(picks.index, picks.weights))


def test_affinity_maps_to_the_nearest_draft_expert() -> None:
    table = torch.tensor([[0.0, 0.9, 0.2], [0.9, 0.0, 0.8], [0.2, 0.8, 0.0]])
    rule = make_rule("affinity", [1, 2], table, None, torch.Generator(), CPU)
    index, _ = rule(Picks(torch.tensor([[0, 1, 2]]), torch.ones(1, 3)))
    assert index.tolist() == [[2, 1, 2]]


def test_drop_leaves_out_what_cannot_draft_and_rescales_the_rest() -> None:
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


def test_merged_maps_to_slices_and_spares_draft_experts() -> None:
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


# Merged experts


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    folder = tmp_path_factory.mktemp("calibrated")
    model = build("qwen3", folder)
    with SpecMoE.from_pretrained(folder, store=folder / "store", gamma=0) as engine:
        engine.calibrate(*prompts(6, seed=7))
    return folder, model


@pytest.mark.parametrize("slices", [1, 3, 8, 20])
def test_there_are_at_most_k_clusters_and_each_has_a_member(slices: int) -> None:
    distances = torch.rand(8, 8, generator=torch.Generator().manual_seed(0))
    labels = merge.clusters((distances + distances.t()).fill_diagonal_(0).half(), slices)
    assert len(labels) == 8
    assert sorted(set(labels.tolist())) == list(range(len(set(labels.tolist()))))
    assert len(set(labels.tolist())) <= slices


def test_alike_experts_share_a_cluster() -> None:
    places = torch.tensor([0.0, 5.0, 0.1, 5.1, 9.0])
    labels = merge.clusters((places[:, None] - places[None, :]).abs(), 3).tolist()
    assert labels[0] == labels[2] != labels[1] == labels[3] != labels[4]


def test_a_slice_is_the_average_of_its_cluster_weighted_by_use(calibrated: tuple[Path, PreTrainedModel]) -> None:
    folder, model = calibrated
    store = open_or_build(folder, folder / "store")
    calibration = calibrate.load(store)
    assert calibration is not None
    merged, assigned = merge.open_or_build(store, calibration, 3)
    for layer, decoder_layer in enumerate(model.model.layers):
        use = calibration.counts[layer] + 1
        for label in range(merged.layers[layer].experts):
            members = (assigned[layer] == label).nonzero().flatten()
            share = (use[members] / use[members].sum())[:, None, None]
            buffer = allocate_pages(store.slot_bytes)
            DiskSource(merged).read(layer, label, buffer.numpy().data)
            tensors = merged.tensors(layer, buffer)
            for name in ("gate_up_proj", "down_proj"):
                expected = (share * getattr(decoder_layer.mlp.experts, name)[members]).sum(dim=0)
                torch.testing.assert_close(tensors[name], expected.detach(), atol=1e-6, rtol=1e-5)
    merged.verify()


def test_merged_slices_are_built_once(calibrated: tuple[Path, PreTrainedModel]) -> None:
    folder, _ = calibrated
    store = open_or_build(folder, folder / "store")
    calibration = calibrate.load(store)
    assert calibration is not None
    first, _ = merge.open_or_build(store, calibration, 2)
    written = first.layer_file(0).stat().st_mtime_ns
    second, _ = merge.open_or_build(store, calibration, 2)
    assert second.layer_file(0).stat().st_mtime_ns == written


def test_a_new_calibration_builds_new_slices(calibrated: tuple[Path, PreTrainedModel], tmp_path: Path) -> None:
    folder, _ = calibrated
    store = open_or_build(folder, tmp_path / "store")
    near = torch.rand(8, 8, generator=torch.Generator().manual_seed(0))
    far = torch.rand(8, 8, generator=torch.Generator().manual_seed(1))
    assignments = []
    for table in (near, far):
        table = (table + table.t()).fill_diagonal_(0).half()
        calibration = calibrate.Calibration(1, [torch.ones(8)] * 3, [table] * 3)
        calibration.save(store)
        assignments.append(merge.open_or_build(store, calibration, 3)[1][0].tolist())
        assert assignments[-1] == merge.clusters(table, 3).tolist()
    assert assignments[0] != assignments[1]


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 cut"], ids=["empty", "cut"])
def test_damaged_slices_are_refused(damage: bytes, calibrated: tuple[Path, PreTrainedModel], tmp_path: Path) -> None:
    store = open_or_build(calibrated[0], tmp_path / "store")
    calibration = calibrate.Calibration(1, [torch.ones(8)] * 3, [(1 - torch.eye(8)).half()] * 3)
    merged, _ = merge.open_or_build(store, calibration, 2)
    (merged.path / "slices.npz").write_bytes(damage)
    with pytest.raises(StoreError, match="it will be rebuilt"):
        merge.open_or_build(store, calibration, 2)


def test_as_many_slices_as_experts_draft_without_a_loss(calibrated: tuple[Path, PreTrainedModel]) -> None:
    """Slices of one expert each are the experts themselves, so that every draft is accepted."""
    folder, _ = calibrated
    ids, mask = prompts(2)
    with SpecMoE.from_pretrained(
        folder,
        store=folder / "store",
        gamma=3,
        draft_experts=1,
        substitution="merged",
        merged_experts=8,
        expert_budget=40 * open_or_build(folder, folder / "store").slot_bytes,
    ) as engine:
        stats = engine.generate(ids, mask, max_new_tokens=13).stats
    assert stats.acceptance_rate == 1.0
