"""Byte-level BPE tokenizer trained on the corpus, and the corpus as one stream of token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class Stream:
    """All documents concatenated: ``ids`` uint16 [N] and each token's weight in the loss, ``weights`` float32 [N]."""

    ids: NDArray[np.uint16]
    weights: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ids)


def train_tokenizer(documents: list[str], vocab_size: int, tags: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of ``vocab_size`` entries; id 0 is ``<|endoftext|>`` (also used to pad), then the tags."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, *tags],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def encode(documents: list[str], tokenizer: PreTrainedTokenizerFast) -> NDArray[np.uint16]:
    """All documents as one stream, each preceded by ``<|endoftext|>``; dtype uint16 (vocab < 65536)."""
    end = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    backend = tokenizer.backend_tokenizer
    stream: list[NDArray[np.uint16]] = []
    for start in range(0, len(documents), 64):
        for encoding in backend.encode_batch(documents[start : start + 64]):
            stream.append(np.array([end, *encoding.ids], dtype=np.uint16))
    return np.concatenate(stream)


def stream(
    documents: list[str], tokenizer: PreTrainedTokenizerFast, tags: Sequence[str] = (), source_weight: float = 1.0
) -> Stream:
    """The documents encoded; with ``tags`` (source, target), tokens before the target have weight ``source_weight``.

    The target's tokens, the ``<|endoftext|>`` behind them and the tag that opens the next document have weight 1.
    """
    ids = encode(documents, tokenizer)
    weights = np.ones(len(ids), dtype=np.float32)
    if tags:
        source, target = (tokenizer.convert_tokens_to_ids(tag) for tag in tags)
        switches = np.where(np.isin(ids, (source, target)), np.arange(len(ids)), -1)
        before = np.maximum.accumulate(np.concatenate([[-1], switches[:-1]]))  # last tag ahead of each token
        in_target = (before >= 0) & (ids[before] == target)
        weights[~in_target] = source_weight
    return Stream(ids, weights)
