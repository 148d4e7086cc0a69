"""Substitution: maps the gate's picks to picks among the experts that may draft.

A rule maps (index [T, K], weights [T, K]) to the same shapes over draft experts only; a pick of weight zero is
skipped.  The target never uses these rules: verification computes the gate's own picks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch

from specmoe.drafting import affinity
from specmoe.errors import UnsupportedModelError
from specmoe.options import Substitution


@dataclass(frozen=True)
class Picks:
    """The gate's choice for one layer: ``index`` long [T, K], ``weights`` [T, K], ``logits`` [T, E] or None.

    ``present`` (bool [T, K]) is False where a pick names no expert; None if all picks name one.
    """

    index: torch.Tensor
    weights: torch.Tensor
    logits: torch.Tensor | None = None
    present: torch.Tensor | None = None

    def with_zeros(self) -> Picks:
        """Picks of no expert as picks of expert 0 with weight zero."""
        if self.present is None:
            return self
        return Picks(self.index * self.present, self.weights * self.present, self.logits)


class SubstitutionRule(Protocol):
    """One layer's rule for the current draft experts."""

    def __call__(self, picks: Picks) -> tuple[torch.Tensor, torch.Tensor]: ...


class MapTo:
    """A fixed substitute per expert: long [E] of ids; draft experts map to themselves."""

    def __init__(self, substitutes: torch.Tensor) -> None:
        self.substitutes = substitutes

    def __call__(self, picks: Picks) -> tuple[torch.Tensor, torch.Tensor]:
        return self.substitutes[picks.index], picks.weights


class Drop:
    """Drop picks that cannot draft and rescale the others to the gate's sum; if none can, all weights are zero."""

    def __init__(self, experts: int, drafting: list[int], device: torch.device) -> None:
        self._can = torch.zeros(experts, dtype=torch.bool, device=device)
        self._can[drafting] = True
        self._any = drafting[0]

    def __call__(self, picks: Picks) -> tuple[torch.Tensor, torch.Tensor]:
        can = self._can[picks.index]
        weights = rescale(picks.weights * can, picks.weights)
        return torch.where(can, picks.index, self._any), weights


class BestGate:
    """The gate's own ranking among draft experts: its K highest logits among them, weighted by their softmax."""

    def __init__(self, drafting: list[int], device: torch.device) -> None:
        self._drafting = torch.tensor(drafting, device=device)

    def __call__(self, picks: Picks) -> tuple[torch.Tensor, torch.Tensor]:
        if picks.logits is None:
            raise UnsupportedModelError(
                "substitution='best-gate' needs router logits, which this family lacks: use another substitution"
            )
        top_k = min(picks.index.shape[1], len(self._drafting))
        best = picks.logits[:, self._drafting].topk(top_k, dim=-1)
        index = torch.zeros_like(picks.index) + self._drafting[0]
        weights = torch.zeros_like(picks.weights)
        index[:, :top_k] = self._drafting[best.indices]
        weights[:, :top_k] = best.values.softmax(dim=-1).to(weights.dtype)
        return index, rescale(weights, picks.weights)


def make_rule(
    name: Substitution,
    drafting: list[int],
    table: torch.Tensor,
    slices: torch.Tensor | None,
    generator: torch.Generator,
    device: torch.device,
) -> SubstitutionRule:
    """The rule of one layer for its current draft experts.

    Args:
        name: which rule.
        drafting: ids of the experts that may draft; at least one unless ``slices`` are given.
        table: distances [E, E] for the affinity rules.
        slices: long [E], each expert's merged slice as an id from E on; for ``merged``.
        generator: for the random rule.
        device: of index tensors.
    """
    experts = len(table)
    if name == "drop":
        return Drop(experts, drafting, device)
    if name == "best-gate":
        return BestGate(drafting, device)
    if name == "random":
        chosen = torch.tensor(drafting)[torch.randint(len(drafting), (experts,), generator=generator)]
        chosen[drafting] = torch.tensor(drafting)
        return MapTo(chosen.to(device))
    if name == "merged":
        if slices is None:
            raise ValueError("substitution 'merged' needs the merged slice of each expert: give slices")
        substitutes = slices.clone()
        substitutes[drafting] = torch.tensor(drafting, dtype=torch.long)
        return MapTo(substitutes.to(device))
    return MapTo(affinity.substitution(table, drafting).to(device))


def merge_collisions(
    index: torch.Tensor, weights: torch.Tensor, rule: Literal["add", "once"]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Let each expert count once per token: repeated picks of an expert get weight zero.

    ``add`` gives the first of them the sum of their weights; ``once`` the largest, rescaled to the row's sum.
    """
    if rule == "add" and index.device.type == "cpu" and not _repeats(index):
        return index, weights
    same = index[:, :, None] == index[:, None, :]  # [T, K, K]
    repeated = same.tril(-1).any(dim=-1)  # [T, K]
    shared = same * weights[:, None, :]
    merged = shared.sum(dim=-1) if rule == "add" else shared.amax(dim=-1)
    merged = merged.masked_fill(repeated, 0.0)
    return index, merged if rule == "add" else rescale(merged, weights)


def _repeats(index: torch.Tensor) -> bool:
    """Whether a token picks an expert twice."""
    ordered = np.sort(index.numpy(), axis=1)
    return bool((ordered[:, 1:] == ordered[:, :-1]).any())


def rescale(weights: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """``weights`` [T, K] scaled so that each row has the sum of that row of ``like``; all-zero rows stay zero."""
    total = weights.sum(dim=-1, keepdim=True)
    return torch.where(total > 0, weights * like.sum(dim=-1, keepdim=True) / total.clamp_min(1e-20), weights)
