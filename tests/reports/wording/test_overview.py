"""The overview table shows the fastest subject setting beside the reference and its best rival."""

from __future__ import annotations

from pathlib import Path

from reports.wording import overview
from tests.reports.records import experiment, record, summary_of


def test_the_overview_names_the_fastest_setting_and_its_best_rival(tmp_path: Path) -> None:
    other = [record("specmoe", 5, batch=4, rnd=r, label="slow", options={"gamma": 9}) for r in range(2)]
    rival = [record("caching", 16, batch=4, rnd=r) for r in range(2)]
    summary, frame = summary_of(tmp_path, [*experiment([8, 8], [4, 4]), *other, *rival])
    (row,) = overview.table(frame, summary).rows
    assert [one.text for one in row][3:8] == [
        "specmoe",
        "8.00",
        "2.00× [2.00, 2.00] of on-demand",
        "0.50× [0.50, 0.50] of caching",
        "-50 %",
    ]


def test_without_specmoe_every_system_stands_against_the_reference(tmp_path: Path) -> None:
    speeds = {"on-demand": 4, "caching": 8, "naive": 1}
    records = [record(s, v, batch=4, rnd=r) for r in range(2) for s, v in speeds.items()]
    summary, frame = summary_of(tmp_path, records)
    table = overview.table(frame, summary)
    assert (table.caption, table.headers[3]) == ("Systems by experiment and batch size", "system")
    assert [[cell.text for cell in row][3:6] for row in table.rows] == [
        ["caching", "8.00", "2.00× [2.00, 2.00] of on-demand"],
        ["naive", "1.00", "0.25× [0.25, 0.25] of on-demand"],
    ]
