"""Synthetic records and result files for the tests of reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from reports.results.aggregate import summarize
from reports.results.load import load
from reports.results.metrics import METRICS, Context, Metrics, Sample
from reports.results.record import Cell, Covers, Kind, Limit, Record, ResultFile, Status
from reports.results.repetition import Repetition

BUDGET = 100_000_000
OF_TOKENS = [name for name in METRICS if name.startswith(("ttft_p", "itl_", "e2e_", "accepted_", "acceptance_at_"))]


def record(
    system: str,
    speed: float | None,
    *,
    batch: int = 1,
    rnd: int = 0,
    kind: Kind = "measured",
    status: Status = "ok",
    label: str | None = None,
    budget: int = BUDGET,
    model: str = "embedded",
    enforced: bool = True,
    covers: Covers = "worker",
    link: float | None = 10e6,
    error: str | None = None,
    options: dict[str, Any] | None = None,
    drafted: list[int] | None = None,
    accepted: list[int] | None = None,
    fidelity: float | None = 1.0,
    run: str = "run-1",
    environment: dict[str, Any] | None = None,
    raw: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    throttle: int | None = None,
    device: str = "cpu",
    slow_tier: str = "disk",
) -> Record:
    """A record of made-up figures; ``raw`` adds fields to its one repetition."""
    cell = Cell(
        system=system,
        options=options or {},
        model=model,
        batch_size=batch,
        new_tokens=16,
        expert_budget_bytes=budget,
        process_limit_bytes=1_000_000_000,
        disk_read_limit_bytes_s=throttle,
        device=device,
        slow_tier=slow_tier,
    )
    metrics, repetitions = None, []
    if speed is not None:
        metrics = Metrics(
            prefill_tok_s=100,
            decode_tok_s=speed,
            ttft_s=0.5,
            tpot_s=batch / speed,
            tokens_per_step=2.5 if drafted else 1.0,
            acceptance_rate=0.5 if drafted else None,
            hit_rate=0.4 if link is not None else None,
            link_bytes=None if link is None else int(link * 15 * batch),
            link_bytes_per_token=link,
            kernel_read_bytes=int(12e6 * 15 * batch),
            kernel_read_bytes_per_token=12e6,
            peak_device_expert_bytes=budget if link is not None else None,
            peak_rss_bytes=700_000_000,
            fidelity=fidelity,
        )
        repetitions = [
            Repetition(
                prefill_s=0.5,
                decode_s=16 * batch / speed,
                prompt_tokens=20 * batch,
                new_tokens=16 * batch,
                decode_steps=15,
                drafted_by_position=drafted,
                accepted_by_position=accepted,
                **(raw or {}),
            )
        ]
        sample = Sample(repetitions[0], Context(batch, 0, 0))
        metrics = metrics.model_copy(update={name: METRICS[name].of([sample]) for name in OF_TOKENS})
    return Record(
        run_id=run,
        cell_id=cell.cell_id,
        round=rnd,
        kind=kind,
        status=status,
        error=error,
        label=label or system,
        lossless=True,
        grain="experts" if link is not None else "modules",
        cell=cell,
        started_at="2026-05-04T03:02:01Z",
        wall_s=4.0,
        limit=Limit(
            enforced=enforced,
            mechanism="cgroup-v2" if enforced else "none",
            limit_bytes=1_000_000_000,
            covers=covers,
        ),
        metrics=metrics,
        repetitions=repetitions,
        environment=environment or {"cpu": "a processor", "cores": 2, "python": "3.11", "git_dirty": False},
        config=config or {"command": ["specmoe-bench", "run", "--preset", "quick"]},
    )


def write(path: Path, *records: Record) -> Path:
    for one in records:
        ResultFile(path).append(one)
    return path


def experiment(subject: list[float], reference: list[float], link: float = 5e6) -> list[Record]:
    """Interleaved rounds of specmoe and on-demand at batch 4 with the given speeds."""
    out = []
    for rnd, (ours, theirs) in enumerate(zip(subject, reference, strict=True)):
        out.append(record("on-demand", theirs, batch=4, rnd=rnd))
        out.append(record("specmoe", ours, batch=4, rnd=rnd, link=link, drafted=[10, 8], accepted=[8, 4]))
    return out


def summary_of(tmp_path: Path, records: list[Record]) -> tuple[pd.DataFrame, pd.DataFrame]:
    frame = load([write(tmp_path / "results.jsonl", *records)])
    return summarize(frame), frame


def row_of(summary: pd.DataFrame, **where: Any) -> dict[str, Any]:
    for name, value in where.items():
        summary = summary[summary[name] == value]
    assert len(summary) == 1
    return dict(summary.iloc[0])


def bare_record(number: int = 0, **changes: Any) -> Record:
    """A finished record of round ``number`` without figures."""
    cell = Cell(system="on-demand", model="embedded", batch_size=1, new_tokens=4)
    fields: dict[str, Any] = {
        "run_id": "r",
        "cell_id": cell.cell_id,
        "round": number,
        "status": "ok",
        "label": "on-demand",
        "cell": cell,
        "started_at": "2026-01-01T00:00:00+00:00",
        "wall_s": 1.0,
        "limit": Limit(enforced=False, mechanism="none", limit_bytes=None, reason="test"),
    }
    return Record(**(fields | changes))
