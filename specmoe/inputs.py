"""What a caller gives ``SpecMoE.generate``: checked, and with transformers' defaults filled in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

DEFAULT_NEW_TOKENS = 20
"""As in transformers."""


class FromConfig:
    """As the stop tokens' default: take them from the generation config (None means no stop tokens)."""


StopTokens = int | list[int] | type[FromConfig] | None


@dataclass(frozen=True)
class Limits:
    """How many tokens each row may gain, which ``stop`` it early, and what ``pad`` fills rows that stopped."""

    new_tokens: list[int]
    stop: frozenset[int]
    pad: int


def check_prompts(input_ids: torch.Tensor, mask: torch.Tensor) -> None:
    """Check that both are [B, S], every row has a token, and padding is on the left.

    Raises:
        ValueError: they are not.
    """
    if input_ids.ndim != 2 or input_ids.shape != mask.shape:
        raise ValueError(
            f"input_ids {tuple(input_ids.shape)} and attention_mask {tuple(mask.shape)} must both be [B, S]"
        )
    if not bool(mask.any(dim=1).all()):
        raise ValueError("a row of attention_mask is all zeros: every row needs a token")
    if bool((mask[:, 1:] < mask[:, :-1]).any()):
        raise ValueError("attention_mask has padding on the right: pad prompts on the left")


def resolve_limits(
    prompt_shape: torch.Size,
    config: GenerationConfig,
    max_new_tokens: int | Sequence[int] | None,
    max_length: int | None,
    eos_token_id: StopTokens,
    pad_token_id: int | None,
) -> Limits:
    """The limits of a call for prompts [B, S].

    Raises:
        ValueError: a number of limits other than B, or a limit below one new token.
    """
    stop: Any = config.eos_token_id if eos_token_id is FromConfig else eos_token_id
    stop_tokens = frozenset() if stop is None else frozenset([stop] if isinstance(stop, int) else stop)
    pad = config.pad_token_id if pad_token_id is None else pad_token_id
    return Limits(
        _new_tokens(prompt_shape, max_new_tokens, max_length),
        stop_tokens,
        pad if pad is not None else min(stop_tokens, default=0),
    )


def _new_tokens(
    prompt_shape: torch.Size, max_new_tokens: int | Sequence[int] | None, max_length: int | None
) -> list[int]:
    rows, limit = prompt_shape[0], f"max_new_tokens is {max_new_tokens}"
    if max_new_tokens is None and max_length is not None:
        new_tokens, limit = [max_length - prompt_shape[1]] * rows, f"max_length is {max_length}"
    elif max_new_tokens is None or isinstance(max_new_tokens, int):
        new_tokens = [DEFAULT_NEW_TOKENS if max_new_tokens is None else max_new_tokens] * rows
    else:
        new_tokens = list(max_new_tokens)
    if len(new_tokens) != rows:
        raise ValueError(f"{limit}, for {rows} rows: give one number, or one per row")
    if min(new_tokens, default=1) < 1:
        raise ValueError(f"{limit}, which leaves no room: ask for at least 1 new token")
    return new_tokens
