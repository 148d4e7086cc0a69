"""One row for each choice of the algorithm: its default, what the default is worth, and a verdict, from records."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from reports.pages import ablation_controller
from reports.results.aggregate import round_ratios
from reports.results.defaults import OPTION_DEFAULTS
from reports.results.roles import SUBJECT
from reports.results.stats import Ratio, bootstrap, geometric_mean
from reports.text import NONE
from reports.wording.tables import Table, TableCell

HEADERS = [
    "option",
    "default",
    "over the simplest [95 % CI]",
    "over the best alternative [95 % CI]",
    "cells",
    "verdict",
]
NOTE = (
    "Decode speed of the default divided by that of another value of the option, all other options equal, within a "
    "round: geometric mean over the cells (model and batch size) in which both were measured. The best alternative is "
    "the fastest of those measured, chosen after the fact. Verdict, from the last interval: whether it excludes 1. "
    "*Same work done*: tokens, hits and bytes are equal, so the ratio shows the noise of the machine. The default "
    "γ = 5 was not swept; γ = 4 substitutes it."
)
_WORK = ["tokens_per_step", "hit_rate", "link_bytes_per_token"]
_CELL = ["workload", "batch_size", "expert_budget_bytes"]
_COMPARED = ["run_id", "round", *_CELL, "decode_tok_s", *_WORK]


@dataclass(frozen=True)
class Choice:
    """An option; ``simplest`` is the value of no effort, None where that is the default itself."""

    option: str
    simplest: Any = None
    measured: Any = None
    """Value that substitutes the default where that was not swept."""

    @property
    def default(self) -> Any:
        return OPTION_DEFAULTS[self.option]

    @property
    def default_text(self) -> str:
        default = "no limit" if self.default is None else str(self.default)
        return default if self.measured is None else f"{default} (measured: {self.measured})"


CHOICES = (
    Choice("gamma", simplest=0, measured=4),
    Choice("draft_experts", simplest=2),
    Choice("selection", simplest="random"),
    Choice("substitution", simplest="random"),
    Choice("placement", simplest="on-demand"),
    Choice("prefetch"),
    Choice("drafter"),
    Choice("draft_pool"),
    Choice("refresh_interval"),
    Choice("count_window", simplest="last"),
    Choice("counted"),
    Choice("max_replacements"),
    Choice("ties"),
    Choice("initial"),
    Choice("collision"),
)


@dataclass(frozen=True)
class _Comparison:
    """The default against one other value."""

    value: Any
    ratio: Ratio
    cells: int
    same_work: bool

    def __str__(self) -> str:
        return f"{self.ratio} `{self.value}`"


def table(frame: pd.DataFrame) -> Table:
    """A row for each choice that finished measured records vary, then the controller over its grid."""
    ours = frame[frame["system"] == SUBJECT]
    options = [json.loads(text) for text in ours["options"]]
    rows = [_row(choice, found) for choice in CHOICES if (found := list(_comparisons(choice, ours, options)))]
    over = ablation_controller.over_all(frame)
    if over is not None:
        caching, best, cells = over
        verdict = _verdict(best, "auto is faster", "auto is slower")
        ratios = f"{caching} `caching`", f"{best} `best setting`"
        rows.append(_cells("`controller`: auto", "fixed", *ratios, cells, verdict))
    return Table("measured", "Choices", HEADERS, rows, NOTE)


def _row(choice: Choice, found: list[_Comparison]) -> list[TableCell]:
    simplest = next((one for one in found if one.value == choice.simplest), None)
    best = min(found, key=lambda one: one.ratio.median or float("inf"))
    verdict = "same work done" if all(one.same_work for one in found) else _verdict(best.ratio)
    return _cells(f"`{choice.option}`", choice.default_text, str(simplest or NONE), str(best), best.cells, verdict)


def _cells(option: str, default: str, simplest: str, best: str, cells: int, verdict: str) -> list[TableCell]:
    texts = [TableCell(text, text) for text in (option, default, simplest, best)]
    return [*texts, TableCell(str(cells), float(cells)), TableCell(verdict, verdict)]


def _verdict(ratio: Ratio, faster: str = "default is fastest", slower: str = "alternative is faster") -> str:
    return {"faster": faster, "slower": slower}.get(ratio.verdict, "no clear difference")


def _comparisons(choice: Choice, ours: pd.DataFrame, options: list[dict[str, Any]]) -> Iterator[_Comparison]:
    """The default against every other measured value, over the cells that have both."""
    named = ours[_COMPARED].assign(
        value=[str(given.get(choice.option, choice.default)) for given in options],
        others=[json.dumps(_named(given, choice.option), sort_keys=True) for given in options],
    )
    default = str(choice.default if choice.measured is None else choice.measured)
    pairs: dict[str, list[tuple[pd.DataFrame, pd.DataFrame]]] = {}
    for _, cell in named.groupby([*_CELL, "others"], sort=False):
        chosen = cell[cell["value"] == default]
        for value, other in cell[cell["value"] != default].groupby("value", sort=False):
            if len(chosen):
                pairs.setdefault(str(value), []).append((chosen, other))
    for value, cells in pairs.items():
        ratios = [round_ratios(chosen, other, "decode_tok_s") for chosen, other in cells]
        ratio = geometric_mean(ratios) if len(ratios) > 1 else bootstrap(ratios[0])
        same = all(chosen[_WORK].median().equals(other[_WORK].median()) for chosen, other in cells)
        yield _Comparison(_typed(value), ratio, len(cells), same)


def _named(given: dict[str, Any], but: str) -> dict[str, Any]:
    """The options other than ``but`` that differ from their defaults."""
    return {k: v for k, v in given.items() if k != but and (k not in OPTION_DEFAULTS or v != OPTION_DEFAULTS[k])}


def _typed(value: str) -> Any:
    """The value as it is in the options: a number, or the text itself."""
    return int(value) if value.isdigit() else value
