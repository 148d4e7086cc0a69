"""The model card for people, in Markdown."""

from __future__ import annotations

import torch

from workloads.model_card import ModelCard
from workloads.train.catalogues import SOURCE_TAG, TARGET_TAG
from workloads.train.corpus import Corpus
from workloads.train.pairs import split
from workloads.train.recipe import Recipe
from workloads.train.samples import LOSS_PROMPTS, Sample

_REMARKS = {
    "scout-like": """
Llama 4's own module is not used: it computes its experts as one batched matrix product, without transformers' experts
interface, which every system here hooks into. Qwen2-MoE has the same geometry behind that interface: routed experts
beside a shared expert that processes every token. Remaining differences: Llama 4 weighs the chosen expert's input
with a sigmoid; Qwen2-MoE weighs its output with the softmax probability, and also gates the shared expert.
""",
    "nllb-like": """
NLLB-MoE itself is an encoder-decoder with experts in every fourth layer; this model is a decoder that reads
`<en> message <fr>` and writes the translation, with experts in the same layers, the same number of experts and the
same two experts per token.
""",
    "nllb-moe-like": """
An encoder-decoder in NLLB-MoE's own class, with its tokens: a source is `eng_Latn message </s>` (the tokenizer adds
both), the decoder starts from `</s>`, and `forced_bos_token_id` in `generation_config.json` makes `fra_Latn` its first
token. Trained without label smoothing and without dropout of any kind (`moe_token_dropout` is 0). In training an expert
takes at most 64 tokens of a step (`expert_capacity`, the class's default), in evaluation as many as there are
(`moe_eval_capacity_token_fraction` 1.0, the class's default), so a batch gives the same tokens as its rows alone.

`NllbMoeSparseMLP` in transformers 5.24 takes the router's mask of zeros and ones for expert indices and computes experts
0 and 1 only. This model was trained with the two experts of 128 that the router picks, as published (fairseq and
transformers 4), and its `config.json` says so for this project's engine: `"experts_follow_router": true`. With plain
transformers 5.24, correct the loaded model:

```python
model = AutoModelForSeq2SeqLM.from_pretrained(folder)
specmoe.model.families.nllb_moe.follow_router(model)
```
""",
    "llama4-like": """
Llama 4's own class: one routed expert per token, its input weighted by a sigmoid, beside a shared expert of the same
width; queries and keys normalised; every fourth layer without rotary positions and with full attention, the other
layers with attention within chunks of 64 tokens (Llama-4-Scout: 8192).
""",
}


def render(recipe: Recipe, corpus: Corpus, card: ModelCard, samples: list[Sample], exact: float | None) -> str:
    """The card: data, licence, recipe, losses, routing skew and samples."""
    rows = "\n".join(
        f"| {s.layer} | {s.top_10_percent_share:.3f} | {s.gini:.3f} | {s.unused_experts} | {s.repeat_rate:.3f} |"
        for s in card.routing
    )
    return f"""# `{recipe.name}`: {recipe.summary}

Constructed for this project: trained from scratch by the recipe below, not a published model. Loads with plain
transformers: `{"AutoModelForSeq2SeqLM" if recipe.encoder_layers else "AutoModelForCausalLM"}.from_pretrained(folder)`.
{_REMARKS.get(recipe.name, "")}
| fact | value |
|---|---|
| class | `{card.architecture}`, {card.parameters / 1e6:.1f} M parameters, {card.expert_parameters / 1e6:.1f} M of them in routed experts, bf16 |
| shape | {_shape(recipe)} |
| data | {corpus.source}; SHA-256 of the text `{corpus.sha256}` |
| licence of the data | {corpus.licence} |
| tokenizer | byte-level BPE, {recipe.vocab_size} entries, trained on the training text |
| recipe | `python -m workloads.train {recipe.name} --out FOLDER`, seed {recipe.seed} |
| steps | {_steps(recipe)} ({card.training_tokens / 1e6:.1f} M tokens) |
| time | {card.cpu_s} CPU seconds on {torch.get_num_threads()} threads (torch {torch.__version__}) |
| final train loss | {card.train_loss_nats:.3f} nats per token |
| held-out loss | {card.held_out_loss_nats:.3f} nats per token ({_held_out(recipe, corpus)}) |{_prompts_loss(recipe, card)}
| load-balancing coefficient | {recipe.router_aux_loss_coef} |
| SHA-256 of the weights | `{card.weights_sha256}` |

The training log is `training_log.jsonl`. On other versions of the data the recipe prints a note and trains a different,
equally valid model.

## Routing on held-out text

Top-10 % share: the share of activations on the most used tenth of the experts, rounded up to whole experts
(mean over layers {card.mean_top_10_percent_share():.3f}; uniform use would give {-(-recipe.experts // 10) / recipe.experts:.3f}). Gini: 0 when all
experts are used equally, 1 when one does everything. Repeat rate (temporal locality): the share of a token's experts
that the previous token used too. The same figures are in `card.json`.

| layer | top-10 % share | Gini | unused experts | repeat rate |
|---|---|---|---|---|
{rows}

{_translations(samples, exact) if exact is not None else _continuations(samples, recipe)}"""


def _steps(recipe: Recipe) -> str:
    if recipe.encoder_layers:
        return f"{recipe.steps} of {recipe.sequences_per_step} pairs"
    return f"{recipe.steps} of {recipe.sequences_per_step} x {recipe.sequence_length} tokens"


def _prompts_loss(recipe: Recipe, card: ModelCard) -> str:
    if card.prompts_loss_nats is None:
        return ""
    what = f"the first {LOSS_PROMPTS} prompts" + ("' references" if recipe.encoder_layers else "")
    return f"\n| loss on {what} | {card.prompts_loss_nats:.3f} nats per token, of the weights in bf16 as committed |"


def _shape(recipe: Recipe) -> str:
    decoder = recipe.layers - recipe.encoder_layers
    layers = f"{recipe.encoder_layers} encoder and {decoder} decoder" if recipe.encoder_layers else str(recipe.layers)
    moe = "every layer" if recipe.sparse_step == 1 else f"every {recipe.sparse_step}th layer, dense between"
    shared = recipe.shared_expert_intermediate_size
    return (
        f"{layers} layers, hidden {recipe.hidden_size}, {recipe.experts} experts "
        f"top-{recipe.experts_per_token} in {moe}, expert intermediate size {recipe.expert_intermediate_size}"
        + (f", a shared expert of {shared}" if shared else "")
    )


def _held_out(recipe: Recipe, corpus: Corpus) -> str:
    if not corpus.pairs:
        return "files never trained on"
    if recipe.encoder_layers:
        return "messages never trained on; tokens of the translation and its end"
    return (
        f"messages never trained on; tokens of the English side count {recipe.source_loss_weight} here and in training"
    )


def _continuations(samples: list[Sample], recipe: Recipe) -> str:
    language = "python" if recipe.data == "standard-library" else "rst"
    shown = "\n".join(
        f"Prompt:\n\n```{language}\n{s.prompt}\n```\n\nContinuation:\n\n```{language}\n{s.continuation}\n```\n"
        for s in samples
    )
    return f"## Greedy continuations of held-out prompts\n\n{shown}"


def _translations(samples: list[Sample], exact: float) -> str:
    rows = "\n".join(
        f"| {_cell(split(s.prompt, (SOURCE_TAG, TARGET_TAG))[0])} | {_cell(s.continuation)} | {_cell(s.reference or '')} |"
        for s in samples
    )
    return f"""## Greedy translations of held-out messages

The first prompts of the set, not selected; {exact:.1%} of all its translations equal the catalogue's exactly.

| English | the model's French | the catalogue's French |
|---|---|---|
{rows}
"""


def _cell(text: str) -> str:
    return text.strip().replace("|", "\\|").replace("\n", " ")
