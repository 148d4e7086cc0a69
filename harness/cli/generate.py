"""``specmoe-bench generate``: text in, text out as it becomes certain, and what it cost."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command; those of the algorithm go through ``--option NAME=VALUE``."""
    parser.add_argument("prompt", nargs="+", help="one text, or several as a batch")
    parser.add_argument("--model", default="embedded", help="model name or folder (default: embedded)")
    parser.add_argument("--gamma", type=int, default=5, help="draft tokens per cycle, 0 for none (default: 5)")
    parser.add_argument("--draft-experts", type=int, default=8, help="pinned experts per layer (default: 8)")
    parser.add_argument("--expert-budget", default="25%", help="bytes, 400MB or a share (default: 25%%)")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="any option of SpecOptions")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--sample", action="store_true", help="draw tokens instead of taking the most likely")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trace", type=Path, help="write a Chrome/Perfetto trace to this JSON file")


def run(args: argparse.Namespace) -> None:
    """Generate and print; one prompt streams, several print when done.

    Raises:
        ValueError: a malformed option or size, or an unknown model.
        SpecMoEError: what loading or the options raise.
    """
    import torch
    from transformers import AutoTokenizer

    from specmoe import SpecMoE, SpecOptions, Timeline
    from workloads import models

    options = SpecOptions.of(gamma=args.gamma, draft_experts=args.draft_experts, **parse_options(args.option))
    folder = models.path(args.model)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    encoded = tokenizer(args.prompt, return_tensors="pt", padding=True)
    timeline = Timeline(enabled=args.trace is not None)
    printer = _Printer(tokenizer, args.prompt[0]) if len(args.prompt) == 1 else None
    with SpecMoE.from_pretrained(
        folder,
        expert_budget=args.expert_budget,
        options=options,
        dtype=torch.float32,
        store=models.store_path(args.model, "float32"),
    ) as model:
        output = model.generate(
            encoded["input_ids"],
            encoded["attention_mask"],
            max_new_tokens=args.max_new_tokens,
            do_sample=args.sample,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            seed=args.seed,
            on_tokens=printer,
            timeline=timeline,
        )
    assert output.sequences is not None
    assert output.stats is not None
    for text in [""] if printer else tokenizer.batch_decode(output.sequences, skip_special_tokens=True):
        print(text)
    if args.trace is not None:
        timeline.save(args.trace)
    stats = output.stats
    rate = stats.decode_tokens / stats.decode.seconds if stats.decode.seconds else float("nan")
    print(
        f"{rate:.1f} tok/s, {stats.tokens_per_step:.2f} tokens per step, "
        f"{stats.decode.link.moved_bytes / 1e6:.1f} MB moved while decoding",
        file=sys.stderr,
    )


class _Printer:
    """Prints one row's text as far as it is settled: a multi-byte character waits for its last token."""

    def __init__(self, tokenizer: Any, prompt: str) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = 0
        print(prompt, end="", flush=True)

    def __call__(self, row: int, tokens: list[int]) -> None:
        self._ids.extend(tokens)
        text = str(self._tokenizer.decode(self._ids, skip_special_tokens=True))
        if not text.endswith("\ufffd"):
            print(text[self._shown :], end="", flush=True)
            self._shown = len(text)


def parse_options(pairs: list[str]) -> dict[str, Any]:
    """``NAME=VALUE`` pairs, values read as YAML."""
    options = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator:
            raise ValueError(f"--option {pair!r}: write NAME=VALUE, such as substitution=drop")
        options[name] = yaml.safe_load(value)
    return options
