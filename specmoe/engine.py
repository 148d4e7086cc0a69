"""``SpecMoE``: a model whose experts stream from a store, with transformers-style loading and generation."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from specmoe import hub, profiling, queue
from specmoe.automatic import Settled, settle
from specmoe.batch import OnTokens
from specmoe.control.controller import make_controller
from specmoe.drafters import make_drafter
from specmoe.drafting import calibration, low_bit
from specmoe.drafting.calibration import Calibration
from specmoe.errors import BudgetError
from specmoe.exclusive import busy, one_call_at_a_time
from specmoe.generation import FromConfig, StopTokens, merge, plain_settings
from specmoe.model.assemble import Assembly, assemble, check_budget, lay_ground, transposed
from specmoe.model.checkpoint import Checkpoint, build_shell, checkpoint_dtype, expert_modules
from specmoe.model.convert import Progress, default_store, open_or_build
from specmoe.model.experts import detach
from specmoe.model.layout import plan_layers
from specmoe.model.pass_state import PassState
from specmoe.model.stored_dtype import choose
from specmoe.offload.arena import ExpertArena
from specmoe.offload.device import open_device
from specmoe.offload.link import Link
from specmoe.offload.slow_tier import SlowTier
from specmoe.offload.store import ExpertStore
from specmoe.options import SpecOptions
from specmoe.queue import FinishedRequest, FinishedRequests, QueuedRequest
from specmoe.recorder import Recorder
from specmoe.request import GenerateOutput, Request
from specmoe.speculate import decode, prefill
from specmoe.stats import DraftSetting, GenerationStats
from specmoe.timeline import Timeline


class SpecMoE:
    """A loaded model with its experts in the slow tier; the algorithm is in ``specmoe.speculate``.

    Build with ``from_pretrained``; ``close`` (or leaving a ``with`` block) stops the link.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        store: ExpertStore,
        budget_bytes: int,
        build: Callable[[int], tuple[Settled, Assembly]],
    ) -> None:
        self.model = model
        self.store = store
        self._build = build  # the options and the parts for an expert budget in bytes
        self._busy = threading.Lock()
        self._settled, self._parts = build(budget_bytes)

    @property
    def options(self) -> SpecOptions:
        """The options in use, with every choice made that was left to the engine."""
        return self._settled.options

    @property
    def _state(self) -> PassState:
        return self._parts.state

    @property
    def arena(self) -> ExpertArena:
        """All device memory for experts."""
        return self._parts.arena

    @property
    def link(self) -> Link:
        """Moves expert bytes to the device and counts them."""
        return self._parts.link

    @property
    def kernels(self) -> str:
        """The kernels that multiply, by number of rows, and where that choice comes from."""
        return self._parts.kernels

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        expert_budget: int | str | None = None,
        options: SpecOptions | None = None,
        dtype: torch.dtype | None = None,
        stored_dtype: torch.dtype | None = None,
        device: str = "cpu",
        slow_tier: str = "disk",
        store: str | Path | None = None,
        expected_rows: int | None = None,
        progress: Progress | None = None,
        **choices: Any,
    ) -> SpecMoE:
        """Load a Hugging Face MoE checkpoint folder with its experts left in the slow tier.

        Args:
            path: folder with ``config.json`` and safetensors, or a hub id such as ``Qwen/Qwen3-30B-A3B``, which is
                downloaded into huggingface_hub's cache.
            expert_budget: device memory for experts: bytes, or text such as ``"1.5GB"`` or ``"25%"`` of all
                experts; default is all of them.
            options: all options of the algorithm; single ones may be given by name instead or in addition:
                ``gamma=5, draft_experts=8, ...`` (the fields of ``SpecOptions``).
            dtype: compute dtype; default the checkpoint's.
            stored_dtype: dtype in which experts are stored, cross the link and fill the budget; default the
                checkpoint's own where widening it to ``dtype`` is exact (bfloat16 or float16 to float32), else
                ``dtype``. The result is that of ``dtype`` in either case.
            device: ``cpu``, ``cuda`` or ``cuda:1``.
            slow_tier: ``disk`` reads from the store past the page cache, ``host`` holds it in (pinned) RAM, and
                ``paced:25GB/s+10us`` is host memory whose transfers take as long as at that rate and latency.
            store: folder of the expert store, built on first use; default one in the cache folder
                (``SPECMOE_CACHE``, else ``~/.cache/specmoe-bench``) for this path and stored dtype.
            expected_rows: rows that will decode together, for which ``controller="auto"`` splits the budget; default 8.
            progress: called with (experts converted, experts in all) while the store is built; by default it is shown
                on stderr after two seconds.

        Raises:
            UnsupportedModelError: a family or checkpoint layout that cannot be offloaded.
            StoreError: a damaged store.
            BudgetError: a budget that cannot hold the draft experts and one more.
            OptionError: an unknown option, one out of range, one that needs a calibration first, or a stored dtype that
                would change the result.
            ValueError: an unknown device or slow tier, a malformed budget, a number of rows below 1, or a hub id that
                cannot be fetched.
        """
        path = hub.resolve(path)
        if options is not None and choices:
            options = SpecOptions.of(**{**options.model_dump(), **choices})
        options = options or SpecOptions.of(**choices)
        on, tier = open_device(device), SlowTier.of(slow_tier)
        if expected_rows is not None and expected_rows < 1:
            raise ValueError(f"expected_rows is {expected_rows}: give a number from 1 on, or None")
        dtype = dtype or checkpoint_dtype(path)
        model = build_shell(path, dtype)
        checkpoint = Checkpoint(path, model)
        stored_dtype = choose(checkpoint, dtype, stored_dtype)
        folder = Path(store) if store is not None else default_store(path, stored_dtype)
        planned = ExpertStore(folder, stored_dtype, list(plan_layers(model, stored_dtype).values()), {})
        budget = planned.budget_bytes(expert_budget)
        check_budget(model, planned, options, budget)  # before the store is built
        expert_store = open_or_build(path, folder, stored_dtype, progress, dtype)
        checkpoint.load_non_experts(on.torch_device)

        def build(budget_bytes: int) -> tuple[Settled, Assembly]:
            ground = lay_ground(model, expert_store, options, on, tier)
            try:
                settled = settle(model, expert_store, options, budget_bytes, on, ground, expected_rows)
                return settled, assemble(model, expert_store, settled.options, budget_bytes, on, ground)
            except BaseException:
                ground.link.close()
                raise

        return cls(model, expert_store, budget, build)

    @one_call_at_a_time
    @torch.inference_mode()
    def generate(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        max_new_tokens: int | Sequence[int] | None = None,
        max_length: int | None = None,
        eos_token_id: StopTokens = FromConfig,
        pad_token_id: int | None = None,
        do_sample: bool | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        generation_config: GenerationConfig | None = None,
        on_first_token: Callable[[], None] | None = None,
        on_tokens: OnTokens | None = None,
        timeline: Timeline | None = None,
        recorder: Recorder | None = None,
        **settings: Any,
    ) -> GenerateOutput:
        """Generate as ``transformers`` does: the same tokens when greedy, the same distribution when sampling.

        Settings that are not given come from ``generation_config``, then from the model's ``generation_config.json``,
        then from transformers' defaults.

        Args:
            input_ids: long [B, S], padded on the left; the source texts of an encoder-decoder, padded on either side.
            attention_mask: [B, S], 0 on padding; default 0 on pad tokens, unless they are stop tokens too, and all ones
                for an encoder-decoder, as in transformers.
            max_new_tokens: most new tokens per row: one number, or one per row; transformers' default is what
                ``max_length`` leaves, or 20.
            max_length: longest row including its padded prompt; ignored when ``max_new_tokens`` is set.
            eos_token_id: stop tokens; None for none.
            pad_token_id: fills rows that stopped early; without one, the first stop token.
            do_sample: draw from the processed distribution instead of taking the most likely token.
            temperature, top_k, top_p: process the logits before a draw; 1, 0 and 1 leave them unchanged;
                transformers' default of ``top_k`` is 50.
            seed: seed of the draws; default that of the options.
            generation_config: settings of this call.
            on_first_token: called once, when the prefill has given every row its first token.
            on_tokens: called with (row, new tokens) as soon as they are final, first tokens included.
            timeline: collects when each pass, wait and transfer happened.
            recorder: receives the expert picks of every pass and what each cycle accepted.
            settings: other fields of transformers' ``GenerationConfig``, such as ``min_p``, an encoder-decoder's
                ``forced_bos_token_id``, or ``repetition_penalty=1.0`` to overrule a value of the file.

        Returns:
            The sequences begin with ``input_ids``, those of an encoder-decoder with the decoder's start token.

        Raises:
            SpecMoEError: another call on this engine has not ended yet.
            UnsupportedModelError: rotary positions that change with length, and rows that reach the change; a batch
                in which transformers' expert capacity would drop tokens because of other rows.
            OptionError: a setting that this engine does not support, or an unknown one.
            ValueError: shapes that do not match, an empty row, padding on the right, a limit below one new token,
                or a sampling value out of range.
        """
        merged = merge(
            self.model.generation_config,
            generation_config,
            settings,
            max_new_tokens=max_new_tokens,
            max_length=max_length,
            eos_token_id=eos_token_id,
            is_encoder_decoder=bool(self.model.config.is_encoder_decoder),
            pad_token_id=pad_token_id,
            do_sample=do_sample,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
        )
        seed = self.options.seed if seed is None else seed
        request = Request.of(self.model, input_ids, attention_mask, merged, seed)
        stats = GenerationStats.start(request.prompt_tokens, self.options.gamma)
        run = request.run(self.model, self._state, self.link, self.options.gamma, stats, timeline, recorder)
        with run.meter.phase(stats.prefill):
            first = prefill(run, request.prompts)
        rows = request.first_rows(first, on_tokens)
        if on_first_token is not None:
            on_first_token()
        with run.meter.phase(stats.decode):
            controller = make_controller(self.options, self._parts.most_draft_experts, self._settled.plan)
            decode(run, rows, make_drafter(self.options), controller)
        stats.setting = self._setting()
        stats.peak_expert_bytes = self.arena.peak_bytes
        return request.output(rows, stats)

    def generate_many(
        self,
        requests: Sequence[QueuedRequest],
        *,
        batch_size: int,
        least_free: int = 1,
        seed: int | None = None,
        generation_config: GenerationConfig | None = None,
        on_tokens: OnTokens | None = None,
        **settings: Any,
    ) -> FinishedRequests:
        """Generate for a queue of requests; rows that end make room for requests that have arrived.

        The greedy output of every request is the one that ``generate`` gives it alone; sampled output has the same
        distribution.

        Args:
            requests: prompts with their limits and arrival times.
            batch_size: most rows at once.
            least_free: so many rows must be free before new ones join, unless none is left.
            on_tokens: called with (place in ``requests``, new tokens) as soon as they are final.
            seed, generation_config, settings: as in ``generate`` (``do_sample``, ``eos_token_id``, ...), for all.

        Returns:
            An iterator of the requests in the order in which they end.

        Raises:
            UnsupportedModelError: an encoder-decoder, or as ``generate`` does.
            OptionError, ValueError: as ``generate`` does; no request, or a batch size or ``least_free`` out of range.
            SpecMoEError: another call on this engine has not ended yet (from the first ``next``).
        """
        merged = merge(self.model.generation_config, generation_config, settings)
        checked = queue.check(self.model, requests, merged, self.options.seed if seed is None else seed)
        queue.check_rows(batch_size, least_free)
        stats = GenerationStats.start(sum(request.prompt_tokens for request in checked), self.options.gamma)
        arrivals_s = [request.arrival_s for request in requests]
        served = self._serve(checked, arrivals_s, stats, batch_size, least_free, on_tokens)
        return FinishedRequests(served, stats)

    @torch.inference_mode()
    def _serve(
        self,
        requests: list[Request],
        arrivals_s: list[float],
        stats: GenerationStats,
        batch_size: int,
        least_free: int,
        on_tokens: OnTokens | None,
    ) -> Generator[FinishedRequest, None, None]:
        with busy(self._busy):
            cache = queue.open_cache(self.model, requests, self.options.gamma, batch_size)
            run = requests[0].run(self.model, self._state, self.link, self.options.gamma, stats)
            run = replace(run, cache=cache, most_rows=batch_size)
            controller = make_controller(self.options, self._parts.most_draft_experts, self._settled.plan)
            drafter = make_drafter(self.options)
            yield from queue.Server(
                run, stats, requests, arrivals_s, drafter, controller, least_free, on_tokens
            ).serve()
            stats.setting = self._setting()
            stats.peak_expert_bytes = self.arena.peak_bytes

    def _setting(self) -> DraftSetting:
        """How the expert budget is used, and why."""
        options = self.options
        if not options.drafts_with_experts:
            return DraftSetting("none", None, 0, self.arena.slots, self._settled.reason)
        bits = options.draft_bits if options.drafts_with_copies else None
        copies_bytes = len(self.arena.reserved)
        return DraftSetting(options.draft_pool, bits, copies_bytes, self.arena.slots, self._settled.reason)

    @one_call_at_a_time
    @torch.inference_mode()
    def calibrate(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> Calibration:
        """Run sample prompts once, measure how they use the experts, and save the result beside the store.

        ``selection="hot-global"``, ``substitution="affinity-activation"`` and ``"merged"`` need it, and the split of
        ``controller="auto"`` is better with it, as it tells how often each kind of draft is right; engines loaded
        afterwards find it.  Every expert is loaded at least once.

        Args:
            input_ids: long [B, S], padded on the left; source texts of an encoder-decoder, whose decoder is measured
                on what it makes of them.
            attention_mask: [B, S], 0 on padding; default all ones.

        Raises:
            ValueError, UnsupportedModelError: as ``generate`` does, for a few tokens after the prompts.
        """
        has_encoder = bool(self.model.config.is_encoder_decoder)
        steps = calibration.TARGET_TOKENS if has_encoder else 1 + profiling.STEPS
        settings = merge(
            self.model.generation_config,
            None,
            plain_settings(has_encoder),
            is_encoder_decoder=has_encoder,
            max_new_tokens=steps,
        )
        request = Request.of(self.model, input_ids, attention_mask, settings, self.options.seed)
        run = request.run(self.model, self._state, self.link, self.options.gamma, GenerationStats())
        turned = transposed(expert_modules(self.model))
        rounding = {bits: partial(_rounded, bits, turned) for bits in profiling.BITS}
        result = profiling.calibrate(run, request.prompts, self.store, rounding)
        result.save(self.store)
        return result

    def make_copies(self, bits: Sequence[int]) -> None:
        """Make the low-bit copies of all experts that drafts with ``draft_pool="low-bit"`` use, unless they are there.

        Engines loaded afterwards with ``controller="auto"`` choose among the copies that have been made.

        Args:
            bits: 2, 3, 4 or 8 per weight.

        Raises:
            StoreError: the store's folder cannot be written, or holds damaged copies.
        """
        for number in bits:
            low_bit.open_or_build(self.store, number, transposed(expert_modules(self.model)))

    def reset(self) -> None:
        """Empty device memory and forget draft experts and their counts, as after loading."""
        self._state.reset()

    @one_call_at_a_time
    def resize(self, expert_budget: int | str | None) -> None:
        """Give experts another budget, as in ``from_pretrained``; device memory is empty afterwards, as after loading.

        Raises:
            BudgetError, ValueError: as ``from_pretrained``; the engine keeps its budget.
        """
        budget, before = self.store.budget_bytes(expert_budget), self.arena.budget_bytes
        self.link.close()
        detach(self.model)
        del self._parts  # so that the old memory is free before there is new one
        try:
            self._settled, self._parts = self._build(budget)
        except BudgetError:
            self._settled, self._parts = self._build(before)
            raise

    def close(self) -> None:
        """Stop the link; the engine cannot generate afterwards."""
        self.link.close()

    def __enter__(self) -> SpecMoE:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _rounded(bits: int, turned: list[bool], layer: int, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return low_bit.rounded(weights, bits, turned[layer])
