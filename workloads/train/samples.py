"""Greedy continuations of held-out prompts by the trained model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from workloads.train.tokens import END_OF_TEXT

NEW_TOKENS = 64
LOSS_PROMPTS = 64
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
    samples: list[Sample] = []
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        texts = [row["text"] for row in part]
        answers = (
            _answers(model, tokenizer, texts) if model.config.is_encoder_decoder else _rest(model, tokenizer, texts)
        )
        samples += [Sample(row["text"], text, row.get("reference")) for row, text in zip(part, answers, strict=True)]
    return samples


def _rest(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[str]:
    encoded = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
    width = encoded["input_ids"].shape[1]
    output = model.generate(
        encoded["input_ids"],
        attention_mask=encoded["attention_mask"],
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        pad_token_id=0,
    )
    return [tokenizer.decode(ids).split(END_OF_TEXT)[0] for ids in output[:, width:]]


def _answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[str]:
    encoded = tokenizer(texts, return_tensors="pt", padding=True)
    output = model.generate(
        input_ids=encoded["input_ids"],
        attention_mask=encoded["attention_mask"],
        max_length=1 + NEW_TOKENS,
        do_sample=False,
    )
    return [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in output]


def exact_share(samples: list[Sample]) -> float:
    """Share of the samples that equal their reference, ignoring surrounding white space."""
    return sum(s.continuation.strip() == (s.reference or "").strip() for s in samples) / len(samples)


@torch.no_grad()
def prompts_loss(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompt_file: Path) -> float:
    """Mean loss (nats per token) on the first 64 prompts; of a translator on their references, after the language."""
    total, tokens = 0.0, 0
    for line in prompt_file.read_text(encoding="utf-8").splitlines()[:LOSS_PROMPTS]:
        row = json.loads(line)
        inputs = tokenizer(row["text"], return_tensors="pt")
        if model.config.is_encoder_decoder:
            target = tokenizer(row["reference"], add_special_tokens=False)["input_ids"]
            language = model.generation_config.forced_bos_token_id
            seen = torch.tensor([[model.config.decoder_start_token_id, language, *target]])
            logits = model(**inputs, decoder_input_ids=seen).logits[0, 1:]
            labels = torch.tensor([*target, model.config.eos_token_id])
        else:
            logits, labels = model(inputs["input_ids"]).logits[0, :-1], inputs["input_ids"][0, 1:]
        total += float(F.cross_entropy(logits, labels, reduction="sum"))
        tokens += len(labels)
    return total / tokens
