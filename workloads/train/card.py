"""The model card that stands beside the weights."""

from __future__ import annotations

from typing import Any

import torch

from workloads.model_card import LayerSkew
from workloads.train.corpus import Corpus
from workloads.train.recipe import Recipe


def render(
    recipe: Recipe,
    corpus: Corpus,
    result: dict[str, Any],
    skew: list[LayerSkew],
    samples: list[tuple[str, str]],
    parameters: int,
) -> str:
    """Markdown card: data, licence, recipe, losses, routing skew and sample continuations."""
    rows = "\n".join(
        f"| {s.layer} | {s.top_10_percent_share:.3f} | {s.gini:.3f} | {s.unused_experts} | {s.repeat_rate:.3f} |"
        for s in skew
    )
    shown = "\n".join(f"Prompt:\n\n```python\n{p}\n```\n\nContinuation:\n\n```python\n{c}\n```\n" for p, c in samples)
    mean_share = sum(s.top_10_percent_share for s in skew) / len(skew)
    return f"""# `{recipe.name}`: a small Qwen3-MoE trained from scratch

Loads with plain transformers: `AutoModelForCausalLM.from_pretrained(folder)`.

| fact | value |
|---|---|
| class | `Qwen3MoeForCausalLM`, {parameters / 1e6:.1f} M parameters, bf16 |
| shape | {recipe.layers} layers, hidden {recipe.hidden_size}, {recipe.experts} experts top-{recipe.experts_per_token}, expert intermediate size {recipe.expert_intermediate_size} |
| data | {corpus.source}, `.py` files; SHA-256 `{corpus.sha256}` |
| licence of the data | {corpus.licence} |
| tokenizer | byte-level BPE, {recipe.vocab_size} entries, trained on the training files |
| recipe | `python -m workloads.train {recipe.name} --out FOLDER`, seed {recipe.seed} |
| steps | {recipe.steps} of {recipe.sequences_per_step} x {recipe.sequence_length} tokens ({result["training_tokens"] / 1e6:.1f} M tokens) |
| time | {result["seconds"]:.0f} s on {torch.get_num_threads()} CPU threads (torch {torch.__version__}), shared with other work |
| final train loss | {result["train_loss_nats"]:.3f} nats per token |
| held-out loss | {result["held_out_loss_nats"]:.3f} nats per token (files never trained on) |
| load-balancing coefficient | {recipe.router_aux_loss_coef} |

The log of the run is `training_log.jsonl`. The weights depend on the interpreter's version through the corpus
checksum; another version trains another, equally valid model.

## Routing on held-out text

Top-10 % share: the part of all activations that falls on the most used tenth of the experts
(mean over layers {mean_share:.3f}). Repeat rate: the part of a token's experts that the token before it used too.

| layer | top-10 % share | Gini | unused experts | repeat rate |
|---|---|---|---|---|
{rows}

## Greedy continuations of held-out prompts

{shown}"""
