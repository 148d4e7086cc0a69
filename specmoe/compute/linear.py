"""Linear layers outside the experts, by the same kernels as experts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from specmoe.compute.calls import StreamedProduct
from specmoe.compute.products import can_stream, product
from specmoe.compute.table import SMALL, Kernel, KernelTable

WIDENED_ELEMENTS = 1 << 18
"""Weights that are widened at a time for a product of many rows: their wide form stays in the cache."""


class KernelLinear(nn.Linear):
    """``nn.Linear`` for inference on a CPU: its kernel is chosen by the number of rows.

    Its weights may rest in a narrower dtype than its input's, in which it computes.
    """

    table: KernelTable
    computed: torch.dtype
    _kernels: dict[int, Kernel]  # by number of rows
    _streamed: StreamedProduct | None

    @classmethod
    def of(cls, layer: nn.Linear, table: KernelTable) -> KernelLinear:
        """A layer that shares the parameters and hooks of ``layer``."""
        made = cls.__new__(cls)
        made.__dict__.update(layer.__dict__)
        made.table, made.computed = table, layer.weight.dtype
        made._kernels = {}
        made._streamed = None
        return made

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        x = input.reshape(-1, self.in_features)
        weight, bias = self.weight, self.bias
        is_narrow = weight.dtype != input.dtype == self.computed
        kernel = self.kernel(len(x))
        is_plain = not len(x) or input.device.type != "cpu" or torch.is_grad_enabled()
        if (kernel == "torch" or is_plain) and not is_narrow:
            return super().forward(input)
        if kernel == "streaming" and can_stream(weight, bias) and not is_plain:
            out = self.streamed()(x)
        elif is_narrow:
            out = _widened(x, weight, bias)
        else:
            out = product(x, weight, bias, kernel)
        return out.view(*input.shape[:-1], -1)

    def kernel(self, rows: int) -> Kernel:
        """The table's kernel for so many rows."""
        kernel = self._kernels.get(rows)
        if kernel is None:
            kernel = self._kernels[rows] = self.table.choose("linear", self.computed, rows, self.weight.dtype)
        return kernel

    def streamed(self) -> StreamedProduct:
        """The layer by the streaming kernel, where ``can_stream``."""
        if self._streamed is None or self._streamed.weight is not self.weight or self._streamed.bias is not self.bias:
            self._streamed = StreamedProduct(self.weight, self.bias)
        return self._streamed


def _widened(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """``x`` [n, in] times narrower weights [out, in] plus bias, in the dtype of ``x``: [n, out]."""
    out, rows = x.new_empty(len(x), len(weight)), max(1, WIDENED_ELEMENTS // weight.shape[1])
    for start in range(0, len(weight), rows):
        part = slice(start, start + rows)
        out[:, part] = F.linear(x, weight[part].to(x.dtype), None if bias is None else bias[part].to(x.dtype))
    return out


def replace_linears(model: nn.Module, table: KernelTable, smallest: int = SMALL) -> set[torch.dtype]:
    """Replace the plain linear layers of ``model`` that have at least ``smallest`` weights; returns their dtypes."""
    replaced = set()
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and not module.weight.is_meta and module.weight.numel() >= smallest:
            model.set_submodule(name, KernelLinear.of(module, table))
            replaced.add(module.weight.dtype)
    return replaced
