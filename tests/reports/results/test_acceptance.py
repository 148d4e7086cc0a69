"""Acceptance by draft position is summed over repetitions and rounds."""

from __future__ import annotations

from pathlib import Path

from reports.results.acceptance import by_position
from tests.reports.records import record, summary_of


def test_acceptance_by_position_is_a_ratio_of_sums(tmp_path: Path) -> None:
    records = [
        record("specmoe", 4, drafted=[10, 10], accepted=[10, 5]),
        record("specmoe", 4, rnd=1, drafted=[30], accepted=[10]),
        record("on-demand", 4),
    ]
    _, frame = summary_of(tmp_path, records)
    data = by_position(frame)
    assert list(data["position"]) == [1, 2]
    assert list(data["accepted_share"]) == [0.5, 0.5]
    assert set(data["system"]) == {"specmoe"}
