"""The projection as a part of the report, as text for a terminal, and as its document ``docs/projection.md``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from reports import figures
from reports.figures import Figure, Material
from reports.pages import projection_tables, render
from reports.pages.parts import Part
from reports.results.projection import Document, load
from reports.wording.tables import markdown as markdown_table
from specmoe.files import write_text

TITLE = "Projected to the paper's machine"
_FIGURES_OF = {
    "paper": ("projection-paper", "projection-batch"),
    "validation": ("projection-validation",),
    "sensitivity": ("projection-sensitivity", "projection-link"),
}
"""Which figures stand above which table of the document."""


def parts(files: Sequence[Path], folder: Path) -> list[Part]:
    """A part of the report for each projection file, its figures drawn to ``folder``.

    Raises:
        ReportError: a file is not a projection.
    """
    return [_part(load(file), folder, "" if place == 1 else f"-{place}") for place, file in enumerate(files, start=1)]


def _part(content: Document, folder: Path, suffix: str) -> Part:
    drawn = figures.draw(Material(projection=content), folder, suffix, "projection")
    tables = [projection_tables.overview(content), *projection_tables.tables(content).values()]
    if (missed := projection_tables.shortfall_table(content)) is not None:
        tables.append(missed)
    return Part(f"projection{suffix}", TITLE, [projection_tables.summary(content)], tables, drawn)


def markdown(file: Path) -> str:
    """Summary, tables and shortfalls as markdown, without figures.

    Raises:
        ReportError: ``file`` is not a projection.
    """
    content = load(file)
    tables = [projection_tables.overview(content), *projection_tables.tables(content).values()]
    texts = [projection_tables.summary(content)]
    for table in tables:
        texts += [f"### {table.caption}", markdown_table(table), *([table.note] if table.note else [])]
    missed = [f"- **{title}**: {reason}" for title, reason in projection_tables.shortfalls(content)]
    texts += [f"### {projection_tables.SHORTFALLS}", "\n".join(missed)] if missed else []
    return "\n\n".join(texts) + "\n"


def write(source: Path, out: Path) -> Path:
    """Write the document to ``out`` and its figures to ``figures`` beside it; returns ``out``.

    Raises:
        ReportError: ``source`` is not a projection.
    """
    content = load(source)
    drawn = figures.draw(Material(projection=content), out.parent / "figures", scope="projection")
    write_text(out, document(content, drawn))
    return out


def document(content: Document, drawn: Sequence[Figure]) -> str:
    """The document as markdown: prose from a template, every number from ``content``."""
    machine = next(m for m in content["machines"] if m["used_for"] == "the paper's table")
    link = next(i["value"] for i in machine["inputs"] if i["name"] == "link rate")
    sections = [
        Part(id, table.caption, tables=[table], figures=[f for f in drawn if f.id in _FIGURES_OF.get(id, ())])
        for id, table in projection_tables.tables(content).items()
    ]
    rendered = (
        render.environment(escaped=False)
        .get_template("projection.md.j2")
        .render(
            summary=projection_tables.summary(content),
            overview=projection_tables.overview(content),
            sections=sections,
            shortfalls=projection_tables.shortfalls(content),
            link=f"{link:.1f}",
        )
    )
    return re.sub(r"\n{3,}", "\n\n", rendered).strip() + "\n"
