"""Projects public models on other machines: the paper's four systems, and SpecMoE with prefetch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.projection import inputs, scenario
from harness.projection.hardware import PROFILES, Hardware
from harness.projection.models import PUBLIC

BATCHES = (1, 16)


@dataclass(frozen=True)
class MachineRow:
    """One model, machine and batch size; ``fits``: the device holds what must stay on it (KV caches not counted)."""

    model: str
    machine: str
    batch_size: int
    device_gb: float
    fits: bool
    tok_s: dict[str, float]
    specmoe_over_on_demand: float
    specmoe_over_caching: float


def table(
    models: Sequence[str] = tuple(PUBLIC),
    machines: Sequence[Hardware] = tuple(PROFILES.values()),
    batches: Sequence[int] = BATCHES,
) -> list[MachineRow]:
    """Every combination, models first.

    Raises:
        ValueError: an unknown model.
    """
    return [_row(model, machine, batch) for model in models for batch in batches for machine in machines]


def _row(name: str, machine: Hardware, batch: int) -> MachineRow:
    given = inputs.of_model(name)
    rates: dict[str, float] = {
        s: scenario.run(s, given.model, given.routing, machine, batch).tok_s for s in scenario.SYSTEMS
    }
    rates["specmoe-prefetch"] = scenario.run_with_prefetch(given.model, given.routing, machine, batch).tok_s
    needed = given.model.device_bytes(given.routing.draft_experts) / 1e9
    return MachineRow(
        name,
        machine.name,
        batch,
        needed,
        needed <= machine.device_memory_gb.value,
        rates,
        rates["specmoe"] / rates["on-demand"],
        rates["specmoe"] / rates["caching"],
    )
