"""Predictions against measurements for cells of this machine; the calibration subset is marked and not counted."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.projection import cells, fit
from harness.projection.cells import MeasuredCell
from harness.projection.cost import Cost
from harness.projection.hardware import Hardware
from harness.projection.models import ModelSizes, embedded
from harness.projection.replay import Replayed, replay
from harness.projection.simulation import Simulation, Timed
from harness.projection.traces import Trace

MODEL = "embedded-x32"


@dataclass(frozen=True)
class Prediction:
    """One cell, projected and measured."""

    measured: MeasuredCell
    calibration: bool
    timed: Timed
    own_link_tok_s: float
    """Projected with the cell's own link rate, which separates changes of the disk from errors of the model."""
    hit_rate: float | None
    tokens_per_step: float

    @property
    def idealised(self) -> bool:
        """Whether the cell prefetches: that is replayed as an ideal prefetch, so its bytes are not exact."""
        return self.measured.options.prefetch != "none"

    @property
    def error(self) -> float:
        """Predicted throughput over measured, less one."""
        return self.timed.tok_s / self.measured.decode_tok_s - 1

    @property
    def own_link_error(self) -> float:
        """Like ``error``, with the cell's own link rate."""
        return self.own_link_tok_s / self.measured.decode_tok_s - 1

    @property
    def bytes_error(self) -> float:
        """Predicted bytes over measured, less one; replays are exact, so it should be zero."""
        return self.timed.moved_bytes / self.measured.decode_link_bytes - 1


@dataclass(frozen=True)
class Validation:
    """This machine as calibrated, and a prediction for each cell."""

    machine: Hardware
    predictions: list[Prediction]

    @property
    def held_out(self) -> list[Prediction]:
        return [p for p in self.predictions if not p.calibration]

    @property
    def median_error(self) -> float:
        """Median absolute error of throughput over the cells not used for calibration."""
        return statistics.median(abs(p.error) for p in self.held_out)

    @property
    def median_own_link_error(self) -> float:
        """The same with each cell's own link rate."""
        return statistics.median(abs(p.own_link_error) for p in self.held_out)


def validate(results: Sequence[Path], traces: Path, may_record: bool = False) -> Validation:
    """Calibrate on the subset, predict every cell.

    Raises:
        ValueError: the results lack the calibration subset.
        TraceError: a cell's trace is missing and ``may_record`` is False.
        RecordError: a result file cannot be read.
    """
    measured = [m for m in cells.load(results) if m.cell.model == MODEL]
    if not any(fit.in_subset(m) for m in measured):
        raise ValueError(f"no calibration cell in the results: they must hold {fit.SUBSET}")
    model = embedded()
    pairs = [(m, cells.trace_of(m, traces, may_record)) for m in measured]
    machine = fit.fit(model, [fit.Observation(m, replayed_decode(m, t)) for m, t in pairs if fit.in_subset(m)])
    return Validation(machine, [predict(m, t, model, machine) for m, t in pairs])


def replayed_decode(measured: MeasuredCell, trace: Trace, ahead_per_step: float | None = None) -> Replayed:
    """A cell's decode phase, replayed after its warm-up call."""
    budget = measured.cell.expert_budget_bytes or trace.geometry.slot_bytes * trace.geometry.total_experts
    replayed = replay(trace, measured.options, budget, ahead_per_step=ahead_per_step)
    return replayed.of_call(trace.calls[-1])


def predict(measured: MeasuredCell, trace: Trace, model: ModelSizes, machine: Hardware) -> Prediction:
    """Predict one cell on the calibrated machine."""
    own = machine.with_link(measured.link_gb_s or machine.link_gb_s.value, "measured here", "the cell's own")
    plain = replace(measured, options=measured.options.model_copy(update={"prefetch": "none"}))
    replayed = at_own = replayed_decode(plain, trace)
    if measured.options.prefetch == "draft":
        replayed, at_own = (_with_prefetch(measured, trace, replayed, Cost(m, model)) for m in (machine, own))
    timed, own_timed = (Simulation(Cost(m, model), "pipelined").run(r) for m, r in ((machine, replayed), (own, at_own)))
    hit_rate = replayed.totals("verify").hit_rate
    return Prediction(measured, fit.in_subset(measured), timed, own_timed.tok_s, hit_rate, timed.tokens_per_step)


def _with_prefetch(measured: MeasuredCell, trace: Trace, plain: Replayed, cost: Cost) -> Replayed:
    """Like ``plain``, with as many experts prefetched in each draft step as fit in its time."""
    steps = sum(p.source.phase == "draft" for p in plain.passes)
    step_s = Simulation(cost, "pipelined").run(plain).draft_s / max(1, steps)
    return replayed_decode(measured, trace, step_s / cost.transfer_s())
