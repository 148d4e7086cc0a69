"""Our counterparts of the paper's figures, in the paper's units, with the conditions they were obtained under."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import pandas as pd

from reports.figures import Material, sweeps
from reports.results import paper
from reports.results.aggregate import mean_over_batches, ratio_of, round_ratios, rounds_of, within_rounds
from reports.results.defaults import OPTION_DEFAULTS
from reports.results.roles import CACHE, REFERENCE, SUBJECT
from reports.results.stats import Ratio, bootstrap, geometric_mean
from reports.results.tier import in_memory, tier_text

_LIKE = {
    "nllb-moe": ("nllb-moe-like", "nllb-like", "embedded"),
    "mixtral-8x7b": ("mixtral",),
    "llama-4-scout": ("llama4-like", "scout-like"),
}
_ORACLE = "overlap"


@dataclass(frozen=True)
class Ours:
    """Our figure in the paper's unit and its conditions; no error is given where they are not ``comparable``."""

    value: float
    low: float | None
    high: float | None
    conditions: str
    comparable: bool = True


def found(frame: pd.DataFrame, summary: pd.DataFrame) -> Iterator[tuple[str, Ours]]:
    """Pairs of a figure's id and ours, from records and summary rows of one kind and of oracles."""
    yield from _main(frame, summary)
    few = {}
    for id, model in (("speedup.mixtral", "mixtral-8x7b"), ("speedup.scout", "llama-4-scout")):
        rows = _subject(summary, frame, model)
        if rows is not None:
            few[model] = str(rows["workload"].iloc[0])
            yield id, _best(frame, rows)
    for id, system in (("speedup.overlap.low-hotness", _ORACLE), ("speedup.caching.low-hotness", CACHE)):
        same = _papers_cache(summary[summary["workload"].isin(few.values()) & summary["speedup"].notna()], system)
        if len(few) == 2 and len(same):
            yield id, _best(frame, same)
    yield from _ssd(frame, summary)
    yield from _swept(frame, summary)


def _best(frame: pd.DataFrame, rows: pd.DataFrame) -> Ours:
    """The largest speed-up of several rows."""
    best = rows.loc[rows["speedup"].idxmax()].to_dict()
    return _of(ratio_of(best), _where(frame, best, f"batch {best['batch_size']}, the best of all batches"))


def _papers_cache(rows: pd.DataFrame, system: str) -> pd.DataFrame:
    """Rows of a system; of a cache those with a budget of its own, as the paper's has, where there are any."""
    rows = rows[rows["system"] == system]
    if system != CACHE or rows.empty:
        return rows
    titles = rows.groupby("title")["expert_budget_bytes"].min()
    return rows[rows["title"] == titles.idxmin()]


def _subject(summary: pd.DataFrame, frame: pd.DataFrame, model: str) -> pd.DataFrame | None:
    """SpecMoE's rows against on-demand on the model nearest to the paper's: most batches, then the paper's setting.

    Without rows of the paper's draft length and without the controller, those of the fastest setting.
    """
    facts = frame.drop_duplicates("workload").set_index("workload")
    ours = summary[(summary["system"] == SUBJECT) & summary["speedup"].notna()]
    ours = ours[ours["reference_system"] == REFERENCE]
    ours = ours.assign(model=ours["workload"].map(facts["model"]))
    for prefix in _LIKE[model]:
        rows = ours[ours["model"].astype(str).str.startswith(prefix)]
        if len(rows):
            sizes = rows.groupby("workload")["batch_size"].nunique()
            rows = rows[rows["workload"] == sizes.idxmax()]
            papers = _titles_of_the_paper(frame, str(rows["workload"].iloc[0]), paper.model(model).gamma)
            rows = rows[rows["title"].isin(papers)] if rows["title"].isin(papers).any() else rows
            means = rows.groupby("title")["speedup"].mean()
            return rows[rows["title"] == means.idxmax()].sort_values("batch_size")
    return None


def _titles_of_the_paper(frame: pd.DataFrame, workload: str, gamma: int) -> set[str]:
    """Titles of SpecMoE in a workload that draft as the paper does: with its gamma, pinned experts, no controller."""
    ours = frame[(frame["workload"] == workload) & (frame["system"] == SUBJECT)]
    papers = {"gamma": gamma, "controller": "fixed", "draft_pool": "pinned", "drafter": "pinned"}
    same = [
        all((json.loads(options).get(name, OPTION_DEFAULTS[name])) == value for name, value in papers.items())
        for options in ours["options"]
    ]
    return set(ours.loc[same, "title"])


def _main(frame: pd.DataFrame, summary: pd.DataFrame) -> Iterator[tuple[str, Ours]]:
    rows = _subject(summary, frame, "nllb-moe")
    if rows is None:
        return
    last = rows.iloc[-1].to_dict()
    at = _where(frame, last, f"batch {last['batch_size']}")
    yield "speedup.nllb", _of(ratio_of(last), at)
    same = summary[(summary["workload"] == last["workload"]) & (summary["kind"] != "oracle")]
    reference = same[same["is_reference"]]
    yield from _migration(frame, reference)
    yield "latency.nllb", _of(_ratio(frame, last, _at(reference, last), "tpot_s"), at, 100.0)
    every = _where(frame, last, f"mean over batch {', '.join(map(str, rows['batch_size']))}")
    yield "bytes.vs-on-demand", _change(frame, rows, reference, every)
    paper_caching = same[(same["system"] == CACHE) & (same["expert_budget_bytes"] != last["expert_budget_bytes"])]
    caching = paper_caching if len(paper_caching) else same[same["system"] == CACHE]
    caching = caching[caching["title"] == caching["title"].iloc[0]] if len(caching) else caching
    if len(caching):
        budget = caching["expert_budget_bytes"].iloc[0] / 1e6
        yield "bytes.vs-caching", _change(frame, rows, caching, f"{every}; {caching['title'].iloc[0]}, {budget:.0f} MB")
    for id, part in (("growth.on-demand", reference), ("growth.caching", caching), ("growth.specmoe", rows)):
        part = part.sort_values("batch_size")
        if part["batch_size"].nunique() > 1 and part["link_bytes"].notna().all():
            grown = part["link_bytes"].iloc[-1] / part["link_bytes"].iloc[0]
            first, last_batch = int(part["batch_size"].iloc[0]), int(part["batch_size"].iloc[-1])
            same_span = (first, last_batch) == (paper.BATCH_SIZES[0], paper.BATCH_SIZES[-1])
            where = _where(
                frame, part.iloc[0].to_dict(), f"batch {first} to {last_batch} only" if not same_span else ""
            )
            yield id, Ours(float(grown), None, None, where, comparable=same_span)


def _migration(frame: pd.DataFrame, reference: pd.DataFrame) -> Iterator[tuple[str, Ours]]:
    """The largest share of decode time, over batches, in which on-demand's compute waited for the link."""
    shares = []
    for row in reference.to_dict("records"):
        raw = [one for record in rounds_of(frame, row)["record"] for one in record["repetitions"]]
        waits = [
            one["decode_link_wait_s"] / one["decode_s"] for one in raw if one.get("decode_link_wait_s") is not None
        ]
        if waits:
            shares.append((100 * median(waits), row))
    if shares:
        share, row = max(shares, key=lambda pair: pair[0])
        where = _where(frame, row, f"batch {row['batch_size']}, the most of all batches")
        yield "problem.migration-share", Ours(share, None, None, where)


def _ssd(frame: pd.DataFrame, summary: pd.DataFrame) -> Iterator[tuple[str, Ours]]:
    """Averages over batch sizes, where experts come from disk."""
    chosen = _subject(summary, frame, "nllb-moe")
    if chosen is None or chosen["workload"].map(lambda w: in_memory(_place(frame, w)[1])).any():
        return
    same = summary[summary["workload"] == chosen["workload"].iloc[0]]
    caching = same[(same["system"] == CACHE) & same["speedup"].notna()]
    different = caching[caching["expert_budget_bytes"] != chosen["expert_budget_bytes"].iloc[0]]
    caching = different if len(different) else caching
    parts = {
        "ssd.specmoe": chosen,
        "ssd.overlap": same[(same["system"] == _ORACLE) & same["speedup"].notna()],
        "ssd.caching": caching[caching["title"] == caching["title"].iloc[0]] if len(caching) else caching,
    }
    for id, part in parts.items():
        cells = part.to_dict("records")
        if len(cells) > 1:
            where = _where(frame, cells[0], f"mean over batch {', '.join(str(c['batch_size']) for c in cells)}")
            yield id, _of(mean_over_batches(frame, cells), where)


def _place(frame: pd.DataFrame, workload: str) -> tuple[str, str]:
    """Device and slow tier of a workload."""
    first = frame[frame["workload"] == workload].iloc[0]
    return str(first["device"]), str(first["slow_tier"])


def _swept(frame: pd.DataFrame, summary: pd.DataFrame) -> Iterator[tuple[str, Ours]]:
    """Table II, Table III and affinity, from the same rows as their figures."""
    specs = {spec.id: spec for spec in sweeps.SPECS}
    material = Material(frame[frame["kind"] != "oracle"].reset_index(drop=True), summary)
    selection = _first_group(specs["selection"].data(material))
    for row in selection:
        if f"selection.{row['setting']}.tokens" in _IDS:
            yield f"selection.{row['setting']}.tokens", _value(row, "tokens_per_step")
            if row["setting"] != row["speed_over"]:
                yield f"selection.{row['setting']}.speed", _value(row, "speed")
    counts = _first_group(specs["draft_experts"].data(material))
    for row in counts:
        if f"n-sweep.{row['setting']}.tokens" in _IDS:
            yield f"n-sweep.{row['setting']}.tokens", _value(row, "tokens_per_step")
    rules = {row["setting"]: row for row in _first_group(specs["affinity"].data(material))}
    if {"affinity", "random"} <= set(rules):
        ours, chance = rules["affinity"], rules["random"]
        gain = 100 * (ours["tokens_per_step"] / chance["tokens_per_step"] - 1)
        yield "affinity.gain", Ours(gain, None, None, ours["group"])


_IDS = {figure.id for figure in paper.FIGURES}


def _first_group(data: pd.DataFrame) -> list[dict[str, Any]]:
    if data.empty:
        return []
    rows: list[dict[str, Any]] = data[data["group"] == data["group"].iloc[0]].to_dict("records")
    return rows


def _value(row: dict[str, Any], name: str) -> Ours:
    low, high = (None if pd.isna(row[f"{name}_{end}"]) else float(row[f"{name}_{end}"]) for end in ("low", "high"))
    return Ours(float(row[name]), low, high, row["group"])


def _at(part: pd.DataFrame, row: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = part[part["batch_size"] == row["batch_size"]].iloc[0].to_dict()
    return found


def _ratio(frame: pd.DataFrame, row: dict[str, Any], other: dict[str, Any], column: str) -> Ratio:
    return within_rounds(rounds_of(frame, row), rounds_of(frame, other), column)


def _change(frame: pd.DataFrame, rows: pd.DataFrame, others: pd.DataFrame, where: str) -> Ours:
    """Percent by which bytes per token differ, geometric mean over the batches both have."""
    cells = []
    for row in rows.to_dict("records"):
        other = others[others["batch_size"] == row["batch_size"]]
        if len(other):
            pair = rounds_of(frame, row), rounds_of(frame, other.iloc[0].to_dict())
            cells.append(round_ratios(*pair, "link_bytes_per_token"))
    mean = geometric_mean(cells) if len(cells) > 1 else bootstrap(cells[0] if cells else [])
    percent: Callable[[float | None], float | None] = lambda v: None if v is None else 100 * (v - 1)  # noqa: E731
    return Ours(percent(mean.median) or 0.0, percent(mean.low), percent(mean.high), where)


def _of(ratio: Ratio, where: str, scale: float = 1.0) -> Ours:
    low, high = (None if end is None else end * scale for end in (ratio.low, ratio.high))
    return Ours((ratio.median or float("nan")) * scale, low, high, where)


def _where(frame: pd.DataFrame, row: dict[str, Any], batches: str) -> str:
    facts = frame[frame["workload"] == row["workload"]].iloc[0]
    device, slow_tier = _place(frame, row["workload"])
    where = f"experts {'in' if in_memory(slow_tier) else 'on'} {tier_text(slow_tier)}, {device.upper()}"
    return ", ".join(filter(None, [str(row["title"]), str(facts["model"]), batches, where]))
