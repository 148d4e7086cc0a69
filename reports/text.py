"""Numbers, shares and ratios as text, and tables for a terminal or in markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from tabulate import DataRow, TableFormat, tabulate

NONE = "–"  # shown where a figure does not apply


def number(value: Any) -> str:
    """Three significant digits without exponent, with thousands separators; ``NONE`` for a missing value."""
    if _missing(value):
        return NONE
    size = abs(float(value))
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:,.{digits}f}" if size else "0"


def percent(value: Any) -> str:
    """A share of one in percent; a share below one never rounds up to 100."""
    if _missing(value):
        return NONE
    text = f"{100 * value:.1f}"
    return "99.9 %" if text == "100.0" and value < 1 else f"{text} %"


def probability(value: Any) -> str:
    """A probability with two significant digits; ``NONE`` for a missing value."""
    return NONE if _missing(value) else f"{value:.2g}"


def dtypes(computed: str, stored: str | None) -> str:
    """The dtype computed in, with that of the stored experts where it is another."""
    return computed if stored in (None, computed) else f"{computed}, experts stored in {stored}"


def _missing(value: Any) -> bool:
    return value is None or bool(value != value)  # NaN; without pandas, which is heavy


def ratio(median: float | None, low: float | None = None, high: float | None = None) -> str:
    """A ratio with its interval, such as ``2.05× [2.00, 2.10]``; ``(n=1)`` marks one without an interval."""
    if median is None:
        return NONE
    if low is None or high is None:
        return f"{median:.2f}× (n=1)"
    return f"{median:.2f}× [{low:.2f}, {high:.2f}]"


def filled(paragraph: str) -> str:
    """A paragraph of markdown in lines of at most 118 characters; words are never broken."""
    return textwrap.fill(paragraph, 118, break_on_hyphens=False, break_long_words=False)


def plain(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table for a terminal: columns aligned left, two spaces between them."""
    table: str = tabulate(rows, headers, tablefmt="plain", disable_numparse=True, stralign="left")
    return "\n".join(line.rstrip() for line in table.splitlines())


def markdown(headers: Sequence[str], rows: Iterable[Sequence[str]], right: Collection[int] = ()) -> str:
    """A table in GitHub's markdown; ``right`` holds the numbers of the right-aligned columns.

    Cells are not padded, so that an edited row changes one line. Characters that would break a cell are escaped.
    """
    rule = "| " + " | ".join("---:" if i in right else "---" for i in range(len(headers))) + " |"
    row = DataRow("| ", " | ", " |")
    layout = TableFormat(
        lineabove=None,
        linebelowheader=lambda widths, alignments: rule,
        linebetweenrows=None,
        linebelow=None,
        headerrow=row,
        datarow=row,
        padding=0,
        with_header_hide=None,
    )
    escaped = [[_escape(cell) for cell in cells] for cells in rows]
    names = [_escape(name) for name in headers]
    table: str = tabulate(escaped, names, tablefmt=layout, disable_numparse=True, stralign=None)
    return table


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
