"""The reference of a cell: the resident model's greedy tokens, logits beside them, and how far rounding moves these.

Tokens and logits are separate files: a worker under a memory limit reads the logits only where tokens differ.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from specmoe.files import write_text
from workloads.requests import Batch

CANDIDATES = 16
"""Logits kept per position: those of the most likely tokens."""
ROWS_ALONE = 8
"""Rows that are computed again at another batch shape."""


class Logits(BaseModel):
    """By row and position: the most likely tokens, and their logits, in falling order.

    ``noise_floor`` is the largest change of the margin between the two best when a row is computed alone, all its
    tokens in one pass, instead of in the batch, token by token.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: list[list[list[int]]]
    logits: list[list[list[float]]]
    noise_floor: float

    @classmethod
    def read(cls, reference: Path) -> Logits | None:
        """The logits beside the tokens of ``reference``; None where there are none."""
        file = logits_file(reference)
        return cls.model_validate_json(file.read_text(encoding="utf-8")) if file.exists() else None


class _Recorded:
    """Leaves the logits [B, V] of each step as they are, and keeps the largest."""

    def __init__(self) -> None:
        self.steps: list[Any] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.steps.append(scores.float().topk(min(CANDIDATES, scores.shape[-1])))
        return scores


def logits_file(reference: Path) -> Path:
    """Where the logits of a reference are."""
    return reference.with_suffix(".logits.json")


def is_complete(reference: Path, sampled: bool = False) -> bool:
    """Whether tokens and logits are there, or the scores of a cell that samples."""
    return reference.exists() and (sampled or logits_file(reference).exists())


@torch.inference_mode()
def write(model: Any, asked: Batch, reference: Path, batch_size: int) -> None:
    """Generate greedily, ``batch_size`` rows at once, and write tokens and logits; the tokens come last."""
    parts = [_generated(model, part) for part in asked.parts(batch_size)]
    logits = Logits(
        tokens=[row for _, part in parts for row in part.tokens],
        logits=[row for _, part in parts for row in part.logits],
        noise_floor=max(part.noise_floor for _, part in parts),
    )
    write_text(logits_file(reference), logits.model_dump_json())
    write_text(reference, json.dumps([row for tokens, _ in parts for row in tokens]))


def _generated(model: Any, asked: Batch) -> tuple[list[list[int]], Logits]:
    """The greedy tokens of one batch, and their logits."""
    from transformers import LogitsProcessorList

    kept = _Recorded()
    output = model.generate(
        asked.input_ids,
        attention_mask=asked.attention_mask,
        max_new_tokens=max(asked.output_tokens),
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        logits_processor=LogitsProcessorList([kept]),
    )
    rows = output[:, -max(asked.output_tokens) :].tolist()
    tokens = [row[:length] for row, length in zip(rows, asked.output_tokens, strict=True)]
    ids = torch.stack([step.indices for step in kept.steps], dim=1)  # [B, T, K]
    values = torch.stack([step.values for step in kept.steps], dim=1)
    return tokens, Logits(
        tokens=[row[:length].tolist() for row, length in zip(ids, asked.output_tokens, strict=True)],
        logits=[_finite(row[:length]) for row, length in zip(values, asked.output_tokens, strict=True)],
        noise_floor=_noise_floor(model, asked, tokens, ids, values),
    )


def _finite(values: torch.Tensor) -> list[list[float]]:
    """Logits [T, K] as JSON holds them: a token that is ruled out has the lowest number instead of -inf."""
    lowest = torch.finfo(torch.float32).min
    return values.nan_to_num(nan=lowest, posinf=-lowest, neginf=lowest).tolist()  # type: ignore[no-any-return]


def _noise_floor(model: Any, asked: Batch, tokens: list[list[int]], ids: torch.Tensor, values: torch.Tensor) -> float:
    """The largest change of a margin between the two best tokens (``ids`` and ``values`` [B, T, K])."""
    largest = 0.0
    for row in range(min(ROWS_ALONE, len(tokens))):
        source, mask = asked.input_ids[row : row + 1], asked.attention_mask[row : row + 1]
        if not model.config.is_encoder_decoder:
            source, mask = source[mask.bool()][None], mask[mask.bool()][None]
        again = forced_logits(model, source, mask, torch.tensor([tokens[row]]))[0].float()  # [T, V]
        length = len(tokens[row])
        best = again.gather(1, ids[row, :length, :2])
        moved = (best[:, 0] - best[:, 1]) - (values[row, :length, 0] - values[row, :length, 1])
        moved = moved[moved.isfinite()].abs()
        largest = max(largest, float(moved.max()) if len(moved) else 0.0)
    return largest


def forced_logits(model: Any, ids: torch.Tensor, mask: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """Logits [b, n, V] of the tokens ``new`` (long [b, n]) in one pass; prompts are long [b, S], padded on the left.

    An encoder-decoder's prompts are its source texts.
    """
    if model.config.is_encoder_decoder:
        start = model.generation_config.decoder_start_token_id
        start = model.generation_config.bos_token_id if start is None else start
        opened = torch.cat([torch.full_like(new[:, :1], start), new[:, :-1]], dim=1)
        arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": opened}
    else:
        arguments = {"input_ids": torch.cat([ids, new[:, :-1]], dim=1)}
        if not bool(mask.all()):
            seen = torch.cat([mask, torch.ones_like(new[:, :-1])], dim=1)
            arguments |= {"attention_mask": seen, "position_ids": (seen.cumsum(dim=1) - 1).clamp_min(0)}
        if "logits_to_keep" in inspect.signature(type(model).forward).parameters:
            arguments["logits_to_keep"] = new.shape[1]
    logits: torch.Tensor = model(**arguments, use_cache=False).logits[:, -new.shape[1] :]
    return logits
