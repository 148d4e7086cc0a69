"""The controller over its grid of models, budgets and batches: against the best other setting and against caching."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from reports import text
from reports.results.aggregate import round_ratios
from reports.results.roles import CACHE
from reports.results.stats import Ratio, bootstrap, geometric_mean

ENOUGH = 0.95
"""Share of the best other setting's speed that is expected of the controller."""
_GRID, _AGAIN = "controller-", "controller-again-"
_HEADERS = ["model", "budget, MB", "batch", "best other", "controller over it", "over caching", "decided"]
_ABOUT = (
    "Tokens per second, within a round, over the best other setting of the cell (the one with the highest median,\n"
    "chosen after the fact) and over caching with the same memory."
)


@dataclass(frozen=True)
class _Cell:
    """One cell of the grid: its ratios by round over the best other setting, and over caching."""

    model: str
    budget_bytes: float
    batch: int
    best: str
    over_best: list[float]
    over_caching: list[float]
    decided: str

    @property
    def name(self) -> str:
        return f"{self.model} with {self.budget_bytes / 1e6:.0f} MB at batch {self.batch}"


def over_all(frame: pd.DataFrame) -> tuple[Ratio, Ratio, int] | None:
    """(over caching, over the best other setting, cells), geometric means over the grid; None without a grid."""
    cells = list(_cells(_grid(frame)))
    if not cells:
        return None
    return _mean([c.over_caching for c in cells]), _mean([c.over_best for c in cells]), len(cells)


def sections(frame: pd.DataFrame) -> list[str]:
    """Markdown of the grid, and of the cells that were measured again; empty without controller experiments."""
    again = frame[frame["experiment"].str.startswith(_AGAIN)]
    found = (
        ("The controller over its grid", _grid(frame)),
        ("The controller in its slowest cells, in more rounds", again),
    )
    return [_section(title, list(_cells(grid))) for title, grid in found if len(grid)]


def _grid(frame: pd.DataFrame) -> pd.DataFrame:
    names = frame["experiment"].str
    return frame[names.startswith(_GRID) & ~names.startswith(_AGAIN)]


def _cells(grid: pd.DataFrame) -> Iterator[_Cell]:
    for (model, budget, batch), cell in grid.groupby(["model", "expert_budget_bytes", "batch_size"], sort=True):
        ours, others = cell[cell["title"] == "controller"], cell[cell["title"] != "controller"]
        if ours.empty or others.empty:
            continue
        best = str(others.groupby("title")["decode_tok_s"].median().idxmax())
        rivals = (others[others["title"] == best], others[others["system"] == CACHE])
        over_best, over_caching = (round_ratios(ours, rival, "decode_tok_s") for rival in rivals)
        yield _Cell(str(model), float(budget), int(batch), best, over_best, over_caching, _decisions(ours))


def _section(title: str, cells: list[_Cell]) -> str:
    rows = [
        [
            cell.model,
            f"{cell.budget_bytes / 1e6:.0f}",
            str(cell.batch),
            cell.best,
            str(bootstrap(cell.over_best)),
            str(bootstrap(cell.over_caching)),
            cell.decided,
        ]
        for cell in cells
    ]
    summaries = [
        _summary("the best other setting", {cell.name: cell.over_best for cell in cells if cell.over_best}),
        _summary("caching", {cell.name: cell.over_caching for cell in cells if cell.over_caching}),
    ]
    table = text.markdown(_HEADERS, rows, (1, 2, 4, 5))
    return "\n\n".join([f"### {title}", _ABOUT, table, "\n".join(filter(None, summaries))])


def _summary(other: str, cells: dict[str, list[float]]) -> str:
    """Geometric mean of the cells, and the cells whose whole interval is below ``ENOUGH``."""
    if not cells:
        return ""
    ratios = {name: bootstrap(values) for name, values in cells.items()}
    enough = sum(ratio.median is not None and ratio.median >= ENOUGH for ratio in ratios.values())
    behind = [f"{name} ({ratio})" for name, ratio in ratios.items() if ratio.high is not None and ratio.high < ENOUGH]
    mean = f"{geometric_mean(list(cells.values()))}, geometric mean of {len(cells)} cells"
    below = f"intervals entirely below it: {'; '.join(behind)}" if behind else "no interval lies entirely below it"
    return f"- Over {other}: {mean}; {enough} of them reach {ENOUGH}×; {below}."


def _mean(cells: list[list[float]]) -> Ratio:
    return geometric_mean([values for values in cells if values])


def _decisions(rows: pd.DataFrame) -> str:
    """How often the controller drafted, and how far."""
    cycles = [c for record in rows["record"] for r in record["repetitions"] for c in r.get("cycles", [])]
    drafting = [c["gamma"] for c in cycles if c["gamma"]]
    if not cycles:
        return text.NONE
    mean = f", mean gamma {sum(drafting) / len(drafting):.1f}" if drafting else ""
    return f"drafted in {100 * len(drafting) / len(cycles):.0f} % of cycles{mean}"
