"""One system on one model, machine and batch, from synthetic traces: the paper's four systems."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import torch

from harness.projection.cost import Cost
from harness.projection.hardware import Hardware
from harness.projection.models import ModelSizes
from harness.projection.replay import Replayed, replay
from harness.projection.timeline import Overlap, Timed, Timeline
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
"""The paper's systems migrate, then compute; only its oracle hides one behind the other."""


@dataclass(frozen=True)
class Routing:
    """What a model's routing and acceptance are taken to be: one set per model, for every row of the table.

    ``acceptance`` is the chance that a drafted token is accepted once those before it are, with this N;
    ``substitute_acceptance`` that chance where pinned experts are chosen at random, so that nearly every pick has
    another expert stand in; ``context`` the mean number of tokens in a row's KV cache.
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
        """Cycles simulated: few for large batches, which are their own average."""
        return max(6, min(96, 384 // batch))

    def steps(self, batch: int) -> int:
        """Decode steps simulated without a draft."""
        return max(16, min(192, 768 // batch))


def run(system: System, model: ModelSizes, routing: Routing, machine: Hardware, batch: int) -> Timed:
    """Project the decode phase of one system."""
    timeline = Timeline(Cost(machine, model, routing.context), OVERLAP[system])
    return timeline.run(replayed(system, model, routing, batch))


def run_with_prefetch(model: ModelSizes, routing: Routing, machine: Hardware, batch: int) -> Timed:
    """SpecMoE with an ideal prefetch, beyond the paper: beside a draft step comes what it has time for."""
    cost = Cost(machine, model, routing.context)
    plain = replayed("specmoe", model, routing, batch)
    steps = sum(p.source.phase == "draft" for p in plain.passes)
    step_s = Timeline(cost, "pipelined").run(plain).draft_s / max(1, steps)
    return Timeline(cost, "pipelined").run(replayed("specmoe", model, routing, batch, step_s / cost.transfer_s()))


@lru_cache(maxsize=256)
def replayed(
    system: System, model: ModelSizes, routing: Routing, batch: int, ahead_per_step: float | None = None
) -> Replayed:
    """The system's placement policy over a trace of the model; without prefetch the same for every machine."""
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
    slots = layers * kept + model.experts  # whatever a block moves has room beside what stays
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
    """How often target passes picked each expert, [E] per layer."""
    return [
        torch.stack(
            [torch.bincount(p.picks[layer][p.valid].flatten(), minlength=experts).float() for p in made.target_passes]
        ).sum(0)
        for layer, experts in enumerate(made.geometry.experts)
    ]


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
    """The same routing with another N: acceptance on the line over coverage through the routing's two points.

    One point is its own N, the other the random choice (``substitute_acceptance``), which covers N / E of picks.
    """
    at_random = draft_experts_share(model, routing)
    gained = (routing.acceptance - routing.substitute_acceptance) / (coverage(model, routing, batch) - at_random)
    other = replace(routing, draft_experts=draft_experts)
    expected = routing.substitute_acceptance + gained * (coverage(model, other, batch) - at_random)
    return replace(other, acceptance=min(1.0, max(0.0, expected)))


def draft_experts_share(model: ModelSizes, routing: Routing) -> float:
    """What pinned experts cover when they are chosen at random."""
    return routing.draft_experts / model.experts
