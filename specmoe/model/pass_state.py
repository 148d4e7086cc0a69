"""What all experts layers of one model share: the mode of the pass, the draft set, and who stands in.

Target passes ask ``target`` which experts to bring, draft passes ask ``stand_ins`` whom to use instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from specmoe.drafting.selection import DraftSelection
from specmoe.drafting.substitution import Picks, SubstitutionRule, make_rule, merge_collisions
from specmoe.offload.placement import Placement
from specmoe.offload.prefetch import Prefetcher
from specmoe.offload.residency import Residency
from specmoe.options import SpecOptions
from specmoe.recorder import Mode, Recorder

INITIAL_TAIL = 16
"""Prompt tokens per row that count for the first draft set with ``initial="prefill-tail"``."""


@dataclass
class _CurrentRule:
    version: int
    rule: SubstitutionRule


class PassState:
    """State of the pass under way and of the draft set.

    ``mode`` and ``valid`` are set before each forward pass; ``valid`` (bool [T]) leaves padding and
    finished rows out, so that they ask for no expert.  ``counted`` (bool [T]) narrows further whose picks
    count as use; None counts all valid ones.  ``is_prompt``: no token of the pass can be rejected (a
    prompt's).  ``observer`` sees every target pass (calibration), ``recorder`` every pass and what came of it.
    ``refresh_s`` sums the time spent on choosing draft sets.

    Args:
        tables: affinity distances [E, E] per MoE layer.
        slices: the merged slice of each expert (long [E], ids from E on) per layer, when there are any.
    """

    def __init__(
        self,
        options: SpecOptions,
        residency: Residency,
        placement: Placement,
        selection: DraftSelection | None,
        tables: list[torch.Tensor],
        slices: list[torch.Tensor] | None = None,
        prefetcher: Prefetcher | None = None,
    ) -> None:
        self.mode: Mode = "target"
        self.valid: torch.Tensor | None = None
        self.counted: torch.Tensor | None = None
        self.is_prompt = False
        self.observer: Callable[[Any, torch.Tensor, torch.Tensor], None] | None = None
        self.recorder: Recorder | None = None
        self.refresh_s = 0.0
        self.options = options
        self.residency = residency
        self.placement = placement
        self.selection = selection
        self.prefetcher = prefetcher
        self._tables, self._slices = tables, slices
        self._rules: list[_CurrentRule | None] = [None] * len(tables)
        self._generator = torch.Generator().manual_seed(options.seed)
        self._picks: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * len(tables)
        for layer, assigned in enumerate(slices or []):
            residency.keep_for_good(layer, sorted(set(assigned.tolist())))

    def target(self, layer: int, index: torch.Tensor, valid: torch.Tensor) -> list[int]:
        """Account for a target pass's picks (long [T, K]); returns the experts to bring, ascending."""
        counts = self._bincount(layer, index[valid])
        wanted = set(counts.nonzero().flatten().tolist())
        self.placement.observe(layer, counts)
        if self.selection is not None and wanted:
            started = time.perf_counter()
            resident = self.residency.resident(layer)
            narrowed = counts if self.counted is None else self._bincount(layer, index[valid & self.counted])
            pinned = self.selection.refresh(layer, narrowed, resident | wanted, self.is_prompt)
            if pinned != self.residency.pinned(layer):
                self.residency.pin(layer, pinned)
                self._rules[layer] = None
            wanted |= set(pinned) - resident
            if self.options.counted == "accepted" and not self.is_prompt:
                self._picks[layer] = (index, valid)
            self.refresh_s += time.perf_counter() - started
        here = self.residency.permanent(layer)
        wanted |= {e for e in here if not self.residency.holds(layer, e)}
        return sorted(wanted)

    def accepted(self, kept: torch.Tensor) -> None:
        """With ``counted="accepted"``: count the latest pass's picks at positions the target kept (bool [T])."""
        if self.selection is None or self.options.counted != "accepted":
            return
        for layer, picks in enumerate(self._picks):
            if picks is not None:
                index, valid = picks
                self.selection.count(layer, self._bincount(layer, index[valid & kept]))
                self._picks[layer] = None

    def stand_ins(self, layer: int, picks: Picks, valid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Index and weights [T, K] among the experts that may draft; tells the prefetcher what was asked for."""
        if self.prefetcher is not None:
            self.prefetcher.wanted(layer, self._bincount(layer, picks.index[valid]))
        index, weights = self._rule(layer, picks.index.device)(picks)
        return merge_collisions(index, weights, self.options.collision)

    def drafting(self, layer: int) -> list[int]:
        """Experts of the layer that may draft now."""
        if self.options.draft_pool == "resident":
            return self.residency.ready(layer)
        return self.residency.pinned(layer)

    def _rule(self, layer: int, device: torch.device) -> SubstitutionRule:
        current = self._rules[layer]
        version = self.residency.version[layer] if self.options.draft_pool == "resident" else 0
        if current is None or current.version != version:
            slices = self._slices[layer] if self._slices is not None else None
            rule = make_rule(
                self.options.substitution,
                self.drafting(layer),
                self._tables[layer],
                slices,
                self._generator,
                device,
            )
            current = self._rules[layer] = _CurrentRule(version, rule)
        return current.rule

    def _bincount(self, layer: int, index: torch.Tensor) -> torch.Tensor:
        return torch.bincount(index.flatten().cpu(), minlength=len(self._tables[layer]))

    def reset(self) -> None:
        """Forget residents, draft sets and counts, as after loading."""
        self.residency.reset()
        self.placement.reset()
        self._generator.manual_seed(self.options.seed)
        self._rules = [None] * len(self._rules)
        self._picks = [None] * len(self._picks)
        if self.selection is not None:
            self.selection.reset()
