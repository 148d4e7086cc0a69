"""The performance page: targets, kernels, speed, cycle time and limits, from records as markdown with figures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from reports import figures
from reports.figures import Figure, Material
from reports.pages import performance_targets, render
from reports.pages.sections import span_text
from reports.results import kernels
from reports.results.fidelity import differing
from reports.results.kernels import KernelRecord
from reports.results.load import ReportError, configured_order, finished, load
from reports.results.rivals import Place
from reports.results.roles import CACHE, REFERENCE
from reports.results.stats import Ratio
from reports.text import NONE, filled
from specmoe.files import write_text

FEW, MANY = 4, 8
"""At most so many rows are few, at least so many are many."""


@dataclass(frozen=True)
class Section:
    """A figure with what is said of it."""

    figure: Figure
    words: str


def write(results: Sequence[Path], kernel_record: Path | None, out: Path) -> Path:
    """Write the page to ``out`` and its figures to ``figures`` beside it; returns ``out``.

    Args:
        results: result files; figures and targets without records are left out or marked.
        kernel_record: ``kernels.json``; None leaves the kernels out.

    Raises:
        ReportError: a file is missing or malformed, or there is nothing to show.
    """
    if not results and kernel_record is None:
        raise ReportError("no records for the performance page: run `specmoe-bench run performance-short` first")
    frame = configured_order(load(results)) if results else pd.DataFrame()
    measured = frame[frame["kind"] == "measured"].reset_index(drop=True) if len(frame) else frame
    kernel = None if kernel_record is None else kernels.load(kernel_record)
    material = Material(records=measured, kernels=kernel)
    drawn = figures.draw(material, out.parent / "figures", scope="performance")
    write_text(out, _document(measured, kernel, drawn))
    return out


def _document(frame: pd.DataFrame, kernel: KernelRecord | None, drawn: Sequence[Figure]) -> str:
    places = performance_targets.places_of(frame)
    rendered = (
        render.environment(escaped=False)
        .get_template("performance.md.j2")
        .render(
            summary=filled(f"{_headline(places)} {_measured_on(frame, kernel)}"),
            targets=performance_targets.table(places),
            none=NONE,
            sections=[_section(figure, kernel) for figure in drawn],
        )
    )
    return re.sub(r"\n{3,}", "\n\n", rendered).strip() + "\n"


def _section(figure: Figure, kernel: KernelRecord | None) -> Section:
    said = _of_kernels(kernel) if figure.id == "performance-kernels" and kernel else ""
    return Section(figure, filled(f"{figure.question} {figure.caption} {said}".strip()))


def _headline(places: list[Place]) -> str:
    """The automatic setting over on-demand loading and over the best cache, smallest to largest median of all cells."""
    if not places:
        return "The systems have not been measured on the present kernels yet."
    over = {
        "on-demand loading": [place.over(place.of(REFERENCE)) for place in places],
        "the best cache of the same memory": [place.over(place.of(CACHE)) for place in places],
    }
    parts = [f"{_range(ratios)} as fast as {name}" for name, ratios in over.items() if any(map(_median, ratios))]
    return f"SpecMoE with its automatic setting decodes {' and '.join(parts)}, over {len(places)} cells."


def _median(ratio: Ratio) -> float:
    return ratio.median or 0.0


def _range(ratios: Sequence[Ratio]) -> str:
    known = sorted(value for value in map(_median, ratios) if value)
    return " to ".join(dict.fromkeys(f"{value:.2f}x" for value in (known[0], known[-1])))


def _measured_on(frame: pd.DataFrame, kernel: KernelRecord | None) -> str:
    """Machine, dates, tokens and rounds."""
    if frame.empty:
        return f"Kernels: {_machine(kernel.environment, [kernel.date[:10]])}." if kernel else ""
    environments = [record.get("environment") or {} for record in frame["record"]]
    days = sorted({str(started)[:10] for started in frame["started_at"]})
    done = finished(frame)
    rounds = sorted({int(n) for n in done.groupby("experiment")["round"].nunique()})
    tokens = span_text([str(n) for n in sorted(done["new_tokens"].unique())])
    exact = _exactness(done)
    return (
        f"Measured on {_machine(environments[0], days)}: {tokens} new tokens, {span_text([str(n) for n in rounds])} "
        f"interleaved rounds. {exact}."
    )


def _exactness(done: pd.DataFrame) -> str:
    """How the output of finished cells compares with the reference."""
    if not (done["fidelity"] == 1).all():
        return "Not all exact" if differing(done).any() or done["fidelity"].isna().any() else "Exact except for ties"
    return "Output equals `transformers.generate` in every cell"


def _machine(environment: dict[str, object], days: list[str]) -> str:
    return f"{environment.get('cpu')}, {environment.get('cores')} cores, {span_text(days)}"


def _of_kernels(record: KernelRecord) -> str:
    """How the kernels of float32 stand beside the memory's rate, ``F.linear`` and transformers."""
    single = record.kernels.get("experts float32", {})
    shares = [one.read_gb_s / record.memory_read_gb_s for rows, one in single.items() if rows <= FEW]
    gains = [one.speedup for rows, one in single.items() if rows >= MANY]
    times = ", ".join(f"{one.ratio:.2f} (batch {batch})" for batch, one in sorted(record.resident.items()))
    parts = []
    if shares:
        parts.append(
            f"In float32, products of 1 to {FEW} rows read at {100 * min(shares):.0f} to {100 * max(shares):.0f} % of "
            "the memory's rate (bar: 80 %)."
        )
    if gains:
        parts.append(f"Above, they are {min(gains):.2f} to {max(gains):.2f} times as fast as `F.linear` (bar: 1.6).")
    if times:
        parts.append(f"With all experts in memory a generation takes {times} of transformers' time (bar: 0.6).")
    return " ".join(parts)
