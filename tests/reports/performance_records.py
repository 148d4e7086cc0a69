"""Synthetic records of the performance suite and of the kernels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from reports.results.record import Record
from tests.reports.records import record

AUTOMATIC = {"controller": "auto"}
SYSTEMS: dict[str, tuple[str, dict[str, Any], float]] = {  # label -> system, options, speed at batch 1
    "on-demand": ("on-demand", {}, 50.0),
    "caching": ("caching", {}, 110.0),
    "caching LFU": ("caching", {"placement": "lfu"}, 125.0),
    "SpecMoE paper": ("specmoe", {"gamma": 5, "controller": "fixed"}, 150.0),
    "SpecMoE torch kernels": ("specmoe", {"gamma": 5, "kernels": "torch"}, 60.0),
    "SpecMoE automatic": ("specmoe", AUTOMATIC, 180.0),
}
SPLIT = {"draft": 0.25, "verify": 0.4, "link_wait": 0.3, "refresh": 0.02, "python": 0.03}


def comparison(
    name: str = "performance-float32-25",
    batches: tuple[int, ...] = (1, 8),
    rounds: int = 3,
    budget: str = "25%",
    stored: str = "float32",
    speeds: dict[str, float] | None = None,
    model: str = "embedded-x32",
) -> list[Record]:
    """Every system at every batch size; a round is up to 4 % faster than the one before, the batch adds speed."""
    config = {"name": name, "expert_budget": [budget], "systems": [{"system": s} for s, _, _ in SYSTEMS.values()]}
    known = {label: speed for label, (_, _, speed) in SYSTEMS.items()} | (speeds or {})
    return [
        _finished(label, known[label] * batch**0.5 * (1 + 0.04 * rnd), batch, rnd, config, stored, model)
        for rnd in range(rounds)
        for batch in batches
        for label in known
    ]


def _finished(
    label: str, speed: float, batch: int, rnd: int, config: dict[str, Any], stored: str, model: str
) -> Record:
    system, options, _ = SYSTEMS.get(label, (label, {}, speed))
    seconds = 16 * batch / speed
    raw = {"phases_s": {phase: share * seconds for phase, share in SPLIT.items()}} if system == "specmoe" else {}
    told = {"options": options, "config": config, "raw": raw, "model": model, "run": config["name"]}
    one = record(system, speed, label=label, batch=batch, rnd=rnd, **told)
    cell = one.cell.model_copy(update={"stored_dtype": stored})
    reached = one.metrics.model_copy(
        update={"achieved_over_limit": min(0.9, 0.004 * speed), "io_bound_link_of_ceiling": 0.96}
    )
    return one.model_copy(update={"cell": cell, "cell_id": cell.cell_id, "metrics": reached})


def kernel_record(path: Path) -> Path:
    """A record of kernels that stream few rows and use oneDNN above, on a memory of 48 GB/s."""
    kernels = {
        f"experts {dtype}": {
            str(rows): {
                "kernel": "streaming" if rows <= 16 else "onednn",
                "ms": nbytes / rate / 1e6,
                "f_linear_ms": nbytes / (rate / 2.5) / 1e6,
                "speedup": 2.5,
                "read_gb_s": rate,
            }
            for rows, rate in zip((1, 2, 4, 8, 16, 32, 64, 128, 256), (45, 44, 42, 30, 17, 12, 8, 5, 2.6), strict=True)
        }
        for dtype, nbytes in (("float32", 3.9e6), ("bfloat16", 1.95e6), ("bfloat16 in float32", 1.95e6))
    }
    resident = {
        str(batch): {"s": 0.5, "transformers_s": 1.0, "ratio": 0.5, "experts_implementation": "grouped_mm"}
        for batch in (1, 8, 32)
    }
    content = {
        "date": "2026-05-04T03:02:01+00:00",
        "environment": {"cpu": "a processor", "cores": 2},
        "threads": 2,
        "memory_read_gb_s": 48.0,
        "kernels": kernels,
        "resident": resident,
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return path
