"""Held-out prefixes as prompts: windows of held-out files that start at a line start."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

COUNT = 320
MIN_TOKENS, MAX_TOKENS = 24, 64


def write_prompts(documents: list[str], tokenizer: PreTrainedTokenizerFast, path: Path, seed: int) -> int:
    """Write ``COUNT`` prompts of 24 to 64 tokens as JSON lines (id, text, tokens); returns how many."""
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
        rows.append({"id": f"held-out-{len(rows):03d}", "text": prompt, "tokens": tokens})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return len(rows)
