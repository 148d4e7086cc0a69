"""Drafts emulated in target passes, so that a calibration can tell how often each agrees with the target.

Experts come through the link as in any target pass; no copy is built, and any share of the experts can stand for the
residents, whatever the budget of the engine that calibrates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from specmoe.drafting import affinity
from specmoe.drafting.substitution import MapTo, Picks, merge_collisions

Weights = dict[str, torch.Tensor]
Rounding = Callable[[int, Weights], Weights]
"""From a layer and an expert's weights to those of its low-bit copy."""


class Emulation(Protocol):
    """What a draft changes in a target pass."""

    def picks(self, layer: int, picks: Picks) -> tuple[torch.Tensor, torch.Tensor]:
        """Index and weights [T, K] of the experts to compute; weight zero where a pick names none."""
        ...

    def weights(self, layer: int, weights: Weights) -> Weights:
        """The tensors to compute with, in place of an expert's own."""
        ...


class Residents:
    """Only some experts of each layer draft, and stand in for those closest to them.

    Args:
        drafting: their ids by MoE layer, at least one each.
        tables: distances [E, E] by MoE layer.
    """

    def __init__(self, drafting: Sequence[list[int]], tables: Sequence[torch.Tensor]) -> None:
        self._rules = [
            MapTo(affinity.substitution(table, experts)) for table, experts in zip(tables, drafting, strict=True)
        ]

    def picks(self, layer: int, picks: Picks) -> tuple[torch.Tensor, torch.Tensor]:
        rule = self._rules[layer]
        rule.substitutes = rule.substitutes.to(picks.index.device)
        return merge_collisions(*rule(picks.with_zeros()), "add")

    def weights(self, layer: int, weights: Weights) -> Weights:
        return weights


class Rounded:
    """Every expert drafts from a copy of fewer bits; ``rounded`` gives the weights of a layer's expert as such a copy
    has them."""

    def __init__(self, rounded: Rounding) -> None:
        self._rounded = rounded

    def picks(self, layer: int, picks: Picks) -> tuple[torch.Tensor, torch.Tensor]:
        present = picks.with_zeros()
        return present.index, present.weights

    def weights(self, layer: int, weights: Weights) -> Weights:
        return self._rounded(layer, weights)


def hottest(counts: Sequence[torch.Tensor], share: float) -> list[list[int]]:
    """The most used ``share`` of all experts, by MoE layer, ascending; the most used one of every layer among them."""
    sizes = [len(layer) for layer in counts]
    ranked = torch.cat(list(counts)).argsort(descending=True, stable=True)[: round(share * sum(sizes))]
    chosen = torch.zeros(sum(sizes), dtype=torch.bool)
    chosen[ranked] = True
    drafting = []
    for layer, own in zip(counts, chosen.split(sizes), strict=True):
        own[int(layer.argmax())] = True
        drafting.append(own.nonzero().flatten().tolist())
    return drafting
