"""Skew of expert usage: the share of the most used experts, and the Gini coefficient."""

from __future__ import annotations

import math

import torch


def top_share(counts: torch.Tensor, share: float = 0.1) -> float:
    """Share of ``counts`` ([E], counts or probabilities) on the most used ``ceil(share * E)`` experts."""
    most = math.ceil(share * len(counts) - 1e-9)
    return float(counts.double().sort(descending=True).values[:most].sum() / counts.sum())


def gini(counts: torch.Tensor) -> float:
    """Gini coefficient of ``counts`` [E] over experts: 0 for uniform use, towards 1 for all on one expert."""
    ascending, n = counts.double().sort().values, len(counts)
    ranks = torch.arange(1, n + 1, dtype=torch.float64)
    return float(2 * (ranks * ascending).sum() / (n * ascending.sum()) - (n + 1) / n)
