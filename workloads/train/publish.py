"""Write the trained weights in bf16 with their card."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3MoeForCausalLM

from workloads.train import card
from workloads.train.corpus import Corpus
from workloads.train.recipe import Recipe
from workloads.train.routing import measure_skew


def save_weights(model: Qwen3MoeForCausalLM, folder: Path) -> None:
    """Save a bf16 copy of ``model`` with its config."""
    copied = copy.deepcopy(model).to(torch.bfloat16)
    copied.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=0, pad_token_id=0)
    copied.save_pretrained(folder)


def publish(
    recipe: Recipe,
    corpus: Corpus,
    model: Qwen3MoeForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    held_out: NDArray[np.uint16],
    result: dict[str, Any],
    prompt_file: Path,
    folder: Path,
) -> None:
    """Save weights, ``result.json`` and ``README.md`` (the card) into ``folder``."""
    save_weights(model, folder)
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    reloaded = Qwen3MoeForCausalLM.from_pretrained(folder, dtype=torch.float32)
    skew = measure_skew(reloaded, held_out)
    samples = []
    for line in prompt_file.read_text().splitlines()[:3]:
        prompt = json.loads(line)["text"]
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        output = reloaded.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=64, do_sample=False)
        samples.append((prompt, tokenizer.decode(output[0, ids.shape[1] :])))
    parameters = sum(p.numel() for p in reloaded.parameters())
    (folder / "README.md").write_text(card.render(recipe, corpus, result, skew, samples, parameters))
