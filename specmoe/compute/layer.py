"""All experts of a layer that are on the device, on their tokens, in one call."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import torch

from specmoe.compute.calls import KINDS, Addresses, Layout, multiply_experts, streamed
from specmoe.compute.expert import ExpertTraits, expert_mlp
from specmoe.compute.gate import Gate
from specmoe.compute.routed import Routed, address
from specmoe.compute.table import Kernel, KernelTable
from specmoe.compute.threads import available
from specmoe.compute.widening import Widening

Tensors = Mapping[str, torch.Tensor]


class ExpertKernels:
    """Computes experts of one layer by the kernels that a table names.

    Args:
        gate: of the experts, where the streaming kernel knows it; without it every expert is computed by itself.
        widening: memory in which other kernels widen weights that rest in a narrower dtype than the hidden states'.
    """

    def __init__(
        self, traits: ExpertTraits, gate: Gate | None, table: KernelTable, widening: Widening | None = None
    ) -> None:
        self._widening = widening
        self._traits, self._gate, self._table = traits, gate, table
        names = ("gate_up_proj" if traits.has_gate else "up_proj", "down_proj")
        self._products = [(name, f"{name}_bias") for name in names]
        self._numbers = gate.numbers() if gate is not None else None
        self._can_stream = gate is not None and not traits.is_transposed and available()
        self._layouts: dict[torch.dtype, Layout] = {}  # by stored dtype
        self._kernels: dict[tuple[torch.dtype, torch.dtype, int], Kernel] = {}

    def compute(self, experts: Sequence[tuple[int, Tensors]], routed: Routed, out: torch.Tensor) -> None:
        """Write the outputs of the experts' picks into ``out`` [T * K, H], row by pick.

        Experts without a pick are skipped.
        """
        streamed_now: list[tuple[Tensors, int, int]] = []
        on_cpu, dtype = routed.hidden.device.type == "cpu", routed.hidden.dtype
        may_stream = on_cpu and self._can_stream and routed.scales is None
        stored = experts[0][1]["down_proj"].dtype if experts else dtype
        bounds = routed.bounds
        for expert, tensors in experts:
            if expert not in bounds:  # a newly pinned expert may have no tokens
                continue
            start, end = bounds[expert]
            kernel = self._kernel(dtype, stored, end - start) if on_cpu else "torch"
            if kernel == "streaming" and may_stream:
                streamed_now.append((tensors, start, end))
                continue
            kernel = "torch" if kernel == "streaming" else kernel
            computed = expert_mlp(routed.input(start, end), tensors, self._traits, kernel, self._widening)
            out[routed.rows(start, end)] = computed.to(out.dtype)
        if streamed_now:
            self._stream(streamed_now, routed, out)

    def _kernel(self, dtype: torch.dtype, stored: torch.dtype, rows: int) -> Kernel:
        """The table's kernel of an expert."""
        known = dtype, stored, rows
        kernel = self._kernels.get(known)
        if kernel is None:
            kernel = self._kernels[known] = self._table.choose("experts", dtype, rows, stored)
        return kernel

    def _stream(self, experts: list[tuple[Tensors, int, int]], routed: Routed, out: torch.Tensor) -> None:
        if self._gate is None or self._numbers is None:
            raise RuntimeError("the streaming kernel was chosen where it cannot run")
        sample = experts[0][0]["down_proj"]  # [H, I]
        layout = self._layouts.get(sample.dtype)
        if layout is None:
            width, inner = sample.shape
            gate, numbers = self._gate.code, address(self._numbers)
            functions = functools.partial(streamed, sample.dtype)
            layout = Layout(width, inner, width, inner, KINDS[sample.dtype], gate, numbers, functions)
            self._layouts[sample.dtype] = layout
        target = out if out.dtype == torch.float32 else out.new_empty(out.shape, dtype=torch.float32)
        described = [(self._addresses(tensors), start, end) for tensors, start, end in experts]
        order = routed.order_address, len(routed.order), routed.top_k
        multiply_experts(layout, described, routed.single, *order, target)
        if target is not out:
            for _, start, end in experts:
                rows_out = routed.rows(start, end)
                out[rows_out] = target[rows_out].to(out.dtype)

    def _addresses(self, tensors: Tensors) -> Addresses:
        (first, first_bias), (down, down_bias) = self._products
        addresses = tensors[first].data_ptr(), tensors[down].data_ptr()
        if len(tensors) == len(self._products):
            return addresses[0], 0, addresses[1], 0, 0, 0
        biases = [tensors.get(name) for name in (first_bias, down_bias)]
        added = [0 if bias is None else bias.data_ptr() for bias in biases]
        return addresses[0], added[0], addresses[1], added[1], 0, 0
