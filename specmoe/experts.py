"""The one hook into transformers: an experts implementation that takes its weights from the arena.

transformers calls ``fn(module, hidden [T, H], top_k_index [T, K], top_k_weights [T, K]) -> [T, H]``.  The
engine hangs an ``ExpertsLayer`` on each experts module; in target mode it streams every expert the gate
picked (coalesced: each once, for all tokens of the pass), in draft mode it replaces picks by pinned ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from specmoe import affinity
from specmoe.errors import UnsupportedModelError
from specmoe.hotness import DraftSelection
from specmoe.placement import Placement
from specmoe.residency import Residency, Weights

NAME = "specmoe"
Mode = Literal["target", "draft"]


class ExpertsRuntime:
    """What all experts layers of one model share.

    ``mode`` and ``valid`` are set before each forward pass; ``valid`` (bool [T]) leaves padding and
    finished rows out, so that they ask for no expert.
    """

    def __init__(
        self,
        residency: Residency,
        placement: Placement,
        selection: DraftSelection | None,
        tables: list[torch.Tensor],
    ) -> None:
        self.mode: Mode = "target"
        self.valid: torch.Tensor | None = None
        self.residency = residency
        self.placement = placement
        self.selection = selection
        self.tables = tables
        self.substitutions: list[torch.Tensor | None] = [None] * len(tables)

    def target(self, position: int, picks: torch.Tensor) -> list[int]:
        """Account for a target pass's picks (long [P]); returns the distinct experts in ascending order."""
        counts = torch.bincount(picks.cpu(), minlength=len(self.tables[position]))
        self.placement.observe(position, counts)
        wanted = set(counts.nonzero().flatten().tolist())
        if self.selection is not None and wanted:
            pinned = self.selection.refresh(position, counts, self.residency.resident(position))
            if pinned != self.residency.pinned(position):
                self.residency.pin(position, pinned)
                self.substitutions[position] = None
            wanted |= set(pinned) - self.residency.resident(position)
        return sorted(wanted)

    def substitute(self, position: int, picks: torch.Tensor) -> torch.Tensor:
        """Replace each picked expert by the nearest pinned one (same shape)."""
        table = self.substitutions[position]
        if table is None:
            table = affinity.substitution(self.tables[position], self.residency.pinned(position)).to(picks.device)
            self.substitutions[position] = table
        return table[picks]


class ExpertsLayer:
    """The experts of one MoE layer: routing in, weighted sum out."""

    def __init__(self, runtime: ExpertsRuntime, position: int, module: Any) -> None:
        if module.has_post_expert_norm:
            raise UnsupportedModelError(f"{type(module).__name__} normalises after each expert: not supported yet")
        self._runtime, self._position, self._module = runtime, position, module

    def __call__(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        runtime, top_k = self._runtime, index.shape[1]
        picks = index.reshape(-1)  # [T*K]
        tokens = torch.arange(len(index), device=index.device).repeat_interleave(top_k)  # [T*K]
        if runtime.valid is not None:
            used = runtime.valid.repeat_interleave(top_k).nonzero().flatten()
        else:
            used = torch.arange(len(picks), device=picks.device)
        supply: Iterable[tuple[int, Weights]]
        if runtime.mode == "draft":
            picks = runtime.substitute(self._position, picks)
            present = picks[used].unique().tolist()
            supply = ((e, runtime.residency.weights(self._position, e)) for e in present)
        else:
            supply = runtime.residency.stream(self._position, runtime.target(self._position, picks[used]))
        out = hidden.new_zeros(len(picks), hidden.shape[1])  # [T*K, H], row by pick: order of arrival is irrelevant
        order = used[torch.sort(picks[used], stable=True).indices]
        bounds = _group_bounds(picks[order])
        for expert, tensors in supply:
            if expert in bounds:  # a newly pinned expert may have no token
                rows = order[slice(*bounds[expert])]
                out[rows] = self._mlp(hidden[tokens[rows]], tensors)
        out = out.view(*index.shape, -1) * weights.to(out.dtype).unsqueeze(-1)  # [T, K, H]
        return out.sum(dim=1)

    def _mlp(self, x: torch.Tensor, tensors: Weights) -> torch.Tensor:
        """One expert on its tokens: [n, H] -> [n, H]."""
        module = self._module
        first = "gate_up_proj" if module.has_gate else "up_proj"
        x = self._linear(x, tensors, first)
        x = module._apply_gate(x) if module.has_gate else module.act_fn(x)
        return self._linear(x, tensors, "down_proj")

    def _linear(self, x: torch.Tensor, tensors: Weights, name: str) -> torch.Tensor:
        weight = tensors[name].t() if self._module.is_transposed else tensors[name]
        return F.linear(x, weight, tensors.get(f"{name}_bias"))


def _group_bounds(sorted_picks: torch.Tensor) -> dict[int, tuple[int, int]]:
    """Start and end of each expert's run in sorted picks."""
    experts, counts = sorted_picks.unique_consecutive(return_counts=True)
    ends = counts.cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    return dict(zip(experts.tolist(), zip(starts, ends, strict=True), strict=True))


def specmoe_experts_forward(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """The registered function; ``self`` is an experts module that ``attach`` has prepared."""
    layer: ExpertsLayer = self.specmoe_layer
    return layer(hidden_states, top_k_index, top_k_weights)


def attach(model: PreTrainedModel, modules: dict[str, Any], runtime: ExpertsRuntime) -> None:
    """Route every experts module of ``model`` through ``runtime``; ``modules`` in store order."""
    ALL_EXPERTS_FUNCTIONS.register(NAME, specmoe_experts_forward)
    for position, module in enumerate(modules.values()):
        module.specmoe_layer = ExpertsLayer(runtime, position, module)
    model.set_experts_implementation(NAME)
