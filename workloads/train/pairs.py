"""Translation pairs as an encoder-decoder reads them, in NLLB's format.

The source is ``eng_Latn message </s>``, the target ``fra_Latn translation </s>``; the decoder starts from ``</s>`` and
its first token, the language, is forced.  So the loss counts the tokens after the language code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

BOS, PAD, EOS, UNKNOWN = "<s>", "<pad>", "</s>", "<unk>"  # ids 0 to 3, as in NLLB
PAD_ID, EOS_ID = 1, 2
SOURCE_LANGUAGE, TARGET_LANGUAGE = "eng_Latn", "fra_Latn"
SOURCE_LANGUAGE_ID, TARGET_LANGUAGE_ID = 4, 5


def split(document: str, tags: Sequence[str]) -> tuple[str, str]:
    """Source and target of a document ``<en> source <fr> target``, or of a prompt, which has no target."""
    source, _, target = document.removeprefix(f"{tags[0]} ").partition(f" {tags[1]}")
    return source, target.removeprefix(" ")


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of ``vocab_size`` entries that writes NLLB's format: ``eng_Latn text </s>``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    special = [BOS, PAD, EOS, UNKNOWN, SOURCE_LANGUAGE, TARGET_LANGUAGE]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SOURCE_LANGUAGE} $A {EOS}",
        special_tokens=[(SOURCE_LANGUAGE, SOURCE_LANGUAGE_ID), (EOS, EOS_ID)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        additional_special_tokens=[SOURCE_LANGUAGE, TARGET_LANGUAGE],
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


@dataclass(frozen=True)
class EncodedPairs:
    """Token ids of both sides, special tokens included; uint16 arrays."""

    sources: list[NDArray[np.uint16]]
    targets: list[NDArray[np.uint16]]

    @classmethod
    def encode(
        cls, documents: list[str], tags: Sequence[str], tokenizer: PreTrainedTokenizerFast, longest: int
    ) -> EncodedPairs:
        """The documents' pairs, without those that have more than ``longest`` tokens on a side."""
        pairs = [split(document, tags) for document in documents]
        backend = tokenizer.backend_tokenizer
        sources = [e.ids for e in backend.encode_batch([source for source, _ in pairs])]
        targets = [
            [TARGET_LANGUAGE_ID, *e.ids, EOS_ID]
            for e in backend.encode_batch([target for _, target in pairs], add_special_tokens=False)
        ]
        kept = [(s, t) for s, t in zip(sources, targets, strict=True) if max(len(s), len(t)) <= longest]
        return cls(*([np.array(ids, dtype=np.uint16) for ids in side] for side in zip(*kept, strict=True)))

    def __len__(self) -> int:
        return sum(len(ids) for side in (self.sources, self.targets) for ids in side)

    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each pair, by which pairs are sorted."""
        return np.array([len(s) + len(t) for s, t in zip(self.sources, self.targets, strict=True)])
