"""One self-contained HTML page and its markdown twin, from the same context."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape

from reports.figures import Figure, Spec, missing
from reports.pages import against_paper
from reports.pages.parts import Part
from reports.results import paper
from reports.results.commands import measured_by, redrawn_by
from reports.text import NONE, number
from reports.wording import overview as glance
from reports.wording.details import Detail, details
from reports.wording.headline import Headline, headline
from reports.wording.tables import Table, mark_budgets, markdown, plain, tables
from reports.wording.warnings import doubts

TEMPLATES = Path(__file__).resolve().parents[1] / "templates"
DEFAULT_TITLE = "Mixture-of-Experts inference under a memory limit"
PROTOCOL = (
    "Systems run interleaved in rounds, each in a process of its own, with a cold page cache at the start of a cell.",
    "Same prompts and same number of new tokens for all; ratios are taken within a round.",
)
GRAINS = {
    "experts": "single experts",
    "modules": "whole modules",
    "layers": "whole layers",
    "pages": "pages of a mapped file",
    "nothing": "nothing, all being resident",
}


@dataclass(frozen=True)
class Section:
    """The report of one experiment on one workload; ``short`` is its name in lists."""

    anchor: str
    title: str
    short: str
    name: str
    commands: list[str]
    reference: str
    headline: Headline
    doubts: list[str]
    setup: list[tuple[str, str]]
    fairness: list[str]
    tables: list[Table]
    figures: list[Figure]
    details: list[Detail]


@dataclass(frozen=True)
class Content:
    """All of a page: its sections, the parts that span them, and the figures that lack records."""

    sections: list[Section]
    parts: list[Part]
    left_out: list[Spec]


def section(place: int, summary: pd.DataFrame, frame: pd.DataFrame, figures: list[Figure], name: str) -> Section:
    """Gather what a page says of one workload (the ``place``-th, from 1)."""
    config = frame["record"].iloc[0].get("config") or {}
    experiment = str(config.get("name") or "")
    references = summary["reference"].dropna().unique()
    return Section(
        anchor=f"workload-{place}",
        title=str(config.get("title") or experiment or name),
        short=experiment or name,
        name=name,
        commands=measured_by(frame),
        reference=" or ".join(map(str, references)) or NONE,
        headline=headline(summary, frame),
        doubts=doubts(summary, frame),
        setup=_setup(summary, frame),
        fairness=_fairness(summary),
        tables=tables(summary),
        figures=figures,
        details=details(frame),
    )


def common_parts(frame: pd.DataFrame, summary: pd.DataFrame, across: list[Figure]) -> list[Part]:
    """What spans the sections: figures over several experiments, and the paper's figures beside ours."""
    parts = []
    if across:
        parts.append(Part("across", "Across experiments", figures=across))
    beside = against_paper.table(frame, summary)
    if beside is not None:
        parts.append(Part("paper", "Beside the paper", [_ABOUT_PAPER], [beside]))
    return parts


_ABOUT_PAPER = (
    f"The paper (arXiv {paper.ARXIV}) measured on one H100 with experts in host memory over PCIe 5.0; the last column "
    "says what stands behind ours. An error is the distance between two machines, two models and two sets of "
    "experts, not a fault of either; absolute speeds are therefore not compared. Ratios are of decode speed."
)


def left_out(drawn: list[Figure]) -> list[Spec]:
    """Figures without records; ``settings`` stands in for the sweeps and is not missed where they are."""
    return [spec for spec in missing(drawn) if spec.id != "settings"]


def glance_text(frame: pd.DataFrame, summary: pd.DataFrame) -> str:
    """The headline table for a terminal."""
    return plain(glance.table(frame, summary))


def _told_apart(sections: list[Section]) -> list[Section]:
    """Sections whose short names differ: an experiment on several workloads is named with each of them."""
    shorts = [section.short for section in sections]
    return [replace(s, short=f"{s.short}: {s.name}") if shorts.count(s.short) > 1 else s for s in sections]


def _with_code(text: str) -> Markup:
    """Text whose ``backticked`` words become code."""
    parts = text.split("`")
    return Markup("").join(Markup("<code>{}</code>").format(p) if i % 2 else escape(p) for i, p in enumerate(parts))


def render(content: Content, frame: pd.DataFrame, summary: pd.DataFrame, title: str | None) -> tuple[str, str]:
    """The HTML page and the markdown text."""
    context = {
        "title": title or DEFAULT_TITLE,
        "glance": glance.table(frame, summary),
        "sections": _told_apart(content.sections),
        "parts": content.parts,
        "left_out": content.left_out,
        "environments": _environments(frame),
        "commands": measured_by(frame),
        "redraw": redrawn_by(frame),
        "started": _span(frame),
    }
    html = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    html.filters |= {"data_uri": _data_uri, "code": _with_code}
    plain = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=False, trim_blocks=True, lstrip_blocks=True)
    plain.filters |= {"table": markdown}
    page = html.get_template("report.html.j2").render(context)
    return page, plain.get_template("report.md.j2").render(context)


def _setup(summary: pd.DataFrame, frame: pd.DataFrame) -> list[tuple[str, str]]:
    first = frame.iloc[0]
    repetitions = [r for record in frame["record"] for r in record.get("repetitions") or []]
    per_row = sorted(
        {
            r["prompt_tokens"] / record["cell"]["batch_size"]
            for record in frame["record"]
            for r in record.get("repetitions") or []
            if r.get("prompt_tokens")
        }
    )
    prompts = _range([number(tokens) for tokens in (per_row[:1] + per_row[-1:])])
    rounds = [str(n) for n in sorted(set(summary["rounds"]))]
    budgets = sorted(set(summary["expert_budget_bytes"].dropna()))
    facts = [
        ("Model", str(first["model"])),
        ("Data type", str(first["dtype"] or NONE)),
        ("Expert byte budget", ", ".join(f"{number(b / 1e6)} MB" for b in budgets) or "none"),
        ("Memory limit of the process", _limit(frame)),
        ("Prompt tokens per row (mean)", prompts if repetitions else NONE),
        ("New tokens per row", str(first["new_tokens"])),
        ("Batch sizes", ", ".join(str(b) for b in sorted(set(summary["batch_size"])))),
        ("Rounds", _range([rounds[0], rounds[-1]])),
        ("Threads", str(first["threads"] or NONE)),
    ]
    return facts + ([("Machine", str(first["host"]))] if first["host"] else [])


def _range(ends: list[str]) -> str:
    return " to ".join(dict.fromkeys(ends))


def _limit(frame: pd.DataFrame) -> str:
    limits = sorted({int(b) for name in ("limit_bytes", "process_limit_bytes") for b in frame[name].dropna()})
    size = ", ".join(f"{number(limit / 1e9)} GB" for limit in limits) or "none"
    enforced = [value is True for value in frame["limit_enforced"]]
    how = sorted(set(frame["limit_mechanism"].dropna()) - {"none"})
    if all(enforced):
        return f"{size}, enforced by the kernel ({', '.join(how)}), page cache included"
    some = f"only for some cells ({', '.join(how)})" if any(enforced) else "not enforced by the kernel"
    why = sorted({str(reason) for reason in frame["limit_why_not"].dropna()})
    return f"{size}, {some}" + (f": {'; '.join(why)}" if why else "")


def _fairness(summary: pd.DataFrame) -> list[str]:
    rows = mark_budgets(summary.to_dict("records"))
    odd = {row["title"]: row["expert_budget_bytes"] for row in rows if row["budget_differs"]}
    budgets = [row["expert_budget_bytes"] for row in rows if not row["budget_differs"]]
    usual = next((b for b in budgets if not pd.isna(b)), None)
    lines = []
    if usual is not None:
        lines.append(f"Every system has the same budget of {number(usual / 1e6)} MB for experts on the device")
        lines[-1] += ", but for those named next." if odd else "."
    lines += [
        f"{title} has {'a larger' if budget > (usual or 0) else 'a smaller'} budget of {number(budget / 1e6)} MB."
        for title, budget in odd.items()
    ]
    limit = summary["process_limit_bytes"].iloc[0]
    if not pd.isna(limit):
        held = (
            "and the kernel holds each to it" if summary["enforced"].all() else "but the kernel did not hold all to it"
        )
        lines.append(f"Every process has the same memory limit of {number(limit / 1e9)} GB, {held}.")
        if engines := list(dict.fromkeys(row["title"] for row in rows if row["limit_covers"] == "engine")):
            lines.append(
                f"{', '.join(engines)}: the engine is a process of its own, and the limit covers it alone; for the "
                "others it covers the Python process that they run in."
            )
    blind = list(
        dict.fromkeys(row["title"] for row in rows if pd.isna(row["peak_device_expert_bytes"]) and row["rounds_ok"])
    )
    if blind:
        lines.append(
            f"No count of expert bytes from {', '.join(blind)}: only the process limit holds them to a budget."
        )
    grains = summary.dropna(subset=["grain"]).groupby("grain", sort=False)["title"].unique()
    lines += [f"Moved between the tiers as {GRAINS.get(g, g)}: {', '.join(t)}." for g, t in grains.items()]
    return [*lines, *PROTOCOL]


def _environments(frame: pd.DataFrame) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each distinct environment with the runs it held for, its entries as (name, text)."""
    runs: dict[str, list[str]] = {}
    for record in frame["record"]:
        known = {key: value for key, value in (record.get("environment") or {}).items() if key != "command"}
        names = runs.setdefault(json.dumps(known, sort_keys=True), [])
        if record["run_id"] not in names:
            names.append(record["run_id"])
    found = [(text, names) for text, names in runs.items() if text != "{}"]
    return [
        ("run " + ", ".join(map(str, names)), [(key, _plain(key, value)) for key, value in json.loads(text).items()])
        for text, names in found
    ]


def _plain(key: str, value: Any) -> str:
    if key.endswith("_bytes") and isinstance(value, int | float):
        return f"{number(value / 1e9)} GB"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _span(frame: pd.DataFrame) -> str:
    days = sorted({str(started)[:10] for started in frame["started_at"].dropna()})
    return _range(days[:1] + days[-1:])


_TYPES = {".png": "image/png", ".svg": "image/svg+xml", ".csv": "text/csv"}


def _data_uri(file: Path) -> str:
    return f"data:{_TYPES[file.suffix]};base64," + base64.b64encode(file.read_bytes()).decode("ascii")
