"""Synthetic records with data for every figure, and their report; no model runs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reports import ReportPaths, write_report
from reports.results.record import Ceilings, Kind, Record
from tests.reports.records import record, write

MACHINE = {"cpu": "a processor", "cores": 2, "ram_bytes": 8_000_000_000, "python": "3.11"}
SPEEDS = {"on-demand": 10.0, "caching": 16.0, "overlap": 14.0, "accelerate-disk": 4.0, "SpecMoE": 24.0}
NAMES = (*SPEEDS, "SpecMoE controller")
PHASES = {"draft": 0.4, "verify": 0.3, "link_wait": 0.2, "refresh": 0.02, "python": 0.01, "link_busy": 0.5}
PREFETCH = {
    "prefetched_bytes": 100_000_000,
    "prefetch_useful_bytes": 70_000_000,
    "prefetch_late_bytes": 20_000_000,
    "prefetch_wasted_bytes": 10_000_000,
}


def _config(name: str, title: str, systems: list[dict[str, Any]]) -> dict[str, Any]:
    return {"name": name, "title": title, "systems": systems}


def comparison(model: str = "embedded-x32", throttle: int | None = None, names: Sequence[str] = NAMES) -> list[Record]:
    """Two rounds of systems at two batch sizes; behind a throttle all but the oracle are emulated."""
    config = _config(f"by-batch-{model}-{throttle}", f"Systems by batch on {model}", [{"system": n} for n in names])
    kinds: dict[str, Kind] = {"overlap": "oracle"}
    out = []
    for rnd, batch, label in itertools.product(range(2), (1, 4), names):
        ours = label.startswith("SpecMoE")
        speed = SPEEDS.get(label, 22.0) * batch**0.5 * (1 + 0.1 * rnd) * (1.05 if ours and rnd else 1.0)
        out.append(
            record(
                "specmoe" if ours else label,
                speed / (3 if throttle else 1),
                batch=batch,
                rnd=rnd,
                label=label,
                model=model,
                kind="emulated" if throttle and label not in kinds else kinds.get(label, "measured"),
                throttle=throttle,
                link=None if label == "accelerate-disk" else 10e6 / (2 if ours else 1),
                options={"controller": "auto", "gamma": 16} if "controller" in label else {},
                drafted=[20, 16] if ours else None,
                accepted=[18, 8] if ours else None,
                raw=_raw(label, rnd) | _arrivals(label, batch, 16 * batch / speed),
                environment=MACHINE | {"command": f"specmoe-bench run {config['name']} --report"},
                config=config,
            )
        )
    ceilings = Ceilings(date="2026-05-04", disk_read_gb_s=2.0)
    return [_with_ceiling(one, ceilings) for one in out]


def _raw(label: str, rnd: int) -> dict[str, Any]:
    if label == "accelerate-disk":
        return {}
    raw: dict[str, Any] = {
        "phases_s": {k: v if label.startswith("SpecMoE") or k != "draft" else 0 for k, v in PHASES.items()}
    }
    if "controller" in label:
        raw["cycles"] = [{"gamma": (i + rnd) % 4, "draft_experts": 8} for i in range(6)]
        raw |= PREFETCH
    return raw


def _arrivals(label: str, batch: int, decode_s: float) -> dict[str, Any]:
    """When the 16 tokens of each row arrive: one by one, or of SpecMoE in bursts of three."""
    if label in ("accelerate-disk", "overlap"):
        return {}
    burst = 3 if label.startswith("SpecMoE") else 1
    times = [round(0.5 + decode_s * (-(-token // burst) * burst) / 15, 6) for token in range(16)]
    return {"arrivals_s": [times] * batch}


def _with_ceiling(one: Record, ceilings: Ceilings) -> Record:
    assert one.metrics is not None
    has_link = one.metrics.link_bytes_per_token is not None
    rates = {"achieved_link_gb_s": 1.5, "link_of_ceiling": 0.75} if has_link else {}
    return one.model_copy(update={"metrics": one.metrics.model_copy(update=rates), "ceilings": ceilings})


def ablation(option: str, values: list[Any], name: str, labels: list[str] | None = None, **common: Any) -> list[Record]:
    """Two rounds of SpecMoE with one option swept; every next value is a tenth faster and drafts better."""
    names = labels or [f"{option} {value}" for value in values]
    systems = [{"system": "specmoe", "label": label} for label in names]
    config = _config(name, f"A sweep of {option}", systems)
    out = []
    for rnd in range(2):
        for place, (value, label) in reversed(list(enumerate(zip(values, names, strict=True)))):  # rounds are shuffled
            out.append(
                record(
                    "specmoe",
                    10 * (1 + 0.1 * place) * (1 + 0.05 * rnd * place),
                    batch=8,
                    rnd=rnd,
                    label=label,
                    options={option: value} | common,
                    drafted=[20, 16],
                    accepted=[18, 8 + place],
                    environment=MACHINE,
                    config=config,
                )
            )
    return out


def everything() -> list[Record]:
    """Records with something for every figure."""
    few = ("on-demand", "overlap", "SpecMoE")
    return [
        *with_a_failure(),
        *comparison("mixtral-like", names=few),
        *comparison(throttle=400_000_000, names=few),
        *ablation("selection", ["random", "hot-global", "hot-temporal"], "ablation-selection"),
        *ablation("draft_experts", [2, 4, 8, 16], "ablation-n"),
        *ablation("substitution", ["random", "affinity", "drop"], "ablation-substitution"),
        *ablation("gamma", [0, 2, 4, 8], "ablation-gamma"),
        *ablation("prefetch", ["none", "draft"], "ablation-prefetch", ["no prefetch", "prefetch"]),
    ]


def with_a_failure() -> list[Record]:
    """The comparison, and a cell without a result."""
    known = comparison()
    name, cells = "accelerate-disk", {"batch": 16, "model": "embedded-x32", "link": None}
    lost = record(name, None, status="timeout", error="too slow", environment=MACHINE, config=known[0].config, **cells)
    return [*known, lost]


def make(folder: Path) -> ReportPaths:
    """The report of a comparison and an ablation."""
    records = [*with_a_failure(), *ablation("selection", ["random", "hot-temporal"], "ablation-selection")]
    return write_report([write(folder / "results.jsonl", *records)], folder / "out", title="Synthetic results")
