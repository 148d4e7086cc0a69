"""Which experts draft: counts of expert use per layer, and the rule that picks the top N.

HotTemporal follows use over time (the paper's rule); HotGlobal freezes the set after the first pass, the
prefill; Random draws a set once, as the control.
"""

from __future__ import annotations

from typing import Literal

import torch

SelectionName = Literal["hot-temporal", "hot-global", "random"]


class DraftSelection:
    """Counts and the current choice for every MoE layer.

    Args:
        experts: number of experts of each MoE layer.
        draft_experts: N, clamped to the layer's size.
        rule: how the set is chosen.
        decay: multiplies older counts at each target pass: 0 looks at the latest pass only, 1 accumulates.
        seed: of the random rule.
    """

    def __init__(
        self,
        experts: list[int],
        draft_experts: int,
        rule: SelectionName = "hot-temporal",
        decay: float = 0.5,
        seed: int = 0,
    ) -> None:
        if rule not in ("hot-temporal", "hot-global", "random"):
            raise ValueError(f"unknown draft selection {rule!r}: use hot-temporal, hot-global or random")
        self.rule, self._decay = rule, decay
        self._size = [min(draft_experts, n) for n in experts]
        self._counts = [torch.zeros(n) for n in experts]
        self._chosen: list[list[int] | None] = [None] * len(experts)
        self._generator = torch.Generator().manual_seed(seed)

    def refresh(self, position: int, counts: torch.Tensor, resident: set[int]) -> list[int]:
        """Take in one target pass over the layer and return its draft experts, most used first.

        Args:
            position: index of the MoE layer.
            counts: long [E], how often the pass picked each expert (padding not counted).
            resident: experts that already have a slot.

        A hot set only ever takes experts that this pass touches or that are resident, so refreshing
        moves no byte (paper, HotTemporal).  Ties go to the lower expert id.
        """
        self._counts[position].mul_(self._decay).add_(counts)
        chosen = self._chosen[position]
        if chosen is None or self.rule == "hot-temporal":
            chosen = self._choose(position, counts, resident)
            self._chosen[position] = chosen
        return chosen

    def _choose(self, position: int, counts: torch.Tensor, resident: set[int]) -> list[int]:
        size, experts = self._size[position], len(counts)
        if self.rule == "random":
            return torch.randperm(experts, generator=self._generator)[:size].tolist()
        free = counts > 0
        if resident:
            free[list(resident)] = True
        score = torch.where(free, self._counts[position], -1.0)
        order = torch.sort(score, descending=True, stable=True).indices[:size]
        return [e for e in order.tolist() if free[e]]

    def reset(self) -> None:
        """Forget all counts and choices (a new request batch)."""
        for counts in self._counts:
            counts.zero_()
        self._chosen = [None] * len(self._counts)
