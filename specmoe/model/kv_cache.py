"""A KV cache whose rows have different lengths.

Rows of a batch accept different numbers of draft tokens.  Each row writes its new keys at its own length,
and lengths advance only by ``commit``: entries of rejected tokens are overwritten by the next pass.
Draft and verification share this cache (paper: no extra KV cache), and model code stays unmodified:
transformers accepts the cache through its layer interface and uses a prepared 4-d mask as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin

from specmoe.errors import UnsupportedModelError
from specmoe.model import families
from specmoe.model.recurrent import RecurrentLayer

Masks = torch.Tensor | Mapping[str, torch.Tensor | None]
"""One prepared mask for all layers, or one per layer type; None where a linear-attention layer needs none."""

LINEAR = "linear_attention"


class NextTokens:
    """Where a pass over ``queries`` tokens of each row writes: what all layers of the pass share.

    Attributes:
        positions: long [B, Q].
        longest: tokens of the longest row with the pass's own.
        start: the first position, where it is the same for all rows; else None.
    """

    def __init__(self, lengths: torch.Tensor, queries: int) -> None:
        self.positions = lengths[:, None] + torch.arange(queries, device=lengths.device)
        each: list[int] = lengths.tolist()
        self.longest = max(each) + queries
        self.start: int | None = each[0] if min(each) == max(each) else None
        self._places: dict[tuple[int, int], torch.Tensor] = {}

    def places(self, heads: int, max_length: int) -> torch.Tensor:
        """Rows of a flattened cache [B * heads * max_length, dim] that new keys [B, heads, Q, dim] take: long, flat."""
        known = self._places.get((heads, max_length))
        if known is None:
            rows, device = len(self.positions), self.positions.device
            starts = torch.arange(0, rows * heads * max_length, max_length, device=device).view(rows, heads, 1)
            known = self._places[heads, max_length] = (starts + self.positions[:, None]).flatten()
        return known


class RowLengths:
    """Committed tokens of each row, long [B]; shared by all layers of a cache.

    ``padding`` (long [B]) is what the request's batch had on each row's left; the cache does not hold it.
    """

    def __init__(self, rows: int, device: torch.device, padding: torch.Tensor | None = None) -> None:
        self.values = torch.zeros(rows, dtype=torch.long, device=device)
        self.padding = torch.zeros_like(self.values) if padding is None else padding

    @property
    def values(self) -> torch.Tensor:
        """Committed tokens, long [B]; to be replaced, never written to."""
        return self._values

    @values.setter
    def values(self, values: torch.Tensor) -> None:
        self._values = values
        self._next: dict[int, NextTokens] = {}  # by number of queries

    def next(self, queries: int) -> NextTokens:
        """Where a pass over each row's next ``queries`` tokens writes."""
        known = self._next.get(queries)
        if known is None:
            known = self._next[queries] = NextTokens(self._values, queries)
        return known

    def positions(self, queries: int) -> torch.Tensor:
        """Positions of each row's next ``queries`` tokens: long [B, Q]."""
        return self.next(queries).positions

    def padded_positions(self, queries: int) -> torch.Tensor:
        """As ``positions``, counted from the start of the padded batch."""
        return self.padding[:, None] + self.positions(queries)

    def select(self, rows: torch.Tensor) -> None:
        """Keep only ``rows`` (long [B'])."""
        self.values, self.padding = self.values[rows], self.padding[rows]

    def join(self, other: RowLengths) -> None:
        """Append the rows of ``other``."""
        self.padding = torch.cat([self.padding, other.padding])
        self.values = torch.cat([self.values, other.values])


class RaggedLayer(CacheLayerMixin):
    """Keys and values of one layer, allocated as [B, heads, max_length, head_dim] at the first update.

    Where rows join, memory for ``most_rows`` is allocated once: ``keys`` and ``values`` are its first rows, and what
    rows leave behind is used again.
    """

    is_sliding = False

    def __init__(self, lengths: RowLengths, max_length: int, most_rows: int | None = None) -> None:
        super().__init__()
        self._lengths, self._max_length, self._most_rows = lengths, max_length, most_rows
        self._memory: tuple[torch.Tensor, torch.Tensor] | None = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self._allocate(key_states, value_states)

    def _allocate(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Zeros [B, heads, max_length, dim] for keys and values like these ([B, heads, Q, dim])."""
        rows, heads = keys.shape[:2]
        self.dtype, self.device = keys.dtype, keys.device
        self.keys = keys.new_zeros(rows, heads, self._max_length, keys.shape[-1])
        self.values = values.new_zeros(rows, heads, self._max_length, values.shape[-1])
        self.is_initialized = True
        return self.keys, self.values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write [B, heads, Q, dim] at each row's length; returns all keys and values up to the longest row."""
        keys, values = self.keys, self.values
        if keys is None or values is None:
            keys, values = self._allocate(key_states, value_states)
        following = self._lengths.next(key_states.shape[-2])
        for cached, new in ((keys, key_states), (values, value_states)):
            if following.start is not None:
                cached[:, :, following.start : following.longest] = new
            else:
                places = following.places(new.shape[1], self._max_length)
                cached.view(-1, new.shape[-1]).index_copy_(0, places, new.reshape(-1, new.shape[-1]))
        return keys[:, :, : following.longest], values[:, :, : following.longest]

    def select(self, rows: torch.Tensor) -> None:
        """Keep only ``rows`` (long [B'])."""
        if self._memory is not None:
            moved = (rows != torch.arange(len(rows), device=rows.device)).nonzero().flatten()
            for memory in self._memory if len(moved) else ():
                memory[moved] = memory[rows[moved]]
            self.keys, self.values = (memory[: len(rows)] for memory in self._memory)
        elif self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[rows], self.values[rows]

    def join(self, other: RaggedLayer) -> None:
        """Append the rows of ``other``, which holds no more tokens than this layer may."""
        if other.keys is None or other.values is None:
            return
        before = 0 if self.keys is None else len(self.keys)
        if self._memory is None:
            shape = (self._most_rows or before + len(other.keys), other.keys.shape[1], self._max_length)
            keys, values = (new.new_zeros(*shape, new.shape[-1]) for new in (other.keys, other.values))
            self._memory, self.dtype, self.device = (keys, values), keys.dtype, keys.device
            self.is_initialized = True
        after, held = before + len(other.keys), other.keys.shape[-2]
        for memory, new in zip(self._memory, (other.keys, other.values), strict=True):
            memory[before:after, :, :held] = new
        self.keys, self.values = (memory[:after] for memory in self._memory)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._lengths.next(query_length).longest, 0

    def get_seq_length(self) -> int:
        return self._lengths.next(0).longest

    def get_max_length(self) -> int:
        return self._max_length


class RaggedCache(Cache):
    """One ``RaggedLayer`` per decoder layer (a ``RecurrentLayer`` for linear attention) and the lengths they share.

    Args:
        config: the model's (text) config.
        rows: batch size B.
        max_length: most tokens a row may hold, including drafted ones.
        device: of the lengths.
        padding: tokens on the left of each row of the request that are padding, long [B]; default none.
        layers: decoder layers, where the config counts others (those of an encoder).
        most_rows: rows that ``join`` may bring the batch to; memory for so many is allocated once.

    Raises:
        UnsupportedModelError: a layer type other than full, sliding or chunked attention, or linear attention of a
            family whose state cannot be restored.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        rows: int,
        max_length: int,
        device: torch.device,
        padding: torch.Tensor | None = None,
        layers: int | None = None,
        most_rows: int | None = None,
    ) -> None:
        self.lengths = RowLengths(rows, device, padding)
        self._layer_types = layer_types(config)
        self._window: int | None = getattr(config, "sliding_window", None)
        self._chunk: int | None = getattr(config, "attention_chunk_size", None)
        recurrent = {i for i, kind in enumerate(getattr(config, "layer_types", None) or ()) if kind == LINEAR}
        all_layers = [
            RecurrentLayer() if i in recurrent else RaggedLayer(self.lengths, max_length, most_rows)
            for i in range(config.num_hidden_layers if layers is None else layers)
        ]
        self._recurrent = [layer for layer in all_layers if isinstance(layer, RecurrentLayer)]
        super().__init__(layers=all_layers)

    def commit(self, tokens: torch.Tensor) -> None:
        """Advance each row's length by ``tokens`` (long [B]), at most those of the latest pass."""
        self.lengths.values = self.lengths.values + tokens
        if self._recurrent:
            fewest = int(tokens.min())
            for layer in self._recurrent:
                layer.advance(tokens, fewest)

    @contextmanager
    def provisional(self) -> Iterator[None]:
        """What the block commits is undone at its end."""
        lengths, states = self.lengths.values, [layer.state for layer in self._recurrent]
        try:
            yield
        finally:
            self.lengths.values = lengths
            for layer, state in zip(self._recurrent, states, strict=True):
                layer.restore(state)

    def select(self, rows: torch.Tensor) -> None:
        """Keep only ``rows`` (long [B']) of the batch."""
        self.lengths.select(rows)
        for layer in self.layers:
            layer.select(rows)

    def join(self, other: RaggedCache) -> None:
        """Append the rows of a cache of the same model to a cache made with ``most_rows``."""
        self.lengths.join(other.lengths)
        for layer, joining in zip(self.layers, other.layers, strict=True):
            layer.join(joining)

    def attention_mask(
        self, queries: int, dtype: torch.dtype, boolean: bool, padding: torch.Tensor | None = None
    ) -> Masks:
        """Masks [B, 1, Q, KV] for the next ``queries`` tokens of each row, by layer type where they differ.

        ``boolean`` masks are True where attention is allowed (sdpa); others hold zeros and the dtype's lowest
        value, to be added to the scores (eager).  Linear attention gets the inverse of ``padding`` (bool [B, Q]),
        which is True on the padding of prompts.
        """
        following = self.lengths.next(queries)
        if queries == 1 and following.start is not None and boolean and self._layer_types == {"full_attention"}:
            return following.positions.new_ones(len(following.positions), 1, 1, following.longest, dtype=torch.bool)
        positions = following.positions[:, None, :, None]  # [B, 1, Q, 1]
        keys = torch.arange(following.longest, device=positions.device)
        causal = keys <= positions
        masks = {"full_attention": causal}
        if self._window is not None:
            masks["sliding_attention"] = causal & (keys > positions - self._window)
        if self._chunk is not None:
            masks["chunked_attention"] = causal & (keys // self._chunk == positions // self._chunk)
        if not boolean:
            lowest = torch.finfo(dtype).min
            masks = {k: torch.zeros_like(m, dtype=dtype).masked_fill_(~m, lowest) for k, m in masks.items()}
        if self._recurrent:
            return {**masks, LINEAR: ~padding if padding is not None and bool(padding.any()) else None}
        return masks if len(self._layer_types) > 1 else masks[next(iter(self._layer_types))]


def layer_types(config: PreTrainedConfig) -> set[str]:
    """The attention types of a model's layers, as its code names them when it builds masks.

    Raises:
        UnsupportedModelError: a type other than full, sliding, chunked or (of some families) linear attention, or a
            window or chunk of one token.
    """
    declared = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    types = set(declared) if declared else {"full_attention" if window is None else "sliding_attention"}
    known = {"full_attention", "sliding_attention"}
    if getattr(config, "attention_chunk_size", None) is not None:
        known.add("chunked_attention")
    if families.restores_state(config):
        known.add(LINEAR)
    unknown = types - known
    if unknown:
        raise UnsupportedModelError(
            f"attention of type {sorted(unknown)[0]!r} is not supported: use a model with full or sliding attention"
        )
    for name, kind in (("sliding_window", "sliding_attention"), ("attention_chunk_size", "chunked_attention")):
        size = getattr(config, name, None)
        if kind in types and isinstance(size, int) and size < 2:
            raise UnsupportedModelError(
                f"{name}={size} leaves no earlier token to attend to, and transformers' cache then keeps all of them: "
                "set it to at least 2 in config.json"
            )
    return types
