"""The source text of an encoder-decoder request: what the encoder makes of it, and the decoder's caches."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import MoEModelOutput

from specmoe.model import families
from specmoe.model.kv_cache import Masks, RaggedCache, RowLengths


@dataclass(frozen=True)
class Source:
    """Source texts as the caller padded them: ``ids`` and ``mask`` (0 on padding), long [B, S]."""

    ids: torch.Tensor
    mask: torch.Tensor

    def routed(self, model: PreTrainedModel) -> torch.Tensor:
        """Which tokens need their experts, bool [B * S]."""
        family = families.encoder_decoder(model.config)
        routed = self.mask.bool() if family is None else family.routed(model.config, self.mask)
        return routed.flatten()

    def encode(self, model: PreTrainedModel) -> torch.Tensor:
        """The encoder's output [B, S, H]."""
        encoded: torch.Tensor = model.get_encoder()(input_ids=self.ids, attention_mask=self.mask).last_hidden_state
        return encoded


class SourceCache(EncoderDecoderCache):  # type: ignore[misc]
    """A decoder's ragged self-attention cache, its keys and values of the source, and the source itself.

    Keys and values of the source are computed by the first pass; ``encoded`` is set before it.
    """

    def __init__(self, model: PreTrainedModel, source: Source, max_length: int) -> None:
        self.source = source
        self.encoded: torch.Tensor | None = None
        decoder = model.get_decoder()
        layers = len(decoder.layers if hasattr(decoder, "layers") else decoder.block)
        rows = len(source.ids)
        super().__init__(RaggedCache(model.config, rows, max_length, source.ids.device, layers=layers), DynamicCache())

    @property
    def lengths(self) -> RowLengths:
        """Committed decoder tokens of each row."""
        lengths: RowLengths = self.self_attention_cache.lengths
        return lengths

    def get_seq_length(self, layer_idx: int = 0) -> torch.Tensor:
        """Committed decoder tokens, long [B, 1]: the families' position modules take one length per row."""
        return self.lengths.values[:, None]

    def commit(self, tokens: torch.Tensor) -> None:
        """Advance each row's length by ``tokens`` (long [B])."""
        self.self_attention_cache.commit(tokens)

    def provisional(self) -> AbstractContextManager[None]:
        """What the block commits is undone at its end."""
        undoing: AbstractContextManager[None] = self.self_attention_cache.provisional()
        return undoing

    def select(self, rows: torch.Tensor) -> None:
        """Keep only ``rows`` (long [B']) of the batch."""
        self.self_attention_cache.select(rows)
        self.cross_attention_cache.batch_select_indices(rows)
        self.source = Source(self.source.ids[rows], self.source.mask[rows])
        self.encoded = self.encoded[rows] if self.encoded is not None else None

    def attention_mask(
        self, queries: int, dtype: torch.dtype, boolean: bool, padding: torch.Tensor | None = None
    ) -> Masks:
        """As that of ``RaggedCache``."""
        masks: Masks = self.self_attention_cache.attention_mask(queries, dtype, boolean, padding)
        return masks

    def arguments(self, ids: torch.Tensor, mask: Any) -> dict[str, Any]:
        """What ``forward`` takes for the decoder tokens ``ids`` (long [B, Q]) and their mask."""
        return {
            "encoder_outputs": MoEModelOutput(last_hidden_state=self.encoded),
            "attention_mask": self.source.mask,
            "decoder_input_ids": ids,
            "decoder_attention_mask": mask,
        }
