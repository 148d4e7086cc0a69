"""Latencies follow from the times at which tokens arrived, bursts included."""

from __future__ import annotations

import numpy as np
import pytest

from reports.results import latency
from reports.results.metrics import Context, combine
from reports.results.repetition import Repetition

ARRIVALS = [[1.0, 1.5, 1.5, 1.5, 3.0], [2.0, 2.25]]


def test_gaps_are_per_token_and_zero_within_a_burst() -> None:
    assert latency.first_token(ARRIVALS) == [1.0, 2.0]
    assert latency.between_tokens(ARRIVALS) == [0.5, 0.0, 0.0, 1.5, 0.25]
    assert latency.end_to_end(ARRIVALS) == [3.0, 2.25]
    assert latency.between_tokens([[1.0]]) == []


@pytest.mark.parametrize("percent", [0, 50, 95, 99, 100])
def test_percentiles_are_those_of_numpy(percent: float) -> None:
    for count in (1, 2, 7, 100):
        values = np.random.default_rng(count).exponential(size=count).tolist()
        assert latency.percentile(values, percent) == pytest.approx(np.percentile(values, percent))
    assert latency.percentile([], percent) is None


def _metrics(**raw: object) -> object:
    plain = {"prefill_s": 1, "decode_s": 2, "prompt_tokens": 4, "new_tokens": 7, "decode_steps": 4}
    return combine([Repetition(**plain | raw)], Context(2, 0, 0))


def test_a_metric_is_a_percentile_of_one_repetition() -> None:
    found = _metrics(arrivals_s=ARRIVALS)
    assert (found.ttft_p50_s, found.itl_p50_s, found.e2e_p50_s) == (1.5, 0.25, 2.625)
    assert found.itl_p99_s == pytest.approx(np.percentile([0.5, 0, 0, 1.5, 0.25], 99))
    unknown = _metrics()
    assert (unknown.ttft_p99_s, unknown.itl_p95_s, unknown.e2e_p95_s) == (None, None, None)


def test_acceptance_is_stated_by_draft_position_and_as_a_length() -> None:
    found = _metrics(drafted_by_position=[10, 8, 5, 4], accepted_by_position=[8, 4, 2, 1])
    assert found.accepted_length == 1.5
    assert (found.acceptance_at_1, found.acceptance_at_2, found.acceptance_at_4) == (0.8, 0.5, 0.25)
    assert found.acceptance_at_8 is None
    assert _metrics().accepted_length is None
