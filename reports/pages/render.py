"""Renders the content of a report as one self-contained HTML page and as markdown."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from reports.figures import Spec
from reports.pages.parts import Part
from reports.pages.sections import Section, span_text
from reports.results.commands import measured_by, redrawn_by
from reports.text import number
from reports.wording.tables import Table, plain_data
from reports.wording.tables import markdown as markdown_table

TEMPLATES = Path(__file__).resolve().parents[1] / "templates"
_MEDIA_TYPES = {".png": "image/png", ".svg": "image/svg+xml", ".csv": "text/csv"}


@dataclass(frozen=True)
class Content:
    """What a report shows, in page order."""

    title: str
    overview: Table
    sections: list[Section]
    parts: list[Part]
    missing: list[Spec]
    """Figures that no section had the records for."""
    frame: pd.DataFrame
    """All records, for the environment tables and the commands."""


def html(content: Content) -> str:
    """The page; images and data are embedded, so it needs no other file."""
    return environment(escaped=True).get_template("report.html.j2").render(_context(content))


def markdown(content: Content) -> str:
    """The same content as GitHub markdown; figures are linked, not embedded."""
    return environment(escaped=False).get_template("report.md.j2").render(_context(content))


def data(content: Content) -> str:
    """The tables of the page as JSON, with what each section says; without the figures' data, which are CSV files."""
    sections = [
        {
            "name": s.name,
            "title": s.title,
            "reference": s.reference,
            "headline": [s.headline.summary, *s.headline.sentences],
            "caveats": s.caveats,
            "tables": [plain_data(table) for table in s.tables],
        }
        for s in content.sections
    ]
    parts = [{"title": part.title, "tables": [plain_data(table) for table in part.tables]} for part in content.parts]
    whole = {"title": content.title, "overview": plain_data(content.overview), "sections": sections, "parts": parts}
    return json.dumps(whole, ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def environment(escaped: bool) -> Environment:
    """The template environment, for HTML with ``escaped`` and for markdown without."""
    loader = FileSystemLoader(TEMPLATES)
    found = Environment(
        loader=loader, autoescape=escaped, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    found.filters |= {"data_uri": _data_uri, "code": _with_code, "table": markdown_table}
    return found


def _context(content: Content) -> dict[str, Any]:
    return {
        "title": content.title,
        "overview": content.overview,
        "sections": content.sections,
        "parts": content.parts,
        "missing": content.missing,
        "environments": _environments(content.frame),
        "commands": measured_by(content.frame),
        "redraw": redrawn_by(content.frame),
        "measured_on": _measured_on(content.frame),
    }


def _environments(frame: pd.DataFrame) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each distinct environment as (its runs, entries); an entry is (name, text)."""
    runs: dict[str, list[str]] = {}
    for record in frame["record"]:
        known = {key: value for key, value in (record.get("environment") or {}).items() if key != "command"}
        names = runs.setdefault(json.dumps(known, sort_keys=True), [])
        if record["run_id"] not in names:
            names.append(record["run_id"])
    found = [(json.loads(text), names) for text, names in runs.items() if text != "{}"]
    return [
        ("run " + ", ".join(map(str, names)), [(key, _entry(key, value)) for key, value in known.items()])
        for known, names in found
    ]


def _entry(key: str, value: Any) -> str:
    if key.endswith("_bytes") and isinstance(value, int | float):
        return f"{number(value / 1e9)} GB"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _measured_on(frame: pd.DataFrame) -> str:
    """First to last day."""
    days = sorted({str(started)[:10] for started in frame["started_at"].dropna()})
    return span_text(days)


def _with_code(text: str) -> Markup:
    """Escaped text whose ``backticked`` words are code."""
    parts = text.split("`")
    return Markup("").join(Markup("<code>{}</code>").format(p) if i % 2 else escape(p) for i, p in enumerate(parts))


def _data_uri(file: Path) -> str:
    return f"data:{_MEDIA_TYPES[file.suffix]};base64," + base64.b64encode(file.read_bytes()).decode("ascii")
