"""The paper's grid of systems and batch sizes, simulated point by point."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from harness.projection import inputs, scenario
from harness.projection.hardware import Hardware
from harness.projection.scenario import System
from harness.projection.simulation import Timed
from reports.results import paper


@dataclass(frozen=True)
class Point:
    """One system at one batch size."""

    model: str
    machine: str
    system: System
    batch_size: int
    tok_s: float
    tokens_per_step: float
    bytes_per_step: float
    bytes_per_token: float
    draft_s_per_token: float
    wait_s_per_token: float
    compute_s_per_token: float


@cache
def timed(model: str, system: System, batch: int, machine: Hardware) -> Timed:
    """Simulate one point; cached, since many rows use the same points."""
    given = inputs.of_model(model)
    return scenario.run(system, given.model, given.routing, machine, batch)


def points(model: str, machine: Hardware, batches: tuple[int, ...] = paper.BATCH_SIZES) -> list[Point]:
    """All systems at all batch sizes, for one model on one machine."""
    return [_point(model, system, batch, machine) for system in scenario.SYSTEMS for batch in batches]


def _point(model: str, system: System, batch: int, machine: Hardware) -> Point:
    one = timed(model, system, batch, machine)
    return Point(
        model,
        machine.name,
        system,
        batch,
        one.tok_s,
        one.tokens_per_step,
        one.moved_bytes * batch / one.row_steps,
        one.bytes_per_token,
        one.draft_s / one.tokens,
        one.wait_s / one.tokens,
        (one.decode_s - one.draft_s - one.wait_s) / one.tokens,
    )
