"""Greedy continuations of held-out prompts by the trained model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from workloads.train.tokens import END_OF_TEXT

NEW_TOKENS = 64
BATCH = 32


@dataclass(frozen=True)
class Sample:
    """A prompt, its greedy continuation up to the end of the text, and the reference where there is one."""

    prompt: str
    continuation: str
    reference: str | None


@torch.no_grad()
def continuations(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompt_file: Path) -> list[Sample]:
    """Continue every prompt of the file by up to 64 tokens."""
    rows = [json.loads(line) for line in prompt_file.read_text(encoding="utf-8").splitlines()]
    samples = []
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        encoded = tokenizer([row["text"] for row in part], return_tensors="pt", padding=True, padding_side="left")
        width = encoded["input_ids"].shape[1]
        output = model.generate(
            encoded["input_ids"],
            attention_mask=encoded["attention_mask"],
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=0,
        )
        for row, ids in zip(part, output[:, width:], strict=True):
            text = tokenizer.decode(ids).split(END_OF_TEXT)[0]
            samples.append(Sample(row["text"], text, row.get("reference")))
    return samples


def exact_share(samples: list[Sample]) -> float:
    """Share of the samples that equal their reference, ignoring surrounding white space."""
    return sum(s.continuation.strip() == (s.reference or "").strip() for s in samples) / len(samples)
