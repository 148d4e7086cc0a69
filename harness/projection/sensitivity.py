"""Sensitivity of the headline speed-up: one input varied at a time, and the link rate over its whole range."""

from __future__ import annotations

from dataclasses import dataclass, replace

from harness.projection import inputs, scenario
from harness.projection.hardware import Hardware
from harness.projection.scenario import Routing, acceptance_for, expected_tokens
from harness.projection.traces.synthetic import Skew

BATCH = 256
LINK_RATES_GB_S = (1.0, 2.0, 3.5, 7.0, 14.0, 28.0, 64.0, 128.0)


@dataclass(frozen=True)
class Swing:
    """The headline speed-up over OnDemand with one input at a low and a high value."""

    input: str
    unit: str
    low: float
    base: float
    high: float
    speedup_low: float
    speedup_base: float
    speedup_high: float

    @property
    def span(self) -> float:
        return abs(self.speedup_high - self.speedup_low)


@dataclass(frozen=True)
class LinkPoint:
    """Speed-up of a system over OnDemand at one link rate."""

    model: str
    system: str
    link_gb_s: float
    speedup: float


@dataclass(frozen=True)
class _Variation:
    """An input at a low and a high value, with the routing and batch size of each."""

    input: str
    unit: str
    values: tuple[float, float, float]
    routings: tuple[Routing, Routing]
    batches: tuple[int, int] = (BATCH, BATCH)


def swings() -> list[Swing]:
    """One input varied at a time (NLLB-MoE, batch 256), the largest effect first."""
    machine, routing = inputs.paper_machine(), inputs.nllb().routing
    base = _speedup(routing, machine)
    found = [_hardware_swing(name, factors, machine, routing, base) for name, factors in _FACTORS.items()]
    for one in _variations(routing):
        low, high = (_speedup(r, machine, b) for r, b in zip(one.routings, one.batches, strict=True))
        found.append(Swing(one.input, one.unit, *one.values, low, base, high))
    return sorted(found, key=lambda s: -s.span)


def _variations(routing: Routing) -> list[_Variation]:
    tokens, model = expected_tokens(routing.acceptance, routing.gamma), inputs.nllb().model
    fewer, more = (replace(routing, acceptance=acceptance_for(tokens + d, routing.gamma)) for d in (-1, 1))
    even, uneven = (replace(routing, skew=Skew("gini", value)) for value in (0.7, 0.9))
    small, large = (scenario.with_draft_experts(model, routing, BATCH, n) for n in (2, 8))
    local, alike = replace(routing, repeat=0.4), replace(routing, correlation=0.3)
    return [
        _Variation("skew", "(Gini)", (0.7, routing.skew.value, 0.9), (even, uneven)),
        _Variation("locality", "repeat probability", (0.0, routing.repeat, 0.4), (routing, local)),
        _Variation("correlation of rows", "probability", (0.0, routing.correlation, 0.3), (routing, alike)),
        _Variation("tokens per step", "= T(10)", (tokens - 1, tokens, tokens + 1), (fewer, more)),
        _Variation("draft experts", "= N", (2, routing.draft_experts, 8), (small, large)),
        _Variation("batch", "rows", (64, BATCH, 512), (routing, routing), (64, 512)),
    ]


_FACTORS = {
    "link_gb_s": (0.5, 64 / 3.47),
    "memory_gb_s": (0.5, 2.0),
    "layer_launch_s": (0.33, 3.0),
    "expert_launch_s": (0.33, 3.0),
}


def _hardware_swing(name: str, factors: tuple[float, float], machine: Hardware, routing: Routing, base: float) -> Swing:
    given = getattr(machine, name)
    values = tuple(given.value * factor for factor in factors)
    low, high = (_speedup(routing, replace(machine, **{name: replace(given, value=v)})) for v in values)
    return Swing(given.name, given.unit, values[0], given.value, values[1], low, base, high)


def _speedup(routing: Routing, machine: Hardware, batch: int = BATCH) -> float:
    model = inputs.nllb().model
    ours, theirs = (scenario.run(system, model, routing, machine, batch).tok_s for system in ("specmoe", "on-demand"))  # type: ignore[arg-type]
    return ours / theirs


def link_lines(batch: int = BATCH) -> list[LinkPoint]:
    """Speed-up over OnDemand by link rate, for the paper's models."""
    found = []
    for given in (inputs.nllb(), inputs.mixtral(), inputs.scout()):
        for rate in LINK_RATES_GB_S:
            machine = inputs.paper_machine().with_link(rate, "assumed", "sweep")
            base = scenario.run("on-demand", given.model, given.routing, machine, batch).tok_s
            for system in ("overlap", "caching", "specmoe"):
                timed = scenario.run(system, given.model, given.routing, machine, batch)  # type: ignore[arg-type]
                found.append(LinkPoint(given.model.name, system, rate, timed.tok_s / base))
    return found
