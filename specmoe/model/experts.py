"""The one hook into transformers: an experts implementation that takes its weights from the arena.

transformers calls ``fn(module, hidden [T, H], top_k_index [T, K], top_k_weights [T, K]) -> [T, H]``.  The
engine hangs an ``ExpertsLayer`` on each experts module; in target mode it streams every expert the gate
picked (coalesced: each once, for all tokens of the pass), in draft mode others stand in for those that
cannot draft.  What both modes decide lives in ``specmoe.model.pass_state``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from specmoe.drafting.substitution import Picks
from specmoe.errors import UnsupportedModelError
from specmoe.model.pass_state import PassState
from specmoe.offload.residency import Weights

NAME = "specmoe"


class ExpertsLayer:
    """The experts of one MoE layer: routing in, weighted sum out."""

    def __init__(self, state: PassState, layer: int, module: Any) -> None:
        if module.has_post_expert_norm:
            raise UnsupportedModelError(f"{type(module).__name__} normalises after each expert: not supported yet")
        self.layer = layer
        self.router_logits: torch.Tensor | None = None
        self._state, self._module = state, module

    def __call__(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        state, valid = self._state, self._state.valid
        if valid is None:
            valid = torch.ones(len(index), dtype=torch.bool, device=index.device)
        if state.recorder is not None:
            state.recorder.routed(self.layer, state.mode, index, valid)
        supply: Iterable[tuple[int, Weights]]
        if state.mode == "draft":
            index, weights = state.stand_ins(self.layer, Picks(index, weights, self.router_logits), valid)
            used = ((weights != 0) & valid[:, None]).flatten().nonzero().flatten()
            present = index.flatten()[used].unique().tolist()
            supply = ((e, state.residency.weights(self.layer, e)) for e in present)
        else:
            if state.observer is not None:
                state.observer(self, hidden[valid], index[valid])
            used = valid.repeat_interleave(index.shape[1]).nonzero().flatten()
            supply = state.residency.stream(self.layer, state.target(self.layer, index, valid))
        return self._combine(hidden, index, weights, used, supply)

    def _combine(
        self,
        hidden: torch.Tensor,
        index: torch.Tensor,
        weights: torch.Tensor,
        used: torch.Tensor,
        supply: Iterable[tuple[int, Weights]],
    ) -> torch.Tensor:
        """Run each supplied expert on its tokens and sum by gate weight: [T, H].

        ``used`` (long) are the picks that count, as places in the flattened [T, K].
        """
        top_k, picks = index.shape[1], index.reshape(-1)
        out = hidden.new_zeros(len(picks), hidden.shape[1])  # [T*K, H], row by pick: order of arrival is irrelevant
        order = used[torch.sort(picks[used], stable=True).indices]
        bounds = _group_bounds(picks[order])
        for expert, tensors in supply:
            if expert in bounds:  # a newly pinned expert may have no token
                rows = order[slice(*bounds[expert])]
                out[rows] = self._mlp(hidden[rows // top_k], tensors)
        out = out.view(*index.shape, -1) * weights.to(out.dtype).unsqueeze(-1)  # [T, K, H]
        return out.sum(dim=1)

    def outputs_of_all(self, hidden: torch.Tensor) -> torch.Tensor:
        """Every expert of the layer on the same tokens: [S, H] -> [E, S, H]; streams the whole layer."""
        experts = self._module.num_experts
        outputs = hidden.new_empty(experts, *hidden.shape)
        for expert, tensors in self._state.residency.stream(self.layer, list(range(experts))):
            outputs[expert] = self._mlp(hidden, tensors)
        return outputs

    def _mlp(self, x: torch.Tensor, tensors: Weights) -> torch.Tensor:
        """One expert on its tokens: [n, H] -> [n, H]."""
        module = self._module
        first = "gate_up_proj" if module.has_gate else "up_proj"
        x = self._linear(x, tensors, first)
        x = module._apply_gate(x) if module.has_gate else module.act_fn(x)
        return self._linear(x, tensors, "down_proj")

    def _linear(self, x: torch.Tensor, tensors: Weights, name: str) -> torch.Tensor:
        weight = tensors[name].t() if self._module.is_transposed else tensors[name]
        bias = tensors.get(f"{name}_bias")
        if bias is None and 2 <= len(x) <= 4 and x.device.type == "cpu" and x.dtype == torch.float32:
            # Same product the other way round: the GEMM library then reads the weights 1.5 times as fast,
            # and with so few tokens per expert, reading them is all the work there is.
            return (weight @ x.t()).t()
        return F.linear(x, weight, bias)


def _group_bounds(sorted_picks: torch.Tensor) -> dict[int, tuple[int, int]]:
    """Start and end of each expert's run in sorted picks."""
    experts, counts = sorted_picks.unique_consecutive(return_counts=True)
    ends = counts.cumsum(0).tolist()
    starts = [0, *ends][:-1]
    return dict(zip(experts.tolist(), zip(starts, ends, strict=True), strict=True))


def specmoe_experts_forward(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """The registered function; ``self`` is an experts module that ``attach`` has prepared."""
    layer: ExpertsLayer = self.specmoe_layer
    return layer(hidden_states, top_k_index, top_k_weights)


def attach(model: PreTrainedModel, modules: dict[str, Any], state: PassState) -> None:
    """Route every experts module of ``model`` through ``state``; ``modules`` in store order."""
    ALL_EXPERTS_FUNCTIONS.register(NAME, specmoe_experts_forward)
    for layer, (name, module) in enumerate(modules.items()):
        module.specmoe_layer = ExpertsLayer(state, layer, module)
        if state.options.substitution == "best-gate":
            _watch_router(model.get_submodule(name.rpartition(".")[0]), module)
    model.set_experts_implementation(NAME)


def _watch_router(block: Any, experts: Any) -> None:
    """Have the router of an MoE block hand its logits to the experts layer beside it."""

    def keep(router: Any, inputs: Any, output: Any) -> None:
        logits = output[0] if isinstance(output, tuple) else output
        if isinstance(logits, torch.Tensor) and logits.shape[-1] == experts.num_experts:
            experts.specmoe_layer.router_logits = logits.reshape(-1, logits.shape[-1])

    for name, child in block.named_children():
        if name in ("gate", "router"):
            child.register_forward_hook(keep)
