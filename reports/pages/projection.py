"""The projection as tables and markdown, from ``projection.json`` alone.

``section`` gives a page everything at once: tables, figures with their data, and what cannot be reached and why.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from reports.figures import projection as projection_figures
from reports.figures.projection import Figure
from reports.results.projection import Document, load

NOTABLE_ERROR = 0.10
"""From this relative error on, a row says why."""


@dataclass(frozen=True)
class Table:
    """A table of text; ``note`` is said below it."""

    id: str
    title: str
    head: list[str]
    rows: list[list[str]]
    note: str = ""


@dataclass(frozen=True)
class Section:
    """What a page shows of a projection."""

    summary: str
    tables: list[Table]
    figures: list[Figure]
    shortfalls: list[tuple[str, str]]
    """(figure of the paper, why the projection does not reach it)."""


def section(path: Path, folder: Path) -> Section:
    """Tables and figures of a projection; figures (PNG, SVG, CSV) are written to ``folder``.

    Raises:
        ReportError: as ``load``.
    """
    content = load(path)
    return Section(summary(content), tables(content), projection_figures.draw(content, folder), shortfalls(content))


def markdown(path: Path) -> str:
    """Summary, tables and shortfalls as markdown.

    Raises:
        ReportError: as ``load``.
    """
    content = load(path)
    parts = [summary(content)]
    for table in tables(content):
        parts += [f"### {table.title}", markdown_table(table)]
        parts += [table.note] if table.note else []
    missed = [f"- **{title}**: {why}" for title, why in shortfalls(content)]
    parts += ["### Where the projection does not reach the paper, and why", "\n".join(missed)] if missed else []
    return "\n\n".join(parts) + "\n"


def markdown_table(table: Table) -> str:
    """A table as markdown; its title and note left out."""
    lines = [table.head, ["---"] * len(table.head), *table.rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def summary(content: Document) -> str:
    """Two sentences: how well it predicts this machine, and the paper."""
    rows = {row["id"]: row for row in content["paper"]}
    headline = rows["speedup.nllb"]
    predictions = sorted(abs(r["error"]) for r in content["paper"] if r["role"] == "prediction")
    middle = predictions[len(predictions) // 2]
    text = (
        f"Projected, not measured: {headline['projected']:.2f}x over OnDemand on NLLB-MoE at batch 256, where the "
        f"paper has {headline['paper']:.2f}x ({headline['error']:+.0%}). The median error over {len(predictions)} "
        f"predicted figures of the paper is {middle:.0%}."
    )
    checked = content["validation"]
    if checked is None:
        return text
    return text + (
        f" On cells measured on this machine and not used for calibration ({checked['held_out_cells']}), the median "
        f"error of predicted throughput is {checked['median_absolute_error']:.1%}; bytes are exact in "
        f"{checked['bytes_exact_cells']} of {len(checked['rows']) - checked.get('idealised_cells', 0)} cells "
        "without prefetch."
    )


def shortfalls(content: Document) -> list[tuple[str, str]]:
    """Predicted figures that are off by more than ``NOTABLE_ERROR``, with the reason; rows of one reason together."""
    reasons: dict[str, list[str]] = {}
    for row in content["paper"]:
        if abs(row["error"]) > NOTABLE_ERROR and row["role"] == "prediction":
            reasons.setdefault(row["why"], []).append(f"{row['title']} ({row['error']:+.0%})")
    return [("; ".join(titles), why) for why, titles in reasons.items()]


def tables(content: Document) -> list[Table]:
    """Paper against projected, predicted against measured, inputs, sensitivity, other machines."""
    found = [_paper_table(content)]
    found += [] if content["validation"] is None else [_validation_table(content["validation"])]
    found += [_sensitivity_table(content["sensitivity"])]
    found += [_machines_table(content["other_machines"])] if content["other_machines"] else []
    return [*found, _models_table(content["models"]), _inputs_table(content)]


def _paper_table(content: Document) -> Table:
    rows = [
        [
            row["title"],
            row["unit"],
            _number(row["paper"]),
            _number(row["projected"]),
            f"{row['error']:+.1%}" if row["role"] == "prediction" else f"({row['error']:+.1%}, input)",
            _number(row["nominal"]),
        ]
        for row in content["paper"]
    ]
    head = ["figure of the paper", "unit", "paper", "projected", "error", "projected, link at its nominal 64 GB/s"]
    note = (
        "One set of inputs per model, no fitting to a row. *Projected* uses the link rate that the paper's own "
        "throughput, bytes and migration share imply. A row marked *input* was given to the projection or follows from "
        "what was."
    )
    return Table("projection-paper", "The paper's figures, projected", head, rows, note)


def _validation_table(checked: Document) -> Table:
    rows = [
        [
            f"{row['experiment']}: {row['label']}",
            str(row["batch_size"]),
            f"{row['measured_tok_s']:.1f}",
            f"{row['projected_tok_s']:.1f}",
            f"{row['error']:+.1%}",
            "–" if row["measured_link_gb_s"] is None else f"{row['measured_link_gb_s']:.2f}",
            f"{row['error_own_link']:+.1%}",
            "equal" if row["measured_link_bytes"] == row["projected_link_bytes"] else _bytes_off(row),
            _use(row),
        ]
        for row in sorted(checked["rows"], key=lambda r: (r["experiment"], r["label"], r["batch_size"]))
    ]
    head = [
        "cell",
        "batch",
        "measured tok/s",
        "projected tok/s",
        "error",
        "its link, GB/s",
        "error at that rate",
        "bytes",
        "use",
    ]
    note = (
        f"Calibrated on {checked['calibrated_on']}. Measured values are medians over rounds. Median absolute error of "
        f"the {checked['held_out_cells']} held-out cells: {checked['median_absolute_error']:.1%}; "
        f"{checked['median_absolute_error_own_link']:.1%} when each cell is projected with the link rate that it had "
        "itself, since the disk's rate changed between sessions."
    )
    return Table("projection-validation", "Predicted against measured on this machine", head, rows, note)


def _use(row: Document) -> str:
    if row["calibration"]:
        return "calibration"
    return "held out, ideal prefetch" if row.get("idealised") else "held out"


def _bytes_off(row: Document) -> str:
    return f"{row['projected_link_bytes'] / row['measured_link_bytes'] - 1:+.2%}"


def _sensitivity_table(sensitivity: Document) -> Table:
    rows = [
        [
            f"{s['input']}, {s['unit']}",
            f"{_number(s['low'])} / {_number(s['base'])} / {_number(s['high'])}",
            f"{s['speedup_low']:.2f} / {s['speedup_base']:.2f} / {s['speedup_high']:.2f}",
        ]
        for s in sensitivity["swings"]
    ]
    head = ["input", "low / used / high", "speed-up: low / used / high"]
    return Table(
        "projection-sensitivity", "What each input is worth", head, rows, f"Outcome: {sensitivity['outcome']}."
    )


def _machines_table(rows: list[Document]) -> Table:
    head = [
        "model",
        "machine",
        "batch",
        "on the device",
        "OnDemand tok/s",
        "Caching tok/s",
        "SpecMoE tok/s",
        "over them",
        "with prefetch",
    ]
    body = [
        [
            row["model"],
            row["machine"],
            str(row["batch_size"]),
            f"{row['device_gb']:.0f} GB" + ("" if row["fits"] else ", does not fit"),
            *(_number(row["tok_s"][system]) for system in ("on-demand", "caching", "specmoe")),
            f"{row['specmoe_over_on_demand']:.2f}x / {row['specmoe_over_caching']:.2f}x",
            _number(row["tok_s"]["specmoe-prefetch"]) if "specmoe-prefetch" in row["tok_s"] else "–",
        ]
        for row in rows
    ]
    note = (
        "Routing and acceptance of models that the paper did not run are assumed (see the inputs): this table shows "
        "where speculation could pay, not what it will."
    )
    return Table("projection-machines", "Other models and machines", head, body, note)


def _models_table(models: list[Document]) -> Table:
    rows = [
        [
            m["title"],
            f"{m['moe_layers']} of {m['layers']}",
            f"{m['experts']}, top-{m['top_k']}",
            f"{m['expert_mb']:.1f}",
            f"{m['total_gb']:.1f}",
            f"{m['published_gb']:.1f}",
            m["source"],
        ]
        for m in models
    ]
    head = ["model", "MoE layers", "experts", "MB per expert", "GB", "published GB", "from"]
    return Table("projection-models", "Sizes of the models", head, rows)


def _inputs_table(content: Document) -> Table:
    owners = [(m["used_for"], m["inputs"]) for m in content["machines"]]
    owners += [(m["title"], m["inputs"]) for m in content["models"]]
    rows = [
        [owner, given["name"], f"{_number(given['value'])} {given['unit']}", given["origin"], given["note"]]
        for owner, inputs in owners
        for given in inputs
    ]
    head = ["of", "input", "value", "origin", "note"]
    return Table("projection-inputs", "Every input and where it is from", head, rows)


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
