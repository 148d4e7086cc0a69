"""Records of made-up speeds for the tests of the gate."""

from __future__ import annotations

import numpy as np

from reports.results.metrics import Metrics
from reports.results.record import Cell, Limit, Record


def record(system: str, speed: float, rnd: int, run: str = "a", **metrics: float | None) -> Record:
    cell = Cell(system=system, model="m", batch_size=4, new_tokens=8, expert_budget_bytes=100)
    return Record(
        run_id=run,
        cell_id=cell.cell_id,
        round=rnd,
        status="ok",
        label=system,
        cell=cell,
        started_at="2026-01-01T00:00:00+00:00",
        wall_s=1.0,
        limit=Limit(enforced=True, mechanism="cgroup-v2", limit_bytes=1),
        metrics=Metrics(
            **{"prefill_tok_s": 1, "decode_tok_s": speed, "ttft_s": 1, "tpot_s": 1, "tokens_per_step": 2.5}
            | {"acceptance_rate": 0.5, "link_bytes_per_token": 1000.0, "fidelity": 1.0}
            | metrics
        ),
        config={"name": "x"},
    )


def rounds(count: int, slowdown: float = 1.0, noise: float = 0.02, seed: int = 0, machine: float = 1.0) -> list[Record]:
    """``count`` rounds of the reference and of a system twice as fast, this one slowed."""
    draw = np.random.default_rng(seed)
    out = []
    for number in range(count):
        phase = machine * draw.lognormal(0, 0.3)  # the machine's speed in this round
        out.append(record("on-demand", 10 * phase * draw.lognormal(0, noise), number))
        out.append(record("specmoe", 20 * phase / slowdown * draw.lognormal(0, noise), number))
    return out
