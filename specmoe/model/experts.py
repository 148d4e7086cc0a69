"""The one hook into transformers: an experts implementation that takes its weights from the arena.

transformers calls ``fn(module, hidden [T, H], top_k_index [T, K], top_k_weights [T, K]) -> [T, H]``.  The
engine attaches an ``ExpertsLayer`` to each experts module; a target pass streams every expert the gate picked
(coalesced: each once, for all tokens of the pass), a draft pass uses substitutes for those that cannot draft.
Which experts these are is decided in ``specmoe.model.pass_state``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from specmoe.compute.expert import ExpertTraits, expert_mlp
from specmoe.compute.gate import recognise
from specmoe.compute.layer import ExpertKernels
from specmoe.compute.packed_layer import PackedKernels
from specmoe.compute.routed import Routed
from specmoe.compute.table import TORCH, KernelTable
from specmoe.compute.widening import Widening
from specmoe.drafting.substitution import Picks
from specmoe.errors import UnsupportedModelError
from specmoe.model.checkpoint import expert_modules
from specmoe.model.families.base import HookedExperts
from specmoe.model.pass_state import PassState
from specmoe.offload.residency import Weights

NAME = "specmoe"
Kernels = ExpertKernels | PackedKernels


class ExpertsLayer:
    """The experts of one MoE layer: routing in, weighted sum out."""

    def __init__(
        self,
        state: PassState,
        layer: int,
        module: Any,
        table: KernelTable,
        widening: Widening,
        scratch: dict[str, torch.Tensor],
    ) -> None:
        if module.has_post_expert_norm:
            raise UnsupportedModelError(
                f"{type(module).__name__} normalises after each expert, which is not supported: use another model"
            )
        self.layer = layer
        self.router_logits: torch.Tensor | None = None
        self._state, self._experts, self._traits = state, int(module.num_experts), ExpertTraits.of(module)
        gate = recognise(self._traits, module)
        self._kernels = ExpertKernels(self._traits, gate, table, widening)
        self._draft_kernels: Kernels = self._kernels
        if state.copies is not None:
            self._draft_kernels = PackedKernels(self._traits, gate, table, scratch)
        self._widening = widening
        self._scales_input = bool(getattr(module, "scales_input", False))
        self._may_skip = bool(getattr(module, "may_skip", False))

    def __call__(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        state, current = self._state, self._state.current(index)
        valid = current.valid
        state.recorder.routed(self.layer, current.mode, index, valid)
        supply: Iterable[list[tuple[int, Weights]]]
        used: torch.Tensor | None
        if current.mode == "draft":
            picks = Picks(index, weights, self.router_logits, self._present(index))
            index, weights = state.substitute(self.layer, picks, valid)
            used = (weights != 0) & valid[:, None]
            routed = self._routed(hidden, index, weights, used)
            supply = [[(e, state.weights(self.layer, e)) for e in routed.bounds]]
            return self._combine(routed, weights, supply, self._draft_kernels)
        if (emulation := current.emulation) is not None:
            picks = Picks(index, weights, self.router_logits, self._present(index))
            index, weights = emulation.picks(self.layer, picks)
            routed = self._routed(hidden, index, weights, (weights != 0) & valid[:, None])
            stream = state.residency.stream(self.layer, sorted(routed.bounds))
            supply = ([(expert, emulation.weights(self.layer, tensors))] for expert, tensors in stream)
            return self._combine(routed, weights, supply, self._kernels)
        if state.observer is not None:
            state.observer(self, hidden[valid], index[valid])
        used = self._present(index)
        if not current.all_valid:
            used = valid[:, None].expand_as(index) if used is None else used & valid[:, None]
        supply = state.residency.groups(self.layer, state.target(self.layer, index, current))
        routed = self._routed(hidden, index, weights, used)
        return self._combine(routed, weights, supply, self._kernels)

    def _present(self, index: torch.Tensor) -> torch.Tensor | None:
        """Which picks name an expert, bool [T, K]; None if all do."""
        return index < self._experts if self._may_skip else None

    def _routed(
        self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor, used: torch.Tensor | None
    ) -> Routed:
        """The picks to compute (``used``, bool [T, K]; None for all) by expert."""
        chosen = None if used is None else used.cpu().numpy()
        return Routed.of(hidden, index.cpu().numpy(), chosen, weights.reshape(-1) if self._scales_input else None)

    def _combine(
        self,
        routed: Routed,
        weights: torch.Tensor,
        supply: Iterable[list[tuple[int, Weights]]],
        kernels: Kernels,
    ) -> torch.Tensor:
        """Run the supplied experts on their tokens and sum by gate weight: [T, H]."""
        hidden, picks = routed.hidden, weights.numel()
        make = hidden.new_empty if len(routed.order) == picks else hidden.new_zeros
        out = make(picks, hidden.shape[1])  # [T*K, H], row by pick: order of arrival does not matter
        for experts in supply:
            kernels.compute(experts, routed, out)
        out = out.view(*weights.shape, -1)  # [T, K, H]
        if self._scales_input:
            return out.sum(dim=1)
        weights = weights.to(out.dtype)
        if len(weights) == 1:
            return weights @ out[0]
        return (out * weights.unsqueeze(-1)).sum(dim=1)  # a batched product would wake threads for a few numbers

    def outputs_of_all(self, hidden: torch.Tensor) -> torch.Tensor:
        """Every expert of the layer on the same tokens: [S, H] -> [E, S, H]; loads the whole layer."""
        outputs = hidden.new_empty(self._experts, *hidden.shape)
        for expert, tensors in self._state.residency.stream(self.layer, list(range(self._experts))):
            outputs[expert] = expert_mlp(hidden, tensors, self._traits, widening=self._widening)
        return outputs


def specmoe_experts_forward(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """The function registered with transformers; ``self`` is an experts module prepared by ``attach``."""
    layer: ExpertsLayer = self.specmoe_layer
    return layer(hidden_states, top_k_index, top_k_weights)


def attach(model: PreTrainedModel, modules: dict[str, Any], state: PassState, table: KernelTable = TORCH) -> None:
    """Route every experts module of ``model`` through ``state``; ``modules`` in store order, kernels by ``table``."""
    ALL_EXPERTS_FUNCTIONS.register(NAME, specmoe_experts_forward)
    widening, scratch = Widening(), dict[str, torch.Tensor]()  # layers are computed one after another
    for layer, (name, module) in enumerate(modules.items()):
        is_new = not hasattr(module, "specmoe_layer")
        module.specmoe_layer = ExpertsLayer(state, layer, module, table, widening, scratch)
        if state.options.substitution == "best-gate" and is_new:
            _watch_router(model.get_submodule(name.rpartition(".")[0]), module)
    if any(not isinstance(module, HookedExperts) for module in modules.values()):
        model.set_experts_implementation(NAME)


def detach(model: PreTrainedModel) -> None:
    """Have the experts modules of an attached ``model`` hold no device memory; they cannot run until ``attach``."""
    for module in expert_modules(model).values():
        module.specmoe_layer = None


def _watch_router(block: Any, experts: Any) -> None:
    """Have the router of an MoE block pass its logits to the block's experts layer."""

    def keep(router: Any, inputs: Any, output: Any) -> None:
        logits = output[0] if isinstance(output, tuple) else output
        if isinstance(logits, torch.Tensor) and logits.shape[-1] == experts.num_experts:
            experts.specmoe_layer.router_logits = logits.reshape(-1, logits.shape[-1])

    for name, child in block.named_children():
        if name in ("gate", "router"):
            child.register_forward_hook(keep)
