"""What drafting does: acceptance by position, the controller's decisions, what prefetch was good for."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from scipy import stats

from reports.figures import paint, style
from reports.figures.intervals import columns, decoded_tokens, median_of, repetitions
from reports.figures.spec import Material, Spec
from reports.figures.style import Looks
from reports.results.acceptance import by_position
from reports.wording.tables import splits_text, system_text

_BY = ["kind", "title", "system", "batch_size"]


def _positions(material: Material) -> pd.DataFrame:
    """Acceptance with its Wilson interval over one round's drafts: greedy rounds repeat the same tokens."""
    data = by_position(material.records)
    rounds = material.records[material.records["status"] == "ok"].groupby(_BY).size()
    bounds = []
    for row in data.to_dict("records"):
        repeats = int(rounds[tuple(row[name] for name in _BY)])
        tried = max(1, round(row["drafted"] / repeats))
        kept = min(tried, round(row["accepted"] / repeats))
        bounds.append(stats.binomtest(kept, tried).proportion_ci(0.95, "wilson"))
    value = "accepted_percent"
    data[value] = 100 * data["accepted_share"]
    data[f"{value}_low"] = [min(100 * b.low, v) for b, v in zip(bounds, data[value], strict=True)]
    data[f"{value}_high"] = [max(100 * b.high, v) for b, v in zip(bounds, data[value], strict=True)]
    return data.drop(columns="accepted_share")


def _paint_positions(data: pd.DataFrame, looks: Looks) -> Any:
    batches = sorted(data["batch_size"].unique())
    figure, grid = paint.panels(len(batches), 3, 2.7 if len(batches) > 1 else 3.4, sharex=True, sharey=True)
    handles = []
    for axes, batch in zip(grid, batches, strict=True):
        for (kind, _), part in paint.lines(data[data["batch_size"] == batch]):
            marks = style.line_marks(paint.look(looks, part.iloc[0]), kind) | {"markersize": 5}
            value = "accepted_percent"
            axes.errorbar(
                part["position"], part[value], yerr=paint.whiskers(part, value), capsize=2, elinewidth=1, **marks
            )
            handles.append(Line2D([], [], label=system_text(part.iloc[0].to_dict()), **marks))
        axes.set_title(f"batch {batch}")
        axes.set_ylim(0, 104)
        axes.set_xticks(_ticks(int(data["position"].max())))
        axes.set_xlabel("draft position")
    for axes in grid[::3]:
        axes.set_ylabel("drafted tokens accepted, %")
    paint.legend(figure, handles)
    return figure


def _ticks(last: int) -> list[int]:
    step = 1 if last <= 6 else 2 if last <= 11 else 5 if last <= 20 else 16
    return [1, *[n for n in range(step, last + 1, step) if n > 1]]


def _alt_positions(data: pd.DataFrame) -> str:
    ends = [
        f"{system_text(part.iloc[0].to_dict())} at batch {batch}: {part['accepted_percent'].iloc[0]:.0f} % at "
        f"position 1, {part['accepted_percent'].iloc[-1]:.0f} % at position {part['position'].iloc[-1]}"
        for (_, _, batch), part in data.groupby(["kind", "title", "batch_size"], sort=False)
    ]
    return f"Share of drafted tokens kept, by position. {'; '.join(ends)}."


def _decisions(material: Material) -> pd.DataFrame:
    rows = []
    records = material.records[material.records["status"] == "ok"]
    for row in records.to_dict("records"):
        if row["record"]["cell"].get("options", {}).get("controller") != "auto":
            continue
        for repetition in repetitions(row["record"]):
            for number_, cycle in enumerate(repetition.get("cycles") or [], start=1):
                named = {name: row[name] for name in (*_BY, "round")}
                rows.append(
                    named | {"cycle": number_, "gamma": cycle["gamma"], "draft_experts": cycle["draft_experts"]}
                )
    return pd.DataFrame(rows, columns=[*_BY, "round", "cycle", "gamma", "draft_experts"])


def _paint_decisions(data: pd.DataFrame, looks: Looks) -> Any:
    batches = sorted(data["batch_size"].unique())
    figure, grid = paint.panels(len(batches), 1 if len(batches) <= 3 else 2, 1.75, sharey=True)
    rounds = sorted(data["round"].unique())
    for axes, batch in zip(grid, batches, strict=True):
        part = data[data["batch_size"] == batch]
        for (kind, _, number_), line in part.groupby(["kind", "title", "round"], sort=False):
            place = rounds.index(number_)
            marks = style.line_marks(paint.look(looks, line.iloc[0]), kind) | {"markersize": 3.5, "linewidth": 1.2}
            shade = 1.0 - 0.6 * place / max(1, len(rounds) - 1)
            marks |= {"alpha": shade, "drawstyle": "steps-mid", "marker": "."}
            axes.plot(line["cycle"], line["gamma"], label=f"round {number_ + 1}", **marks)
        axes.set_title(f"batch {batch}")
        axes.set_ylim(-0.6, data["gamma"].max() * 1.08 + 0.5)
        axes.set_ylabel("γ chosen")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(0, part["cycle"].max() + 1)
    for axes in grid[-2:] if len(batches) > 3 else grid[-1:]:
        axes.set_xlabel("decode cycle")
    paint.legend(figure, grid[0].get_legend_handles_labels()[0])
    return figure


def _alt_decisions(data: pd.DataFrame) -> str:
    parts = []
    for (title, batch), part in data.groupby(["title", "batch_size"], sort=False):
        off = 100 * (part["gamma"] == 0).mean()
        last = part.groupby("round")["gamma"].last().tolist()
        parts.append(f"{title} at batch {batch}: gamma 0 in {off:.0f} % of cycles, at the end {last} by round")
    return f"Draft length the controller chose in each cycle. {'; '.join(parts)}."


_OUTCOME_FIELDS = {"useful": "prefetch_useful_bytes", "late": "prefetch_late_bytes", "wasted": "prefetch_wasted_bytes"}


def _prefetch(material: Material) -> pd.DataFrame:
    rows = []
    for names, part in material.records[material.records["status"] == "ok"].groupby(_BY, sort=False):
        found: dict[str, list[float]] = {name: [] for name in _OUTCOME_FIELDS}
        shares = []
        for record in part["record"]:
            for repetition in repetitions(record):
                if not repetition.get("prefetched_bytes"):
                    continue
                tokens = decoded_tokens(record, repetition)
                for name, field in _OUTCOME_FIELDS.items():
                    found[name].append((repetition.get(field) or 0) / tokens / 1e6)
                shares.append(100 * (repetition.get("prefetch_useful_bytes") or 0) / repetition["prefetched_bytes"])
        share = columns("useful_percent", median_of(shares))
        for name, values in found.items() if shares else ():
            value = float(pd.Series(values).median())
            rows.append(dict(zip(_BY, names, strict=True)) | {"outcome": name, "mb_per_token": value} | share)
    wanted = ["outcome", "mb_per_token", "useful_percent", "useful_percent_low", "useful_percent_high", "n"]
    return pd.DataFrame(rows, columns=[*_BY, *wanted])


def _paint_prefetch(data: pd.DataFrame, looks: Looks) -> Any:
    batches = sorted(data["batch_size"].unique())
    most = max(part["title"].nunique() for _, part in data.groupby("batch_size"))
    figure, grid = paint.panels(len(batches), 1, 0.7 + 0.36 * most)
    for axes, batch in zip(grid, batches, strict=True):
        part = data[data["batch_size"] == batch]
        titles = list(dict.fromkeys(part["title"]))
        paint.stacked(axes, titles, part, "outcome", "mb_per_token", style.OUTCOMES)
        widest = part.groupby("title")["mb_per_token"].sum().max()
        for y, title in enumerate(titles):
            ours = part[part["title"] == title]
            first = ours.iloc[0]
            spread = (
                f" [{first['useful_percent_low']:.0f}, {first['useful_percent_high']:.0f}]" if first["n"] > 1 else ""
            )
            text = f"{first['useful_percent']:.0f} %{spread} useful"
            axes.text(ours["mb_per_token"].sum() + 0.015 * widest, y, text, va="center", fontsize=9.5, color=style.INK)
        axes.set_xlim(0, 1.42 * widest)
        axes.set_title(f"batch {batch}")
    grid[-1].set_xlabel("MB prefetched per token")
    paint.legend(figure, paint.part_handles(style.OUTCOMES))
    return figure


def _alt_prefetch(data: pd.DataFrame) -> str:
    return f"Prefetched megabytes per token by what became of them. {splits_text(data, 'outcome', 'mb_per_token')}."


SPECS = (
    Spec(
        id="acceptance_by_position",
        title="Acceptance by position in the draft",
        question="How far does a draft stay right?",
        caption="Drafted tokens the target kept, all rounds together; position 1 is drafted first. Whiskers: 95 % "
        "Wilson interval over the drafts of one round, since greedy rounds repeat the same tokens.",
        needs="finished cells of a system that drafts",
        command="nox -s reproduce",
        data=_positions,
        paint=_paint_positions,
        alt=_alt_positions,
    ),
    Spec(
        id="controller",
        title="Decisions of the controller",
        question="How long a draft does the controller choose, cycle by cycle?",
        caption="γ at each decode cycle, 0 being off; every round is drawn as it ran, so there is no interval.",
        needs="SpecMoE with controller: auto",
        command="nox -s reproduce",
        data=_decisions,
        paint=_paint_decisions,
        alt=_alt_decisions,
    ),
    Spec(
        id="prefetch",
        title="What became of prefetched experts",
        question="Is prefetching while drafting worth its bytes?",
        caption="Useful: wanted and there in time; late: wanted, but waited for; wasted: not wanted. Medians over "
        "rounds; beside each bar the useful share with its bootstrap 95 % interval.",
        needs="SpecMoE with prefetch: draft",
        command="specmoe-bench run ablation-prefetch --report",
        data=_prefetch,
        paint=_paint_prefetch,
        alt=_alt_prefetch,
    ),
)
