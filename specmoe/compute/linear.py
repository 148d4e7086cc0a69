"""Linear layers outside the experts, by the same kernels as experts."""

from __future__ import annotations

import torch
from torch import nn

from specmoe.compute.products import StreamedProduct, can_stream, product
from specmoe.compute.table import SMALL, Kernel, KernelTable


class KernelLinear(nn.Linear):
    """``nn.Linear`` for inference on a CPU: its kernel is chosen by the number of rows."""

    table: KernelTable
    _kernels: dict[int, Kernel]  # by number of rows
    _streamed: StreamedProduct | None

    @classmethod
    def of(cls, layer: nn.Linear, table: KernelTable) -> KernelLinear:
        """A layer that shares the parameters and hooks of ``layer``."""
        made = cls.__new__(cls)
        made.__dict__.update(layer.__dict__)
        made.table = table
        made._kernels = {}
        made._streamed = None
        return made

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        x = input.reshape(-1, self.in_features)
        kernel = self.kernel(len(x))
        if kernel == "torch" or not len(x) or input.device.type != "cpu" or torch.is_grad_enabled():
            return super().forward(input)
        weight, bias = self.weight, self.bias
        if kernel == "streaming" and can_stream(weight, bias):
            out = self.streamed()(x)
        else:
            out = product(x, weight, bias, kernel)
        return out.view(*input.shape[:-1], -1)

    def kernel(self, rows: int) -> Kernel:
        """The table's kernel for so many rows."""
        kernel = self._kernels.get(rows)
        if kernel is None:
            kernel = self._kernels[rows] = self.table.choose("linear", self.weight.dtype, rows)
        return kernel

    def streamed(self) -> StreamedProduct:
        """The layer by the streaming kernel, where ``can_stream``."""
        if self._streamed is None or self._streamed.weight is not self.weight or self._streamed.bias is not self.bias:
            self._streamed = StreamedProduct(self.weight, self.bias)
        return self._streamed


def replace_linears(model: nn.Module, table: KernelTable, smallest: int = SMALL) -> set[torch.dtype]:
    """Replace the plain linear layers of ``model`` that have at least ``smallest`` weights; returns their dtypes."""
    replaced = set()
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and not module.weight.is_meta and module.weight.numel() >= smallest:
            model.set_submodule(name, KernelLinear.of(module, table))
            replaced.add(module.weight.dtype)
    return replaced
