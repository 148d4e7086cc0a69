"""``SpecMoE``: a model whose experts stream from a store, with transformers-style loading and generation."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from specmoe.batch import OnTokens, Rows, Run
from specmoe.control.controller import Adaptive, Controller, Fixed
from specmoe.drafters import make_drafter
from specmoe.drafting import calibration as calibrate
from specmoe.model.assemble import Assembly, assemble
from specmoe.model.checkpoint import Checkpoint, build_shell
from specmoe.model.convert import Progress, open_or_build
from specmoe.model.kv_cache import RaggedCache
from specmoe.offload.arena import ExpertArena
from specmoe.offload.device import open_device
from specmoe.offload.link import Link
from specmoe.offload.store import ExpertStore
from specmoe.options import SpecOptions
from specmoe.recorder import Recorder
from specmoe.sampling import Greedy, Sampling
from specmoe.sizes import parse_bytes
from specmoe.speculate import decode, prefill
from specmoe.stats import GenerationStats, PhaseStats
from specmoe.timeline import Timeline


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

    def __init__(self, model: PreTrainedModel, store: ExpertStore, options: SpecOptions, parts: Assembly) -> None:
        self.model = model
        self.store = store
        self.options = options
        self._parts = parts
        self._state = parts.state

    @property
    def arena(self) -> ExpertArena:
        """All device memory for experts."""
        return self._parts.arena

    @property
    def link(self) -> Link:
        """The mover of expert bytes, with its counters."""
        return self._parts.link

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        expert_budget: int | str | None = None,
        options: SpecOptions | None = None,
        dtype: torch.dtype | None = None,
        device: str = "cpu",
        slow_tier: Literal["disk", "host"] = "disk",
        store: str | Path | None = None,
        progress: Progress | None = None,
        **choices: Any,
    ) -> SpecMoE:
        """Load a Hugging Face MoE checkpoint folder with its experts left in the slow tier.

        Args:
            path: folder with ``config.json`` and safetensors.
            expert_budget: device memory for experts: bytes, or text such as ``"1.5GB"`` or ``"25%"`` of all
                experts; default is all of them.
            options: every choice of the algorithm; or name some of them: ``gamma=5, draft_experts=8, ...``
                (the fields of ``SpecOptions``).
            dtype: compute and storage dtype; default the checkpoint's.
            device: ``cpu`` or ``cuda``.
            slow_tier: ``disk`` reads from the store past the page cache, ``host`` holds it in (pinned) RAM.
            store: folder of the expert store; made there on first use; default ``PATH/expert_store_DTYPE``.
            progress: called with (experts converted, experts in all) while the store is built.

        Raises:
            UnsupportedModelError: a family or checkpoint layout that cannot be offloaded.
            StoreError: a damaged store.
            BudgetError: a budget that cannot hold the draft experts and one more.
            OptionError: an option unknown or out of range, or one that needs a calibration first.
            ValueError: an unknown device, or a malformed budget.
        """
        path = Path(path)
        if options is not None and choices:
            options = SpecOptions.of(**{**options.model_dump(), **choices})
        options = options or SpecOptions.of(**choices)
        tier = open_device(device)
        model = build_shell(path)
        dtype = dtype or model.config.dtype or torch.float32
        folder = Path(store) if store is not None else path / f"expert_store_{str(dtype).removeprefix('torch.')}"
        expert_store = open_or_build(path, folder, dtype, progress)
        budget = parse_budget(expert_budget, expert_store)
        Checkpoint(path, model).load_non_experts(dtype, tier.torch_device)
        return cls(model, expert_store, options, assemble(model, expert_store, options, budget, tier, slow_tier))

    @torch.inference_mode()
    def generate(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        max_new_tokens: int | Sequence[int] | None = None,
        max_length: int | None = None,
        eos_token_id: int | list[int] | type[_FromConfig] | None = _FromConfig,
        pad_token_id: int | None = None,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
        on_first_token: Callable[[], None] | None = None,
        on_tokens: OnTokens | None = None,
        timeline: Timeline | None = None,
        recorder: Recorder | None = None,
    ) -> GenerateOutput:
        """Generate as ``transformers`` does: greedily the same tokens, sampled the same distribution.

        Args:
            input_ids: long [B, S], padded on the left.
            attention_mask: [B, S], 0 on padding; default all ones.
            max_new_tokens: tokens per row, at most: one number, or one per row; default 20, or what ``max_length``
                leaves.
            max_length: longest row, its padded prompt included; as in transformers, ``max_new_tokens`` wins.
            eos_token_id: stop tokens; default from the generation config, None for none.
            pad_token_id: fills rows that stopped early; default from the generation config, else a stop token.
            do_sample: draw from the processed distribution instead of taking the most likely token.
            temperature, top_k, top_p: process the logits before a draw; 1, 0 and 1 leave them alone.
            seed: of the draws; default that of the options.
            on_first_token: called once when the prefill has given every row its first token.
            on_tokens: called with (row, new tokens) as soon as they are certain, first tokens included.
            timeline: collects what happened when.
            recorder: is told every pass's picks and what each cycle accepted.

        Raises:
            ValueError: shapes that do not fit, an empty row, padding on the right, no token left to generate,
                or a sampling value out of range.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        remaining = _remaining(input_ids, mask, max_new_tokens, max_length)
        stop = self._stop_tokens(eos_token_id)
        device = self.model.device
        prompts = [row[keep.bool()].to(device) for row, keep in zip(input_ids, mask, strict=True)]
        seed = self.options.seed if seed is None else seed
        sampler = Sampling(temperature, top_k, top_p, seed, device) if do_sample else Greedy()
        self._state.recorder = recorder
        run = self._run(prompts, remaining, sampler, timeline or Timeline(enabled=False))
        rows = self._prefill(run, prompts, remaining, stop, on_tokens)
        if on_first_token is not None:
            on_first_token()
        with _Phase(self, run.stats.decode):
            decode(run, rows, make_drafter(self.options), self._controller(len(prompts)))

        new = [tokens[len(prompt) :] for tokens, prompt in zip(rows.tokens, prompts, strict=True)]
        run.stats.new_tokens = sum(len(tokens) for tokens in new)
        run.stats.peak_expert_bytes = self.arena.peak_bytes
        pad = self._pad_token(pad_token_id, stop)
        width = max(len(tokens) for tokens in new)
        padded = torch.tensor([tokens + [pad] * (width - len(tokens)) for tokens in new])
        return GenerateOutput(torch.cat([input_ids, padded.to(input_ids)], dim=1), run.stats)

    def _run(
        self, prompts: list[torch.Tensor], remaining: list[int], sampler: Greedy | Sampling, timeline: Timeline
    ) -> Run:
        longest = max(len(p) + new for p, new in zip(prompts, remaining, strict=True)) + self.options.gamma + 1
        cache = RaggedCache(self.model.config.get_text_config(), len(prompts), longest, self.model.device)
        stats = GenerationStats(prompt_tokens=sum(len(p) for p in prompts))
        stats.drafted_by_position = [0] * self.options.gamma
        stats.accepted_by_position = [0] * self.options.gamma
        self.link.timeline = timeline
        return Run(self.model, self._state, self.link, cache, sampler, stats, timeline)

    def _prefill(
        self,
        run: Run,
        prompts: list[torch.Tensor],
        remaining: list[int],
        stop: frozenset[int],
        on_tokens: OnTokens | None,
    ) -> Rows:
        """Run the prompts; the rows that result hold their first token."""
        with _Phase(self, run.stats.prefill):
            first = prefill(run, prompts)
        left = torch.tensor([1 if t in stop else r for t, r in zip(first.tolist(), remaining, strict=True)]).to(first)
        index = torch.arange(len(prompts), device=first.device)
        rows = Rows(first, left - 1, index, [p.tolist() for p in prompts], stop, on_tokens)
        for row, token in enumerate(first.tolist()):
            rows.append(row, [token])
        return rows

    def _controller(self, rows: int) -> Controller:
        if self.options.controller == "fixed" or not self.options.speculates:
            return Fixed(self.options)
        slot_bytes = self.store.slot_bytes
        absent_bytes = slot_bytes * max(1, self.store.total_experts - self.arena.slots)
        return Adaptive(self.options, rows, slot_bytes, absent_bytes, self._parts.most_draft_experts)

    def calibrate(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> calibrate.Calibration:
        """Run sample prompts once and keep what they say of the experts beside the store.

        ``selection="hot-global"``, ``substitution="affinity-activation"`` and ``"merged"`` need it; engines
        loaded afterwards find it.  Every expert crosses the link at least once.

        Args:
            input_ids: long [B, S], padded on the left.
            attention_mask: [B, S], 0 on padding; default all ones.

        Raises:
            ValueError: as ``generate`` does.
        """
        observer = calibrate.Observer(self.store)
        self._state.observer = observer
        try:
            self.generate(input_ids, attention_mask, max_new_tokens=1)
        finally:
            self._state.observer = None
        result = observer.result()
        result.save(self.store)
        return result

    def _stop_tokens(self, given: int | list[int] | type[_FromConfig] | None) -> frozenset[int]:
        value: Any = self.model.generation_config.eos_token_id if given is _FromConfig else given
        return frozenset() if value is None else frozenset([value] if isinstance(value, int) else value)

    def _pad_token(self, given: int | None, stop: frozenset[int]) -> int:
        configured = self.model.generation_config.pad_token_id if given is None else given
        return configured if configured is not None else min(stop, default=0)

    def reset(self) -> None:
        """Forget residents, draft experts and their counts, as after loading."""
        self._state.reset()

    def close(self) -> None:
        """Stop the link; the model cannot generate afterwards."""
        self.link.close()

    def __enter__(self) -> SpecMoE:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class _Phase:
    """Fills a ``PhaseStats`` with the difference of all counters over a block."""

    def __init__(self, engine: SpecMoE, into: PhaseStats) -> None:
        self._link, self._residency, self._into = engine.link, engine._state.residency, into

    def __enter__(self) -> None:
        self._before = self._link.snapshot(), self._residency.snapshot()
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._into.seconds = time.perf_counter() - self._started
        self._into.link = self._link.since(self._before[0])
        self._into.experts = self._residency.since(self._before[1])


def parse_budget(budget: int | str | None, store: ExpertStore) -> int:
    """A budget in bytes; percentages are of all the store's slots, None is all of them.

    Raises:
        ValueError: malformed or not positive.
    """
    everything = store.slot_bytes * store.total_experts
    return everything if budget is None else parse_bytes(budget, everything, "expert budget")


def _remaining(
    input_ids: torch.Tensor, mask: torch.Tensor, max_new_tokens: int | Sequence[int] | None, max_length: int | None
) -> list[int]:
    """Check the inputs; returns how many tokens each row may gain."""
    if input_ids.ndim != 2 or input_ids.shape != mask.shape:
        raise ValueError(
            f"input_ids {tuple(input_ids.shape)} and attention_mask {tuple(mask.shape)} must both be [B, S]"
        )
    if not bool(mask.any(dim=1).all()):
        raise ValueError("a row of attention_mask is all zeros: every row needs a token")
    if bool((mask[:, 1:] < mask[:, :-1]).any()):
        raise ValueError("attention_mask has padding on the right: pad prompts on the left")
    rows, limit = len(input_ids), f"max_new_tokens is {max_new_tokens}"
    if max_new_tokens is None and max_length is not None:
        remaining, limit = [max_length - input_ids.shape[1]] * rows, f"max_length is {max_length}"
    elif max_new_tokens is None or isinstance(max_new_tokens, int):
        remaining = [20 if max_new_tokens is None else max_new_tokens] * rows
    else:
        remaining = list(max_new_tokens)
    if len(remaining) != rows:
        raise ValueError(f"{limit}, for {rows} rows: give one number, or one per row")
    if min(remaining, default=1) < 1:
        raise ValueError(f"{limit}, which leaves no room: ask for at least 1 new token")
    return remaining
