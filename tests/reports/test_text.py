"""Numbers and shares keep their meaning when they are shortened to text."""

from __future__ import annotations

import pytest

from reports.text import markdown, number, percent, plain, ratio


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (float("nan"), "–"), (0, "0"), (1234.5, "1,234"), (12.34, "12.3"), (0.01234, "0.012")],
)
def test_numbers_keep_three_digits(value: float | None, text: str) -> None:
    assert number(value) == text


def test_a_share_below_one_is_never_shown_as_100_percent() -> None:
    assert percent(0.9999) == "99.9 %"
    assert percent(1.0) == "100.0 %"


def test_a_ratio_shows_its_interval_or_that_it_comes_from_one_round() -> None:
    assert ratio(2.051, 2.0, 2.1) == "2.05× [2.00, 2.10]"
    assert ratio(1.5) == "1.50× (n=1)"
    assert ratio(None) == "–"


def test_a_markdown_table_aligns_columns_and_escapes_cells() -> None:
    table = markdown(["name", "MB"], [["a | b", "1.0"], ["<two\nlines>", ""]], right={1})
    assert table.splitlines() == ["| name | MB |", "| --- | ---: |", "| a \\| b | 1.0 |", "| &lt;two lines> |  |"]


def test_a_terminal_table_keeps_digits_as_they_are() -> None:
    table = plain(["name", "tok/s"], [["a", "1,000"], ["longer", "0010"]])
    assert table.splitlines() == ["name    tok/s", "a       1,000", "longer  0010"]
