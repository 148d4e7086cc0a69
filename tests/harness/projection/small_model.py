"""A small model, a machine of given costs and a replayed decode phase, for the tests of this room."""

from __future__ import annotations

from dataclasses import replace

from harness.projection.cost import Cost
from harness.projection.hardware import H100_PCIE5, Hardware
from harness.projection.models import ModelSizes, embedded
from harness.projection.replay import Replayed, replay
from harness.projection.scenario import Routing
from harness.projection.simulation import Overlap, Simulation, Timed
from harness.projection.traces.synthetic import Recipe, Skew, make
from specmoe import SpecOptions
from tests import ROOT

RECORDS = ROOT / "docs" / "records"
FULL = RECORDS / "full"
SMALL = replace(
    embedded(),
    name="small",
    dense_params=(10_000,) * 4,
    moe_layers=(1, 3),
    experts=16,
    expert_params=500_000,
    expert_bytes=1_000_000,
)
ROUTING = Routing(Skew("gini", 0.5), 0.0, 0.0, 0.9, 4, 4)


def machine(**values: float) -> Hardware:
    """A machine on which only the given inputs cost time."""
    free = {"link_gb_s": 1e9, "memory_gb_s": 1e9, "gemm_tflop_s": 1e9}
    fields = {name: free.get(name, 0.0) for name in vars(H100_PCIE5) if name not in ("name", "title")} | values
    changed = {name: replace(getattr(H100_PCIE5, name), value=value) for name, value in fields.items()}
    return replace(H100_PCIE5, **changed)


def decoded(gamma: int = 0, rows: int = 4) -> Replayed:
    """A few decode passes of the small model; only draft experts are kept on the device."""
    recipe = Recipe(rows, 2, gamma, Skew("gini", 0.5), 0.9, cycles=5)
    options = SpecOptions(gamma=gamma, draft_experts=4, placement="on-demand")
    return replay(make(SMALL.geometry, recipe), options, SMALL.geometry.total_experts * SMALL.expert_bytes)


def timed(on: Hardware, overlap: Overlap, replayed: Replayed, model: ModelSizes = SMALL) -> Timed:
    return Simulation(Cost(on, model), overlap).run(replayed)
