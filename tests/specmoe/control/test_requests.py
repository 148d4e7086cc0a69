"""Whole requests on simulated and recorded machines: the controller keeps up with the best fixed gamma."""

from __future__ import annotations

import numpy as np
import pytest

from reports.results.lines import read_lines
from tests import ROOT
from tests.benchmarks.ablate_controller import adaptive_s, fixed_s
from tests.benchmarks.controller_variants import Counted
from tests.specmoe.control.machines import Cell, FixedGamma, drift_cells, grid_cells
from tests.specmoe.control.recorded import recorded_cells

RECORDS = ROOT / "docs" / "records"


@pytest.mark.slow
def test_recorded_machines_take_the_recorded_time_with_fixed_gammas() -> None:
    cells = {cell.name: cell for cell in recorded_cells(RECORDS)}
    recorded: dict[tuple[str, int], list[float]] = {}
    for file in (*RECORDS.glob("controller-[ls]*.jsonl"), RECORDS / "full" / "ablation-gamma.jsonl"):
        for _, record in read_lines(file):
            cell, cycles = record["cell"], record["repetitions"][0]["cycles"]
            if record["label"] == "controller":
                continue
            name = f"{cell['model']} {cell['expert_budget_bytes'] / 1e6:.0f} MB batch {cell['batch_size']}"
            seconds = sum(c["draft_s"] + c["verify_s"] + c["other_s"] for c in cycles)
            recorded.setdefault((name, max(c["gamma"] for c in cycles)), []).append(seconds)
    for (name, gamma), seconds in recorded.items():
        requests = cells[name].requests
        simulated = np.mean([requests[s % len(requests)].seconds(FixedGamma(gamma), s) for s in range(6)])
        assert simulated == pytest.approx(np.mean(seconds), rel=0.15), (name, gamma)


def _speed(cell: Cell) -> float:
    return fixed_s(cell) / adaptive_s(cell, Counted)


@pytest.mark.parametrize(
    "name",
    [
        "embedded-x8 5 % batch 1 cheap link",
        "embedded-x32 20 % batch 1 dear link",
        pytest.param("acceptance falls, batch 16", marks=pytest.mark.slow),
    ],
)
def test_a_request_takes_little_longer_than_with_the_best_gamma(name: str) -> None:
    cells = {cell.name: cell for cell in (*grid_cells(), *drift_cells())}
    assert _speed(cells[name]) >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("cells", [grid_cells, drift_cells], ids=["two models", "drift"])
def test_requests_of_every_kind_keep_up_with_the_best_gamma(cells: type) -> None:
    """On average 0.97; a cell may fall to 0.85, as a link that changes its rate 24-fold midway does at batch 16."""
    speeds = {cell.name: _speed(cell) for cell in cells()}
    assert np.exp(np.mean(np.log(list(speeds.values())))) >= 0.97
    assert min(speeds.values()) >= 0.85, speeds
