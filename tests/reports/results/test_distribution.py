"""The two-sample test of scores keeps its stated size and has its stated power."""

from __future__ import annotations

import numpy as np
import pytest

from reports.results.distribution import LEVEL, POWER, compare, detectable, over_repetitions


@pytest.mark.parametrize(("tokens", "reference"), [(31, 4096), (500, 4096), (4096, 4096)])
def test_equal_distributions_are_rarely_called_different(tokens: int, reference: int) -> None:
    draw = np.random.default_rng(tokens)
    found = [compare(draw.random(tokens), draw.random(reference)).p for _ in range(400)]
    assert np.mean(np.array(found) < LEVEL) < 0.01
    assert np.mean(np.array(found) < 0.05) < 0.08


@pytest.mark.parametrize(("tokens", "reference"), [(200, 4096), (2000, 4096)])
def test_a_difference_of_the_stated_size_is_found_with_the_stated_power(tokens: int, reference: int) -> None:
    """The share of scores below one half is larger by exactly that difference."""
    draw, gap = np.random.default_rng(tokens), detectable(tokens, reference)
    found = []
    for _ in range(200):
        below = draw.random(tokens) < 0.5 + gap
        scores = draw.random(tokens) / 2 + np.where(below, 0.0, 0.5)
        found.append(compare(scores, draw.random(reference)).p < LEVEL)
    assert np.mean(found) >= POWER


def test_draws_of_unlikely_tokens_are_found_that_change_few_scores() -> None:
    draw = np.random.default_rng(1)
    scores = draw.random(2000)
    scores[:40] = 1.0  # outside the distribution
    assert compare(scores, draw.random(4096)).p < LEVEL
    assert detectable(2000, 4096) > 40 / 2000


def test_few_tokens_say_that_they_detect_nothing() -> None:
    found = compare([0.5], np.random.default_rng(0).random(4096).tolist())
    assert found.detects > 1
    assert found.p > LEVEL
    with pytest.raises(ValueError, match="no sampled tokens"):
        compare([], [0.5])


def test_repetitions_share_the_level() -> None:
    assert over_repetitions([0.5, 0.01, 0.9]) == pytest.approx(0.03)
    assert over_repetitions([0.9, 0.8]) == 1.0
