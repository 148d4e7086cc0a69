"""Fast training of many small experts on a CPU: tokens sorted by expert, one GEMM per expert and matrix.

The eager formulation in transformers indexes the hidden states once per expert, and each backward pass of that writes a
full-size gradient; sorting once replaces this by views of contiguous rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

NAME = "sorted_gemm_training"
# Groups are padded to a multiple of this number of rows: oneDNN compiles a bfloat16 kernel per distinct shape.
ROW_MULTIPLE = 32
FLOAT32_ROW_MULTIPLE = 8


class _GroupedLinear(torch.autograd.Function):
    """``out[rows of e] = x[rows of e] @ weight[e].T`` for row groups given by ``counts``."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, counts: list[int]) -> torch.Tensor:
        # x: [S, I], weight: [E, O, I], counts: E ints that sum to S
        ctx.save_for_backward(x, weight)
        ctx.counts = counts
        out = x.new_empty(x.shape[0], weight.shape[1])
        for rows, result, matrix in zip(x.split(counts), out.split(counts), weight.unbind(0), strict=True):
            if rows.shape[0]:
                torch.mm(rows, matrix.t(), out=result)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor, None]:
        x, weight = ctx.saved_tensors
        counts = ctx.counts
        (grad_out,) = grad_outputs
        grad_out = grad_out.contiguous()
        wanted = ctx.needs_input_grad[0]  # not needed where a single layer is trained
        grad_x = torch.empty_like(x)
        grad_weight = torch.empty_like(weight)
        groups = zip(
            x.split(counts),
            grad_out.split(counts),
            grad_x.split(counts),
            weight.unbind(0),
            grad_weight.unbind(0),
            strict=True,
        )
        for rows, grad_rows, grad_in, matrix, grad_matrix in groups:
            if rows.shape[0]:
                if wanted:
                    torch.mm(grad_rows, matrix, out=grad_in)
                torch.mm(grad_rows.t(), rows, out=grad_matrix)
            else:
                grad_matrix.zero_()
        return grad_x if wanted else None, grad_weight, None


@dataclass(frozen=True)
class Groups:
    """The picks of all tokens sorted by expert, with padding rows between the experts'."""

    row_of_pick: torch.Tensor  # [T * K]
    counts: list[int]  # rows of each expert, E numbers that sum to R

    @classmethod
    def of(cls, index: torch.Tensor, num_experts: int, multiple: int = ROW_MULTIPLE) -> Groups:
        """Groups of the picked experts ``index`` [T, K], padded to a multiple of ``multiple`` rows."""
        experts = index.reshape(-1)  # [T*K]
        order = torch.argsort(experts, stable=True)
        counts = torch.bincount(experts, minlength=num_experts)  # [E]
        padded = (counts + multiple - 1) // multiple * multiple
        shift = (padded.cumsum(0) - padded) - (counts.cumsum(0) - counts)  # [E]
        row_of_pick = torch.empty_like(order)
        row_of_pick[order] = torch.arange(order.numel()) + shift[experts[order]]
        return cls(row_of_pick, padded.tolist())

    def rows(self, x: torch.Tensor) -> torch.Tensor:
        """The tokens ``x`` [T, H], once per pick, in the order of the groups: [R, H] with zeros in padding rows."""
        picks = x.repeat_interleave(len(self.row_of_pick) // len(x), dim=0)
        return x.new_zeros(sum(self.counts), x.shape[1]).index_copy(0, self.row_of_pick, picks)

    def picks(self, rows: torch.Tensor, tokens: int) -> torch.Tensor:
        """``rows`` [R, H] in the order of the picks: [T, K, H]."""
        return rows.index_select(0, self.row_of_pick).view(tokens, -1, rows.shape[1])

    def linear(self, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Each expert's matrix of ``weight`` [E, O, I] on its ``rows`` [R, I]: [R, O]."""
        out: torch.Tensor = _GroupedLinear.apply(rows, weight, self.counts)
        return out

    def per_row(self, vectors: torch.Tensor) -> torch.Tensor:
        """Each expert's vector of ``vectors`` [E, O], repeated for its rows: [R, O]."""
        return vectors.repeat_interleave(torch.tensor(self.counts), dim=0)


def sorted_experts_forward(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Experts function for training: [T, H], [T, K], [T, K] -> [T, H], computed in bfloat16."""
    groups = Groups.of(top_k_index, self.num_experts)
    x = groups.rows(hidden_states.to(torch.bfloat16))
    gate, up = groups.linear(x, self.gate_up_proj.to(torch.bfloat16)).chunk(2, dim=-1)
    out = groups.linear(F.silu(gate) * up, self.down_proj.to(torch.bfloat16))
    out = groups.picks(out, len(hidden_states))
    weighted: torch.Tensor = (out * top_k_weights.to(out.dtype).unsqueeze(-1)).sum(dim=1)
    return weighted.to(hidden_states.dtype)


def register() -> str:
    """Register the training formulation with transformers and return its name."""
    ALL_EXPERTS_FUNCTIONS.register(NAME, sorted_experts_forward)
    return NAME
