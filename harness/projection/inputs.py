"""Routing inputs of each model with their origin: one set per model, the same for every row of the table."""

from __future__ import annotations

from dataclasses import dataclass

from harness.projection.hardware import H100_PCIE5, Hardware, Input, Origin
from harness.projection.models import PUBLIC, ModelSizes
from harness.projection.scenario import Routing, acceptance_for
from harness.projection.traces.synthetic import Skew
from reports.results import paper


@dataclass(frozen=True)
class ModelInputs:
    """A model, its routing, and the origin of each number."""

    model: ModelSizes
    routing: Routing
    inputs: tuple[Input, ...]


_PAPER_SKEW = "the paper's skewness, read as the Gini coefficient of expert use (the paper's definition is not known)"
_CHANCE = "no more than chance: the paper gives no figure for locality"


def _inputs(routing: Routing, origins: dict[str, tuple[Origin, str]]) -> tuple[Input, ...]:
    values: dict[str, tuple[float, str]] = {
        "skew": (routing.skew.value, routing.skew.measure),
        "repeat": (routing.repeat, "probability"),
        "correlation": (routing.correlation, "probability"),
        "acceptance": (routing.acceptance, "probability"),
        "gamma": (routing.gamma, "tokens"),
        "draft experts": (routing.draft_experts, "experts"),
        "substitute acceptance": (routing.substitute_acceptance, "probability"),
        "caching share": (routing.caching_share, "share"),
        "context": (routing.context, "tokens"),
    }
    defaults: dict[str, tuple[Origin, str]] = {
        "repeat": ("assumed", _CHANCE),
        "correlation": ("assumed", _CHANCE),
        "caching share": ("paper", "10 % of the experts of each block"),
        "substitute acceptance": ("assumed", "not used: N is not varied for this model"),
    }
    known = defaults | origins
    return tuple(Input(name, value, unit, *known[name]) for name, (value, unit) in values.items())


def nllb() -> ModelInputs:
    """NLLB-MoE: skew, acceptance, gamma and N are the paper's."""
    gamma, tokens = paper.model("nllb-moe").gamma, paper.figure("n-sweep.4.tokens").value
    skew, at_random = Skew("gini", paper.model("nllb-moe").skewness), paper.figure("selection.random.tokens").value
    routing = Routing(
        skew, 0.0, 0.0, acceptance_for(tokens, gamma), gamma, 4, acceptance_for(at_random, gamma), context=64
    )
    origins: dict[str, tuple[Origin, str]] = {
        "skew": ("paper", _PAPER_SKEW),
        "acceptance": ("paper", f"gives T(10) = {tokens}"),
        "substitute acceptance": ("paper", f"gives T(10) = {at_random}, of pinned experts chosen at random"),
        "gamma": ("paper", ""),
        "draft experts": ("paper", ""),
        "context": ("assumed", "sentences"),
    }
    return ModelInputs(PUBLIC["nllb-moe"], routing, _inputs(routing, origins))


def _low_hotness(name: str, draft_experts: int, acceptance_note: str) -> ModelInputs:
    """Mixtral or Scout: the paper gives neither N nor acceptance, so both are assumed."""
    gamma, skew = paper.model(name).gamma, Skew("gini", paper.model(name).skewness)
    routing = Routing(skew, 0.0, 0.0, 0.672, gamma, draft_experts, context=1000)
    origins: dict[str, tuple[Origin, str]] = {
        "skew": ("paper", _PAPER_SKEW),
        "acceptance": ("assumed", acceptance_note),
        "gamma": ("paper", ""),
        "draft experts": ("assumed", "a quarter of a block; the paper's N for this model is not known"),
        "context": ("assumed", "news articles"),
    }
    return ModelInputs(PUBLIC[name], routing, _inputs(routing, origins))


def mixtral() -> ModelInputs:
    return _low_hotness(
        "mixtral-8x7b", 2, "a public re-implementation's 0.672, with N = 6 of 8: the only figure there is"
    )


def scout() -> ModelInputs:
    return _low_hotness("llama-4-scout", 4, "Mixtral's of a public re-implementation: there is none for this model")


def _fine_grained(name: str) -> ModelInputs:
    """Models that are not in the paper: for the table of machines only."""
    routing = Routing(Skew("gini", 0.6), 0.2, 0.0, 0.342, 5, 16, context=500)
    origins: dict[str, tuple[Origin, str]] = {
        "skew": ("assumed", "between the paper's models"),
        "repeat": ("assumed", "about what the trained models here have"),
        "acceptance": ("assumed", "a public re-implementation's on Qwen3-30B-A3B with N = 16 of 128"),
        "gamma": ("assumed", ""),
        "draft experts": ("assumed", "as that re-implementation"),
        "context": ("assumed", ""),
    }
    return ModelInputs(PUBLIC[name], routing, _inputs(routing, origins))


def of_model(name: str) -> ModelInputs:
    """The inputs of a named model.

    Raises:
        ValueError: no such model.
    """
    if name not in PUBLIC:
        raise ValueError(f"unknown model {name!r}: use {', '.join(PUBLIC)}")
    known = {"nllb-moe": nllb, "mixtral-8x7b": mixtral, "llama-4-scout": scout}
    return known[name]() if name in known else _fine_grained(name)


def paper_machine() -> Hardware:
    """The paper's H100 with the link rate that the paper's own figures imply.

    OnDemand takes 256 / 28.6 s per step, 90.11 % of it for the migration of 28 GB: 3.5 GB/s, an eighteenth of the
    nominal 64 GB/s (as with pageable copies of one expert at a time).
    """
    step_s = paper.BATCH_SIZES[-1] / paper.figure("throughput.on-demand").value
    share = paper.figure("problem.migration-share").value / 100
    rate = paper.figure("problem.bytes-per-step").value / (step_s * share)
    note = "implied by 28.6 tok/s at batch 256, 90.11 % of time on migration, 28 GB per step; nominal is 64"
    return H100_PCIE5.with_link(rate, "paper", note)


def ssd_machine() -> Hardware:
    """The paper's SSD tier; its drive and rate are unknown, so the rate is assumed."""
    return H100_PCIE5.with_link(
        2.0, "assumed", "SSD to host to GPU through the page cache; the paper's drive is not known"
    )
