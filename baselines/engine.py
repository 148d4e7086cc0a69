"""Systems built on our own engine: SpecMoE, MoE-OnDemand and MoE-Caching.

They share store, link, arena and decode loop, so they differ only in placement and drafting.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from transformers import AutoTokenizer

from baselines.contract import (
    SAMPLES,
    CapabilityCard,
    DeviceType,
    Generation,
    NotSupported,
    Request,
    Setting,
    SlowTierKind,
    SystemOptions,
    Tier,
    prepared,
)
from baselines.counters import Counters
from baselines.decoding import Decoding
from baselines.fill import fill
from baselines.queueing import Queue, Served
from baselines.registry import register
from specmoe import QueuedRequest, SpecMoE, SpecOptions, UnsupportedModelError
from specmoe.drafting import affinity, low_bit
from specmoe.drafting import calibration as calibrations
from specmoe.drafting.agreement import ASSUMED
from specmoe.drafting.calibration import Calibration
from specmoe.generation import plain_settings
from specmoe.model.convert import open_or_build
from specmoe.offload.store import ExpertStore
from specmoe.options import Kernels, PlacementName
from specmoe.stats import GenerationStats

DEVICES: tuple[DeviceType, ...] = ("cpu", "cuda")
SLOW_TIERS: tuple[SlowTierKind, ...] = ("disk", "host", "paced")
TIERS: tuple[Tier, ...] = ("gpu", "ram", "disk")


LEAST_FREE = 0.25
"""Share of the rows that must be free before new requests join: their prompts move nearly every expert."""


class EngineOptions(SystemOptions):
    """Options of every system on this engine."""

    kernels: Kernels = "auto"


class _EngineSystem:
    """Drives ``SpecMoE`` with the ``arguments`` of a subclass."""

    Options: ClassVar[type[SystemOptions]] = EngineOptions

    def __init__(self, options: Any) -> None:
        self.options = options
        self._engine: SpecMoE | None = None
        self._chosen_budget: int | None = None

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of ``SpecMoE.from_pretrained`` that make this system what it is."""
        raise NotImplementedError

    def build(self, setting: Setting) -> None:
        open_or_build(setting.model_path, setting.store_path, setting.stored, compute_dtype=setting.dtype)

    def prepare(self, setting: Setting) -> None:
        if setting.fills_limit:
            if setting.device != "cpu":
                raise NotSupported("expert_budget: fill is of the process limit, not of a GPU: give it a size")
            if setting.process_limit_bytes is None or setting.probe is None:
                raise NotSupported("expert_budget: fill needs a process limit: set process_overhead")
            limit_bytes, probe = setting.process_limit_bytes, setting.probe
            self._engine = fill(limit_bytes, probe, lambda trial: self._open(setting, trial))
            self._chosen_budget = self._engine.arena.budget_bytes
        else:
            self._engine = self._open(setting, setting.expert_budget_bytes)

    def _open(self, setting: Setting, budget_bytes: int | None) -> SpecMoE:
        return SpecMoE.from_pretrained(
            setting.model_path,
            expert_budget=budget_bytes,
            dtype=setting.dtype,
            stored_dtype=setting.stored,
            store=setting.store_path,
            device=setting.device,
            slow_tier=setting.slow_tier,
            expected_rows=setting.batch_size,
            **self.arguments(),
        )

    def generate(self, request: Request) -> Generation:
        engine = prepared(self._engine)
        output = engine.generate(
            request.input_ids,
            request.attention_mask,
            max_new_tokens=request.lengths,
            on_first_token=request.on_prefill_done,
            on_tokens=lambda row, tokens: request.on_tokens(row, len(tokens)),
            **plain_settings(bool(engine.model.config.is_encoder_decoder)) | _choice(request.decoding),
        )
        sequences, stats = output.to_tuple()
        return Generation(request.cut(sequences[:, -request.new_tokens :]), self._counted(engine, stats))

    def serve(self, queue: Queue) -> Served:
        """Serve a queue; requests join as others end."""
        engine, asked = prepared(self._engine), queue.requests
        rows = zip(asked.input_ids, asked.attention_mask, asked.lengths, queue.arrivals_s, strict=True)
        queued = [QueuedRequest(row[keep.bool()], length, at) for row, keep, length, at in rows]
        try:
            stream = engine.generate_many(
                queued,
                batch_size=queue.batch_size,
                least_free=max(1, int(LEAST_FREE * queue.batch_size)),
                on_tokens=lambda request, tokens: asked.on_tokens(request, len(tokens)),
                **plain_settings() | _choice(asked.decoding),
            )
        except UnsupportedModelError as error:
            raise NotSupported(str(error)) from error
        tokens = {done.index: torch.tensor(done.tokens) for done in stream}
        generation = Generation([tokens[i] for i in range(len(queued))], self._counted(engine, stream.stats))
        return Served(generation, stream.stats.prefill.seconds, stream.stats.decode.seconds)

    def _counted(self, engine: SpecMoE, stats: GenerationStats) -> Counters:
        counters = _counters(stats)
        counters.kernels, counters.chosen_budget_bytes = engine.kernels, self._chosen_budget
        if stats.setting is not None:
            counters.draft_pool, counters.draft_bits = stats.setting.pool, stats.setting.bits
            counters.draft_copies_bytes, counters.expert_slots = stats.setting.copies_bytes, stats.setting.slots
            counters.setting_reason = stats.setting.reason
        counters.affinity_table_bytes = affinity.table_bytes(engine.store)
        return counters

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None


def _choice(decoding: Decoding | None) -> dict[str, Any]:
    """Arguments of ``SpecMoE.generate`` that say how tokens are chosen."""
    return {} if decoding is None else {"do_sample": True, **decoding.model_dump()}


def _counters(stats: GenerationStats) -> Counters:
    return Counters(
        decode_steps=stats.target_passes,
        tokens_per_step=stats.tokens_per_step if stats.row_steps else None,
        prefill_link_bytes=stats.prefill.link.moved_bytes,
        prefill_link_busy_s=stats.prefill.link.busy_s,
        prefill_link_wait_s=stats.prefill.link.wait_s,
        decode_link_bytes=stats.decode.link.moved_bytes,
        decode_link_busy_s=stats.decode.link.busy_s,
        decode_link_wait_s=stats.decode.link.wait_s,
        expert_requests=stats.decode.experts.requests,
        expert_hits=stats.decode.experts.hits,
        drafted_by_position=stats.drafted_by_position or None,
        accepted_by_position=stats.accepted_by_position or None,
        peak_expert_bytes=stats.peak_expert_bytes,
        prefetched_bytes=stats.decode.experts.prefetched_bytes,
        prefetch_useful_bytes=stats.decode.experts.useful_bytes,
        prefetch_late_bytes=stats.decode.experts.late_bytes,
        prefetch_wasted_bytes=stats.decode.experts.wasted_bytes,
        cycles=stats.cycle_rows(),
        phases_s=stats.breakdown_s(),
    )


class SpecMoEOptions(SpecOptions, SystemOptions):
    """Every option of the engine; N defaults to 8, for models with 64 experts per layer.

    Without any option the system sets itself: ``controller: auto`` with gamma up to 16 and prefetching drafts.  Where
    options are given they are the setting, and those left out have the fixed defaults of the engine; only
    ``controller: auto`` among them keeps the rest automatic.
    """

    draft_experts: int = Field(default=8, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _sets_itself(cls, given: Any) -> Any:
        if isinstance(given, dict) and (not given or given.get("controller") == "auto"):
            return {"controller": "auto", "gamma": 16, "prefetch": "draft", **given}
        return given


@register
class SpecMoESystem(_EngineSystem):
    """The paper's system, with every option of the engine."""

    card = CapabilityCard(
        name="specmoe",
        title="SpecMoE",
        summary="drafts gamma tokens with N pinned experts per layer and verifies all in one pass",
        grain="experts",
        knows_budget=True,
        tiers=TIERS,
        devices=DEVICES,
        slow_tiers=SLOW_TIERS,
        sampling=SAMPLES,
        fills_limit=True,
        build_options=("controller", "draft_pool", "draft_bits"),
        joins_rows=True,
    )
    Options = SpecMoEOptions

    def arguments(self) -> dict[str, Any]:
        return {"options": SpecOptions.of(**self.options.model_dump())}

    def build(self, setting: Setting) -> None:
        """Make the store and, where missing, its calibration on the setting's texts and the low-bit copies.

        Copies are those that the options name, or where the system sets itself, those that may pay.
        """
        super().build(setting)
        store = ExpertStore.open(setting.store_path)
        known = calibrations.load(store)
        calibrates = bool(setting.calibration_texts) and (known is None or known.agreement is None)
        if not calibrates and set(self._copied(known)) <= set(low_bit.made(store)):
            return
        with SpecMoE.from_pretrained(
            setting.model_path,
            gamma=0,
            expert_budget="50%",
            dtype=setting.dtype,
            stored_dtype=setting.stored,
            store=setting.store_path,
            device=setting.device,
        ) as engine:
            if calibrates:
                tokenizer = AutoTokenizer.from_pretrained(setting.model_path, padding_side="left")
                tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
                encoded = tokenizer(list(setting.calibration_texts), return_tensors="pt", padding=True)
                known = engine.calibrate(encoded["input_ids"], encoded["attention_mask"])
            engine.make_copies(self._copied(known))

    def _copied(self, known: Calibration | None) -> list[int]:
        """Bits of the copies that engines with these options may use."""
        options = SpecOptions.of(**self.options.model_dump())
        if options.drafts_with_copies:
            return [options.draft_bits]
        if options.draft_pool == "auto" and options.controller == "auto":
            return ((known.agreement if known is not None else None) or ASSUMED).likely_bits()
        return []


@register
class OnDemandSystem(_EngineSystem):
    """The paper's MoE-OnDemand: after each gate, move the experts of that step; keep none."""

    card = CapabilityCard(
        name="on-demand",
        title="MoE-OnDemand",
        summary="loads each step's experts after the gate, keeps none",
        grain="experts",
        knows_budget=True,
        tiers=TIERS,
        devices=DEVICES,
        slow_tiers=SLOW_TIERS,
        sampling=SAMPLES,
        fills_limit=True,
        joins_rows=True,
        builds=False,
    )

    def arguments(self) -> dict[str, Any]:
        return {"gamma": 0, "placement": "on-demand", "kernels": self.options.kernels}


@register
class CachingSystem(_EngineSystem):
    """The paper's MoE-Caching: the most frequently used experts of each layer stay on the device.

    With the cell's budget it has as much memory as the other systems; the paper gives it a budget of 10 %.
    """

    card = CapabilityCard(
        name="caching",
        title="MoE-Caching",
        summary="keeps the most frequently used experts of each layer, as many as the budget holds",
        grain="experts",
        knows_budget=True,
        tiers=TIERS,
        devices=DEVICES,
        slow_tiers=SLOW_TIERS,
        sampling=SAMPLES,
        fills_limit=True,
        joins_rows=True,
        builds=False,
    )

    class Options(EngineOptions):
        placement: PlacementName = "top-fraction"

    def arguments(self) -> dict[str, Any]:
        return {"gamma": 0, "placement": self.options.placement, "kernels": self.options.kernels}
