"""Every rule of counting, refreshing and tie-breaking selects the draft experts it should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from specmoe import SpecMoE
from specmoe.drafting.selection import DraftSelection
from specmoe.errors import OptionError
from specmoe.options import SpecOptions
from tests.conftest import prompts

ALL_EXPERTS = set(range(8))


def _selection(experts: int = 4, size: int = 2, **options: Any) -> DraftSelection:
    return DraftSelection([experts], SpecOptions.of(draft_experts=size, **options))


def _choices(selection: DraftSelection, *passes: list[int]) -> list[list[int]]:
    """The draft set after each pass, with every expert resident."""
    return [selection.refresh(0, torch.tensor(counts), set(range(len(counts)))) for counts in passes]


def test_the_last_window_counts_one_pass_only() -> None:
    assert _choices(_selection(count_window="last"), [9, 8, 0, 0], [0, 0, 1, 2]) == [[0, 1], [3, 2]]


def test_the_accumulated_window_forgets_nothing() -> None:
    passes = [[9, 8, 0, 0], [0, 0, 5, 7], [0, 0, 5, 7]]
    assert _choices(_selection(count_window="accumulated"), *passes) == [[0, 1], [0, 1], [3, 2]]


def test_the_decayed_window_halves_what_was_at_each_pass() -> None:
    selection = _selection(count_window="decayed", hot_decay=0.5)
    assert _choices(selection, [8, 0, 3, 0], [0, 5, 0, 0], [0, 0, 0, 0]) == [[0, 2], [1, 0], [1, 0]]
    assert _choices(selection, [0, 0, 0, 2]) == [[3, 1]]  # 2 against 5 / 4 and 8 / 8


def test_accepted_tokens_are_counted_when_they_are_known() -> None:
    selection = _selection(counted="accepted", count_window="accumulated")
    first, before = _choices(selection, [3, 2, 0, 0], [0, 0, 9, 9])  # the first pass counts whole, the second not yet
    assert first == before == [0, 1]
    selection.count(0, torch.tensor([0, 0, 0, 4]))  # of its picks, these were kept
    assert _choices(selection, [9, 9, 9, 9]) == [[3, 0]]


def test_only_kept_positions_of_a_verify_pass_count(tiny: tuple[Path, PreTrainedModel]) -> None:
    """Over a whole call: the counts add up to top-k times the prompt's tokens and the positions kept."""
    ids, mask = prompts(3)
    totals = {}
    for counted in ("accepted", "all"):
        with SpecMoE.from_pretrained(
            tiny[0], store=tiny[0] / "store", gamma=4, draft_experts=2, counted=counted, count_window="accumulated"
        ) as engine:
            stats = engine.generate(ids, mask, max_new_tokens=12).stats
            assert engine._state.selection is not None
            totals[counted] = [float(c.sum()) for c in engine._state.selection._counts]
            kept = sum(c.accepted + c.rows for c in stats.cycles)
            verified = sum(c.positions for c in stats.cycles)
    prompt = int(mask.sum())
    assert kept < verified, "some drafted tokens must have been rejected"
    assert totals["accepted"] == [2 * (prompt + kept)] * 3
    assert totals["all"] == [2 * (prompt + verified)] * 3


def test_all_tokens_of_a_second_prompt_count(tiny: tuple[Path, PreTrainedModel]) -> None:
    """No prompt token is ever rejected, so counting accepted tokens leaves none of them out."""
    ids, mask = prompts(3)
    with SpecMoE.from_pretrained(
        tiny[0], store=tiny[0] / "store", gamma=4, draft_experts=2, counted="accepted", count_window="accumulated"
    ) as engine:
        assert engine._state.selection is not None
        engine.generate(ids, mask, max_new_tokens=1)
        first = [float(c.sum()) for c in engine._state.selection._counts]
        engine.generate(ids, mask, max_new_tokens=1)
        second = [float(c.sum()) for c in engine._state.selection._counts]
    assert first == [2 * int(mask.sum())] * 3
    assert second == [2 * n for n in first]


def test_the_draft_set_changes_at_refreshes_only() -> None:
    selection = _selection(size=1, count_window="last", refresh_interval=3)
    passes = [[0] * k + [1] + [0] * (3 - k) for k in (0, 1, 2, 3, 0, 1, 2)]
    assert _choices(selection, *passes) == [[0], [0], [0], [3], [3], [3], [2]]


def test_the_interval_may_change_under_way() -> None:
    selection = _selection(size=1, count_window="last", refresh_interval=64)
    assert _choices(selection, [1, 0, 0, 0], [0, 1, 0, 0]) == [[0], [0]]
    selection.interval = 1
    assert _choices(selection, [0, 0, 1, 0]) == [[2]]


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=8, max_size=8), min_size=2, max_size=6),
    st.integers(1, 6),
    st.integers(1, 6),
    st.sampled_from(["lower-id", "incumbent", "random"]),
)
def test_no_more_than_the_allowed_number_is_replaced(passes: list[list[int]], size: int, most: int, ties: str) -> None:
    selection = _selection(8, size, max_replacements=most, ties=ties)
    before: set[int] | None = None
    for counts in passes:
        chosen = set(selection.refresh(0, torch.tensor(counts), ALL_EXPERTS))
        assert len(chosen) == size
        assert before is None or len(chosen - before) <= most
        before = chosen


def test_the_hottest_newcomer_replaces_the_coldest_incumbent() -> None:
    selection = _selection(6, 3, max_replacements=1, count_window="last")
    assert _choices(selection, [5, 4, 3, 0, 0, 0], [2, 1, 0, 7, 8, 9]) == [[0, 1, 2], [5, 0, 1]]


def test_incumbents_that_left_the_device_are_replaced_beyond_the_limit() -> None:
    selection = _selection(6, 2, max_replacements=1, count_window="last")
    assert selection.refresh(0, torch.tensor([5, 4, 0, 0, 0, 0]), set()) == [0, 1]
    assert selection.refresh(0, torch.tensor([0, 0, 4, 5, 0, 0]), {2, 3}) == [3, 2]  # 0 and 1 are not available


def test_ties_go_to_the_lower_id() -> None:
    assert _choices(_selection(size=2, ties="lower-id", count_window="last"), [0, 0, 3, 3], [1, 1, 1, 1]) == [
        [2, 3],
        [0, 1],
    ]


def test_ties_go_to_the_incumbent() -> None:
    assert _choices(_selection(size=2, ties="incumbent", count_window="last"), [0, 0, 3, 3], [1, 1, 1, 1]) == [
        [2, 3],
        [2, 3],
    ]


def test_random_ties_repeat_with_their_seed_and_vary_with_it() -> None:
    def first(seed: int) -> list[int]:
        return _selection(64, 4, ties="random", seed=seed).refresh(0, torch.ones(64), set())

    assert first(1) == first(1)
    assert len({tuple(first(seed)) for seed in range(8)}) > 1


@pytest.mark.parametrize("ties", ["lower-id", "incumbent", "random"])
def test_ties_never_outrank_counts(ties: str) -> None:
    assert _choices(_selection(4, 2, ties=ties, count_window="last"), [0, 9, 0, 8], [7, 0, 6, 0]) == [[1, 3], [0, 2]]


def test_hot_global_takes_the_calibrations_most_used_whatever_a_pass_uses() -> None:
    options = SpecOptions.of(selection="hot-global", draft_experts=2)
    selection = DraftSelection([4], options, [torch.tensor([0.0, 5.0, 1.0, 9.0])])
    assert selection.refresh(0, torch.tensor([7, 0, 0, 0]), {0}) == [3, 1]
    assert selection.refresh(0, torch.tensor([7, 0, 0, 0]), {0}) == [3, 1]


def test_hot_global_without_a_calibration_is_refused() -> None:
    with pytest.raises(OptionError, match=r"needs a calibration of this model: run SpecMoE\.calibrate"):
        _selection(selection="hot-global")


def test_n_grows_and_shrinks_with_resize_and_stops_at_the_layer() -> None:
    selection = _selection(4, 2, count_window="last")
    assert _choices(selection, [4, 3, 2, 1]) == [[0, 1]]
    selection.resize(3)
    assert _choices(selection, [4, 3, 2, 1]) == [[0, 1, 2]]
    selection.resize(1)
    assert _choices(selection, [4, 3, 2, 1]) == [[0]]
    selection.resize(99)
    assert _choices(selection, [4, 3, 2, 1]) == [[0, 1, 2, 3]]


def test_reset_forgets_counts_and_choices() -> None:
    selection = _selection(count_window="accumulated", refresh_interval=5)
    assert _choices(selection, [9, 9, 0, 0]) == [[0, 1]]
    selection.reset()
    assert _choices(selection, [0, 0, 1, 1]) == [[2, 3]]


def test_layers_keep_separate_counts() -> None:
    selection = DraftSelection([4, 6], SpecOptions.of(draft_experts=2))
    assert selection.refresh(0, torch.tensor([1, 2, 0, 0]), set()) == [1, 0]
    assert selection.refresh(1, torch.tensor([0, 0, 0, 0, 2, 1]), set()) == [4, 5]


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=8, max_size=8), min_size=1, max_size=8),
    st.sets(st.integers(0, 7)),
    st.fixed_dictionaries(
        {
            "draft_experts": st.integers(1, 8),
            "count_window": st.sampled_from(["decayed", "last", "accumulated"]),
            "counted": st.sampled_from(["all", "accepted"]),
            "max_replacements": st.sampled_from([None, 1, 2]),
            "ties": st.sampled_from(["lower-id", "incumbent", "random"]),
        }
    ),
)
def test_a_refresh_loads_nothing(passes: list[list[int]], resident: set[int], options: dict[str, Any]) -> None:
    """A hot set contains only experts that the pass uses or that are resident, and as many as possible."""
    selection = DraftSelection([8], SpecOptions.of(**options))
    for counts in passes:
        available = {e for e, n in enumerate(counts) if n} | resident
        chosen = selection.refresh(0, torch.tensor(counts), resident)
        assert set(chosen) <= available
        assert len(chosen) == len(set(chosen)) == min(options["draft_experts"], len(available))
        resident = set(chosen)


def test_prefill_tail_counts_the_last_prompt_tokens_only(tiny: tuple[Path, PreTrainedModel]) -> None:
    ids, mask = prompts(1, seed=4, shortest=40, longest=40)
    counted = {}
    for initial in ("prefill", "prefill-tail"):
        with SpecMoE.from_pretrained(
            tiny[0], store=tiny[0] / "store", gamma=2, draft_experts=2, initial=initial
        ) as engine:
            engine.generate(ids, mask, max_new_tokens=1)
            assert engine._state.selection is not None
            counted[initial] = [float(c.sum()) for c in engine._state.selection._counts]
    assert counted == {"prefill": [2 * 40.0] * 3, "prefill-tail": [2 * 16.0] * 3}


def test_hot_temporal_follows_the_latest_pass() -> None:
    selection = _selection(4, 2, count_window="last")
    assert selection.refresh(0, torch.tensor([5, 4, 0, 0]), set()) == [0, 1]
    assert selection.refresh(0, torch.tensor([0, 0, 4, 5]), {0, 1}) == [3, 2]


def test_hot_prefill_stays_with_the_first_pass() -> None:
    selection = _selection(4, 2, selection="hot-prefill")
    assert selection.refresh(0, torch.tensor([5, 4, 0, 0]), set()) == [0, 1]
    assert selection.refresh(0, torch.tensor([0, 0, 4, 5]), {0, 1}) == [0, 1]


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
def test_a_hot_set_contains_only_used_or_resident_experts(
    passes: list[list[int]], resident: set[int], size: int, decay: float
) -> None:
    selection = _selection(6, size, hot_decay=decay)
    for counts in passes:
        touched = {e for e, n in enumerate(counts) if n}
        chosen = selection.refresh(0, torch.tensor(counts), resident)
        assert set(chosen) <= touched | resident
        assert len(chosen) == min(size, len(touched | resident))
        resident = set(chosen)
