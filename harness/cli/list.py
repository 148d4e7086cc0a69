"""``specmoe-bench list``."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from baselines.contract import CapabilityCard
    from workloads.models import ModelSpec


BFLOAT16_BYTES = 2


def command(
    sections: Annotated[
        list[str] | None, typer.Argument(metavar="SECTION", help="systems, models, workloads, presets, suites.")
    ] = None,
) -> None:
    """List systems, models, workloads, presets and suites.

    Without a section all are listed.
    """
    for section in sections or ():
        if section not in SECTIONS:
            raise ValueError(f"nothing to list under {section!r}: use {', '.join(SECTIONS)}")
    for section in sections or SECTIONS:
        print(section)
        for line in SECTIONS[section]():
            print(f"  {line}")


def systems() -> list[str]:
    """Each system with its capabilities and the defaults of its options."""
    from baselines import registry

    lines = []
    for name, system in registry.systems().items():
        card = system.card
        lines.append(f"{name:20} {card.summary}")
        lines.append(f"{'':20} moves {card.grain}; tiers {', '.join(card.tiers)}; {', '.join(_facts(card))}")
        for option, field in system.Options.model_fields.items():
            lines.append(f"{'':20}   {option} = {field.default!r}")
    return lines


def models() -> list[str]:
    """Each model with its size, routing skew and whether it is built; then the other ways to name one."""
    from workloads.models import catalogue

    head = f"{'':20} {'parameters':>11} {'experts, bf16':>13} {'experts':>12} {'top-10 %':>9} {'Gini':>5} {'repeat':>7}"
    lines = [f"{head}  state"]
    for spec in catalogue():
        lines += [f"{spec.name:20} {_figures(spec)}  {_state(spec)}", f"{'':20}   {spec.summary}; {spec.licence}"]
    return [
        *lines,
        f"{'NAME-xF':20} any of these with experts F times wider (F a power of two) that compute the same function",
        f"{'FOLDER, OWNER/NAME':20} any Hugging Face MoE checkpoint in safetensors, on disk or on the hub",
        "top-10 %: share of activations on the most used tenth of a layer's experts; repeat: share of the experts of",
        "a token that the previous token used; measured on held-out text, mean over MoE layers (see the model's card)",
    ]


def workloads() -> list[str]:
    """Each prompt set with its size, median length and origin; then the other ways to name one."""
    from tokenizers import Tokenizer

    from workloads import prompts
    from workloads.models import path
    from workloads.rendering import whole_text

    tokenizer = Tokenizer.from_file(str(path("embedded") / "tokenizer.json"))
    lines = [f"{'':20} {'prompts':>8} {'median tokens':>14}"]
    for name, described in prompts.catalogue().items():
        loaded = prompts.load(name)
        texts = [whole_text(prompt) for prompt in loaded]
        tokens = statistics.median(len(encoded.ids) for encoded in tokenizer.encode_batch(texts))
        kinds = ", ".join(dict.fromkeys(prompt.category for prompt in loaded))
        lines.append(f"{name:20} {len(loaded):8} {tokens:14.0f}  {described.title}")
        lines.append(f"{'':20}   {kinds}; {described.language}; {described.source}; {described.licence}")
    return [
        *lines,
        f"{'FILE.jsonl':20} your own prompts, or Spec-Bench's questions (docs/workloads.md)",
        f"{'hf:NAME':20} any data set as hf:NAME[:CONFIG]:SPLIT:FIELD; for cnn_dailymail and wmt14 the name is enough",
        "median tokens: by the embedded model's tokenizer, trained on Python code, which splits prose into more tokens",
    ]


def presets() -> list[str]:
    """Each preset with what it runs."""
    from harness.plan import loader

    return [f"{name:22} {e.title}: {e.model}, batch {e.batch_sizes}" for name, e in loader.presets().items()]


def suites() -> list[str]:
    """Each suite with how many experiments it holds and how long it may take."""
    from harness.plan import loader
    from harness.plan.estimate import extent

    return [f"{name:22} {suite.title}; {extent(suite)}" for name, suite in loader.suites().items()]


SECTIONS: dict[str, Callable[[], list[str]]] = {
    "systems": systems,
    "models": models,
    "workloads": workloads,
    "presets": presets,
    "suites": suites,
}


def _figures(spec: ModelSpec) -> str:
    card = spec.card()
    if card is None:
        return f"{'-':>11} {'-':>13} {'-':>12} {'-':>9} {'-':>5} {'-':>7}"
    share, gini, repeat = card.mean_top_10_percent_share(), card.mean_gini(), card.mean_repeat_rate()
    shape = f"{card.experts} top-{card.experts_per_token}{' + shared' if card.shared_expert else ''}"
    skew = " ".join(
        f"{'-' if value is None else format(value, '.2f'):>{width}}"
        for value, width in ((share, 9), (gini, 5), (repeat, 7))
    )
    parameters = f"{card.parameters / 1e6:.1f} M"
    expert_bytes = f"{card.expert_parameters * BFLOAT16_BYTES / 1e6:.1f} MB"
    return f"{parameters:>11} {expert_bytes:>13} {shape:>12} {skew}"


def _state(spec: ModelSpec) -> str:
    if spec.is_built():
        return "built"
    return "built on first use" if spec.on_use else f"not built: specmoe-bench models build {spec.name}"


def _facts(card: CapabilityCard) -> list[str]:
    """What a user should know about a system before comparing it."""
    facts = [f"kind {card.kind}", "lossless" if card.lossless else "lossy", *card.sampling]
    facts.append("keeps to the expert budget itself" if card.knows_budget else "limited by the process limit")
    if not card.limited:
        facts[-1] = "runs without a limit"
    facts.append("requests of a queue join others" if card.joins_rows else "a queue in static batches")
    if card.own_process:
        facts.append("engine in its own process")
    if card.only_written_for:
        facts.append(f"written for {', '.join(card.only_written_for)}, not run there")
    if card.external:
        facts.append("a server that its user starts")
    if card.extra:
        facts.append(f"needs pip install 'specmoe-bench[{card.extra}]'")
    return facts
