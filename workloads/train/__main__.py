"""``python -m workloads.train RECIPE --out FOLDER``: text, tokenizer, weights, prompts and card."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workloads.train.recipe import Recipe

# glibc hands every large buffer back to the kernel and faults it in again; keeping them makes a
# training step on two cores 1.3 times faster.  The allocator reads these once, at process start.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(8 << 30)}


def main() -> None:
    from workloads.train.recipe import RECIPES

    parser = argparse.ArgumentParser(prog="python -m workloads.train", description=__doc__)
    parser.add_argument("recipe", choices=sorted(RECIPES))
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, tokenizer, log and card")
    parser.add_argument("--prompts", type=Path, help="JSONL of held-out prompts (default: OUT/prompts.jsonl)")
    parser.add_argument("--packages", type=Path, help="folder of Debian packages (default: CACHE/packages)")
    parser.add_argument("--steps", type=int, help="train for fewer or more steps than the recipe")
    parser.add_argument(
        "--cards", action="store_true", help="only measure the weights in OUT again and rewrite its cards"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):
        os.execve(sys.executable, [sys.executable, "-m", "workloads.train", *sys.argv[1:]], os.environ | ALLOCATOR)

    import torch

    from specmoe.files import cache_dir

    torch.set_num_threads(args.threads)
    recipe = RECIPES[args.recipe]
    recipe = replace(recipe, steps=args.steps) if args.steps else recipe
    try:
        run(
            recipe,
            args.out,
            args.prompts or args.out / "prompts.jsonl",
            args.packages or cache_dir() / "packages",
            args.cards,
        )
    except ValueError as error:
        sys.exit(f"workloads.train: {error}")


def run(recipe: Recipe, out: Path, prompt_file: Path, packages: Path, cards_only: bool = False) -> None:
    """Read the text, train, and write all files of a model's folder.

    Raises:
        ValueError: the text is not available.
    """
    from workloads.train import loop, prompts, publish, sources
    from workloads.train.prepare import prepare

    out.mkdir(parents=True, exist_ok=True)
    corpus = sources.load(recipe, packages)
    if note := sources.difference(recipe, corpus):
        print(f"note: {note}", file=sys.stderr)
    tokenizer, data = prepare(recipe, corpus)
    tokenizer.save_pretrained(out)
    prompts.write_prompts(corpus, tokenizer, prompt_file, recipe.seed, tagged=not recipe.encoder_layers)
    print(json.dumps(asdict(recipe) | data.sizes()), flush=True)
    result_file = out / "result.json"
    if not cards_only:
        _, result = loop.train(recipe, data, out)
        result_file.write_text(json.dumps(result, indent=1) + "\n")
    publish.publish(recipe, corpus, tokenizer, data, json.loads(result_file.read_text()), prompt_file, out)


if __name__ == "__main__":
    main()
