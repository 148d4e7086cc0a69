"""How unevenly experts are used: the share of the most used, and the Gini coefficient."""

from __future__ import annotations

import math

import torch


def top_share(counts: torch.Tensor, share: float = 0.1) -> float:
    """Part of all use ([E] counts or probabilities) that falls on the most used ``ceil(share * E)`` experts."""
    most = math.ceil(share * len(counts) - 1e-9)
    return float(counts.double().sort(descending=True).values[:most].sum() / counts.sum())


def gini(counts: torch.Tensor) -> float:
    """Gini coefficient of use over experts: 0 even, towards 1 all on one."""
    ascending, n = counts.double().sort().values, len(counts)
    ranks = torch.arange(1, n + 1, dtype=torch.float64)
    return float(2 * (ranks * ascending).sum() / (n * ascending.sum()) - (n + 1) / n)
