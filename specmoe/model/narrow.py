"""Head and attention matrices that rest in the checkpoint's own dtype: half the bytes to read, and the same result.

Widening a bfloat16 or float16 number to float32 is exact, so a matrix may rest in either if all its numbers are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from specmoe.compute.linear import KernelLinear
from specmoe.model.fused_attention import FusedAttention


class NarrowEmbedding(nn.Embedding):
    """An embedding whose weight rests in another dtype than that of its output."""

    computed: torch.dtype

    @classmethod
    def of(cls, layer: nn.Embedding, weight: nn.Parameter) -> NarrowEmbedding:
        """``layer`` with another ``weight``, which has its values."""
        made = cls.__new__(cls)
        made.__dict__.update(layer.__dict__)
        made.computed = layer.weight.dtype
        made.__dict__["_parameters"] = {"weight": weight}
        return made

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Long [...] -> [..., width]."""
        return F.embedding(input, self.weight).to(self.computed)


def narrow(model: PreTrainedModel, stored: torch.dtype) -> int:
    """Let the head and fused attention of a float32 ``model`` rest in ``stored`` where that is exact; returns how many.

    An embedding that shares its weight with the head still does.
    """
    if stored not in (torch.bfloat16, torch.float16) or model.config.is_encoder_decoder:
        return 0
    done = sum(_narrow_attention(m, stored) for m in list(model.modules()) if isinstance(m, FusedAttention))
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if not isinstance(head, KernelLinear) or head.bias is not None:
        return done
    before = head.weight
    others = [m for m in model.modules() if m is not head and any(p is before for p in m._parameters.values())]
    weight = _exactly(before, stored)
    if weight is None or others not in ([], [embedding]):
        return done
    if others:
        if type(embedding) is not nn.Embedding or embedding.max_norm is not None or embedding._forward_hooks:
            return done
        model.set_input_embeddings(NarrowEmbedding.of(embedding, weight))
    head.weight = weight
    return done + 1


def _narrow_attention(layer: FusedAttention, stored: torch.dtype) -> int:
    joined, parts = layer.joined, [layer.q_proj, layer.k_proj, layer.v_proj]
    done = 0
    if all(isinstance(part, KernelLinear) for part in parts) and joined.bias is None:
        weight = _exactly(joined.weight, stored)
        if weight is not None:
            joined.weight = weight
            for part, view in zip(parts, weight.split([part.out_features for part in parts]), strict=True):
                part.weight = nn.Parameter(view, requires_grad=False)
            done += 1
    output = layer.o_proj
    if isinstance(output, KernelLinear) and output.bias is None:
        weight = _exactly(output.weight, stored)
        if weight is not None:
            output.weight = weight
            done += 1
    return done


def _exactly(weight: torch.Tensor, stored: torch.dtype) -> nn.Parameter | None:
    """A float32 matrix in ``stored``, if every number stays what it is."""
    if weight.dtype != torch.float32 or weight.device.type != "cpu":
        return None
    found = weight.detach().to(stored)
    return nn.Parameter(found, requires_grad=False) if torch.equal(found.to(torch.float32), weight) else None
