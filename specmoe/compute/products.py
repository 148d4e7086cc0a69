"""Products of any number of rows with one weight matrix, by the kernel asked for."""

from __future__ import annotations

import functools
from array import array

import torch
import torch.nn.functional as F

from specmoe.compute import fields
from specmoe.compute.table import Kernel
from specmoe.compute.threads import available, pool
from specmoe.compute.widening import Widening

MOST_ELEMENTS, FEWEST_ELEMENTS = 1 << 15, 1 << 13
"""Weights per task: few enough to share the work evenly, enough to make the cost of taking a task negligible."""


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
    if kernel == "streaming" and weight.is_contiguous() and (bias is None or bias.dtype == weight.dtype):
        return _streamed(x, weight, bias)
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


def _onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")
    return out


def task_rows(width: int, weights: int, threads: int) -> int:
    """Weight rows of ``width`` elements per task where ``weights`` elements are shared by ``threads``; even."""
    elements = max(FEWEST_ELEMENTS, min(MOST_ELEMENTS, weights // (8 * threads)))
    return max(2, elements // width // 2 * 2)


def _streamed(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    if not available():
        return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
    threads = torch.get_num_threads()
    width, inner = weight.shape
    single = x.float().contiguous()
    out = single.new_empty(len(single), width)
    lines = array("q", range(0, len(single) * width, width))
    block = array("q", bytes(8 * fields.FIELDS))
    rows = task_rows(inner, weight.numel(), threads)
    block[fields.TASKS], block[fields.BLOCK] = -(-width // rows), rows
    block[fields.X], block[fields.OUT] = single.data_ptr(), out.data_ptr()
    block[fields.WIDTH], block[fields.INNER] = width, inner
    block[fields.WEIGHT], block[fields.BIAS] = weight.data_ptr(), 0 if bias is None else bias.data_ptr()
    block[fields.ROWS], block[fields.LINES] = len(single), fields.address(lines)
    pool(threads).run(streamed(weight.dtype)[2], fields.address(block))
    return out.to(x.dtype)


@functools.cache
def streamed(dtype: torch.dtype) -> tuple[int, int, int]:
    """``specmoe.compute.streaming.compiled``; numba is imported when it is first needed."""
    from specmoe.compute import streaming

    return streaming.compiled(dtype)
