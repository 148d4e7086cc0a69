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


class ExpertsRuntime:
    """State of the pass under way and of the draft set.

    ``mode`` and ``valid`` are set before each forward pass; ``valid`` (bool [T]) leaves padding and
    finished rows out, so that they ask for no expert.  ``counted`` (bool [T]) narrows further whose picks
    count as use; None counts all valid ones.  ``certain``: no position of the pass can be refused (a
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
        self.certain = False
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
        for position, assigned in enumerate(slices or []):
            residency.keep_for_good(position, sorted(set(assigned.tolist())))

    def target(self, position: int, index: torch.Tensor, valid: torch.Tensor) -> list[int]:
        """Account for a target pass's picks (long [T, K]); returns the experts to bring, ascending."""
        counts = self._bincount(position, index[valid])
        wanted = set(counts.nonzero().flatten().tolist())
        self.placement.observe(position, counts)
        if self.selection is not None and wanted:
            started = time.perf_counter()
            resident = self.residency.resident(position)
            narrowed = counts if self.counted is None else self._bincount(position, index[valid & self.counted])
            pinned = self.selection.refresh(position, narrowed, resident | wanted, self.certain)
            if pinned != self.residency.pinned(position):
                self.residency.pin(position, pinned)
                self._rules[position] = None
            wanted |= set(pinned) - resident
            if self.options.counted == "accepted" and not self.certain:
                self._picks[position] = (index, valid)
            self.refresh_s += time.perf_counter() - started
        here = self.residency.permanent(position)
        wanted |= {e for e in here if not self.residency.holds(position, e)}
        return sorted(wanted)

    def accepted(self, kept: torch.Tensor) -> None:
        """With ``counted="accepted"``: count the latest pass's picks at positions the target kept (bool [T])."""
        if self.selection is None or self.options.counted != "accepted":
            return
        for position, picks in enumerate(self._picks):
            if picks is not None:
                index, valid = picks
                self.selection.count(position, self._bincount(position, index[valid & kept]))
                self._picks[position] = None

    def stand_ins(self, position: int, picks: Picks, valid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Index and weights [T, K] among the experts that may draft; tells the prefetcher what was asked for."""
        if self.prefetcher is not None:
            self.prefetcher.wanted(position, self._bincount(position, picks.index[valid]))
        index, weights = self._rule(position, picks.index.device)(picks)
        return merge_collisions(index, weights, self.options.collision)

    def drafting(self, position: int) -> list[int]:
        """Experts of the layer that may draft now."""
        if self.options.draft_pool == "resident":
            return self.residency.ready(position)
        return self.residency.pinned(position)

    def _rule(self, position: int, device: torch.device) -> SubstitutionRule:
        current = self._rules[position]
        version = self.residency.version[position] if self.options.draft_pool == "resident" else 0
        if current is None or current.version != version:
            slices = self._slices[position] if self._slices is not None else None
            rule = make_rule(
                self.options.substitution,
                self.drafting(position),
                self._tables[position],
                slices,
                self._generator,
                device,
            )
            current = self._rules[position] = _CurrentRule(version, rule)
        return current.rule

    def _bincount(self, position: int, index: torch.Tensor) -> torch.Tensor:
        return torch.bincount(index.flatten().cpu(), minlength=len(self._tables[position]))

    def reset(self) -> None:
        """Forget residents, draft sets and counts, as after loading."""
        self.residency.reset()
        self.placement.reset()
        self._generator.manual_seed(self.options.seed)
        self._rules = [None] * len(self._rules)
        self._picks = [None] * len(self._picks)
        if self.selection is not None:
            self.selection.reset()
