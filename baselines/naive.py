"""Whole-layer streaming: every pass of a MoE layer copies all its experts, used or not.

All layers share one buffer of the size of the largest layer.  A hook fills it through ``specmoe``'s link before each
experts module runs; transformers' own experts function then computes on views of that buffer.  Experts that are stored
in a narrower dtype than the cell's pass through some slots beside it, and are widened into it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch

from baselines import fused
from baselines.contract import (
    SAMPLES,
    CapabilityCard,
    Generation,
    NotSupported,
    Request,
    Setting,
    before_first_token,
    prepared,
)
from baselines.hf import ExpertsOptions, TransformersSystem, place_experts, shell_without_experts
from baselines.registry import register
from specmoe.model.checkpoint import expert_modules
from specmoe.offload.device import open_device
from specmoe.offload.link import Link
from specmoe.offload.slow_tier import SlowTier
from specmoe.offload.sources import open_source
from specmoe.offload.store import ExpertStore
from specmoe.offload.transfers import Transfer

_SLOTS = 4  # through which experts pass that are widened


def _copy_layer(store: ExpertStore, link: Link, buffer: torch.Tensor, layer: int) -> Callable[..., None]:
    """A forward pre-hook that copies all experts of ``layer`` into ``buffer``."""
    spec = store.layers[layer]
    slots = buffer[: spec.experts * spec.stride_bytes].split(spec.stride_bytes)

    def hook(module: Any, args: Any) -> None:
        for transfer in [link.submit(layer, expert, slot) for expert, slot in enumerate(slots)]:
            link.wait(transfer)

    return hook


def _widen_layer(
    store: ExpertStore, link: Link, slots: Sequence[torch.Tensor], wide: dict[str, torch.Tensor], layer: int
) -> Callable[..., None]:
    """A forward pre-hook that copies all experts of ``layer`` through ``slots`` into ``wide`` ([E, ...] by name)."""
    spec = store.layers[layer]

    def submit(expert: int) -> Transfer:
        return link.submit(layer, expert, slots[expert % len(slots)][: spec.stride_bytes])

    def hook(module: Any, args: Any) -> None:
        transfers = deque(submit(expert) for expert in range(min(len(slots), spec.experts)))
        for expert in range(spec.experts):
            link.wait(transfers.popleft())
            for name, tensor in store.tensors(layer, slots[expert % len(slots)]).items():
                wide[name][expert] = tensor
            if expert + len(slots) < spec.experts:
                transfers.append(submit(expert + len(slots)))

    return hook


@register
class NaiveSystem(TransformersSystem):
    """Copies whole layers through the link, keeps one at a time."""

    card: ClassVar[CapabilityCard] = CapabilityCard(
        name="naive",
        title="whole-layer streaming",
        summary="copies all experts of a layer in every pass, keeps one layer",
        grain="layers",
        knows_budget=True,
        tiers=("gpu", "ram", "disk"),
        devices=("cpu", "cuda"),
        slow_tiers=("disk", "host", "paced"),
        sampling=SAMPLES,
        builds=False,
    )
    Options = ExpertsOptions

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._link: Link | None = None
        self._layer_bytes = 0

    def prepare(self, setting: Setting) -> None:
        store = ExpertStore.open(setting.store_path)
        widens = store.dtype != setting.dtype
        largest, staging = fused.layer_bytes(store), _SLOTS * store.slot_bytes if widens else 0
        self._layer_bytes = fused.computed_bytes(largest, store, setting.dtype) + staging
        budget = setting.expert_budget_bytes
        if budget is not None and budget < self._layer_bytes:
            raise NotSupported(
                f"one whole layer in {str(setting.dtype).removeprefix('torch.')} takes {self._layer_bytes} bytes, the "
                f"expert budget is {budget}: raise expert_budget"
            )
        device, tier = open_device(setting.device), SlowTier.of(setting.slow_tier)
        buffer = device.allocate(self._layer_bytes)
        self._link = Link(open_source(store, device, tier), store, device, tier.pace())
        model = shell_without_experts(setting, device.torch_device)
        modules = expert_modules(model)
        slots, rest = buffer[:staging].split(store.slot_bytes), buffer[staging:]
        for layer, spec in enumerate(store.layers):
            module = modules[spec.module]
            if widens:
                tensors = fused.widened(spec, rest, setting.dtype)
                hook = _widen_layer(store, self._link, slots, tensors, layer)
            else:
                tensors = fused.views(spec, rest, store.dtype)
                hook = _copy_layer(store, self._link, rest, layer)
            place_experts(module, tensors)
            module.register_forward_pre_hook(hook)
        model.set_experts_implementation(self.options.experts)
        self._model = model

    def generate(self, request: Request) -> Generation:
        link = prepared(self._link)
        marks = [link.snapshot()]
        generation = super().generate(before_first_token(request, lambda: marks.append(link.snapshot())))
        start, first = marks
        decode, counters = link.since(first), generation.counters
        counters.prefill_link_bytes = first.moved_bytes - start.moved_bytes
        counters.decode_link_bytes = decode.moved_bytes
        counters.decode_link_busy_s, counters.decode_link_wait_s = decode.busy_s, decode.wait_s
        counters.peak_expert_bytes = self._layer_bytes
        return generation

    def close(self) -> None:
        super().close()
        if self._link is not None:
            self._link.close()
            self._link = None
