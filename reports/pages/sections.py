"""Gathers what a report says of one experiment on one workload."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from reports.figures import Figure
from reports.results.commands import measured_by
from reports.results.load import arrivals_text, decoding_text
from reports.results.roles import Row
from reports.results.tier import in_memory, tier_text
from reports.text import NONE, dtypes, number
from reports.wording import latency
from reports.wording.details import Detail, details
from reports.wording.headline import Headline, headline
from reports.wording.tables import Table, mark_budgets, tables
from reports.wording.warnings import caveats

PROTOCOL = (
    "Systems run interleaved in rounds, each in its own process, with a cold page cache at the start of a cell.",
    "All systems get the same prompts; ratios are taken within a round.",
)
GRAINS = {
    "experts": "single experts",
    "modules": "whole modules",
    "layers": "whole layers",
    "pages": "pages of a mapped file",
    "nothing": "nothing (all experts are resident)",
    "unknown": "what a server decides, which it does not say",
}


_HELD = {
    "expert budget": "the expert budget alone",
    "allocator cap": "a cap on torch's allocator",
    "nothing": "nothing but its size",
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
    caveats: list[str]
    setup: list[tuple[str, str]]
    fairness: list[str]
    tables: list[Table]
    figures: list[Figure]
    details: list[Detail]


def section(place: int, summary: pd.DataFrame, frame: pd.DataFrame, figures: list[Figure], name: str) -> Section:
    """Gather what a page says of one workload; ``place`` counts workloads from 1."""
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
        caveats=caveats(summary, frame),
        setup=_setup(summary, frame),
        fairness=_fairness(summary, frame),
        tables=[*tables(summary), *latency.tables(summary)],
        figures=figures,
        details=details(frame),
    )


def with_distinct_names(sections: list[Section]) -> list[Section]:
    """The same sections; where one experiment ran on several workloads, its short name gets the workload's name."""
    shorts = [section.short for section in sections]
    return [replace(s, short=f"{s.short}: {s.name}") if shorts.count(s.short) > 1 else s for s in sections]


def span_text(values: Sequence[str]) -> str:
    """``first to last`` of sorted values, or the one value if they are equal; empty for none."""
    return " to ".join(dict.fromkeys([*values[:1], *values[-1:]]))


def _setup(summary: pd.DataFrame, frame: pd.DataFrame) -> list[tuple[str, str]]:
    first = frame.iloc[0]
    per_row = sorted(
        {
            r["prompt_tokens"] / record["cell"]["batch_size"]
            for record in frame["record"]
            for r in record.get("repetitions") or []
            if r.get("prompt_tokens")
        }
    )
    prompts = span_text([number(tokens) for tokens in per_row]) or NONE
    rounds = [str(n) for n in sorted(set(summary["rounds"]))]
    budgets = sorted(set(summary["expert_budget_bytes"].dropna()))
    facts = [
        ("Model", str(first["model"])),
        ("Data type", dtypes(str(first["dtype"] or NONE), first["stored_dtype"])),
        ("Expert byte budget", ", ".join(f"{number(b / 1e6)} MB" for b in budgets) or "none"),
        ("Memory limit of the process", _limit(frame)),
        ("Prompt tokens per row (mean)", prompts),
        ("New tokens per row", str(first["new_tokens"])),
        ("Decoding", decoding_text(first["decoding"])),
        ("Batch sizes", ", ".join(str(b) for b in sorted(set(summary["batch_size"])))),
        ("Device", ", ".join(sorted(set(frame["device"])))),
        ("Experts rest in", ", ".join(tier_text(text) for text in sorted(set(frame["slow_tier"])))),
        ("Rounds", span_text(rounds)),
        ("Threads", str(first["threads"] or NONE)),
    ]
    facts += _queue(first.to_dict())
    media = {str((record.get("environment") or {}).get("store_filesystem") or "") for record in frame["record"]} - {""}
    facts += [("File system of the experts", ", ".join(sorted(media)))] if media else []
    return facts + ([("Machine", str(first["host"]))] if first["host"] else [])


def _queue(first: Row) -> list[tuple[str, str]]:
    """The queue of a workload, if it is one."""
    if pd.isna(first["requests"]):
        return []
    facts = [("Queue", f"{first['requests']:.0f} requests, arriving {arrivals_text(first['arrivals'])}")]
    if not pd.isna(first["latency_limit_s"]):
        facts.append(("Latency limit of goodput", f"{number(first['latency_limit_s'])} s"))
    return facts


def _limit(frame: pd.DataFrame) -> str:
    limits = sorted({int(b) for name in ("limit_bytes", "process_limit_bytes") for b in frame[name].dropna()})
    size = ", ".join(f"{number(limit / 1e9)} GB" for limit in limits) or "none"
    enforced = [value is True for value in frame["limit_enforced"]]
    how = sorted(set(frame["limit_mechanism"].dropna()) - {"none"})
    held = "page cache and experts in host memory" if frame["slow_tier"].map(in_memory).any() else "page cache"
    if all(enforced):
        return f"{size}, enforced by the kernel ({', '.join(how)}), {held} included"
    some = f"only for some cells ({', '.join(how)})" if any(enforced) else "not enforced by the kernel"
    why = sorted({str(reason) for reason in frame["limit_reason"].dropna()})
    return f"{size}, {some}" + (f": {'; '.join(why)}" if why else "")


def _fairness(summary: pd.DataFrame, frame: pd.DataFrame) -> list[str]:
    rows = mark_budgets(summary.to_dict("records"))
    return [*_budgets(rows), *_limits(summary, rows), *_held(frame), *_grains(summary), *PROTOCOL, _tokens(summary)]


def _tokens(summary: pd.DataFrame) -> str:
    """Whether all systems generate the same number of tokens; if not, those that stop early."""
    short = summary.dropna(subset=["first_tokens"]).drop_duplicates(["title", "first_tokens"])
    if short.empty:
        return "All systems generate the same number of tokens."
    names = ", ".join(f"{row['title']} (the first {int(row['first_tokens'])})" for row in short.to_dict("records"))
    return (
        f"Slow systems generate only the first of the {summary['new_tokens'].iloc[0]} tokens of each row, and their "
        f"figures are per token of those: {names}."
    )


def _budgets(rows: list[Row]) -> list[str]:
    """The common budget of expert bytes, the systems with another, and those that count no expert bytes."""
    others = {row["title"]: row["expert_budget_bytes"] for row in rows if row["budget_differs"]}
    common = [row["expert_budget_bytes"] for row in rows if not row["budget_differs"]]
    usual = next((b for b in common if not pd.isna(b)), None)
    lines = []
    if usual is not None:
        end = ", except those listed next." if others else "."
        lines.append(f"Every system has the same budget of {number(usual / 1e6)} MB for experts on the device{end}")
    lines += [
        f"{title} has {'a larger' if budget > (usual or 0) else 'a smaller'} budget of {number(budget / 1e6)} MB."
        for title, budget in others.items()
    ]
    counted = [row for row in rows if row["rounds_ok"] and row["grain"] != "unknown"]
    uncounted = [row["title"] for row in counted if pd.isna(row["peak_device_expert_bytes"])]
    if uncounted:
        names = ", ".join(dict.fromkeys(uncounted))
        lines.append(f"{names}: expert bytes are not counted; only the memory limit of the process bounds them.")
    return lines


def _limits(summary: pd.DataFrame, rows: list[Row]) -> list[str]:
    """The memory limit, whether it was enforced, and the engines that run in processes of their own."""
    limit = summary["process_limit_bytes"].iloc[0]
    if pd.isna(limit):
        return []
    how = "enforced by the kernel" if summary["enforced"].all() else "but the kernel did not enforce it for all"
    lines = [f"Every process has the same memory limit of {number(limit / 1e9)} GB, {how}."]
    if servers := dict.fromkeys(row["title"] for row in rows if row["grain"] == "unknown"):
        lines.append(
            f"{', '.join(servers)}: a server that its user started, outside of every limit; it may have more memory, "
            "other processors and other weights than the systems that are run here."
        )
    if engines := dict.fromkeys(row["title"] for row in rows if row["limit_covers"] == "engine"):
        lines.append(
            f"{', '.join(engines)}: the engine is a process of its own, and the limit covers it alone; for the other "
            "systems it covers the Python process that they run in."
        )
    return lines


def _held(frame: pd.DataFrame) -> list[str]:
    """What of the limit holds experts that rest in host memory, and what bounds the memory of a GPU."""
    held = frame["limit_slow_tier_bytes"].dropna()
    lines = []
    if len(held):
        lines.append(
            f"All experts rest in the memory of the process: {number(held.max() / 1e9)} GB of its limit are for them, "
            "and the kernel counts no disk reads to compare with the bytes of the link."
        )
    return lines + [
        f"Memory of the GPU is bounded by {_HELD[by]}: {', '.join(part['title'].unique())}."
        for by, part in frame.dropna(subset=["limit_device_held_by"]).groupby("limit_device_held_by", sort=False)
    ]


def _grains(summary: pd.DataFrame) -> list[str]:
    """What each system moves at once."""
    grains = summary.dropna(subset=["grain"]).groupby("grain", sort=False)["title"].unique()
    if len(grains) == 1:
        return [f"All systems move {GRAINS.get(g, g)} between the tiers." for g in grains.index]
    return [f"Moved between the tiers as {GRAINS.get(g, g)}: {', '.join(titles)}." for g, titles in grains.items()]
