"""Prompt lookup proposes what followed the longest earlier suffix, and the combined draft uses lookup and draft."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from specmoe.batch import Rows
from specmoe.drafters import Combined, NgramDraft, PinnedDraft, make_drafter
from specmoe.options import SpecOptions
from specmoe.sampling import Proposal

TOKENS = st.lists(st.integers(0, 3), max_size=24)


def _rows(*tokens: list[int]) -> Rows:
    last = torch.tensor([t[-1] for t in tokens])
    return Rows(last, torch.full_like(last, 99), torch.arange(len(tokens)), list(tokens))


def _occurrences(tokens: list[int], suffix: list[int]) -> list[int]:
    """Where ``suffix`` begins in ``tokens``, its occurrence at the very end left out."""
    size = len(suffix)
    return [i for i in range(len(tokens) - size) if tokens[i : i + size] == suffix]


@given(TOKENS, st.integers(0, 6), st.integers(1, 3), st.integers(0, 3))
def test_lookup_proposes_what_followed_the_longest_suffix_where_it_last_occurred(
    tokens: list[int], length: int, fewest: int, more: int
) -> None:
    proposed = NgramDraft(fewest, fewest + more).look_up(tokens, length)
    assert len(proposed) <= length
    for size in range(fewest + more, fewest - 1, -1):
        if size < len(tokens) and (found := _occurrences(tokens, tokens[-size:])):
            follows = max(found) + size
            assert proposed == tokens[follows : follows + length]
            return
    assert proposed == []


def test_the_longest_suffix_goes_before_a_later_shorter_one() -> None:
    tokens = [1, 2, 3, 7, 0, 2, 3, 8, 1, 2, 3]
    assert NgramDraft(1, 3).look_up(tokens, 1) == [7]
    assert NgramDraft(1, 2).look_up(tokens, 1) == [8]


def test_the_latest_occurrence_goes_first() -> None:
    assert NgramDraft(2, 2).look_up([1, 2, 7, 1, 2, 8, 1, 2], 3) == [8, 1, 2]


def test_an_occurrence_may_overlap_the_suffix() -> None:
    assert NgramDraft(2, 2).look_up([5, 5, 5, 5], 4) == [5]


def test_a_short_text_has_nothing_to_look_up() -> None:
    assert NgramDraft(2, 4).look_up([1, 2], 5) == []
    assert NgramDraft(2, 4).look_up([], 5) == []


def test_rows_propose_as_much_as_each_finds_and_may() -> None:
    rows = _rows([1, 2, 3, 4, 1, 2], [9, 8, 7], [1, 2, 3, 4, 1, 2])
    proposal = NgramDraft().propose(None, rows, torch.tensor([3, 3, 1]))  # type: ignore[arg-type]
    assert proposal.lengths.tolist() == [3, 0, 1]
    assert proposal.tokens[0].tolist() == [3, 4, 1]
    assert int(proposal.tokens[2, 0]) == 3
    assert proposal.valid.tolist() == [[True] * 3, [False] * 3, [True, False, False]]
    assert proposal.probs is None


def test_nothing_found_is_a_proposal_of_width_zero() -> None:
    proposal = NgramDraft().propose(None, _rows([1, 2, 3], [4, 5, 6]), torch.tensor([3, 3]))  # type: ignore[arg-type]
    assert proposal.tokens.shape == (2, 0)
    assert proposal.tokens.dtype == torch.long
    assert proposal.lengths.tolist() == [0, 0]


def test_rows_that_left_the_batch_are_not_looked_up() -> None:
    rows = _rows([1, 2, 3, 1, 2], [4, 5, 6, 4, 5], [7, 8, 9, 7, 8])
    kept = rows.select(torch.tensor([2]))
    proposal = NgramDraft().propose(None, kept, torch.tensor([1]))  # type: ignore[arg-type]
    assert proposal.tokens.tolist() == [[9]]


@dataclass
class Scripted:
    """A draft that proposes 50, 51, ... with probability one half each, and records the lengths it was asked for."""

    sampled: bool
    asked: list[list[int]] = field(default_factory=list)

    def propose(self, run: Any, rows: Rows, lengths: torch.Tensor) -> Proposal:
        self.asked.append(lengths.tolist())
        width = int(lengths.max())
        tokens = (50 + torch.arange(width)).expand(len(rows), width).contiguous()
        probs = torch.full((len(rows), width, 64), 0.5) if self.sampled and width else None
        return Proposal(tokens, lengths, probs)


def _combined(sampled: bool) -> tuple[Combined, Scripted]:
    scripted = Scripted(sampled)
    return Combined(NgramDraft(), scripted), scripted  # type: ignore[arg-type]


def test_the_combined_draft_looks_up_where_it_can_and_drafts_elsewhere() -> None:
    combined, scripted = _combined(sampled=True)
    proposal = combined.propose(None, _rows([1, 2, 3, 1, 2], [9, 8, 7]), torch.tensor([2, 3]))  # type: ignore[arg-type]
    assert scripted.asked == [[0, 3]]  # rows with a lookup ask for no expert
    assert proposal.lengths.tolist() == [2, 3]
    assert proposal.tokens[0, :2].tolist() == [3, 1]
    assert proposal.tokens[1].tolist() == [50, 51, 52]


def test_looked_up_tokens_have_probability_one_and_drafted_ones_their_own() -> None:
    combined, _ = _combined(sampled=True)
    proposal = combined.propose(None, _rows([1, 2, 3, 1, 2], [9, 8, 7]), torch.tensor([2, 3]))  # type: ignore[arg-type]
    assert proposal.probs is not None
    assert proposal.probs[0, 0].nonzero().flatten().tolist() == [3]
    assert proposal.probs[0, 1].nonzero().flatten().tolist() == [1]
    assert float(proposal.probs[0, 0, 3]) == 1.0
    assert bool((proposal.probs[1] == 0.5).all())


def test_the_combined_draft_takes_the_wider_of_both() -> None:
    combined, _ = _combined(sampled=True)
    rows = _rows([1, 2, 3, 4, 1, 2], [9, 8, 7])
    proposal = combined.propose(None, rows, torch.tensor([4, 1]))  # type: ignore[arg-type]
    assert proposal.tokens.shape == (2, 4)
    assert proposal.tokens[0].tolist() == [3, 4, 1, 2]
    assert proposal.lengths.tolist() == [4, 1]
    assert proposal.probs is not None
    assert proposal.probs.shape == (2, 4, 64)


def test_the_combined_draft_without_sampling_has_no_probabilities() -> None:
    combined, _ = _combined(sampled=False)
    proposal = combined.propose(None, _rows([1, 2, 3, 1, 2], [9, 8, 7]), torch.tensor([1, 1]))  # type: ignore[arg-type]
    assert proposal.probs is None
    assert proposal.tokens[:, 0].tolist() == [3, 50]


def test_every_row_looked_up_drafts_nothing() -> None:
    combined, scripted = _combined(sampled=True)
    proposal = combined.propose(None, _rows([1, 2, 3, 1, 2]), torch.tensor([2]))  # type: ignore[arg-type]
    assert scripted.asked == [[0]]
    assert proposal.tokens.tolist() == [[3, 1]]
    assert proposal.probs is None  # all certain


def test_options_name_the_drafter() -> None:
    kinds = {name: type(make_drafter(SpecOptions.of(drafter=name))) for name in ("pinned", "ngram", "ngram+pinned")}
    assert kinds == {"pinned": PinnedDraft, "ngram": NgramDraft, "ngram+pinned": Combined}
    assert make_drafter(SpecOptions.of(drafter="ngram", ngram_min=1, ngram_max=1)).look_up([4, 9, 4], 1) == [9]  # type: ignore[attr-defined]
