"""The rate over a run: a cell that still warms up is named, a steady one and one that varies by chance are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from reports.figures import Material
from reports.figures.warm_up import SPECS
from reports.results import steadiness
from reports.results.stats import outliers
from reports.wording.warnings import caveats
from tests.reports.records import record, summary_of

STEADY = [[0.5 + 0.1 * token for token in range(16)]]
WARMING = [[0.5, *(0.5 + 0.2 * token for token in range(1, 9)), *(2.1 + 0.1 * token for token in range(1, 9))]]


def test_rates_are_those_of_equal_parts_after_the_first_token_of_every_row() -> None:
    rows = [[0.2, 1.0, 1.5, 2.0], [1.0, 1.5, 2.0]]
    assert steadiness.decoded(rows) == [0.0, 0.5, 0.5, 1.0, 1.0]
    assert steadiness.rates(rows, 2) == [(0.25, 2.0), (0.75, 8.0)]
    assert steadiness.rates([[1.0]], 2) == []


def test_halves_of_a_steady_run_are_equal_and_short_runs_say_nothing() -> None:
    assert steadiness.second_half_over_first(STEADY) == pytest.approx(1.0, abs=0.01)
    assert steadiness.second_half_over_first(WARMING) == pytest.approx(2.0, abs=0.01)
    assert steadiness.second_half_over_first([STEADY[0][:8]]) is None


def test_a_drift_is_one_in_every_run() -> None:
    falling = [[0.5, *(0.5 + 0.1 * token for token in range(1, 9)), *(1.3 + 0.2 * token for token in range(1, 9))]]
    assert steadiness.drift([WARMING, WARMING], 0.25) == pytest.approx(2.0, abs=0.01)
    assert steadiness.drift([WARMING, falling], 0.25) is None
    assert steadiness.drift([STEADY], 0.25) is None
    assert steadiness.drift([], 0.25) is None


def test_the_page_names_cells_that_still_warm_up(tmp_path: Path) -> None:
    rows = []
    for rnd in range(3):
        rows += [record("on-demand", 4, rnd=rnd, raw={"arrivals_s": STEADY})]
        rows += [record("caching", 8, rnd=rnd, raw={"arrivals_s": WARMING})]
    summary, frame = summary_of(tmp_path, rows)
    (said,) = [caveat for caveat in caveats(summary, frame) if "not steady" in caveat]
    assert "caching +100 % at batch 1" in said
    assert "on-demand" not in said
    data = SPECS[0].data(Material(frame, summary))
    warming = data[data["title"] == "caching"]["tok_s"]
    assert warming.iloc[-1] > 1.5 * warming.iloc[0]


@pytest.mark.parametrize(
    ("values", "places"),
    [
        ([1.0, 1.02, 1.9], [2]),
        ([1.0, 1.1, 1.2], []),
        ([1.0, 3.0], []),
        ([2.0] * 5 + [2.3], []),
        ([2.0] * 5 + [0.5], [5]),
    ],
)
def test_a_value_far_from_the_rest_is_an_outlier(values: list[float], places: list[int]) -> None:
    assert outliers(values) == places


def test_the_page_names_the_round_that_stands_out(tmp_path: Path) -> None:
    speeds = {"on-demand": [4, 4, 4, 4], "caching": [8, 8.1, 20, 8]}
    rows = [record(s, v[rnd], rnd=rnd) for rnd in range(4) for s, v in speeds.items()]
    assert any(
        "caching at batch 1, round 3: 5.00× (median 2.01×)" in caveat for caveat in caveats(*summary_of(tmp_path, rows))
    )
