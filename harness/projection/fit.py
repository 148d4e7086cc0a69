"""Calibrates the projection to this machine: effective rates and launch costs from a stated subset of measured cells.

The subset is the on-demand and SpecMoE cells of the experiment ``quick``.  Compute is fitted to their draft and
verification times without waits; the link rate is bytes over the time that the link was busy; the link latency is
fitted to their waits, each cell at its own link rate.  No other measurement is used.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import least_squares

from harness.projection.cells import MeasuredCell
from harness.projection.cost import Cost
from harness.projection.hardware import Hardware, Input
from harness.projection.models import ModelSizes
from harness.projection.replay import Replayed
from harness.projection.simulation import Simulation

SUBSET = "the on-demand and SpecMoE cells of the experiment quick, all batch sizes"
_FITTED = (
    ("memory_gb_s", "memory bandwidth", "GB/s"),
    ("gemm_tflop_s", "GEMM rate", "TFLOP/s"),
    ("layer_launch_s", "launch per layer", "s"),
    ("expert_launch_s", "launch per expert", "s"),
    ("token_s", "per token", "s"),
)
_START = (10.0, 0.05, 3e-4, 2e-5, 1e-5)


def in_subset(measured: MeasuredCell) -> bool:
    """Whether a cell is used for calibration, and therefore not for validation."""
    return measured.experiment == "quick" and measured.cell.system in ("on-demand", "specmoe")


@dataclass(frozen=True)
class Observation:
    """A calibration cell and its replayed decode phase."""

    measured: MeasuredCell
    replayed: Replayed


@dataclass(frozen=True)
class Work:
    """Compute of the passes of one phase: number of passes by (tokens, rows), of expert calls by tokens."""

    passes: Counter[tuple[int, int]]
    experts: Counter[int]

    @classmethod
    def of(cls, replayed: Replayed, phase: str) -> Work:
        """Count the compute of a phase, without waits."""
        chosen = [p for p in replayed.passes if p.source.phase == phase]
        visits = [v for p in chosen for v in p.visits]
        return cls(
            Counter((p.source.tokens, int(p.source.valid.any(1).sum())) for p in chosen),
            Counter(n for v in visits for part in (v.hits, v.misses) for n in part.values()),
        )

    def compute_s(self, cost: Cost) -> float:
        """The compute time that a simulation has on an infinitely fast link."""
        layers = range(len(cost.model.dense_params))
        passes = sum(
            n * (cost.head_s(tokens) + sum(cost.layer_s(layer, tokens, rows) for layer in layers))
            for (tokens, rows), n in self.passes.items()
        )
        return passes + sum(n * cost.expert_s(tokens) for tokens, n in self.experts.items())


def fit(model: ModelSizes, observations: Sequence[Observation]) -> Hardware:
    """Fit this machine to the calibration subset.

    Raises:
        ValueError: no observation, or none that moved a byte.
    """
    rates = [o.measured.link_gb_s for o in observations]
    present = [rate for rate in rates if rate is not None]
    if not present:
        raise ValueError("no calibration cell moved a byte: give results of the experiment quick")
    link_gb_s = statistics.median(present)
    cycle_s = statistics.median(o.measured.other_s / _cycles(o) for o in observations)

    done = [(o.measured, Work.of(o.replayed, "verify"), Work.of(o.replayed, "draft")) for o in observations]

    def residuals(logs: np.ndarray) -> np.ndarray:
        cost = Cost(_machine(tuple(float(v) for v in np.exp(logs)), link_gb_s, cycle_s), model)
        found = []
        for measured, verified, drafted in done:
            found.append(np.log(verified.compute_s(cost) / measured.compute_s))
            if measured.options.drafts_with_experts:
                found.append(np.log(drafted.compute_s(cost) / measured.draft_s))
        return np.array(found)

    solution = least_squares(residuals, np.log(_START), loss="soft_l1", f_scale=0.1)
    machine = _machine(tuple(float(v) for v in np.exp(solution.x)), link_gb_s, cycle_s)
    return _with_latency(machine, _latency_s(machine, model, observations))


def _latency_s(machine: Hardware, model: ModelSizes, observations: Sequence[Observation]) -> float:
    """Time between transfers, which busy time does not include, such that simulated waits match measured ones."""

    def residuals(latency_s: np.ndarray) -> np.ndarray:
        found = []
        for one in observations:
            if one.measured.link_gb_s is not None and one.measured.wait_s > 0:
                own = machine.with_link(one.measured.link_gb_s, "measured here", "")
                cost = Cost(_with_latency(own, float(latency_s[0])), model)
                waited = Simulation(cost, "pipelined").run(one.replayed).wait_s
                found.append((waited - one.measured.wait_s) / one.measured.decode_s)
        return np.array(found)

    return float(least_squares(residuals, [1e-4], bounds=(0, 1e-2), x_scale=1e-4, diff_step=0.05).x[0])


def _with_latency(machine: Hardware, latency_s: float) -> Hardware:
    note = "between transfers, fitted to the waits of the subset"
    return replace(machine, link_latency_s=replace(machine.link_latency_s, value=latency_s, note=note))


def _cycles(observation: Observation) -> int:
    return sum(p.source.phase == "verify" for p in observation.replayed.passes)


def _machine(fitted: tuple[float, ...], link_gb_s: float, cycle_s: float) -> Hardware:
    note = "effective, fitted on the subset"
    values = {
        field: Input(name, value, unit, "measured here", note)
        for (field, name, unit), value in zip(_FITTED, fitted, strict=True)
    }
    return Hardware(
        "this-machine",
        "this machine, disk to memory",
        link_gb_s=Input("link rate", link_gb_s, "GB/s", "measured here", "bytes over busy time, median of the subset"),
        link_latency_s=Input("link latency", 0.0, "s", "measured here"),
        cycle_s=Input("per cycle", cycle_s, "s", "measured here", "acceptance and bookkeeping"),
        device_memory_gb=Input("device memory", float("inf"), "GB", "measured here", "each cell has its own budget"),
        **values,
    )
