"""The state of one ``generate`` call: the rows still generating, and one forward pass over them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from transformers import PreTrainedModel

from specmoe.meter import Meter
from specmoe.model.attention import takes_boolean_masks
from specmoe.model.kv_cache import RaggedCache
from specmoe.model.pass_state import Pass, PassState
from specmoe.model.source import SourceCache
from specmoe.recorder import NoRecorder, Recorder
from specmoe.sampling import Sampler
from specmoe.timeline import Timeline

OnTokens = Callable[[int, list[int]], None]
"""Called with (row of the request, its new tokens) as soon as they are final."""


@dataclass
class Run:
    """The objects that every step of a call works with; ``cache`` holds the committed tokens of the active rows.

    ``forced_first`` is the first token of every row, in place of the most likely one.  ``most_rows`` is how many may be
    active at once where rows join others.
    """

    model: PreTrainedModel
    state: PassState
    cache: RaggedCache | SourceCache
    sampler: Sampler
    meter: Meter
    timeline: Timeline
    recorder: Recorder
    forced_first: int | None = None
    most_rows: int | None = None

    @cached_property
    def boolean_masks(self) -> bool:
        """Whether the model's configured attention takes boolean masks."""
        return takes_boolean_masks(self.model.config.get_text_config())

    @cached_property
    def cache_argument(self) -> str:
        """What the model's ``forward`` calls its cache; transformers 5.24 renamed it."""
        return "cache" if "cache" in inspect.signature(type(self.model).forward).parameters else "past_key_values"


@dataclass(frozen=True)
class Rows:
    """The rows still generating.

    ``last`` (long [B]) is each row's newest token, not yet in the cache; ``remaining`` (long [B]) how many
    more tokens it may gain; ``index`` (long [B]) its row in the request.  ``tokens`` holds, per row of the request,
    the prompt and all tokens generated so far; a token in ``stop`` ends a row.
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
        """Add new tokens to active row ``row``."""
        request_row = int(self.index[row])
        self.tokens[request_row].extend(tokens)
        if self.on_tokens is not None:
            self.on_tokens(request_row, tokens)

    def select(self, kept: torch.Tensor) -> Rows:
        """Only the active rows ``kept`` (long [B'])."""
        return replace(self, last=self.last[kept], remaining=self.remaining[kept], index=self.index[kept])

    def join(self, other: Rows) -> Rows:
        """These rows, then those of ``other``, which share their ``tokens``."""
        return replace(
            self,
            last=torch.cat([self.last, other.last]),
            remaining=torch.cat([self.remaining, other.remaining]),
            index=torch.cat([self.index, other.index]),
        )


def forward(run: Run, ids: torch.Tensor, current: Pass, keep: torch.Tensor | int = 0) -> torch.Tensor:
    """Logits [B, Q or len(keep), V] of ids [B, Q] placed after each row's committed tokens."""
    padding = ~current.valid.view(ids.shape) if current.is_prompt else None
    mask = run.cache.attention_mask(ids.shape[1], run.model.config.dtype, run.boolean_masks, padding)
    if isinstance(run.cache, SourceCache):
        arguments = run.cache.arguments(ids, mask)
    else:
        positions = run.cache.lengths.positions(ids.shape[1])
        arguments = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "logits_to_keep": keep}
    with run.state.running(current, run.recorder):
        output = run.model(**arguments, use_cache=True, **{run.cache_argument: run.cache})
    logits: torch.Tensor = output.logits
    kept = isinstance(keep, int) or "logits_to_keep" in arguments
    return logits if kept else logits[:, keep]


def encode(run: Run) -> None:
    """Run the encoder once over the source texts, if there are any; its experts move like all others."""
    cache = run.cache
    if isinstance(cache, SourceCache):
        routed = cache.source.routed(run.model)
        current = Pass("target", routed, is_prompt=True)
        span = run.timeline.span("compute", "encode", tokens=int(routed.sum()))
        with span, run.state.running(current, NoRecorder()):
            cache.encoded = cache.source.encode(run.model)
