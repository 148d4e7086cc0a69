"""Figures of one option swept with all others equal: Table II, Table III, substitution, and the draft's length."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from reports.figures import paint, style
from reports.figures.intervals import columns, median_of
from reports.figures.spec import Material, Spec
from reports.figures.style import Looks
from reports.results.aggregate import within_rounds
from reports.results.defaults import OPTION_DEFAULTS
from reports.results.roles import SUBJECT
from reports.text import number


@dataclass(frozen=True)
class _Sweep:
    """An option, the fewest settings worth a figure, and which rate stands beside tokens per step."""

    option: str
    fewest: int
    baseline: str | None  # setting that speeds are relative to; None: absolute rates
    numeric: bool = False


_AXES = {"draft_experts": "N, draft experts per layer", "gamma": "γ, draft length"}
_COLUMNS = ["kind", "title", "system", "group", "batch_size", "setting"]
_VALUES = ("tokens_per_step", "decode_tok_s", "acceptance_rate", "hit_rate", "link_bytes_per_token")


def _data(sweep: _Sweep, material: Material) -> pd.DataFrame:
    ours = material.finished[material.finished["system"] == SUBJECT]
    if ours.empty:
        return pd.DataFrame()
    parsed = [json.loads(text) for text in ours["options"]]
    ours = ours.assign(
        setting=[options.get(sweep.option, OPTION_DEFAULTS[sweep.option]) for options in parsed],
        others=[json.dumps({k: v for k, v in o.items() if k != sweep.option}, sort_keys=True) for o in parsed],
    )
    ours = ours[[options.get("controller") != "auto" for options in parsed]]
    rows: list[dict[str, Any]] = []
    for _, group in ours.groupby(["workload", "kind", "batch_size", "others", "expert_budget_bytes"], sort=False):
        if group["setting"].nunique() >= sweep.fewest:
            rows += _group(sweep, group)
    return pd.DataFrame(rows)


def _group(sweep: _Sweep, group: pd.DataFrame) -> list[dict[str, Any]]:
    """A row for each setting of one model, batch and combination of the other options."""
    settings = sorted(group["setting"].unique()) if sweep.numeric else list(group["setting"].unique())
    baseline = sweep.baseline if sweep.baseline in settings else settings[0]
    reference = group[group["setting"] == baseline]
    first = group.iloc[0]
    rows = []
    for setting in settings:
        part = group[group["setting"] == setting]
        row = dict(
            zip(
                _COLUMNS, (first["kind"], part["title"].iloc[0], SUBJECT, "", first["batch_size"], setting), strict=True
            )
        )
        row["group"] = f"{first['model']}, batch {first['batch_size']}, {first['new_tokens']} tokens"
        for value in _VALUES:
            row |= columns(value, median_of(part[value].tolist()))
        row |= columns("speed", within_rounds(part, reference, "decode_tok_s")) | {"speed_over": baseline}
        if setting == baseline:
            row |= {"speed": 1.0, "speed_low": 1.0, "speed_high": 1.0}
        rows.append(row)
    return rows


def _paint(sweep: _Sweep, data: pd.DataFrame, looks: Looks) -> Any:
    groups = list(dict.fromkeys(data["group"]))
    most = data.groupby("group")["setting"].nunique().max()
    height = 2.6 if sweep.numeric else 0.95 + 0.34 * most
    figure, grid = paint.panels(2 * len(groups), 2, height)
    rate = "speed" if sweep.baseline is not None else "decode_tok_s"
    labels = {"tokens_per_step": "tokens per step, T(γ)", "decode_tok_s": "decode tok/s"}
    labels["speed"] = f"speed over {data['speed_over'].iloc[0]}"
    for i, group in enumerate(groups):
        part = data[data["group"] == group]
        for axes, value in zip(grid[2 * i : 2 * i + 2], ("tokens_per_step", rate), strict=True):
            if sweep.numeric:
                _numeric(axes, part, value)
                axes.set(xlabel=_AXES[sweep.option], ylabel=labels[value])
            else:
                _categories(axes, part, value)
                axes.set_xlabel(labels[value])
        grid[2 * i].set_title(group)
        if not sweep.numeric:
            grid[2 * i + 1].tick_params(labelleft=False)
    return figure


def _marks(kind: str) -> dict[str, Any]:
    return style.line_marks(style.Style(*style.look_of(SUBJECT)), kind)


def _categories(axes: Any, part: pd.DataFrame, value: str) -> None:
    marks = _marks(part["kind"].iloc[0]) | {"linestyle": ""}
    axes.errorbar(part[value], range(len(part)), xerr=paint.whiskers(part, value), capsize=2.5, **marks)
    paint.title_axis(axes, [str(setting) for setting in part["setting"]])
    low, high = part[[value, f"{value}_low"]].min().min(), part[[value, f"{value}_high"]].max().max()
    room = 0.15 * (high - low) or 0.05 * high
    axes.set_xlim(low - room, high + room)
    if value == "speed":
        axes.axvline(1.0, color=style.INK, linewidth=1.2, linestyle=(0, (1, 1)))


def _numeric(axes: Any, part: pd.DataFrame, value: str) -> None:
    places = range(len(part))
    axes.errorbar(places, part[value], yerr=paint.whiskers(part, value), capsize=2.5, **_marks(part["kind"].iloc[0]))
    axes.set_xticks(places, [str(setting) for setting in part["setting"]])
    axes.set_ylim(0, 1.12 * part[[value, f"{value}_high"]].max().max())
    axes.grid(axis="x", visible=False)


def _alt(title: str, data: pd.DataFrame) -> str:
    parts = []
    for group, part in data.groupby("group", sort=False):
        points = [
            f"{row['setting']} {number(row['tokens_per_step'])} tokens per step, {number(row['decode_tok_s'])} tok/s"
            for row in part.to_dict("records")
        ]
        parts.append(f"{group}: {'; '.join(points)}")
    return f"{title}. {'. '.join(parts)}."


_SETTINGS = _Sweep("setting", 2, "")


def _settings(material: Material) -> pd.DataFrame:
    """Every setting of an experiment on one system, where no single option was swept."""
    if material.compares_systems or any(len(spec.data(material)) for spec in SWEPT):
        return pd.DataFrame()
    ours = material.finished
    rows: list[dict[str, Any]] = []
    for _, group in ours.assign(setting=ours["title"]).groupby(["workload", "kind", "batch_size"], sort=False):
        if group["setting"].nunique() >= _SETTINGS.fewest:
            rows += _group(_SETTINGS, group)
    return pd.DataFrame(rows)


_INTERVAL = "Points are medians over rounds (ratios: within a round), whiskers the bootstrap 95 % interval."
_CUT = "The axes do not start at zero."


def _spec(
    id: str, rank: int, title: str, question: str, sweep: _Sweep, needs: str, command: str, caption: str = ""
) -> Spec:
    return Spec(
        id=id,
        place=("ablations", rank),
        title=title,
        question=question,
        caption=f"{caption} {_INTERVAL}".strip(),
        needs=needs,
        command=command,
        data=partial(_data, sweep),
        paint=partial(_paint, sweep),
        alt=partial(_alt, title),
    )


SWEPT = (
    _spec(
        "selection",
        10,
        "Selection of the draft experts (paper: Table II)",
        "Does it pay to select draft experts by recent use?",
        _Sweep("selection", 2, "random"),
        "SpecMoE with two or more values of selection, all else equal",
        "specmoe-bench run ablation-selection --report",
        _CUT,
    ),
    _spec(
        "draft_experts",
        20,
        "Number of draft experts (paper: Table III)",
        "How many experts should draft?",
        _Sweep("draft_experts", 2, None, numeric=True),
        "SpecMoE with two or more values of draft_experts, all else equal",
        "specmoe-bench run ablation-n --report",
    ),
    _spec(
        "affinity",
        30,
        "Substitution of experts that are not in the draft set",
        "Is a substitute chosen by affinity better than a random one?",
        _Sweep("substitution", 2, "random"),
        "SpecMoE with two or more values of substitution, all else equal",
        "specmoe-bench run ablation-substitution --report",
        _CUT,
    ),
    _spec(
        "gamma",
        40,
        "Draft length",
        "Which draft length gives most tokens per second?",
        _Sweep("gamma", 3, None, numeric=True),
        "SpecMoE with three or more values of gamma, all else equal",
        "specmoe-bench run ablation-gamma --report",
    ),
)
SPECS = (
    *SWEPT,
    Spec(
        id="settings",
        place=("ablations", 50),
        title="Settings of one system",
        question="How much does each setting gain?",
        caption=f"{_CUT} {_INTERVAL}",
        needs="two or more settings of one system",
        command="specmoe-bench run ablation-drafts --report",
        data=_settings,
        paint=partial(_paint, _SETTINGS),
        alt=partial(_alt, "Settings of one system"),
        listed_if_missing=False,
    ),
)
