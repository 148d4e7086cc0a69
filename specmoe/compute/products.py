"""Products of any number of rows with one weight matrix, by the kernel asked for."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from specmoe.compute.calls import StreamedProduct
from specmoe.compute.table import Kernel
from specmoe.compute.threads import available
from specmoe.compute.widening import Widening


def product(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    kernel: Kernel,
    widening: Widening | None = None,
) -> torch.Tensor:
    """``x`` [n, in] times ``weight`` [out, in] plus ``bias``: [n, out] in the dtype of ``x``.

    ``x`` is never rounded: narrower weights are widened, in the memory of ``widening`` if it is given.
    """
    bias = None if bias is None else bias.contiguous()  # neither streaming nor oneDNN looks at strides
    if kernel == "streaming" and can_stream(weight, bias):
        return StreamedProduct(weight, bias)(x)
    dtype = torch.float32 if kernel == "onednn-widened" else x.dtype
    if weight.dtype != dtype:
        weight = weight.to(dtype) if widening is None else widening(weight, dtype)
    bias = None if bias is None else bias.to(dtype)
    if kernel in ("onednn", "onednn-widened"):
        return _onednn(x.to(dtype), weight, bias).to(x.dtype)
    if bias is None and 2 <= len(x) <= 4 and x.device.type == "cpu" and x.dtype == torch.float32:
        # The same product transposed: the GEMM library then reads the weights 1.5 times as fast, and with so few
        # tokens per expert the time is that of reading them.
        return (weight @ x.t()).t()
    return F.linear(x, weight, bias)


def can_stream(weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether the streaming kernel can read a weight matrix and its bias on this machine."""
    fits = bias is None or (bias.dtype == weight.dtype and bias.is_contiguous())
    return available() and weight.is_contiguous() and fits


def _onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")
    return out
