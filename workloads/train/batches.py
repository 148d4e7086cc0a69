"""Training and held-out batches: windows of a stream of text, or translation pairs of similar length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from workloads.train.pairs import EOS_ID, PAD_ID, EncodedPairs
from workloads.train.recipe import Recipe
from workloads.train.tokens import Stream

HELD_OUT_WINDOWS, WINDOWS_PER_BATCH = 200, 20
ROUTED_WINDOWS, ROUTED_LENGTH = 64, 256
HELD_OUT_PAIRS = 2000
POOL_STEPS = 16
"""Pairs for this many steps are drawn at once and sorted by length, so that a step has little padding."""


@dataclass(frozen=True)
class Batch:
    """One forward pass: ``inputs`` by the model's names, and per predicted position its target and weight in the loss.

    ``targets`` is long [B, S] and ``weights`` float [B, S]; ``valid`` has the mask of the tokens that routers see, per
    side ([B, S] each: encoder, decoder), or nothing where all are text.
    """

    inputs: dict[str, torch.Tensor]
    targets: torch.Tensor
    weights: torch.Tensor
    tokens: int
    valid: tuple[torch.Tensor, ...] = ()


class TrainingData(Protocol):
    """Text in the form that a recipe's model is trained on."""

    def batches(self, first: int) -> Iterator[Batch]:
        """The batches of the steps from ``first`` on, the same in every run."""

    def held_out(self) -> Iterator[Batch]:
        """Batches of held-out text."""

    def routed(self) -> Iterator[Batch]:
        """Batches of held-out text on which the card describes routing."""

    def sizes(self) -> dict[str, int]:
        """Tokens of the training and of the held-out text."""


@dataclass(frozen=True)
class Windows:
    """Windows of ``recipe.sequence_length`` tokens at random places of a stream."""

    recipe: Recipe
    train: Stream
    test: Stream

    def batches(self, first: int) -> Iterator[Batch]:
        """See ``TrainingData``."""
        generator = np.random.default_rng(self.recipe.seed)
        last, count = len(self.train) - self.recipe.sequence_length - 1, self.recipe.sequences_per_step
        for _ in range(first):
            generator.integers(0, last, count)
        while True:
            yield self._batch(self.train, generator.integers(0, last, count))

    def held_out(self) -> Iterator[Batch]:
        """Evenly spaced held-out windows."""
        starts = np.linspace(0, len(self.test) - self.recipe.sequence_length - 2, HELD_OUT_WINDOWS).astype(int)
        for group in np.array_split(starts, HELD_OUT_WINDOWS // WINDOWS_PER_BATCH):
            yield self._batch(self.test, group)

    def routed(self) -> Iterator[Batch]:
        """Evenly spaced held-out windows of 256 tokens."""
        starts = np.linspace(0, len(self.test) - ROUTED_LENGTH - 1, ROUTED_WINDOWS).astype(int)
        for group in np.array_split(starts, ROUTED_WINDOWS // 16):
            ids = torch.from_numpy(self.test.ids[group[:, None] + np.arange(ROUTED_LENGTH)].astype(np.int64))
            yield Batch({"input_ids": ids}, ids, torch.ones(ids.shape), tokens=ids.numel())

    def sizes(self) -> dict[str, int]:
        """See ``TrainingData``."""
        return {"train_tokens": len(self.train), "held_out_tokens": len(self.test)}

    def _batch(self, stream: Stream, starts: NDArray[np.int64]) -> Batch:
        index = starts[:, None] + np.arange(self.recipe.sequence_length + 1)
        ids = torch.from_numpy(stream.ids[index].astype(np.int64))
        weights = torch.from_numpy(stream.weights[index])
        return Batch({"input_ids": ids[:, :-1]}, ids[:, 1:], weights[:, 1:], tokens=ids[:, 1:].numel())


@dataclass(frozen=True)
class Pairs:
    """Translation pairs, ``recipe.sequences_per_step`` of similar length at a time."""

    recipe: Recipe
    train: EncodedPairs
    test: EncodedPairs

    def batches(self, first: int) -> Iterator[Batch]:
        """See ``TrainingData``."""
        step, count = first, self.recipe.sequences_per_step
        lengths = self.train.lengths()
        while True:
            generator = np.random.default_rng((self.recipe.seed, step // POOL_STEPS))
            pool = generator.choice(len(lengths), POOL_STEPS * count, replace=False)
            groups = pool[np.argsort(lengths[pool], kind="stable")].reshape(POOL_STEPS, count)
            for group in generator.permutation(POOL_STEPS)[step % POOL_STEPS :]:
                yield _padded(self.train, groups[group])
                step += 1

    def held_out(self) -> Iterator[Batch]:
        """Evenly spaced held-out pairs, sorted by length."""
        lengths = self.test.lengths()
        chosen = np.unique(np.linspace(0, len(lengths) - 1, HELD_OUT_PAIRS).astype(int))
        chosen = chosen[np.argsort(lengths[chosen], kind="stable")]
        for group in np.array_split(chosen, -(-len(chosen) // self.recipe.sequences_per_step)):
            yield _padded(self.test, group)

    def routed(self) -> Iterator[Batch]:
        """The same as ``held_out``."""
        return self.held_out()

    def sizes(self) -> dict[str, int]:
        """See ``TrainingData``."""
        return {"train_tokens": len(self.train), "held_out_tokens": len(self.test)}


def _padded(pairs: EncodedPairs, chosen: NDArray[np.int64]) -> Batch:
    sources = _rows([pairs.sources[index] for index in chosen])
    targets = _rows([np.array([EOS_ID, *pairs.targets[index]]) for index in chosen])  # the decoder starts from EOS
    seen, labels = targets[:, :-1], targets[:, 1:]
    counted = (labels != PAD_ID).float()
    counted[:, 0] = 0.0  # the language code is forced
    masks = sources != PAD_ID, seen != PAD_ID
    inputs = {
        "input_ids": sources,
        "attention_mask": masks[0].long(),
        "decoder_input_ids": seen,
        "decoder_attention_mask": masks[1].long(),
    }
    return Batch(inputs, labels, counted, tokens=int(sum(mask.sum() for mask in masks)), valid=masks)


def _rows(ids: list[NDArray[np.int64]]) -> torch.Tensor:
    out = torch.full((len(ids), max(len(row) for row in ids)), PAD_ID, dtype=torch.long)
    for row, own in zip(out, ids, strict=True):
        row[: len(own)] = torch.from_numpy(own.astype(np.int64))
    return out
