"""Parts of a page that are not a section of one workload: text, tables and figures under a heading."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reports.figures import Figure
from reports.results.load import ReportError
from reports.wording.tables import Table, cell


@dataclass(frozen=True)
class Part:
    """A titled part; ``anchor`` is its address on the page and unlike every other."""

    anchor: str
    title: str
    paragraphs: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)


def projected(files: Sequence[Path], folder: Path) -> list[Part]:
    """The parts that projection files (``*.json``) make, figures in ``folder``.

    Raises:
        ReportError: such a file was given, and it is none, or this release cannot show it.
    """
    if not files:
        return []
    try:
        projection = importlib.import_module("reports.pages.projection")
    except ModuleNotFoundError as error:
        raise ReportError(f"{files[0]} is no result file: name files that end in .jsonl") from error
    return [_part(projection.section(file, folder), place) for place, file in enumerate(files, start=1)]


def _part(section: Any, place: int) -> Part:
    """A projection as a part: what it falls short of becomes its last table."""
    tables = [_table(t.title, t.note, t.head, t.rows) for t in section.tables]
    if section.shortfalls:
        title = "Where the projection does not reach the paper, and why"
        tables.append(_table(title, "", ["figure of the paper", "why"], [list(pair) for pair in section.shortfalls]))
    figures = [
        Figure(f.name, f.title, f.title, f.caption, f.alt, "specmoe-bench project", f.png, f.svg, f.csv)
        for f in section.figures
    ]
    anchor = "projection" if place == 1 else f"projection-{place}"
    return Part(anchor, "Projected to the paper's machine", [section.summary], tables, figures)


def _table(title: str, note: str, head: list[str], rows: list[list[str]]) -> Table:
    caption = f"{title}. {note}".replace("*", "") if note else title  # a note is markdown, a caption is not
    return Table("projected", caption, head, [[cell(text) for text in row] for row in rows])
