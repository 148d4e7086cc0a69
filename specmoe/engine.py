"""``SpecMoE``: a model whose experts stream from a store, with transformers-style loading and generation."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from specmoe import affinity
from specmoe.arena import ExpertArena
from specmoe.checkpoint import Checkpoint, build_shell, expert_modules
from specmoe.convert import Progress, open_or_build
from specmoe.device import open_device
from specmoe.errors import BudgetError
from specmoe.experts import ExpertsRuntime, attach
from specmoe.hotness import DraftSelection, SelectionName
from specmoe.link import DiskSource, HostSource, Link
from specmoe.placement import PlacementName, make_placement
from specmoe.ragged_cache import RaggedCache
from specmoe.residency import Residency
from specmoe.sizes import parse_bytes
from specmoe.speculate import Rows, decode, prefill
from specmoe.stats import GenerationStats, PhaseStats
from specmoe.store import ExpertStore


class _FromConfig:
    """Marks 'take the stop tokens from the generation config', as transformers does when none are given."""


@dataclass
class GenerateOutput(ModelOutput):  # type: ignore[misc]
    """``sequences`` is long [B, prompt + new], as transformers returns it; ``stats`` what the call measured."""

    sequences: torch.Tensor | None = None
    stats: GenerationStats | None = None


class SpecMoE:
    """Owns the parts and ties them together; the algorithm is in ``speculate``.

    Build with ``from_pretrained``; ``close`` (or a ``with`` block) stops the link.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        runtime: ExpertsRuntime,
        arena: ExpertArena,
        link: Link,
        store: ExpertStore,
        gamma: int,
    ) -> None:
        self.model = model
        self.store = store
        self.gamma = gamma
        self.arena = arena
        self.link = link
        self._runtime = runtime

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        expert_budget: int | str | None = None,
        gamma: int = 5,
        draft_experts: int = 4,
        placement: PlacementName = "lfu",
        selection: SelectionName = "hot-temporal",
        hot_decay: float = 0.5,
        seed: int = 0,
        dtype: torch.dtype | None = None,
        device: str = "cpu",
        slow_tier: Literal["disk", "host"] = "disk",
        store: str | Path | None = None,
        progress: Progress | None = None,
    ) -> SpecMoE:
        """Load a Hugging Face MoE checkpoint folder with its experts left in the slow tier.

        Args:
            path: folder with ``config.json`` and safetensors.
            expert_budget: device memory for experts: bytes, or text such as ``"1.5GB"`` or ``"25%"`` of all
                experts; default is all of them.
            gamma: draft tokens per cycle; 0 turns speculation off.
            draft_experts: N, pinned experts per MoE layer that make up the draft model.
            placement: what happens to the rest of the budget: ``on-demand``, ``lru``, ``lfu``, ``top-fraction``.
            selection: how draft experts are chosen: ``hot-temporal``, ``hot-global``, ``random``.
            hot_decay: weight of older counts in HotTemporal: 0 the latest pass only, 1 all passes alike.
            seed: of the random selection.
            dtype: compute and storage dtype; default the checkpoint's.
            device: ``cpu`` or ``cuda``.
            slow_tier: ``disk`` reads from the store past the page cache, ``host`` holds it in (pinned) RAM.
            store: folder of the expert store; made there on first use; default ``PATH/expert_store_DTYPE``.
            progress: called with (experts converted, experts in all) while the store is built.

        Raises:
            UnsupportedModelError: a family or checkpoint layout that cannot be offloaded.
            StoreError: a damaged store.
            BudgetError: a budget that cannot hold the draft experts and one more.
            ValueError: an option out of range.
        """
        path = Path(path)
        _check_options(gamma, draft_experts, hot_decay)
        tier = open_device(device)
        model = build_shell(path)
        dtype = dtype or model.config.dtype or torch.float32
        folder = Path(store) if store is not None else path / f"expert_store_{str(dtype).removeprefix('torch.')}"
        expert_store = open_or_build(path, folder, dtype, progress)
        Checkpoint(path, model).load_non_experts(dtype, tier.torch_device)

        sizes = [spec.experts for spec in expert_store.layers]
        budget = parse_budget(expert_budget, expert_store)
        arena = ExpertArena(tier, expert_store.slot_bytes, budget, sum(sizes))
        pinned = sum(min(draft_experts, n) for n in sizes) if gamma else 0
        _check_budget(arena, pinned, sum(sizes), gamma)
        policy = make_placement(placement, sizes, arena.slots - pinned)
        draft = DraftSelection(sizes, draft_experts, selection, hot_decay, seed) if gamma else None
        source = DiskSource(expert_store) if slow_tier == "disk" else HostSource(expert_store, tier)
        link = Link(source, expert_store, tier)
        tables = [affinity.load_table(expert_store, i) for i in range(len(sizes))]
        runtime = ExpertsRuntime(Residency(expert_store, arena, link, policy), policy, draft, tables)
        attach(model, expert_modules(model), runtime)
        return cls(model, runtime, arena, link, expert_store, gamma)

    @torch.inference_mode()
    def generate(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        max_new_tokens: int = 20,
        eos_token_id: int | list[int] | type[_FromConfig] | None = _FromConfig,
        pad_token_id: int | None = None,
        on_first_token: Callable[[], None] | None = None,
    ) -> GenerateOutput:
        """Greedy generation, token for token what ``transformers`` gives with ``do_sample=False``.

        Args:
            input_ids: long [B, S], padded on the left.
            attention_mask: [B, S], 0 on padding; default all ones.
            max_new_tokens: tokens per row, at most.
            eos_token_id: stop tokens; default from the generation config, None for none.
            pad_token_id: fills rows that stopped early; default from the generation config, else a stop token.
            on_first_token: called once when the prefill has given every row its first token.

        Raises:
            ValueError: shapes that do not fit, an empty row, padding on the right, ``max_new_tokens`` below 1.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        _check_inputs(input_ids, mask, max_new_tokens)
        stop = self._stop_tokens(eos_token_id)
        device = self.model.device
        prompts = [row[keep.bool()].to(device) for row, keep in zip(input_ids, mask, strict=True)]
        longest = max(len(p) for p in prompts) + max_new_tokens + self.gamma + 1
        cache = RaggedCache(self.model.config.get_text_config(), len(prompts), longest, device)
        stats = GenerationStats(prompt_tokens=sum(len(p) for p in prompts))

        with _Phase(self, stats.prefill):
            first = prefill(self.model, self._runtime, cache, prompts)
        if on_first_token is not None:
            on_first_token()
        output = [[token] for token in first.tolist()]
        room = torch.tensor([0 if t[0] in stop else max_new_tokens - 1 for t in output], device=device)
        rows = Rows(first, room, torch.arange(len(prompts), device=device), output, stop)
        with _Phase(self, stats.decode):
            decode(self.model, self._runtime, cache, rows, self.gamma, stats)

        stats.new_tokens = sum(len(tokens) for tokens in output)
        stats.peak_expert_bytes = self.arena.peak_bytes
        pad = self._pad_token(pad_token_id, stop)
        width = max(len(tokens) for tokens in output)
        new = torch.tensor([tokens + [pad] * (width - len(tokens)) for tokens in output])
        return GenerateOutput(torch.cat([input_ids, new.to(input_ids)], dim=1), stats)

    def _stop_tokens(self, given: int | list[int] | type[_FromConfig] | None) -> frozenset[int]:
        value: Any = self.model.generation_config.eos_token_id if given is _FromConfig else given
        return frozenset() if value is None else frozenset([value] if isinstance(value, int) else value)

    def _pad_token(self, given: int | None, stop: frozenset[int]) -> int:
        configured = self.model.generation_config.pad_token_id if given is None else given
        return configured if configured is not None else min(stop, default=0)

    def reset(self) -> None:
        """Forget residents, draft experts and their counts, as after loading."""
        self._runtime.residency.reset()
        if self._runtime.selection is not None:
            self._runtime.selection.reset()

    def close(self) -> None:
        """Stop the link; the model cannot generate afterwards."""
        self.link.close()

    def __enter__(self) -> SpecMoE:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def phase_counters(self) -> tuple[Any, Any]:
        """Counters of link and residency now, for differences."""
        return self.link.snapshot(), self._runtime.residency.snapshot()


class _Phase:
    """Fills a ``PhaseStats`` with the difference of all counters over a block."""

    def __init__(self, engine: SpecMoE, into: PhaseStats) -> None:
        self._engine, self._into = engine, into

    def __enter__(self) -> None:
        self._link, self._experts = self._engine.phase_counters()
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._into.seconds = time.perf_counter() - self._started
        self._into.link = self._engine.link.since(self._link)
        _, experts = self._engine.phase_counters()
        self._into.experts.requests = experts.requests - self._experts.requests
        self._into.experts.hits = experts.hits - self._experts.hits


def parse_budget(budget: int | str | None, store: ExpertStore) -> int:
    """A budget in bytes; percentages are of all the store's slots, None is all of them.

    Raises:
        ValueError: malformed or not positive.
    """
    everything = store.slot_bytes * store.total_experts
    return everything if budget is None else parse_bytes(budget, everything, "expert budget")


def _check_options(gamma: int, draft_experts: int, hot_decay: float) -> None:
    if gamma < 0:
        raise ValueError(f"gamma is {gamma}: use 0 (no speculation) or more")
    if gamma and draft_experts < 1:
        raise ValueError(f"draft_experts is {draft_experts}: a draft needs at least 1 expert per layer")
    if not 0 <= hot_decay <= 1:
        raise ValueError(f"hot_decay is {hot_decay}: use a value from 0 to 1")


def _check_budget(arena: ExpertArena, pinned: int, experts: int, gamma: int) -> None:
    needed = min(pinned + 1, experts)
    if arena.slots < needed:
        raise BudgetError(
            f"expert budget of {arena.budget_bytes} bytes holds {arena.slots} experts, but {pinned} draft experts "
            f"and one in transit need {needed * arena.slot_bytes} bytes: raise expert_budget, or lower draft_experts"
            + (" (or gamma=0)" if gamma else "")
        )


def _check_inputs(input_ids: torch.Tensor, mask: torch.Tensor, max_new_tokens: int) -> None:
    if input_ids.ndim != 2 or input_ids.shape != mask.shape:
        raise ValueError(
            f"input_ids {tuple(input_ids.shape)} and attention_mask {tuple(mask.shape)} must both be [B, S]"
        )
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}: ask for at least 1")
    if not bool(mask.any(dim=1).all()):
        raise ValueError("a row of attention_mask is all zeros: every row needs a token")
    if bool((mask[:, 1:] < mask[:, :-1]).any()):
        raise ValueError("attention_mask has padding on the right: pad prompts on the left")
