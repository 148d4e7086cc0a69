"""The projection's page in the docs: prose from a template, every number from ``projection.json``."""

from __future__ import annotations

import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from reports.figures import projection as projection_figures
from reports.pages import projection
from reports.results.projection import Document, load

_TEMPLATES = Path(__file__).resolve().parents[1] / "templates"
_PLACED = {
    "projection-paper": ("projection-paper", "projection-batch"),
    "projection-validation": ("projection-validation",),
    "projection-sensitivity": ("projection-sensitivity", "projection-link"),
}
"""Which figures stand above which table."""


def write(source: Path, out: Path) -> Path:
    """Write the page to ``out`` and its figures to ``figures`` beside it; returns ``out``.

    Raises:
        ReportError: the projection is missing or of another schema.
    """
    content = load(source)
    projection_figures.draw(content, out.parent / "figures", ("png",))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text(content), encoding="utf-8")
    return out


def text(content: Document) -> str:
    """The page as markdown."""
    machine = next(m for m in content["machines"] if m["used_for"] == "the paper's table")
    link = next(i["value"] for i in machine["inputs"] if i["name"] == "link rate")
    tables = [
        {"id": t.id, "title": t.title, "text": projection.markdown_table(t), "note": t.note}
        for t in projection.tables(content)
    ]
    environment = Environment(loader=FileSystemLoader(_TEMPLATES), undefined=StrictUndefined, autoescape=False)
    rendered = environment.get_template("projection.md").render(
        summary=projection.summary(content),
        tables=tables,
        figures=projection_figures.planned(content),
        placed=_PLACED,
        shortfalls=projection.shortfalls(content),
        link=f"{link:.1f}",
    )
    spaced = re.sub(r"\n{3,}", "\n\n", rendered)
    return re.sub(r"(\n- .*)\n\n(?=- \*\*)", r"\1\n", spaced).strip() + "\n"
