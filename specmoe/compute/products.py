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


def task_rows(width: int, weights: int, threads: int) -> int:
    """Weight rows of ``width`` elements per task where ``weights`` elements are shared by ``threads``; even."""
    elements = max(FEWEST_ELEMENTS, min(MOST_ELEMENTS, weights // (8 * threads)))
    return max(2, elements // width // 2 * 2)


class StreamedProduct:
    """Products with one contiguous weight matrix by the streaming kernel; its arguments are kept by number of rows.

    ``weight`` [out, in] and ``bias`` [out] of the same dtype.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weight, self.bias = weight, bias
        self.function = streamed(weight.dtype)[2]
        self._blocks: dict[tuple[int, int], tuple[array[int], array[int]]] = {}

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[n, in] -> [n, out]."""
        single = x.float().contiguous()
        rows, threads = len(single), torch.get_num_threads()
        out = single.new_empty(rows, len(self.weight))
        block = self.arguments(rows, threads)
        block[fields.X], block[fields.OUT] = single.data_ptr(), out.data_ptr()
        pool(threads).run(self.function, fields.address(block))
        return out.to(x.dtype)

    def arguments(self, rows: int, threads: int) -> array[int]:
        """A block of fields without the addresses of a call; it points to what this object keeps."""
        known = self._blocks.get((rows, threads))
        if known is None:
            known = self._blocks[rows, threads] = self._arguments(rows, threads)
        return known[0][:]

    def _arguments(self, rows: int, threads: int) -> tuple[array[int], array[int]]:
        """The fields of a call, and the lines that they point to."""
        width, inner = self.weight.shape
        lines, block = array("q", range(0, rows * width, width)), array("q", bytes(8 * fields.FIELDS))
        share = task_rows(inner, self.weight.numel(), threads)
        block[fields.TASKS], block[fields.BLOCK] = -(-width // share), share
        block[fields.WIDTH], block[fields.INNER] = width, inner
        block[fields.WEIGHT] = self.weight.data_ptr()
        block[fields.BIAS] = 0 if self.bias is None else self.bias.data_ptr()
        block[fields.ROWS], block[fields.LINES] = rows, fields.address(lines)
        return block, lines


@functools.cache
def streamed(dtype: torch.dtype) -> tuple[int, int, int]:
    """``specmoe.compute.streaming.compiled``; numba is imported when it is first needed."""
    from specmoe.compute import streaming

    return streaming.compiled(dtype)
