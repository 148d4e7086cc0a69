"""What a caller gives ``SpecMoE.generate``: checked, and with transformers' defaults filled in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

DEFAULT_NEW_TOKENS = 20
"""As in transformers."""


@dataclass(frozen=True)
class Limits:
    """How many tokens each row may gain, which ``stop`` it early, and what ``pad`` fills rows that stopped."""

    new_tokens: list[int]
    stop: frozenset[int]
    pad: int


def check_rows(input_ids: torch.Tensor, mask: torch.Tensor) -> None:
    """Check that both are [B, S] and every row has a token.

    Raises:
        ValueError: they are not.
    """
    if input_ids.ndim != 2 or input_ids.shape != mask.shape:
        raise ValueError(
            f"input_ids {tuple(input_ids.shape)} and attention_mask {tuple(mask.shape)} must both be [B, S]"
        )
    if input_ids.numel() == 0:
        raise ValueError(f"input_ids {tuple(input_ids.shape)} is empty: give at least one row of at least one token")
    if not bool(mask.any(dim=1).all()):
        raise ValueError("a row of attention_mask is all zeros: every row needs a token")


def check_vocabulary(input_ids: torch.Tensor, mask: torch.Tensor, size: int) -> None:
    """Check that every token of ``input_ids`` [B, S] where ``mask`` is not 0 is one of ``size``.

    Raises:
        ValueError: one is not.
    """
    given = input_ids[mask.bool()]
    unknown = given[(given < 0) | (given >= size)]
    if len(unknown):
        raise ValueError(
            f"token {int(unknown[0])} is not one of the model's {size}: use the tokenizer of this checkpoint"
        )


def check_left_padding(mask: torch.Tensor) -> None:
    """Check that padding is on the left of ``mask`` [B, S].

    Raises:
        ValueError: it is not.
    """
    if bool((mask[:, 1:] < mask[:, :-1]).any()):
        raise ValueError("attention_mask has padding on the right: pad prompts on the left")


def infer_mask(input_ids: torch.Tensor, settings: dict[str, Any]) -> torch.Tensor:
    """The mask [B, S] of prompts given without one: 0 on pad tokens, unless a pad token is also a stop token."""
    pad, stop = settings["pad_token_id"], _as_list(settings["eos_token_id"])
    if pad is None or pad in stop:
        return torch.ones_like(input_ids)
    return input_ids.ne(pad).to(input_ids)


def resolve_limits(prompt_shape: torch.Size, settings: dict[str, Any], max_positions: int | None) -> Limits:
    """The limits of a call for prompts [B, S] with the merged generation ``settings``.

    ``max_positions`` (the model's ``max_position_embeddings``) bounds rows only where no limit is set.

    Raises:
        ValueError: a number of limits other than B, or a limit below one new token.
    """
    stop = _as_list(settings["eos_token_id"])
    pad = settings["pad_token_id"]
    return Limits(
        _new_tokens(prompt_shape, settings["max_new_tokens"], settings["max_length"], max_positions),
        frozenset(stop),
        pad if pad is not None else next(iter(stop), 0),
    )


def _as_list(tokens: int | Sequence[int] | None) -> list[int]:
    if tokens is None:
        return []
    return [tokens] if isinstance(tokens, int) else list(tokens)


def _new_tokens(
    prompt_shape: torch.Size,
    max_new_tokens: int | Sequence[int] | None,
    max_length: int | None,
    max_positions: int | None,
) -> list[int]:
    rows, width = prompt_shape
    limit = f"max_new_tokens is {max_new_tokens}"
    if max_new_tokens is None and max_length is not None:
        new_tokens, limit = [max_length - width] * rows, f"max_length is {max_length}"
    elif max_new_tokens is None:
        left = DEFAULT_NEW_TOKENS if max_positions is None else min(DEFAULT_NEW_TOKENS, max_positions - width)
        new_tokens, limit = [left] * rows, f"max_position_embeddings is {max_positions}"
    elif isinstance(max_new_tokens, int):
        new_tokens = [max_new_tokens] * rows
    else:
        new_tokens = list(max_new_tokens)
    if len(new_tokens) != rows:
        raise ValueError(f"{limit}, for {rows} rows: give one number, or one per row")
    if min(new_tokens, default=1) < 1:
        raise ValueError(f"{limit}, which leaves no room: ask for at least 1 new token")
    return new_tokens
