"""Placement, draft selection, affinity and acceptance: small rules, each a claim."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from specmoe import BudgetError, ExpertStore, SpecMoE
from specmoe.drafting import affinity
from specmoe.drafting.selection import DraftSelection
from specmoe.model.convert import open_or_build
from specmoe.offload.placement import LeastFrequentlyUsed, LeastRecentlyUsed, OnDemand, TopFraction, make_placement
from specmoe.options import SpecOptions
from specmoe.sampling import longest_prefix
from tests.conftest import prompts


def _counts(*values: int) -> torch.Tensor:
    return torch.tensor(values)


def _selection(experts: int, size: int, **options: object) -> DraftSelection:
    return DraftSelection([experts], SpecOptions.of(draft_experts=size, **options))


@given(st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=5), st.data())
def test_acceptance_is_the_longest_agreeing_prefix(drafts: list[list[int]], data: st.DataObject) -> None:
    targets = [data.draw(st.lists(st.integers(0, 3), min_size=5, max_size=5)) for _ in drafts]
    accepted = longest_prefix(torch.tensor(drafts) == torch.tensor(targets)[:, :-1]).tolist()
    for draft, target, count in zip(drafts, targets, accepted, strict=True):
        assert draft[:count] == target[:count]
        assert count == 4 or draft[count] != target[count]


def test_accepting_an_empty_draft_is_zero() -> None:
    assert longest_prefix(torch.empty(2, 0, dtype=torch.bool)).tolist() == [0, 0]


def test_on_demand_keeps_nothing() -> None:
    assert not OnDemand().retain((0, 0))


def test_lru_evicts_the_longest_unused_first() -> None:
    policy = LeastRecentlyUsed()
    policy.observe(0, _counts(1, 1, 0))
    policy.observe(0, _counts(0, 1, 1))
    assert sorted([(0, 0), (0, 1), (0, 2)], key=policy.priority)[0] == (0, 0)


def test_lfu_forgets_old_use() -> None:
    policy = LeastFrequentlyUsed([2], decay=0.1)
    policy.observe(0, _counts(5, 0))
    for _ in range(3):
        policy.observe(0, _counts(0, 1))
    assert policy.priority((0, 0)) < policy.priority((0, 1))


def test_top_fraction_keeps_the_most_frequent_of_each_layer() -> None:
    policy = TopFraction([4, 4], per_layer=2)
    policy.observe(0, _counts(9, 1, 5, 0))
    policy.observe(1, _counts(0, 0, 1, 2))
    kept = [key for key in ((layer, e) for layer in range(2) for e in range(4)) if policy.retain(key)]
    assert kept == [(0, 0), (0, 2), (1, 2), (1, 3)]


def test_top_fraction_leaves_two_slots_in_transit() -> None:
    policy = make_placement("top-fraction", [8, 8], slots=12)
    policy.observe(0, _counts(8, 7, 6, 5, 4, 3, 2, 1))
    assert [policy.retain((0, e)) for e in range(8)] == [True] * 5 + [False] * 3


def test_an_unknown_policy_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="use on-demand, lru, lfu or top-fraction"):
        make_placement("magic", [4], 4)  # type: ignore[arg-type]


def test_hot_temporal_follows_the_latest_pass() -> None:
    selection = _selection(4, 2, count_window="last")
    assert selection.refresh(0, _counts(5, 4, 0, 0), set()) == [0, 1]
    assert selection.refresh(0, _counts(0, 0, 4, 5), {0, 1}) == [3, 2]


def test_hot_prefill_stays_with_the_first_pass() -> None:
    selection = _selection(4, 2, selection="hot-prefill")
    assert selection.refresh(0, _counts(5, 4, 0, 0), set()) == [0, 1]
    assert selection.refresh(0, _counts(0, 0, 4, 5), {0, 1}) == [0, 1]


def test_random_selection_repeats_with_its_seed() -> None:
    first = _selection(64, 8, selection="random", seed=3).refresh(0, torch.ones(64), set())
    second = _selection(64, 8, selection="random", seed=3).refresh(0, torch.ones(64), set())
    assert first == second
    assert len(set(first)) == 8


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=6),
    st.sets(st.integers(0, 5)),
    st.integers(1, 6),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_a_hot_set_needs_no_byte_of_its_own(
    passes: list[list[int]], resident: set[int], size: int, decay: float
) -> None:
    selection = _selection(6, size, hot_decay=decay)
    for counts in passes:
        touched = {e for e, n in enumerate(counts) if n}
        chosen = selection.refresh(0, torch.tensor(counts), resident)
        assert set(chosen) <= touched | resident
        assert len(chosen) == min(size, len(touched | resident))
        resident = set(chosen)


@pytest.fixture(scope="module")
def store(tiny: tuple[Path, PreTrainedModel]) -> ExpertStore:
    return open_or_build(tiny[0], tiny[0] / "store")


def test_affinity_is_the_l2_distance_between_expert_weights(
    store: ExpertStore, tiny: tuple[Path, PreTrainedModel]
) -> None:
    experts = tiny[1].model.layers[1].mlp.experts
    flat = torch.cat([experts.gate_up_proj.flatten(1), experts.down_proj.flatten(1)], dim=1).detach()
    distance = torch.cdist(flat, flat)
    torch.testing.assert_close(affinity.load_table(store, 1), distance / distance.max(), atol=2e-3, rtol=2e-3)


def test_affinity_tables_are_sixteen_bits_wide(store: ExpertStore) -> None:
    experts = store.layers[0].experts
    assert affinity.table_path(store, 0).stat().st_size == 128 + experts * experts * 2  # npy header + E x E x 2


def test_substitution_keeps_pinned_experts_and_maps_the_rest_to_the_nearest() -> None:
    table = torch.tensor([[0.0, 0.9, 0.2, 0.5], [0.9, 0.0, 0.8, 0.3], [0.2, 0.8, 0.0, 0.6], [0.5, 0.3, 0.6, 0.0]])
    assert affinity.substitution(table, [1, 2]).tolist() == [2, 1, 2, 1]


def test_a_budget_too_small_for_the_draft_is_refused(tiny: tuple[Path, PreTrainedModel], store: ExpertStore) -> None:
    with pytest.raises(BudgetError, match="12 draft experts and one in transit need"):
        SpecMoE.from_pretrained(
            tiny[0], store=store.path, gamma=2, draft_experts=4, expert_budget=12 * store.slot_bytes
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": -1}, r"option gamma: .*\(given -1\)"),
        ({"draft_experts": 0}, r"option draft_experts: .*\(given 0\)"),
        ({"hot_decay": 2.0}, r"option hot_decay: .*\(given 2.0\)"),
        ({"expert_budget": "much"}, "is not a size"),
        ({"expert_budget": "5 furlongs"}, "unknown unit"),
        ({"expert_budget": 0}, "not positive"),
        ({"device": "tpu"}, "tpu"),
    ],
)
def test_options_out_of_range_are_refused(
    options: dict[str, object], message: str, tiny: tuple[Path, PreTrainedModel], store: ExpertStore
) -> None:
    with pytest.raises((ValueError, RuntimeError), match=message):
        SpecMoE.from_pretrained(tiny[0], store=store.path, **options)  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is present")
def test_a_missing_gpu_is_named(tiny: tuple[Path, PreTrainedModel]) -> None:
    with pytest.raises(ValueError, match="no CUDA GPU: use device='cpu'"):
        SpecMoE.from_pretrained(tiny[0], device="cuda")


def test_inputs_that_do_not_fit_are_refused(tiny: tuple[Path, PreTrainedModel], store: ExpertStore) -> None:
    ids, mask = prompts(2)
    with SpecMoE.from_pretrained(tiny[0], store=store.path, gamma=0) as engine:
        with pytest.raises(ValueError, match="pad prompts on the left"):
            engine.generate(ids, mask.flip(1))
        with pytest.raises(ValueError, match="every row needs a token"):
            engine.generate(ids, torch.zeros_like(mask))
        with pytest.raises(ValueError, match="must both be"):
            engine.generate(ids, mask[:, 1:])
        with pytest.raises(ValueError, match="leaves no room: ask for at least 1 new token"):
            engine.generate(ids, mask, max_new_tokens=0)
