"""The latency table holds the rows whose tokens were timed, and nothing of records that have no times."""

from __future__ import annotations

from pathlib import Path

from reports.pages.sections import section
from reports.wording.latency import tables
from tests.reports.records import record, summary_of

ARRIVALS = {"arrivals_s": [[0.5, 0.75, 0.75, 2.0]] * 2}


def test_rows_whose_tokens_were_timed_stand_in_the_table_in_its_units(tmp_path: Path) -> None:
    records = [record("on-demand", 4, batch=2), record("specmoe", 8, batch=2, raw=ARRIVALS)]
    summary, frame = summary_of(tmp_path, records)
    (table,) = tables(summary)
    (row,) = table.rows
    shown = dict(zip(table.headers, [cell.text for cell in row], strict=True))
    assert shown["system"] == "specmoe"
    assert (shown["TTFT p50 s"], shown["between tokens p50 ms"], shown["end to end p99 s"]) == ("0.500", "250", "2.00")
    assert table in section(1, summary, frame, [], "a name").tables


def test_records_without_times_have_no_such_table(tmp_path: Path) -> None:
    summary, frame = summary_of(tmp_path, [record("on-demand", 4), record("specmoe", 8)])
    assert tables(summary) == []
    assert [table.kind for table in section(1, summary, frame, [], "a name").tables] == ["measured"]
