"""Write the trained weights in bf16, and the cards beside them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from workloads.model_card import ModelCard, sha256_of
from workloads.train import card
from workloads.train.corpus import Corpus
from workloads.train.recipe import Recipe
from workloads.train.routing import measure_skew
from workloads.train.samples import continuations, exact_share

SHOWN = {True: 12, False: 3}  # samples on the card, of parallel and of plain text


def save_weights(model: PreTrainedModel, folder: Path) -> None:
    """Save a bf16 copy of ``model`` with its config."""
    copied = copy.deepcopy(model).to(torch.bfloat16)
    copied.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=0, pad_token_id=0)
    copied.save_pretrained(folder)


def publish(
    recipe: Recipe,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    held_out: NDArray[np.uint16],
    result: dict[str, Any],
    prompt_file: Path,
    folder: Path,
) -> None:
    """Measure the weights saved in ``folder`` and write ``card.json`` and ``README.md`` beside them."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    samples = continuations(model, tokenizer, prompt_file)
    described = _card(recipe, corpus, model, held_out, result, folder)
    described.write(folder)
    exact = exact_share(samples) if corpus.pairs else None
    shown = samples[: SHOWN[bool(corpus.pairs)]]
    (folder / "README.md").write_text(card.render(recipe, corpus, described, shown, exact), encoding="utf-8")


def _card(
    recipe: Recipe,
    corpus: Corpus,
    model: PreTrainedModel,
    held_out: NDArray[np.uint16],
    result: dict[str, Any],
    folder: Path,
) -> ModelCard:
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    skew = measure_skew(model, held_out)
    return ModelCard(
        name=recipe.name,
        architecture=type(model).__name__,
        parameters=sum(p.numel() for p in model.parameters()),
        expert_parameters=experts,
        layers=recipe.layers,
        moe_layers=len(skew),
        experts=recipe.experts,
        experts_per_token=recipe.experts_per_token,
        shared_expert=recipe.shared_expert_intermediate_size > 0,
        data=corpus.source,
        licence=corpus.licence,
        data_sha256=corpus.sha256,
        weights_sha256=sha256_of(folder / "model.safetensors"),
        steps=recipe.steps,
        training_tokens=result["training_tokens"],
        cpu_s=round(result["cpu_s"]),
        train_loss_nats=round(result["train_loss_nats"], 4),
        held_out_loss_nats=round(result["held_out_loss_nats"], 4),
        routing=skew,
    )
