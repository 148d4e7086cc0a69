"""Decode with and without speculation under the same expert budget; the tokens are equal, rates and traffic differ.

python examples/speculation.py [MODEL [NEW_TOKENS]]    # default: embedded-x32 64; `specmoe-bench list models` has names
"""

import sys

import torch
from transformers import AutoTokenizer

from specmoe import GenerateOutput, SpecMoE
from workloads import models

MODULES = "abc,ast,bz2,cmd,csv,dis,glob,gzip,html,json,math,os,re,shlex,time,uuid"
OPTIONS = {"expert_budget": "5%", "draft_experts": 2, "draft_pool": "resident", "prefetch": "draft"}


def decode(name: str, new_tokens: int, gamma: int) -> GenerateOutput:
    """Continue 16 prompts with ``gamma`` draft tokens per cycle; 0 turns speculation off and leaves a plain cache."""
    path = models.path(name)
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    batch = tokenizer([f"import {module}\n" for module in MODULES.split(",")], return_tensors="pt", padding=True)
    with SpecMoE.from_pretrained(path, dtype=torch.float32, gamma=gamma, **OPTIONS) as model:
        return model.generate(batch["input_ids"], batch["attention_mask"], max_new_tokens=new_tokens)


def main(name: str = "embedded-x32", new_tokens: str = "64") -> None:
    """Print both rates; fail if speculation changed a token."""
    plain, speculative = decode(name, int(new_tokens), gamma=0), decode(name, int(new_tokens), gamma=2)
    if not plain.sequences.equal(speculative.sequences):
        raise SystemExit("speculation changed the output")
    for title, stats in ("no speculation", plain.stats), ("gamma = 2", speculative.stats):
        rate, moved = stats.decode_tokens / stats.decode.seconds, stats.decode.link.moved_bytes / stats.decode_tokens
        print(f"{title:15} {rate:6.1f} tok/s  {moved / 1e6:6.2f} MB/token  {stats.tokens_per_step:.2f} tokens/pass")


if __name__ == "__main__":
    main(*sys.argv[1:])
