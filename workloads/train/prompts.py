"""Held-out prompts: windows of held-out files that start at a line start, or messages to translate."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from workloads.train.corpus import Corpus, Pair
from workloads.train.pairs import split

COUNT = 320
MIN_TOKENS, MAX_TOKENS = 24, 64
MIN_MESSAGE_TOKENS = 8


def write_prompts(
    corpus: Corpus, tokenizer: PreTrainedTokenizerFast, path: Path, seed: int, tagged: bool = True
) -> int:
    """Write ``COUNT`` held-out prompts as JSON lines (id, text, tokens and origin); returns their number.

    Prompts are windows of 24 to 64 tokens of plain text, or messages of 8 to 64 tokens of parallel text, in the
    corpus's tags unless ``tagged`` is false.
    """
    rows = (
        _messages(corpus.pairs, tokenizer, seed, () if tagged else corpus.tags)
        if corpus.pairs
        else _windows(corpus.held_out, tokenizer, seed, {"source": corpus.source, "licence": corpus.licence})
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return len(rows)


def _messages(
    pairs: list[Pair], tokenizer: PreTrainedTokenizerFast, seed: int, without: Sequence[str]
) -> list[dict[str, object]]:
    """The pairs as prompts, their messages alone where there are tags to leave out (``without``)."""
    generator = np.random.default_rng(seed)
    rows: list[dict[str, object]] = []
    for choice in generator.permutation(len(pairs)):
        pair = pairs[choice]
        text = split(pair.prompt, without)[0] if without else pair.prompt
        tokens = len(tokenizer(text)["input_ids"])
        if MIN_MESSAGE_TOKENS <= tokens <= MAX_TOKENS and len(rows) < COUNT:
            row = {"id": f"held-out-{len(rows):03d}", "text": text, "tokens": tokens}
            rows.append(row | {"reference": pair.reference, "source": pair.package, "licence": pair.licence})
    return rows


def _windows(
    documents: list[str], tokenizer: PreTrainedTokenizerFast, seed: int, origin: dict[str, object]
) -> list[dict[str, object]]:
    generator = np.random.default_rng(seed)
    weights = np.array([len(d) for d in documents], dtype=float)
    seen: set[str] = set()
    rows: list[dict[str, object]] = []
    while len(rows) < COUNT:
        text = documents[generator.choice(len(documents), p=weights / weights.sum())]
        lines = text.splitlines(keepends=True)
        first = int(generator.integers(0, max(1, len(lines) - 12)))
        window = "".join(lines[first : first + 40]).lstrip("\n")
        ids = tokenizer(window)["input_ids"][: int(generator.integers(MIN_TOKENS, MAX_TOKENS + 1))]
        prompt = tokenizer.decode(ids)
        tokens = len(tokenizer(prompt)["input_ids"])
        if tokens < MIN_TOKENS or tokens > MAX_TOKENS or prompt in seen or "\ufffd" in prompt:
            continue
        seen.add(prompt)
        rows.append({"id": f"held-out-{len(rows):03d}", "text": prompt, "tokens": tokens} | origin)
    return rows
