"""Write the trained weights in bf16, and the cards beside them."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from workloads.model_card import LayerSkew, ModelCard, sha256_of
from workloads.train import architectures, card, paper_classes
from workloads.train.batches import TrainingData
from workloads.train.corpus import Corpus
from workloads.train.recipe import Recipe
from workloads.train.routing import measure_skew
from workloads.train.samples import continuations, exact_share, prompts_loss

SHOWN = {True: 12, False: 3}  # samples on the card, of parallel and of plain text


def save_weights(model: PreTrainedModel, recipe: Recipe, folder: Path) -> None:
    """Save a bf16 copy of ``model`` in its class's layout, with its config and generation defaults."""
    if recipe.architecture == "nllb_moe":
        copied = type(model)(model.config)
        copied.load_state_dict(paper_classes.as_class_names(model.state_dict()))
    else:
        copied = copy.deepcopy(model)
    copied = copied.to(torch.bfloat16)
    copied.generation_config = architectures.generation_config(recipe)
    copied.save_pretrained(folder)


def publish(
    recipe: Recipe,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    data: TrainingData,
    result: dict[str, Any],
    prompt_file: Path,
    folder: Path,
) -> None:
    """Measure the weights saved in ``folder`` and write ``card.json`` and ``README.md`` beside them."""
    model = architectures.load_trained(recipe, folder)
    samples = continuations(model, tokenizer, prompt_file)
    described = _card(recipe, corpus, model, measure_skew(model, recipe, data.routed()), result, folder)
    if recipe.architecture in ("nllb_moe", "llama4"):
        described = replace(described, prompts_loss_nats=round(prompts_loss(model, tokenizer, prompt_file), 4))
    described.write(folder)
    exact = exact_share(samples) if corpus.pairs else None
    shown = samples[: SHOWN[bool(corpus.pairs)]]
    (folder / "README.md").write_text(card.render(recipe, corpus, described, shown, exact), encoding="utf-8")


def _card(
    recipe: Recipe,
    corpus: Corpus,
    model: PreTrainedModel,
    skew: list[LayerSkew],
    result: dict[str, Any],
    folder: Path,
) -> ModelCard:
    weights = folder / "model.safetensors"
    with safe_open(weights, "pt") as opened:
        sizes = {key: math.prod(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118
    return ModelCard(
        name=recipe.name,
        architecture=type(model).__name__,
        parameters=sum(sizes.values()),
        expert_parameters=sum(size for key, size in sizes.items() if ".experts." in key),
        layers=recipe.layers,
        moe_layers=len(skew),
        experts=recipe.experts,
        experts_per_token=recipe.experts_per_token,
        shared_expert=recipe.shared_expert_intermediate_size > 0,
        data=corpus.source,
        licence=corpus.licence,
        data_sha256=corpus.sha256,
        weights_sha256=sha256_of(weights),
        steps=recipe.steps,
        training_tokens=result["training_tokens"],
        cpu_s=round(result["cpu_s"]),
        train_loss_nats=round(result["train_loss_nats"], 4),
        held_out_loss_nats=round(result["held_out_loss_nats"], 4),
        routing=skew,
    )
