"""The state of one generate call: the rows still generating, and one forward pass over them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from specmoe.model.kv_cache import RaggedCache
from specmoe.model.pass_state import PassState
from specmoe.offload.link import Link
from specmoe.sampling import Sampler
from specmoe.stats import GenerationStats
from specmoe.timeline import Timeline

OnTokens = Callable[[int, list[int]], None]
"""Called with (row of the request, its new tokens) as soon as they are certain."""


@dataclass
class Run:
    """What every step of a call works with."""

    model: PreTrainedModel
    state: PassState
    link: Link
    cache: RaggedCache
    sampler: Sampler
    stats: GenerationStats
    timeline: Timeline

    def __post_init__(self) -> None:
        named = inspect.signature(type(self.model).forward).parameters
        self.cache_argument = "cache" if "cache" in named else "past_key_values"
        """What the model's ``forward`` calls its cache; transformers 5.24 renamed it."""


@dataclass
class Rows:
    """The rows still generating.

    ``last`` (long [B]) is each row's newest token, not yet in the cache; ``remaining`` (long [B]) how many
    more it may gain; ``index`` (long [B]) its place in the request.  ``tokens`` holds, per request row, the
    prompt and all that was generated; ``stop`` ends a row.
    """

    last: torch.Tensor
    remaining: torch.Tensor
    index: torch.Tensor
    tokens: list[list[int]]
    stop: Collection[int] = field(default_factory=frozenset)
    on_tokens: OnTokens | None = None

    def __len__(self) -> int:
        return len(self.index)

    def append(self, row: int, tokens: list[int]) -> None:
        """Give active row ``row`` new tokens."""
        request_row = int(self.index[row])
        self.tokens[request_row].extend(tokens)
        if self.on_tokens is not None:
            self.on_tokens(request_row, tokens)

    def select(self, kept: torch.Tensor) -> None:
        """Keep only ``kept`` (long [B'])."""
        self.last, self.remaining, self.index = self.last[kept], self.remaining[kept], self.index[kept]


def forward(run: Run, ids: torch.Tensor, valid: torch.Tensor, keep: torch.Tensor | int = 0) -> torch.Tensor:
    """Logits [B, Q or len(keep), V] of ids [B, Q] placed after each row's committed tokens; valid bool [B, Q]."""
    run.state.valid = valid.flatten()
    output = run.model(
        input_ids=ids,
        attention_mask=run.cache.attention_mask(ids.shape[1], run.model.dtype, boolean=run.model._supports_sdpa),
        position_ids=run.cache.lengths.positions(ids.shape[1]),
        use_cache=True,
        logits_to_keep=keep,
        **{run.cache_argument: run.cache},
    )
    logits: torch.Tensor = output.logits
    return logits
