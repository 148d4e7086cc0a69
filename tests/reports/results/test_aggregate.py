"""Ratios are taken within a round and between comparable systems only."""

from __future__ import annotations

from pathlib import Path

from reports.results.aggregate import ratio_of
from tests.reports.records import BUDGET, experiment, record, row_of, summary_of


def test_ratio_is_taken_within_a_round_not_between_medians(tmp_path: Path) -> None:
    # The machine slows down fourfold; within each round specmoe stays exactly twice as fast.
    summary, _ = summary_of(tmp_path, experiment([16, 8, 4], [8, 4, 2]))
    ratio = ratio_of(row_of(summary, system="specmoe"))
    assert (ratio.median, ratio.low, ratio.high, ratio.n) == (2, 2, 2, 3)


def test_rounds_of_different_runs_are_not_paired(tmp_path: Path) -> None:
    records = [record("on-demand", 4, run="monday"), record("specmoe", 8, run="tuesday")]
    summary, _ = summary_of(tmp_path, records)
    assert ratio_of(row_of(summary, system="specmoe")).n == 0


def test_a_round_without_reference_gives_no_ratio(tmp_path: Path) -> None:
    records = [*experiment([8, 9], [4, 4]), record("specmoe", 99, batch=4, rnd=2, link=5e6)]
    summary, _ = summary_of(tmp_path, records)
    row = row_of(summary, system="specmoe")
    assert (row["rounds_ok"], ratio_of(row).n) == (3, 2)


def test_reference_of_the_same_budget_is_preferred(tmp_path: Path) -> None:
    records = [
        record("on-demand", 4),
        record("on-demand", 8, budget=2 * BUDGET),
        record("specmoe", 16, budget=2 * BUDGET),
    ]
    summary, _ = summary_of(tmp_path, records)
    assert ratio_of(row_of(summary, system="specmoe")).median == 2


def test_emulated_speed_is_never_divided_by_measured_speed(tmp_path: Path) -> None:
    summary, _ = summary_of(tmp_path, [record("on-demand", 4), record("specmoe", 40, kind="emulated")])
    assert ratio_of(row_of(summary, kind="emulated")).median is None
