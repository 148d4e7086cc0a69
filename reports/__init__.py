"""Reports of result files: a self-contained page, markdown, figures and their data.  Reads files only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reports.load import ReportError, load, workload_names

__all__ = ["ReportError", "ReportPaths", "load", "write_report"]


@dataclass(frozen=True)
class ReportPaths:
    """What was written; beside every figure lies a CSV of the same name."""

    page: Path
    markdown: Path
    figures: list[Path]


def write_report(results: Sequence[Path], out_dir: Path, title: str | None = None) -> ReportPaths:
    """Write ``index.html``, ``report.md`` and ``figures/`` to ``out_dir``, which is made if missing.

    Records of different workloads (model, dtype, lengths, process limit, threads, machine) get a section each
    and are never averaged.

    Raises:
        ReportError: a result file is missing, empty or not of this schema.
    """
    from reports import acceptance, aggregate, figures, page  # drawing libraries only once they are needed

    frame = load(results)
    summary = aggregate.summarize(frame)
    names = workload_names(frame)
    sections = []
    for number, workload in enumerate(summary["workload"].unique(), start=1):
        rows = summary[summary["workload"] == workload].reset_index(drop=True)
        records = frame[frame["workload"] == workload].reset_index(drop=True)
        suffix = "" if number == 1 else f"-{number}"
        drawn = figures.draw(rows, acceptance.by_position(records), out_dir / "figures", suffix)
        sections.append(page.section(number, rows, records, drawn, names[workload]))
    html, text = page.render(sections, frame, title)
    out_dir.mkdir(parents=True, exist_ok=True)
    paths = ReportPaths(out_dir / "index.html", out_dir / "report.md", [f.png for s in sections for f in s.figures])
    paths.page.write_text(html, encoding="utf-8")
    paths.markdown.write_text(text, encoding="utf-8")
    return paths
