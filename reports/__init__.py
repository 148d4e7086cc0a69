"""Reports of result files: a self-contained page, markdown, figures and their data.  Reads files only.

Importing this package loads no pandas: workers read the record schema under their memory limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ReportPaths", "write_report"]


@dataclass(frozen=True)
class ReportPaths:
    """What was written; beside every figure (PNG) lie an SVG and a CSV of the same name.

    ``glance`` is the headline table as text.
    """

    page: Path
    markdown: Path
    figures: list[Path]
    glance: str


def write_report(results: Sequence[Path], out_dir: Path, title: str | None = None) -> ReportPaths:
    """Write ``index.html``, ``report.md`` and ``figures/`` to ``out_dir``, which is made if missing.

    Records of different workloads (model, dtype, lengths, process limit, threads, machine) get a section each
    and are never averaged; so do different experiments.  A ``.json`` file among ``results`` is a projection.

    Raises:
        ReportError: a result file is missing, empty or not of this schema.
    """
    from reports import figures
    from reports.pages import parts
    from reports.pages import sections as page
    from reports.results import aggregate
    from reports.results.load import configured_order, load, workload_names

    files = [Path(path) for path in results]
    projections = [path for path in files if path.suffix == ".json"]
    frame = configured_order(load([path for path in files if path not in projections]))
    summary = aggregate.summarize(frame)
    names = workload_names(frame)
    sections = []
    for number, workload in enumerate(summary["workload"].unique(), start=1):
        rows = summary[summary["workload"] == workload].reset_index(drop=True)
        records = frame[frame["workload"] == workload].reset_index(drop=True)
        suffix = "" if number == 1 else f"-{number}"
        drawn = figures.draw(figures.Material(records, rows), out_dir / "figures", suffix)
        sections.append(page.section(number, rows, records, drawn, names[workload]))
    across = figures.draw(figures.Material(frame, summary), out_dir / "figures", scope="across")
    more = [*page.common_parts(frame, summary, across), *parts.projected(projections, out_dir / "figures")]
    content = page.Content(sections, more, page.left_out([*across, *(f for s in sections for f in s.figures)]))
    html, text = page.render(content, frame, summary, title)
    out_dir.mkdir(parents=True, exist_ok=True)
    drawn = [*(f for s in sections for f in s.figures), *(f for p in more for f in p.figures)]
    paths = ReportPaths(
        out_dir / "index.html", out_dir / "report.md", [f.png for f in drawn], page.glance_text(frame, summary)
    )
    paths.page.write_text(html, encoding="utf-8")
    paths.markdown.write_text(text, encoding="utf-8")
    return paths
