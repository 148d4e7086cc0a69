"""Projects one of the paper's four systems on one model, machine and batch size, from synthetic traces."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import torch

from harness.projection.cost import Cost
from harness.projection.hardware import Hardware
from harness.projection.models import ModelSizes
from harness.projection.replay import Replayed, replay
from harness.projection.simulation import Overlap, Simulation, Timed
from harness.projection.traces import Trace
from harness.projection.traces.synthetic import Recipe, Skew, make
from specmoe import SpecOptions
from specmoe.offload.placement import TopFraction
from specmoe.options import Selection

System = Literal["on-demand", "overlap", "caching", "specmoe"]
SYSTEMS: tuple[System, ...] = ("on-demand", "overlap", "caching", "specmoe")
OVERLAP: dict[System, Overlap] = {
    "on-demand": "serial",
    "overlap": "next-block",
    "caching": "serial",
    "specmoe": "serial",
}
"""In the paper's systems compute waits for migration; only the oracle overlaps the two."""


@dataclass(frozen=True)
class Routing:
    """Routing and acceptance of a model: one set per model, used for every row of the table.

    ``acceptance`` is the probability that a drafted token is accepted if those before it are, with this N;
    ``substitute_acceptance`` is the same with randomly pinned experts, where nearly every pick is substituted;
    ``context`` is the mean number of tokens in a row's KV cache.
    """

    skew: Skew
    repeat: float
    correlation: float
    acceptance: float
    gamma: int
    draft_experts: int
    substitute_acceptance: float = 0.0
    caching_share: float = 0.1
    selection: Selection = "hot-temporal"
    prompt_tokens: int = 16
    context: int = 64
    seed: int = 0

    def cycles(self, batch: int) -> int:
        """Cycles to simulate: fewer for large batches, which average over their rows."""
        return max(6, min(96, 384 // batch))

    def steps(self, batch: int) -> int:
        """Decode steps to simulate without drafts."""
        return max(16, min(192, 768 // batch))


def run(system: System, model: ModelSizes, routing: Routing, machine: Hardware, batch: int) -> Timed:
    """Project the decode phase of one system."""
    simulation = Simulation(Cost(machine, model, routing.context), OVERLAP[system])
    return simulation.run(replayed(system, model, routing, batch))


def run_with_prefetch(model: ModelSizes, routing: Routing, machine: Hardware, batch: int) -> Timed:
    """SpecMoE with an ideal prefetch (not in the paper): each draft step prefetches what fits in its time."""
    cost = Cost(machine, model, routing.context)
    plain = replayed("specmoe", model, routing, batch)
    steps = sum(p.source.phase == "draft" for p in plain.passes)
    step_s = Simulation(cost, "pipelined").run(plain).draft_s / max(1, steps)
    return Simulation(cost, "pipelined").run(replayed("specmoe", model, routing, batch, step_s / cost.transfer_s()))


@lru_cache(maxsize=256)
def replayed(
    system: System, model: ModelSizes, routing: Routing, batch: int, ahead_per_step: float | None = None
) -> Replayed:
    """The system's placement policy on a trace of the model; without prefetch it is the same for every machine."""
    layers, speculative = len(model.moe_layers), system == "specmoe"
    kept, placement = 0, None
    if speculative:
        kept = routing.draft_experts
        options = SpecOptions(
            gamma=routing.gamma,
            draft_experts=kept,
            placement="on-demand",
            selection=routing.selection,
            prefetch="none" if ahead_per_step is None else "draft",
        )
    else:
        options = SpecOptions(gamma=0, placement="on-demand")
    if system == "caching":
        kept = max(1, int(routing.caching_share * model.experts))
        placement = TopFraction(list(model.geometry.experts), kept)
    slots = layers * kept + model.experts  # a block's transfers fit beside what is kept
    made = trace(model, routing, batch, speculative)
    counts = use(made) if options.selection == "hot-global" else None
    return replay(made, options, slots * model.expert_bytes, counts, placement, ahead_per_step)


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


def use(made: Trace) -> list[torch.Tensor]:
    """How often target passes picked each expert: float [E] per layer."""
    return [
        torch.stack(
            [torch.bincount(p.picks[layer][p.valid].flatten(), minlength=experts).float() for p in made.target_passes]
        ).sum(0)
        for layer, experts in enumerate(made.geometry.experts)
    ]


def acceptance_for(tokens_per_step: float, gamma: int) -> float:
    """The acceptance a for which T(gamma) = (1 - a^(gamma + 1)) / (1 - a) is ``tokens_per_step``.

    Raises:
        ValueError: not between 1 and gamma + 1.
    """
    if not 1 <= tokens_per_step <= gamma + 1:
        raise ValueError(f"{tokens_per_step} tokens per step are impossible with gamma {gamma}: use 1 to {gamma + 1}")
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if expected_tokens(middle, gamma) < tokens_per_step else (low, middle)
    return (low + high) / 2


def expected_tokens(acceptance: float, gamma: int) -> float:
    """T(gamma), the expected tokens per step, for an acceptance per token."""
    return sum(acceptance**i for i in range(gamma + 1))


def coverage(model: ModelSizes, routing: Routing, batch: int) -> float:
    """Share of the draft gate's picks that are pinned experts."""
    return replayed("specmoe", model, routing, batch).coverage


def with_draft_experts(model: ModelSizes, routing: Routing, batch: int, draft_experts: int) -> Routing:
    """The same routing with another N; acceptance is linear in coverage.

    The line goes through two points: the routing's own N, and randomly pinned experts (``substitute_acceptance``),
    which cover N / E of the picks.
    """
    at_random = routing.draft_experts / model.experts
    gained = (routing.acceptance - routing.substitute_acceptance) / (coverage(model, routing, batch) - at_random)
    other = replace(routing, draft_experts=draft_experts)
    expected = routing.substitute_acceptance + gained * (coverage(model, other, batch) - at_random)
    return replace(other, acceptance=min(1.0, max(0.0, expected)))
