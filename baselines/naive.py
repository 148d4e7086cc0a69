"""Whole-layer streaming: every pass of a MoE layer copies all its experts, used or not.

All layers share one buffer of the size of the largest layer.  A hook fills it through ``specmoe``'s link before each
experts module runs; transformers' own experts function then computes on views of that buffer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch

from baselines import fused
from baselines.contract import (
    CapabilityCard,
    Generation,
    NotSupported,
    Request,
    Setting,
    before_first_token,
    prepared,
)
from baselines.hf import ExpertsOptions, GreedySystem, place_experts, shell_without_experts
from baselines.registry import register
from specmoe.model.checkpoint import expert_modules
from specmoe.offload.device import open_device
from specmoe.offload.link import Link
from specmoe.offload.sources import DiskSource
from specmoe.offload.store import ExpertStore


def _copy_layer(store: ExpertStore, link: Link, buffer: torch.Tensor, layer: int) -> Callable[..., None]:
    """A forward pre-hook that copies all experts of ``layer`` into ``buffer``."""
    spec = store.layers[layer]
    slots = buffer[: spec.experts * spec.stride_bytes].split(spec.stride_bytes)

    def hook(module: Any, args: Any) -> None:
        for transfer in [link.submit(layer, expert, slot) for expert, slot in enumerate(slots)]:
            link.wait(transfer)

    return hook


@register
class NaiveSystem(GreedySystem):
    """Copies whole layers through the link, keeps one at a time."""

    card: ClassVar[CapabilityCard] = CapabilityCard(
        name="naive",
        title="whole-layer streaming",
        summary="copies all experts of a layer in every pass, keeps one layer",
        grain="layers",
        knows_budget=True,
    )
    Options = ExpertsOptions

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._link: Link | None = None
        self._layer_bytes = 0

    def prepare(self, setting: Setting) -> None:
        store = ExpertStore.open(setting.store_path)
        self._layer_bytes = fused.layer_bytes(store)
        budget = setting.expert_budget_bytes
        if budget is not None and budget < self._layer_bytes:
            raise NotSupported(
                f"one whole layer takes {self._layer_bytes} bytes, the expert budget is {budget}: raise expert_budget"
            )
        device = open_device("cpu")
        buffer = device.allocate(self._layer_bytes)
        self._link = Link(DiskSource(store), store, device)
        model = shell_without_experts(setting, device.torch_device)
        modules = expert_modules(model)
        for layer, spec in enumerate(store.layers):
            module = modules[spec.module]
            place_experts(module, fused.views(spec, buffer, store.dtype))
            module.register_forward_pre_hook(_copy_layer(store, self._link, buffer, layer))
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
