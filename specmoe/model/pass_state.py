"""What all experts layers of one model share: the forward pass under way, the draft set, and the substitution rules.

Target passes ask ``target`` which experts to load, draft passes ask ``substitute`` which to use instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from specmoe.drafting.emulation import Emulation
from specmoe.drafting.selection import DraftSelection
from specmoe.drafting.substitution import Picks, SubstitutionRule, make_rule, merge_collisions
from specmoe.offload.copies import Copies
from specmoe.offload.placement import Placement
from specmoe.offload.prefetch import Prefetcher
from specmoe.offload.residency import Residency, Weights
from specmoe.options import SpecOptions
from specmoe.recorder import Mode, NoRecorder, Recorder

INITIAL_TAIL = 16
"""Prompt tokens per row that count for the first draft set with ``initial="prefill-tail"``."""

Observer = Callable[[Any, torch.Tensor, torch.Tensor], None]
"""Called with (experts layer, hidden states [T, H], picks [T, K]) of the valid tokens, in every target pass."""


@dataclass(frozen=True)
class Pass:
    """One forward pass over T tokens (B rows times Q, row after row).

    ``valid`` (bool [T]) excludes padding and finished rows, which ask for no expert.  ``counted`` (bool [T])
    narrows further which picks count as use for the draft set; None counts all valid ones.  ``is_prompt``: the
    tokens are a prompt's, so none of them can be rejected.  ``emulation``: a target pass that computes what this draft
    would.
    """

    mode: Mode
    valid: torch.Tensor
    counted: torch.Tensor | None = None
    is_prompt: bool = False
    emulation: Emulation | None = None

    @cached_property
    def all_valid(self) -> bool:
        """Whether every token is valid."""
        return bool(self.valid.all())


def prompt_pass(valid: torch.Tensor, options: SpecOptions) -> Pass:
    """The target pass over prompts; ``valid`` bool [B, S], padded on the right."""
    counted = None
    if options.initial == "prefill-tail":
        positions = torch.arange(valid.shape[1], device=valid.device)
        counted = (positions >= valid.sum(1)[:, None] - INITIAL_TAIL).flatten()
    return Pass("target", valid.flatten(), counted, is_prompt=True)


@dataclass
class _CurrentRule:
    version: int
    rule: SubstitutionRule


class PassState:
    """The pass under way, and the draft set with what depends on it.

    ``refresh_s`` sums the time spent on choosing draft sets.

    Args:
        tables: affinity distances [E, E] per MoE layer.
        slices: the merged slice of each expert (long [E], ids from E on) per layer, when there are any.
        copies: the low-bit copies that draft, in place of pinned experts.
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
        copies: Copies | None = None,
    ) -> None:
        self.options = options
        self.residency = residency
        self.placement = placement
        self.selection = selection
        self.prefetcher = prefetcher
        self.copies = copies
        self.recorder: Recorder = NoRecorder()
        self.observer: Observer | None = None
        self.refresh_s = 0.0
        self._pass: Pass | None = None
        self._tables, self._slices = tables, slices
        self._rules: list[_CurrentRule | None] = [None] * len(tables)
        self._generator = torch.Generator().manual_seed(options.seed)
        self._picks: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * len(tables)
        for layer, assigned in enumerate(slices or []):
            residency.slots.keep_permanently(layer, sorted(set(assigned.tolist())))

    @contextmanager
    def running(self, current: Pass, recorder: Recorder) -> Iterator[None]:
        """The block runs the model once, as ``current`` describes; ``recorder`` receives its picks."""
        self._pass, self.recorder = current, recorder
        try:
            yield
        finally:
            self._pass, self.recorder = None, NoRecorder()

    @contextmanager
    def observed_by(self, observer: Observer) -> Iterator[None]:
        """``observer`` is called by every experts layer of the target passes in the block."""
        self.observer = observer
        try:
            yield
        finally:
            self.observer = None

    def current(self, index: torch.Tensor) -> Pass:
        """The pass under way; outside of ``running`` a plain target pass over all T tokens of ``index`` [T, K]."""
        if self._pass is not None:
            return self._pass
        return Pass("target", torch.ones(len(index), dtype=torch.bool, device=index.device))

    def target(self, layer: int, index: torch.Tensor, current: Pass) -> list[int]:
        """Account for a target pass's picks (long [T, K]); returns the experts to load, ascending."""
        counts = self._bincount(layer, index if current.all_valid else index[current.valid])
        wanted = set(counts.nonzero()[0].tolist())
        self.placement.observe(layer, counts)
        if self.copies is not None and self.copies.covers(layer):
            self.copies.hold_all(layer)
        elif self.selection is not None and wanted and self.selection.covers(layer):
            started = time.perf_counter()
            wanted |= self._refresh(self.selection, layer, index, counts, current)
            self.refresh_s += time.perf_counter() - started
        missing_slices = {e for e in self.residency.slots.permanent(layer) if not self.residency.slots.holds(layer, e)}
        return sorted(wanted | missing_slices)

    def _refresh(
        self, selection: DraftSelection, layer: int, index: torch.Tensor, counts: NDArray[np.int64], current: Pass
    ) -> set[int]:
        """Let the selection see the pass and pin its choice; returns the pinned experts that are not resident.

        Where low-bit copies draft, the choice is whose copies to hold; nothing is pinned.
        """
        resident = self.residency.slots.resident(layer) if self.copies is None else self.copies.held(layer)
        available = resident | set(counts.nonzero()[0].tolist())
        if current.counted is not None:
            counts = self._bincount(layer, index[current.valid & current.counted])
        chosen = selection.refresh(layer, torch.from_numpy(counts), available, current.is_prompt)
        if self.options.counted == "accepted" and not current.is_prompt:
            self._picks[layer] = (index, current.valid)
        if self.copies is not None:
            self.copies.hold(layer, chosen)
            return set()
        if chosen != self.residency.slots.pinned(layer):
            self.residency.slots.pin(layer, chosen)
            self._rules[layer] = None
        return set(chosen) - resident

    def count_accepted(self, kept: torch.Tensor) -> None:
        """With ``counted="accepted"``: count the latest pass's picks for the tokens the target kept (bool [T])."""
        if self.selection is None or self.options.counted != "accepted":
            return
        for layer, picks in enumerate(self._picks):
            if picks is not None:
                index, valid = picks
                self.selection.count(layer, torch.from_numpy(self._bincount(layer, index[valid & kept])))
                self._picks[layer] = None

    def resize_draft(self, draft_experts: int, refresh_interval: int) -> None:
        """Use N = ``draft_experts`` and this interval from the next refresh on; without a draft set do nothing.

        How many low-bit copies there are is fixed.
        """
        if self.selection is not None:
            if self.copies is None:
                self.selection.resize(draft_experts)
            self.selection.interval = refresh_interval

    def wait_for_copies(self) -> None:
        """Wait until the low-bit copies under way have arrived.

        Raises:
            StoreError: one is damaged or cannot be read.
        """
        if self.copies is not None:
            self.copies.wait()

    def substitute(self, layer: int, picks: Picks, valid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Index and weights [T, K] among the experts that may draft; the prefetcher sees the original picks."""
        if self.prefetcher is not None:
            self.prefetcher.wanted(layer, torch.from_numpy(self._bincount(layer, picks.index[valid])))
        picks = picks.with_zeros()
        if self.copies is not None and (self.copies.covers(layer) or not self.drafting(layer)):
            return picks.index, picks.weights * self.copies.covers(layer)
        index, weights = self._rule(layer, picks.index.device)(picks)
        return merge_collisions(index, weights, self.options.collision)

    def drafting(self, layer: int) -> list[int]:
        """Experts of the layer that may draft now."""
        if self.copies is not None:
            return self.copies.ready(layer)
        if self.options.draft_pool == "resident":
            return self.residency.ready(layer)
        return self.residency.slots.pinned(layer)

    def weights(self, layer: int, expert: int) -> Weights:
        """The tensors with which an expert drafts: its own, or those of its low-bit copy."""
        if self.copies is not None:
            return self.copies.weights(layer, expert)
        return self.residency.weights(layer, expert)

    def _rule(self, layer: int, device: torch.device) -> SubstitutionRule:
        current = self._rules[layer]
        version = self.residency.slots.version[layer] if self.options.draft_pool == "resident" else 0
        if self.copies is not None:
            version = self.copies.version[layer]
        if current is None or current.version != version:
            rule = make_rule(
                self.options.substitution,
                self.drafting(layer),
                self._tables[layer],
                self._slices[layer] if self._slices is not None else None,
                self._generator,
                device,
            )
            current = self._rules[layer] = _CurrentRule(version, rule)
        return current.rule

    def _bincount(self, layer: int, index: torch.Tensor) -> NDArray[np.int64]:
        """Tokens per expert, int64 [E]; picks of no expert are not counted."""
        experts = len(self._tables[layer])
        return np.bincount(index.cpu().numpy().reshape(-1), minlength=experts)[:experts]

    def reset(self) -> None:
        """Empty device memory and forget draft sets and counts, as after loading."""
        self.residency.reset()
        if self.copies is not None:
            self.copies.reset()
        self.placement.reset()
        self._generator.manual_seed(self.options.seed)
        self._rules = [None] * len(self._rules)
        self._picks = [None] * len(self._picks)
        if self.selection is not None:
            self.selection.reset()
