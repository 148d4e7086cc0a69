"""One system on one model, machine and batch, from synthetic traces: the paper's four systems."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from harness.projection.cost import Cost
from harness.projection.hardware import Hardware
from harness.projection.models import ModelSizes
from harness.projection.timeline import Overlap, Timed, Timeline
from harness.replay import Replayed, replay
from specmoe import SpecOptions
from specmoe.placement import TopFraction
from workloads.traces import Trace
from workloads.traces.synthetic import Recipe, Skew, make

System = Literal["on-demand", "overlap", "caching", "specmoe"]
SYSTEMS: tuple[System, ...] = ("on-demand", "overlap", "caching", "specmoe")
OVERLAP: dict[System, Overlap] = {
    "on-demand": "serial",
    "overlap": "next-block",
    "caching": "serial",
    "specmoe": "serial",
}
"""The paper's systems migrate, then compute; only its oracle hides one behind the other."""


@dataclass(frozen=True)
class Routing:
    """What a model's routing and acceptance are taken to be: one set per model, for every row of the table.

    ``acceptance`` is the chance that a drafted token is accepted once those before it are; ``context`` the mean
    number of tokens in a row's KV cache.
    """

    skew: Skew
    repeat: float
    correlation: float
    acceptance: float
    gamma: int
    draft_experts: int
    caching_share: float = 0.1
    prompt_tokens: int = 16
    context: int = 64
    seed: int = 0

    def cycles(self, batch: int) -> int:
        """Cycles simulated: few for large batches, which are their own average."""
        return max(6, min(96, 384 // batch))

    def steps(self, batch: int) -> int:
        """Decode steps simulated without a draft."""
        return max(16, min(192, 768 // batch))


def run(system: System, model: ModelSizes, routing: Routing, machine: Hardware, batch: int) -> Timed:
    """Project the decode phase of one system."""
    timeline = Timeline(Cost(machine, model, routing.context), OVERLAP[system])
    return timeline.run(replayed(system, model, routing, batch))


@lru_cache(maxsize=256)
def replayed(system: System, model: ModelSizes, routing: Routing, batch: int) -> Replayed:
    """The system's placement policy over a trace of the model; the same for every machine."""
    layers, speculative = len(model.moe_layers), system == "specmoe"
    kept, placement = 0, None
    if speculative:
        kept = routing.draft_experts
        options = SpecOptions(gamma=routing.gamma, draft_experts=kept, placement="on-demand")
    else:
        options = SpecOptions(gamma=0, placement="on-demand")
    if system == "caching":
        kept = max(1, int(routing.caching_share * model.experts))
        placement = TopFraction(list(model.geometry.experts), kept)
    slots = layers * kept + model.experts  # whatever a block moves has room beside what stays
    return replay(trace(model, routing, batch, speculative), options, slots * model.expert_bytes, placement=placement)


@lru_cache(maxsize=64)
def trace(model: ModelSizes, routing: Routing, batch: int, speculative: bool) -> Trace:
    """A synthetic trace of the model's routing, with or without drafts."""
    recipe = Recipe(
        batch,
        2,
        routing.gamma if speculative else 0,
        routing.skew,
        routing.acceptance,
        routing.repeat,
        routing.correlation,
        routing.prompt_tokens,
        routing.seed,
        cycles=routing.cycles(batch) if speculative else routing.steps(batch),
    )
    return make(model.geometry, recipe)


def acceptance_for(tokens_per_step: float, gamma: int) -> float:
    """The chance per token that gives T(gamma) = (1 - a^(gamma + 1)) / (1 - a).

    Raises:
        ValueError: T(gamma) out of 1 to gamma + 1.
    """
    if not 1 <= tokens_per_step <= gamma + 1:
        raise ValueError(f"{tokens_per_step} tokens per step cannot be with gamma {gamma}: 1 to {gamma + 1}")
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if expected_tokens(middle, gamma) < tokens_per_step else (low, middle)
    return (low + high) / 2


def expected_tokens(acceptance: float, gamma: int) -> float:
    """T(gamma) of a chance per token."""
    return sum(acceptance**i for i in range(gamma + 1))


def coverage(model: ModelSizes, routing: Routing, batch: int) -> float:
    """Part of the draft gate's picks that fall on pinned experts."""
    return replayed("specmoe", model, routing, batch).coverage


def with_draft_experts(model: ModelSizes, routing: Routing, batch: int, draft_experts: int) -> Routing:
    """The same routing with another N: what is not covered costs acceptance, in proportion as at the N given.

    acceptance(N) = 1 - m * (1 - coverage(N)), with m from the routing's own N.
    """
    misses = 1 - coverage(model, routing, batch)
    penalty = (1 - routing.acceptance) / misses if misses else 0.0
    other = replace(routing, draft_experts=draft_experts)
    return replace(other, acceptance=max(0.0, 1 - penalty * (1 - coverage(model, other, batch))))
