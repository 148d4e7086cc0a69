"""Predicted against measured for cells of this machine; the calibration subset is told apart and not counted."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.projection import cells, fit
from harness.projection.cells import MeasuredCell
from harness.projection.cost import Cost
from harness.projection.hardware import Hardware
from harness.projection.models import ModelSizes, embedded
from harness.projection.timeline import Timed, Timeline
from harness.replay import Replayed, replay

MODEL = "embedded-x32"


@dataclass(frozen=True)
class Prediction:
    """One cell: what the projection says beside what was measured."""

    measured: MeasuredCell
    calibration: bool
    timed: Timed
    own_link_tok_s: float
    """Projected with the link rate that the cell itself had, which tells the disk's changes from the model's errors."""
    hit_rate: float | None
    tokens_per_step: float

    @property
    def error(self) -> float:
        """Predicted throughput over measured, less one."""
        return self.timed.tok_s / self.measured.decode_tok_s - 1

    @property
    def own_link_error(self) -> float:
        """As ``error``, with the cell's own link rate."""
        return self.own_link_tok_s / self.measured.decode_tok_s - 1

    @property
    def bytes_error(self) -> float:
        """Predicted bytes over measured, less one; replays are exact, so anything but zero is a finding."""
        return self.timed.moved_bytes / self.measured.decode_link_bytes - 1


@dataclass(frozen=True)
class Validation:
    """This machine as calibrated, and every cell that could be predicted."""

    machine: Hardware
    predictions: list[Prediction]

    @property
    def held_out(self) -> list[Prediction]:
        return [p for p in self.predictions if not p.calibration]

    @property
    def median_error(self) -> float:
        """Median absolute error of throughput over the cells that calibration did not see."""
        return statistics.median(abs(p.error) for p in self.held_out)

    @property
    def median_own_link_error(self) -> float:
        """The same with each cell's own link rate."""
        return statistics.median(abs(p.own_link_error) for p in self.held_out)


def validate(results: Sequence[Path], traces: Path, may_record: bool = False) -> Validation:
    """Calibrate on the subset, predict every cell.

    Raises:
        ValueError: no cell of the embedded model, or none of the calibration subset.
        TraceError: a cell's trace is missing and is not to be recorded.
        RecordError: a file that holds no records.
    """
    measured = [m for m in cells.load(results) if m.cell.model == MODEL]
    if not any(fit.in_subset(m) for m in measured):
        raise ValueError(f"no calibration cell in the results: they must hold {fit.SUBSET}")
    replayed = [(m, replayed_decode(m, traces, may_record)) for m in measured]
    model = embedded()
    machine = fit.fit(model, [fit.Observation(m, r) for m, r in replayed if fit.in_subset(m)])
    return Validation(machine, [predict(m, r, model, machine) for m, r in replayed])


def replayed_decode(measured: MeasuredCell, traces: Path, may_record: bool = False) -> Replayed:
    """A cell's decode phase, replayed after its warm-up call as the cell had it."""
    trace = cells.trace_of(measured, traces, may_record)
    budget = measured.cell.expert_budget_bytes or trace.geometry.slot_bytes * trace.geometry.total_experts
    return replay(trace, measured.options, budget).of_call(trace.calls[-1])


def predict(measured: MeasuredCell, replayed: Replayed, model: ModelSizes, machine: Hardware) -> Prediction:
    """One cell on the calibrated machine."""
    timed = Timeline(Cost(machine, model), "pipelined").run(replayed)
    hit_rate = replayed.totals("verify").hit_rate
    own = machine.with_link(measured.link_gb_s or machine.link_gb_s.value, "measured here", "the cell's own")
    own_tok_s = Timeline(Cost(own, model), "pipelined").run(replayed).tok_s
    return Prediction(measured, fit.in_subset(measured), timed, own_tok_s, hit_rate, timed.tokens_per_step)
