"""``specmoe-bench generate``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli.arguments import ExpertBudget, Options, parse_options

if TYPE_CHECKING:
    from specmoe import GenerateOutput, SpecOptions
    from specmoe.stats import GenerationStats

NEW_TOKENS = 64
"""New tokens where neither the command nor the model's generation config sets a limit."""


def command(
    prompt: Annotated[list[str], typer.Argument(metavar="PROMPT", help="A text, or several as one batch.")],
    model: Annotated[str, typer.Option(help="Model name or folder.")] = "embedded",
    gamma: Annotated[int, typer.Option(help="Draft tokens per cycle; 0 decodes without drafts.")] = 5,
    draft_experts: Annotated[int, typer.Option(help="Pinned draft experts per layer.")] = 8,
    expert_budget: ExpertBudget = "25%",
    option: Options = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Tokens to generate per prompt.", show_default="the model's, else 64")
    ] = None,
    sample: Annotated[bool | None, typer.Option("--sample/--greedy", help="Sample, or decode greedily.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Sampling temperature.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample from the k most likely tokens; 0 for all.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Sample from the most likely tokens of this total probability.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed for sampling.")] = 0,
    forced_bos: Annotated[
        str | None,
        typer.Option(
            metavar="TOKEN",
            help="First token of an encoder-decoder, such as NLLB's fra_Latn.",
            show_default="the model's",
        ),
    ] = None,
    timeline: Annotated[Path | None, typer.Option(help="Write a Chrome/Perfetto timeline to this JSON file.")] = None,
) -> None:
    """Continue or translate a text with SpecMoE and show the speed.

    One prompt is printed as its tokens are accepted, several when all are done. Options of the algorithm beyond gamma
    and draft experts go through --option; see docs/options.md. Sampling and length default to the model's
    generation_config.json.
    """
    from specmoe import SpecOptions

    options = SpecOptions.of(gamma=gamma, draft_experts=draft_experts, **parse_options(option))
    sampling = {"do_sample": sample, "temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    engine = _Engine(model, expert_budget, options)
    stats = _generate(prompt, engine, max_new_tokens, sampling, forced_bos, timeline).stats
    if stats is not None:
        _show_speed(stats)


@dataclass(frozen=True)
class _Engine:
    """The engine to load: ``model`` is a name or folder."""

    model: str
    expert_budget: str
    options: SpecOptions


def _generate(
    prompts: list[str],
    engine: _Engine,
    max_new_tokens: int | None,
    sampling: dict[str, Any],
    forced_bos: str | None,
    timeline_file: Path | None,
) -> GenerateOutput:
    """Load the engine, generate, print the text, write the timeline."""
    import torch

    from harness.run.model_files import ModelFiles
    from specmoe import SpecMoE, Timeline
    from workloads import requests, tokenizers

    files = ModelFiles.of(engine.model, "float32")
    tokenizer = tokenizers.load(files.checkpoint)
    input_ids, attention_mask = requests.pad(tokenizer(prompts)["input_ids"], tokenizer)
    timeline = Timeline(enabled=timeline_file is not None)
    forced: dict[str, Any] = {} if forced_bos is None else {"forced_bos_token_id": _token(tokenizer, forced_bos)}
    with SpecMoE.from_pretrained(
        files.checkpoint,
        expert_budget=engine.expert_budget,
        options=engine.options,
        dtype=torch.float32,
        store=files.store,
    ) as model:
        has_encoder = bool(model.model.config.is_encoder_decoder)
        printer = _Printer(tokenizer, "" if has_encoder else prompts[0]) if len(prompts) == 1 else None
        config = model.model.generation_config
        if max_new_tokens is None and config.max_new_tokens is None and config.max_length is None:
            max_new_tokens = NEW_TOKENS
        output = model.generate(
            input_ids,
            attention_mask,
            max_new_tokens=max_new_tokens,
            on_tokens=printer,
            timeline=timeline,
            **sampling,
            **forced,
        )
    for text in [""] if printer else tokenizer.batch_decode(output.sequences, skip_special_tokens=True):
        print(text)
    if timeline_file is not None:
        timeline.save(timeline_file)
    return output


def _token(tokenizer: Any, text: str) -> int:
    """The id of one token.

    Raises:
        ValueError: the tokenizer has no such token.
    """
    found = tokenizer.convert_tokens_to_ids(text)
    if found is None or (found == tokenizer.unk_token_id and text != tokenizer.unk_token):
        raise ValueError(f"the tokenizer has no token {text!r}: name one of its tokens, such as a language code")
    return int(found)


def _show_speed(stats: GenerationStats) -> None:
    rate = stats.decode_tokens / stats.decode.seconds if stats.decode.seconds else float("nan")
    print(
        f"{rate:.1f} tok/s, {stats.tokens_per_step:.2f} tokens per step, "
        f"{stats.decode.link.moved_bytes / 1e6:.1f} MB moved while decoding",
        file=sys.stderr,
    )


class _Printer:
    """Prints the text of one row as tokens are accepted; an incomplete multi-byte character waits for its rest."""

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
