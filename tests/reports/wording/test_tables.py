"""Result tables show every cell, including failed ones, in the units of their headers."""

from __future__ import annotations

from pathlib import Path

import pytest

from reports.wording.tables import Table, TableCell, cell, markdown, tables
from tests.reports.records import BUDGET, record, row_of, summary_of


def test_failed_cells_stay_visible_with_their_reason(tmp_path: Path) -> None:
    records = [
        record("on-demand", 4),
        record("accelerate-disk", None, status="timeout", error="no answer within 600 s"),
        record("caching", None, status="not_supported", error="no room for\none expert"),
    ]
    summary, _ = summary_of(tmp_path, records)
    text = markdown(tables(summary)[0])
    assert "timeout: no answer within 600 s" in text
    assert "not_supported: no room for one expert" in text


def test_a_cell_that_failed_in_one_round_shows_figures_and_the_failure(tmp_path: Path) -> None:
    records = [record("on-demand", 4), record("on-demand", None, rnd=1, status="failed", error="killed")]
    summary, _ = summary_of(tmp_path, records)
    line = markdown(tables(summary)[0]).splitlines()[2]
    assert "| 4.00 |" in line
    assert "failed: killed (1 of 2 rounds finished)" in line


def test_kinds_get_tables_of_their_own_and_are_labelled_in_every_row(tmp_path: Path) -> None:
    records = [
        record("on-demand", 4),
        record("on-demand", 400, kind="emulated"),
        record("specmoe", 99, kind="projected"),
    ]
    summary, _ = summary_of(tmp_path, records)
    found = tables(summary)
    assert [table.kind for table in found] == ["measured", "emulated", "projected"]
    assert [[row[0].text for row in table.rows] for table in found] == [
        ["on-demand"],
        ["on-demand (emulated)"],
        ["specmoe (projected)"],
    ]
    assert row_of(summary, kind="measured")["decode_tok_s"] == 4


def test_an_oracle_is_compared_with_measured_on_demand_and_says_so(tmp_path: Path) -> None:
    summary, _ = summary_of(tmp_path, [record("on-demand", 4), record("overlap", 6, kind="oracle")])
    assert "1.50× (n=1) of measured on-demand" in markdown(tables(summary)[1])


def test_a_different_budget_is_noted_in_its_row(tmp_path: Path) -> None:
    records = [
        record("on-demand", 4),
        record("specmoe", 4),
        record("caching", 5, label="caching 10%", budget=4 * BUDGET),
    ]
    summary, _ = summary_of(tmp_path, records)
    notes = {row[0].text: row[-1].text for row in tables(summary)[0].rows}
    assert notes == {"on-demand": "", "specmoe": "", "caching 10%": "budget 400 MB"}


def test_figures_are_in_the_units_of_the_header(tmp_path: Path) -> None:
    summary, _ = summary_of(tmp_path, [record("on-demand", 4)])
    table = tables(summary)[0]
    shown = dict(zip(table.headers, table.rows[0], strict=True))
    assert shown["link MB per token"].text == "10.0"
    assert shown["peak process GB"].text == "0.700"
    assert shown["acceptance"].text == "–"
    assert shown["acceptance"].key is None


def test_pipes_in_reasons_do_not_break_the_table(tmp_path: Path) -> None:
    summary, _ = summary_of(tmp_path, [record("on-demand", None, status="failed", error="a | b")])
    assert "a \\| b" in markdown(tables(summary)[0])


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("28.6", 28.6),
        ("(+18.3%, input)", 18.3),
        ("-76.7 % [-77, -76]", -76.7),
        ("1,932", 1932.0),
        ("2.09× [1.9, 3.4]", 2.09),
    ],
)
def test_a_cell_of_text_sorts_by_the_number_it_begins_with(text: str, key: float) -> None:
    assert cell(text).key == key


@pytest.mark.parametrize("text", ["N = 2: T(10)", "hot-global", "caching 10%", "4 of 5"])
def test_a_cell_of_words_sorts_as_text(text: str) -> None:
    assert cell(text).key in (text, 4.0)


def test_markdown_aligns_numbers_right_and_text_left() -> None:
    rows = [
        [TableCell("a", "a"), TableCell("–", None), TableCell("7", 7.0)],
        [TableCell("b", "b"), *[TableCell("2", 2.0)] * 2],
    ]
    assert markdown(Table("measured", "", ["name", "x", "y"], rows)).splitlines()[1] == "| --- | ---: | ---: |"
