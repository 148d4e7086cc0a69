"""``projection.json``: all inputs and outputs of a projection, readable without this code."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.projection import grid, inputs, machines, preset, sensitivity
from harness.projection.fit import SUBSET
from harness.projection.hardware import H100_PCIE5, PROFILES, Hardware, Input
from harness.projection.models import PUBLIC
from harness.projection.validate import Prediction, Validation
from harness.timestamp import now
from reports.results import paper
from specmoe.files import write_text

SCHEMA = "specmoe-bench.projection/1"
KIND = "projected"


def document(validation: Validation | None, with_machines: bool = True) -> dict[str, Any]:
    """The preset ``paper``: the paper's table, sensitivity, other machines, and the validation on this one."""
    implied = inputs.paper_machine()
    return {
        "schema_version": SCHEMA,
        "kind": KIND,
        "date": now(),
        "preset": "paper",
        "machines": [_machine(m) for m in _all_machines(validation)],
        "models": [_model(name) for name in PUBLIC],
        "paper": [asdict(row) | {"error": row.error} for row in preset.rows()],
        "series": [asdict(p) for model in paper.MODELS for p in grid.points(model.id, implied)],
        "sensitivity": {
            "outcome": "throughput of SpecMoE over OnDemand, NLLB-MoE, batch 256, implied link rate",
            "swings": [asdict(s) for s in sensitivity.swings()],
            "link_lines": [asdict(p) for p in sensitivity.link_lines()],
        },
        "other_machines": [asdict(row) for row in machines.table()] if with_machines else [],
        "validation": None if validation is None else _validation(validation),
    }


def _all_machines(validation: Validation | None) -> list[tuple[str, Hardware]]:
    known = [
        ("the paper's table", inputs.paper_machine()),
        ("the paper's table, nominal link", H100_PCIE5),
        ("the paper's SSD tier", inputs.ssd_machine()),
        *((f"profile {name}", machine) for name, machine in PROFILES.items()),
    ]
    return known if validation is None else [*known, ("validation on this machine", validation.machine)]


def _machine(named: tuple[str, Hardware]) -> dict[str, Any]:
    used_for, machine = named
    return {
        "used_for": used_for,
        "name": machine.name,
        "title": machine.title,
        "inputs": [_input(i) for i in machine.inputs if math.isfinite(i.value)],
    }


def _input(given: Input) -> dict[str, Any]:
    return asdict(given)


def _model(name: str) -> dict[str, Any]:
    given = inputs.of_model(name)
    sizes = given.model
    return {
        "name": name,
        "title": sizes.title,
        "source": sizes.source,
        "total_gb": sizes.total_bytes / 1e9,
        "published_gb": sizes.published_gb,
        "moe_layers": len(sizes.moe_layers),
        "layers": len(sizes.dense_params),
        "experts": sizes.experts,
        "top_k": sizes.top_k,
        "expert_mb": sizes.expert_bytes / 1e6,
        "inputs": [_input(i) for i in given.inputs],
    }


def _validation(validation: Validation) -> dict[str, Any]:
    return {
        "calibrated_on": SUBSET,
        "calibration_cells": [p.measured.name for p in validation.predictions if p.calibration],
        "held_out_cells": len(validation.held_out),
        "median_absolute_error": validation.median_error,
        "median_absolute_error_own_link": validation.median_own_link_error,
        "bytes_exact_cells": sum(p.bytes_error == 0 for p in validation.predictions if not p.idealised),
        "idealised_cells": sum(p.idealised for p in validation.predictions),
        "rows": [_prediction(p) for p in validation.predictions],
    }


def _prediction(one: Prediction) -> dict[str, Any]:
    measured, timed = one.measured, one.timed
    return {
        "experiment": measured.experiment,
        "label": measured.label,
        "system": measured.cell.system,
        "batch_size": measured.cell.batch_size,
        "rounds": measured.rounds,
        "calibration": one.calibration,
        "idealised": one.idealised,
        "measured_tok_s": measured.decode_tok_s,
        "projected_tok_s": timed.tok_s,
        "error": one.error,
        "measured_link_gb_s": measured.link_gb_s,
        "error_own_link": one.own_link_error,
        "measured_link_bytes": measured.decode_link_bytes,
        "projected_link_bytes": timed.moved_bytes,
        "measured_hit_rate": measured.hits / measured.requests if measured.requests else None,
        "projected_hit_rate": one.hit_rate,
        "measured_s": {
            "draft": measured.draft_s,
            "compute": measured.compute_s,
            "wait": measured.wait_s,
            "other": measured.other_s,
        },
        "projected_s": {
            "draft": timed.draft_s,
            "compute": timed.verify_s - timed.wait_s,
            "wait": timed.wait_s,
            "other": timed.other_s,
        },
    }


def write(content: dict[str, Any], path: Path) -> Path:
    """Write the projection file atomically; returns ``path``.

    Raises:
        OSError: it cannot be written.
    """
    write_text(path, json.dumps(rounded(content), indent=1) + "\n")
    return path


def rounded(value: Any) -> Any:
    """``value`` with floats rounded to six significant digits; further digits are noise."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [rounded(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
