"""Picks are grouped by expert: each used pick once, in the order of its tokens, and no other."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from specmoe.compute.routed import Routed


@given(st.integers(0, 6), st.integers(1, 4), st.integers(0, 2**32 - 1), st.booleans())
def test_each_used_pick_is_in_the_run_of_its_expert(tokens: int, top_k: int, seed: int, some: bool) -> None:
    generator = np.random.default_rng(seed)
    picks = generator.integers(0, 5, (tokens, top_k))
    used = generator.random((tokens, top_k)) < 0.6 if some else np.ones((tokens, top_k), dtype=bool)
    routed = Routed.of(torch.zeros(tokens, 3), picks, used if some else None)
    found = {expert: routed.order[start:end].tolist() for expert, (start, end) in routed.bounds.items()}
    flat = picks.reshape(-1)
    expected = {e: [int(p) for p in used.reshape(-1).nonzero()[0] if flat[p] == e] for e in range(5)}
    assert found == {expert: places for expert, places in expected.items() if places}
    assert routed.tokens.tolist() == [pick // top_k for pick in routed.order]


def test_inputs_are_the_picks_tokens_scaled_where_weights_scale_them() -> None:
    hidden = torch.arange(6.0).view(3, 2)
    picks = np.array([[1, 0], [0, 2], [1, 2]])
    scales = torch.arange(6.0)
    plain, scaled = Routed.of(hidden, picks), Routed.of(hidden, picks, scales=scales)
    start, end = plain.bounds[1]
    assert plain.rows(start, end).tolist() == [0, 4]
    assert torch.equal(plain.input(start, end), hidden[[0, 2]])
    assert torch.equal(scaled.input(start, end), hidden[[0, 2]] * torch.tensor([[0.0], [4.0]]))
