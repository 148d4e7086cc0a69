"""Writes the report of result files: the HTML page, its markdown twin, and the figures of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from reports import figures
from reports.figures import Figure, Material
from reports.pages import parts, projection, render, sections
from reports.results import aggregate
from reports.results.load import configured_order, load, workload_names
from reports.wording import overview
from reports.wording.tables import plain
from specmoe.files import write_text

TITLE = "Mixture-of-Experts inference under a memory limit"


@dataclass(frozen=True)
class ReportPaths:
    """Files of a report; beside every figure (PNG) lie an SVG and a CSV of the same name.

    ``tables`` is a JSON file with every table; ``overview`` is the one of headline results as plain text, for a
    terminal, "" where nothing finished.
    """

    page: Path
    markdown: Path
    tables: Path
    figures: list[Path]
    overview: str


def write_report(results: Sequence[Path], out_dir: Path, title: str | None = None) -> ReportPaths:
    """Write ``index.html``, ``report.md``, ``tables.json`` and ``figures/`` to ``out_dir``, created if missing.

    Records of different workloads (model, dtype, lengths, process limit, threads, machine) or different experiments
    get a section each and are never averaged.  A ``.json`` file among ``results`` is a projection.

    Raises:
        ReportError: a result file is missing, empty or not of this schema.
    """
    files = [Path(path) for path in results]
    projections = [path for path in files if path.suffix == ".json"]
    frame = configured_order(load([path for path in files if path not in projections]))
    summary = aggregate.summarize(frame)
    folder = out_dir / "figures"
    found = _sections(frame, summary, folder)
    across = figures.draw(Material(frame, summary), folder, scope="across")
    drawn = [*across, *(figure for section in found for figure in section.figures)]
    content = render.Content(
        title=title or TITLE,
        overview=overview.table(frame, summary),
        sections=found,
        parts=[*parts.common(frame, summary, across), *projection.parts(projections, folder)],
        missing=figures.missing(drawn),
        frame=frame,
    )
    page, markdown, tables = (out_dir / name for name in ("index.html", "report.md", "tables.json"))
    write_text(page, render.html(content))
    write_text(markdown, render.markdown(content))
    write_text(tables, render.data(content))
    shown = [*(f for s in content.sections for f in s.figures), *(f for p in content.parts for f in p.figures)]
    headline = plain(content.overview) if content.overview.rows else ""
    return ReportPaths(page, markdown, tables, [figure.png for figure in shown], headline)


def _sections(frame: pd.DataFrame, summary: pd.DataFrame, folder: Path) -> list[sections.Section]:
    """One section per workload, with its figures drawn to ``folder``."""
    names = workload_names(frame)
    found = []
    for number, workload in enumerate(summary["workload"].unique(), start=1):
        rows = summary[summary["workload"] == workload].reset_index(drop=True)
        records = frame[frame["workload"] == workload].reset_index(drop=True)
        suffix = "" if number == 1 else f"-{number}"
        drawn: list[Figure] = figures.draw(Material(records, rows), folder, suffix)
        found.append(sections.section(number, rows, records, drawn, names[workload]))
    return sections.with_distinct_names(found)
