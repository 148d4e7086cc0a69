"""Which experts draft: use counts per layer, and the rule that selects N experts.

``hot-temporal`` follows use over time (the paper's rule); ``hot-global`` takes the most used experts of a
calibration; ``hot-prefill`` keeps the set chosen after the prompt; ``random`` draws one set, as a control.
"""

from __future__ import annotations

import torch

from specmoe.errors import OptionError
from specmoe.options import SpecOptions


class DraftSelection:
    """Use counts and the current draft set of every MoE layer.

    Args:
        experts: number of experts of each MoE layer; 0 where a layer never drafts (an encoder's).
        options: N, selection rule, count window, decay, interval, largest number of replacements, ties.
        global_counts: use of each expert on calibration prompts, [E] per layer; for ``hot-global``.

    Raises:
        OptionError: ``hot-global`` without counts.
    """

    def __init__(
        self, experts: list[int], options: SpecOptions, global_counts: list[torch.Tensor] | None = None
    ) -> None:
        if options.selection == "hot-global" and global_counts is None:
            raise OptionError("selection='hot-global' needs a calibration of this model: run SpecMoE.calibrate first")
        self.interval = options.refresh_interval
        self._options, self._experts = options, experts
        self._global = global_counts
        self._decay = {"last": 0.0, "accumulated": 1.0, "decayed": options.hot_decay}[options.count_window]
        self.resize(options.draft_experts)
        self.reset()

    def covers(self, layer: int) -> bool:
        """Whether the layer drafts."""
        return self._experts[layer] > 0

    def resize(self, draft_experts: int) -> None:
        """Set N from the next refresh on, at most each layer's number of experts."""
        self._size = [min(draft_experts, n) for n in self._experts]

    def reset(self) -> None:
        """Forget all counts and draft sets, and restart random draws."""
        self._generator = torch.Generator().manual_seed(self._options.seed)
        self._counts = [torch.zeros(n) for n in self._experts]
        self._chosen: list[list[int] | None] = [None] * len(self._experts)
        self._passes = [0] * len(self._experts)

    def refresh(self, layer: int, counts: torch.Tensor, resident: set[int], is_prompt: bool | None = None) -> list[int]:
        """Count one target pass over the layer and return its draft experts, most used first.

        Args:
            layer: index of the MoE layer.
            counts: long [E], how often the pass picked each expert, without padding.
            resident: experts that already have a slot.
            is_prompt: whether the pass is a prompt's, whose tokens all stay (default: the first pass is).

        A hot set only takes experts that this pass uses or that are resident, so a refresh loads nothing
        (paper, HotTemporal).  With ``counted="accepted"`` the pass's own counts follow later through
        ``count``; here its picks only make experts available to the set.
        """
        is_prompt = self._passes[layer] == 0 if is_prompt is None else is_prompt
        if is_prompt or self._options.counted == "all":
            self.count(layer, counts)
        due = self._options.selection == "hot-temporal" and self._passes[layer] % self.interval == 0
        self._passes[layer] += 1
        chosen = self._chosen[layer]
        if chosen is None or due:
            chosen = self._choose(layer, counts, resident)
            self._chosen[layer] = chosen
        return chosen

    def count(self, layer: int, counts: torch.Tensor) -> None:
        """Add one pass's counts (long [E]) after decaying older ones by the window's rule."""
        self._counts[layer].mul_(self._decay).add_(counts)

    def _choose(self, layer: int, counts: torch.Tensor, resident: set[int]) -> list[int]:
        size, experts = self._size[layer], len(counts)
        if self._options.selection == "random":
            return torch.randperm(experts, generator=self._generator)[:size].tolist()
        if self._global is not None and self._options.selection == "hot-global":
            return self._ranked(layer, self._global[layer])[:size]
        available = counts > 0
        if resident:
            available[list(resident)] = True
        ranked = [e for e in self._ranked(layer, self._counts[layer]) if available[e]]
        return self._limit(layer, ranked, size)

    def _ranked(self, layer: int, score: torch.Tensor) -> list[int]:
        """Experts by score, highest first, ties by the option's rule."""
        order = torch.arange(len(score))
        if self._options.ties == "random":
            order = torch.randperm(len(score), generator=self._generator)
        elif self._options.ties == "incumbent":
            held = self._chosen[layer] or []
            order = torch.tensor(held + [e for e in order.tolist() if e not in set(held)])
        ranked: list[int] = order[torch.sort(score[order], descending=True, stable=True).indices].tolist()
        return ranked

    def _limit(self, layer: int, ranked: list[int], size: int) -> list[int]:
        """The first ``size`` of ``ranked``, with at most ``max_replacements`` that were not in the set before."""
        most, held = self._options.max_replacements, self._chosen[layer]
        if most is None or held is None:
            return ranked[:size]
        kept_held = [e for e in ranked if e in set(held)]
        fresh = [e for e in ranked[:size] if e not in set(held)]
        new = set(fresh[: max(most, size - len(kept_held))])
        keep = set(kept_held[: size - len(new)]) | new
        return [e for e in ranked if e in keep]
