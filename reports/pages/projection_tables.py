"""The projection's tables and sentences, from ``projection.json`` alone."""

from __future__ import annotations

from collections.abc import Sequence

from scipy.stats import gmean

from reports.figures.projection import input_name
from reports.results.projection import Document
from reports.text import NONE
from reports.wording.tables import Table, TableCell, cell

NOTABLE_ERROR = 0.10
"""Rows with a relative error above it state the reason."""
SHORTFALLS = "Where the projection misses the paper, and why"


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
    """Predicted figures with an error above ``NOTABLE_ERROR``, and the reason; rows of one reason together."""
    reasons: dict[str, list[str]] = {}
    for row in content["paper"]:
        if abs(row["error"]) > NOTABLE_ERROR and row["role"] == "prediction":
            reasons.setdefault(row["why"], []).append(f"{row['title']} ({row['error']:+.0%})")
    return [("; ".join(titles), reason) for reason, titles in reasons.items()]


def shortfall_table(content: Document) -> Table | None:
    """``shortfalls`` as a table; None without any."""
    rows = [list(pair) for pair in shortfalls(content)]
    return _table(SHORTFALLS, ["figure of the paper", "reason"], rows) if rows else None


def overview(content: Document) -> Table:
    """One row for each choice: option, default, projected effect on speed, the paper's, and a verdict."""
    paper = {row["id"]: row for row in content["paper"]}
    swings = content["sensitivity"]["swings"]
    ends = [swing[f"speedup_{end}"] for swing in swings for end in ("low", "high")]
    headline, temporal = paper["speedup.nllb"], paper["selection.hot-temporal.speed"]
    n_4, n_16 = (paper[f"n-sweep.{n}.throughput"] for n in (4, 16))
    experts = {name: n_16[name] / n_4[name] for name in ("projected", "paper")}
    here = "NLLB-MoE, paper's machine"
    rows = [
        _choice("speculation, over on-demand", "on", here, headline["projected"], ends, headline["paper"]),
        _choice(
            "`selection`: hot-temporal over random", "hot-temporal", here, temporal["projected"], (), temporal["paper"]
        ),
        _choice("`draft_experts`: 16 over 4", "4", here, experts["projected"], (), experts["paper"]),
    ]
    others = content["other_machines"]
    elsewhere = f"{len(others)} cells of other models and machines"
    for name, column in (("on-demand", "specmoe_over_on_demand"), ("caching", "specmoe_over_caching")):
        if ratios := [machine[column] for machine in others]:
            rows.append(_choice(f"speculation, over {name}", "on", elsewhere, float(gmean(ratios)), ratios))
    ahead = [machine["tok_s"] for machine in others if "specmoe-prefetch" in machine["tok_s"]]
    if ratios := [speeds["specmoe-prefetch"] / speeds["specmoe"] for speeds in ahead]:
        rows.append(_choice("`prefetch`: draft over none", "none", elsewhere, float(gmean(ratios)), ratios))
    headers = ["option", "default", "where", "projected effect on speed [range]", "paper", "verdict"]
    return Table("projected", "Projected effect of each choice", headers, rows, _OVERVIEW_NOTE)


_OVERVIEW_NOTE = (
    "Ratios of projected decode speed. On the paper's machine, batch 256; the range of the first row is that of the "
    "sensitivity table. Elsewhere, geometric mean and range over the cells. A projection has no random error, so there "
    "is no confidence interval."
)


def _choice(
    option: str, default: str, where: str, ratio: float, among: Sequence[float], in_paper: float | None = None
) -> list[TableCell]:
    low, high = (min(among), max(among)) if among else (ratio, ratio)
    shown = f"{ratio:.2f}×" + (f" [{low:.2f}, {high:.2f}]" if among else "")
    if low < 1 < high:
        verdict = "depends on setup"
    elif abs(ratio - 1) < NOTABLE_ERROR:
        verdict = "small projected effect"
    else:
        verdict = "clear projected gain" if ratio > 1 else "clear projected loss"
    words = [TableCell(text, text) for text in (option, default, where)]
    theirs = NONE if in_paper is None else f"{in_paper:.2f}×"
    return [*words, TableCell(shown, ratio), TableCell(theirs, in_paper), TableCell(verdict, verdict)]


def tables(content: Document) -> dict[str, Table]:
    """Tables by their id, in page order; those without data are left out."""
    found = {"paper": _paper_table(content)}
    if content["validation"] is not None:
        found["validation"] = _validation_table(content["validation"])
    found["sensitivity"] = _sensitivity_table(content["sensitivity"])
    if content["other_machines"]:
        found["machines"] = _machines_table(content["other_machines"])
    return found | {"models": _models_table(content["models"]), "inputs": _inputs_table(content)}


def _table(title: str, headers: list[str], rows: list[list[str]], note: str = "") -> Table:
    return Table("projected", title, headers, [[cell(text) for text in row] for row in rows], note)


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
        "One set of inputs per model, no fitting to a row. The column projected uses the link rate that the paper's "
        "own throughput, bytes and migration share imply. A row marked (input) is an input of the projection or "
        "follows from one."
    )
    return _table("The paper's figures, projected", head, rows, note)


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
    return _table("Predicted against measured on this machine", head, rows, note)


def _use(row: Document) -> str:
    if row["calibration"]:
        return "calibration"
    return "held out, ideal prefetch" if row.get("idealised") else "held out"


def _bytes_off(row: Document) -> str:
    return f"{row['projected_link_bytes'] / row['measured_link_bytes'] - 1:+.2%}"


def _sensitivity_table(sensitivity: Document) -> Table:
    rows = [
        [
            input_name(s),
            f"{_number(s['low'])} / {_number(s['base'])} / {_number(s['high'])}",
            f"{s['speedup_low']:.2f} / {s['speedup_base']:.2f} / {s['speedup_high']:.2f}",
        ]
        for s in sensitivity["swings"]
    ]
    head = ["input", "low / used / high", "speed-up: low / used / high"]
    return _table("Effect of each input", head, rows, f"Outcome: {sensitivity['outcome']}.")


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
    return _table("Other models and machines", head, body, note)


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
    return _table("Sizes of the models", head, rows)


def _inputs_table(content: Document) -> Table:
    owners = [(m["used_for"], m["inputs"]) for m in content["machines"]]
    owners += [(m["title"], m["inputs"]) for m in content["models"]]
    rows = [
        [owner, given["name"], f"{_number(given['value'])} {given['unit']}", given["origin"], given["note"]]
        for owner, inputs in owners
        for given in inputs
    ]
    head = ["of", "input", "value", "origin", "note"]
    return _table("Every input and its source", head, rows)


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
