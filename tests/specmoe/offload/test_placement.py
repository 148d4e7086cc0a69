"""Each placement policy keeps, and evicts first, the experts it says."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from specmoe.offload.placement import LeastFrequentlyUsed, LeastRecentlyUsed, OnDemand, TopFraction, make_placement


def _counts(*values: int) -> NDArray[np.int64]:
    return np.array(values)


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
