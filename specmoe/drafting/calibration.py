"""Calibration: what a run over sample prompts says about a checkpoint's experts, saved with its expert store.

Per MoE layer: how often each expert was used (HotGlobal, merged experts and the automatic setting need it), and how far
apart the experts' *outputs* are on the same tokens (activation affinity, an alternative to the distance of weights).
Of the whole model: how often each kind of draft agrees with the target (for the automatic setting).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from zipfile import BadZipFile

import numpy as np
import torch

from specmoe.drafting import affinity
from specmoe.drafting.agreement import Agreement
from specmoe.errors import StoreError
from specmoe.files import replacing
from specmoe.offload.store import ExpertStore

FILE = "calibration.npz"
MEASURED = "measured by the calibration"
_AGREEMENT = ("by_share", "by_bits")
SAMPLED_TOKENS = 64
SAMPLED_BYTES = 256 << 20
"""Most memory for the outputs that are compared: with 256 experts of width 7168 they are those of 36 tokens."""
TARGET_TOKENS = 32
"""Tokens per row that an encoder-decoder generates to be calibrated."""


@dataclass
class Calibration:
    """Per MoE layer: ``counts`` [E] float32, ``distances`` [E, E] float16; over ``tokens`` tokens.

    ``agreement`` is None where it was not measured, as by earlier releases.
    """

    tokens: int
    counts: list[torch.Tensor]
    distances: list[torch.Tensor]
    agreement: Agreement | None = None

    @property
    def chances(self) -> np.ndarray:
        """Probability that a token picks an expert, float64 [experts of all layers]."""
        return np.concatenate([counts.double().numpy() for counts in self.counts]) / max(1, self.tokens)

    def save(self, store: ExpertStore) -> Path:
        """Save with the store; returns the file.  Merged slices built from an earlier calibration are removed.

        Raises:
            StoreError: the store's folder cannot be written.
        """
        path = store.path / FILE
        for outdated in store.path.glob("merged_*"):
            shutil.rmtree(outdated, ignore_errors=True)
        arrays = {"tokens": np.array(self.tokens)}
        for layer, (counts, distances) in enumerate(zip(self.counts, self.distances, strict=True)):
            arrays[f"counts_{layer}"] = counts.numpy()
            arrays[f"distances_{layer}"] = distances.numpy()
        if self.agreement is not None:
            for name in _AGREEMENT:
                known = getattr(self.agreement, name)
                arrays[f"agreement_{name}"] = np.array([*known.items()], dtype=np.float64).reshape(-1, 2)
        try:
            with replacing(path) as partial:
                np.savez(partial, allow_pickle=False, **arrays)
        except OSError as error:
            raise StoreError(
                f"cannot write {path} ({error.strerror}): make the folder writable, free disk space, or "
                "load the engine with another store"
            ) from error
        return path


def load(store: ExpertStore) -> Calibration | None:
    """The store's calibration, None if it has none.

    Raises:
        StoreError: the file is damaged or of another shape.
    """
    path = store.path / FILE
    if not path.exists():
        return None
    try:
        with np.load(path) as arrays:
            counts = [torch.from_numpy(arrays[f"counts_{i}"]) for i in range(len(store.layers))]
            distances = [torch.from_numpy(arrays[f"distances_{i}"]) for i in range(len(store.layers))]
            tokens = int(arrays["tokens"])
            agreement = _agreement(arrays)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise StoreError(f"calibration {path} cannot be read ({error!r}): delete it and calibrate again") from error
    for spec, count, table in zip(store.layers, counts, distances, strict=True):
        if count.shape != (spec.experts,) or table.shape != (spec.experts, spec.experts):
            raise StoreError(f"calibration {path} does not match its store: delete it and calibrate again")
    return Calibration(tokens, counts, distances, agreement)


def _agreement(arrays: Mapping[str, np.ndarray]) -> Agreement | None:
    """The agreement in a file, None where the file has none.

    Raises:
        KeyError, ValueError: it is incomplete, or not of pairs of numbers with probabilities.
    """
    if not any(f"agreement_{name}" in arrays for name in _AGREEMENT):
        return None
    by_share, by_bits = (arrays[f"agreement_{name}"] for name in _AGREEMENT)
    for pairs in (by_share, by_bits):
        if pairs.ndim != 2 or pairs.shape[1] != 2 or not ((pairs[:, 1] >= 0) & (pairs[:, 1] <= 1)).all():
            raise ValueError("agreement is not pairs of a kind and a probability")
    return Agreement(dict(by_share.tolist()), {int(bits): a for bits, a in by_bits.tolist()}, MEASURED)


class SampledLayer(Protocol):
    """What calibration needs of an experts layer."""

    @property
    def layer(self) -> int: ...

    def outputs_of_all(self, hidden: torch.Tensor) -> torch.Tensor:
        """Every expert of the layer on the same tokens: [S, H] -> [E, S, H]."""
        ...


class Observer:
    """Called by every experts layer in target passes during calibration: counts picks and compares outputs.

    Each layer runs all its experts on the same ``SAMPLED_TOKENS`` tokens of its first pass (fewer where their outputs
    take more than ``SAMPLED_BYTES``), so every expert is loaded once.
    """

    def __init__(self, store: ExpertStore) -> None:
        self._store = store
        self._counts = [torch.zeros(spec.experts) for spec in store.layers]
        self._distances: list[torch.Tensor | None] = [None] * len(store.layers)
        self._tokens = 0

    def __call__(self, sampled: SampledLayer, hidden: torch.Tensor, index: torch.Tensor) -> None:
        """``hidden`` [T, H] and the gate's picks ``index`` [T, K] of real tokens only."""
        layer = sampled.layer
        experts = self._store.layers[layer].experts
        self._counts[layer] += torch.bincount(index.flatten().cpu(), minlength=experts)[:experts]
        self._tokens += len(hidden) if layer == 0 else 0
        if self._distances[layer] is None:
            fitting = max(1, SAMPLED_BYTES // (experts * hidden.shape[1] * torch.float32.itemsize))
            tokens = torch.linspace(0, len(hidden) - 1, min(SAMPLED_TOKENS, fitting, len(hidden))).long()
            outputs = sampled.outputs_of_all(hidden[tokens.to(hidden.device)]).flatten(1).cpu().float()  # [E, S * H]
            self._distances[layer] = affinity.distances((outputs @ outputs.t()).double())

    @property
    def counts(self) -> list[torch.Tensor]:
        """How often each expert was used so far, float32 [E] by MoE layer."""
        return self._counts

    def result(self, agreement: Agreement | None = None) -> Calibration:
        """The calibration; every layer must have run."""
        distances = [d for d in self._distances if d is not None]
        return Calibration(self._tokens, self._counts, distances, agreement)
