"""All experts of a layer that are on the device, on their tokens, in one call."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence

import torch

from specmoe.compute import fields
from specmoe.compute.expert import ExpertTraits, expert_mlp
from specmoe.compute.gate import Gate
from specmoe.compute.products import streamed, task_rows
from specmoe.compute.routed import Routed, address
from specmoe.compute.table import Kernel, KernelTable
from specmoe.compute.threads import available, pool
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
        self._most: dict[tuple[torch.dtype, torch.dtype], int] = {}  # ``_most_streamed`` by compute and stored dtype

    def compute(self, experts: Sequence[tuple[int, Tensors]], routed: Routed, out: torch.Tensor) -> None:
        """Write the outputs of the experts' picks into ``out`` [T * K, H], row by pick.

        Experts without a pick are skipped.
        """
        streamed_now: list[tuple[Tensors, int, int]] = []
        most = 0
        for expert, tensors in experts:
            if expert not in routed.bounds:  # a newly pinned expert may have no tokens
                continue
            start, end = routed.bounds[expert]
            stored = tensors["down_proj"].dtype
            if not streamed_now:
                most = self._most_streamed(routed, stored)
            if end - start <= most:
                streamed_now.append((tensors, start, end))
                continue
            kernel = self._kernel(routed, stored, end - start)
            computed = expert_mlp(routed.input(start, end), tensors, self._traits, kernel, self._widening)
            out[routed.rows(start, end)] = computed.to(out.dtype)
        if streamed_now:
            self._stream(streamed_now, routed, out)

    def _kernel(self, routed: Routed, stored: torch.dtype, rows: int) -> Kernel:
        """The kernel of an expert that is not streamed."""
        if routed.hidden.device.type != "cpu":
            return "torch"
        kernel = self._table.choose("experts", routed.hidden.dtype, rows, stored)
        return "torch" if kernel == "streaming" else kernel

    def _most_streamed(self, routed: Routed, stored: torch.dtype) -> int:
        """Most tokens of an expert that the streaming kernel takes in this pass; 0 for none."""
        if self._gate is None or self._traits.is_transposed or routed.scales is not None:
            return 0
        if routed.hidden.device.type != "cpu" or not available():
            return 0
        pair = routed.hidden.dtype, stored
        if pair not in self._most:
            self._most[pair] = self._table.streamed_rows("experts", *pair)
        return self._most[pair]

    def _stream(self, experts: list[tuple[Tensors, int, int]], routed: Routed, out: torch.Tensor) -> None:
        threads = torch.get_num_threads()
        if self._gate is None or self._numbers is None:
            raise RuntimeError("the streaming kernel was chosen where it cannot run")
        sample = experts[0][0]["down_proj"]  # [H, I]
        width, inner = sample.shape
        target = out if out.dtype == torch.float32 else out.new_empty(out.shape, dtype=torch.float32)
        between = routed.single.new_empty(len(routed.order), inner)
        groups = array("q")
        for tensors, start, end in experts:
            for name, bias_name in self._products:
                bias = tensors.get(bias_name)
                groups.extend((tensors[name].data_ptr(), 0 if bias is None else bias.data_ptr()))
            groups.extend((start, end))
        block = array("q", bytes(8 * fields.FIELDS))
        block[fields.X], block[fields.OUT] = routed.single.data_ptr(), target.data_ptr()
        block[fields.WIDTH], block[fields.INNER], block[fields.HIDDEN] = width, inner, between.data_ptr()
        block[fields.GROUPS], block[fields.TOKENS] = fields.address(groups), address(routed.tokens)
        block[fields.PICKS], block[fields.GATE] = address(routed.lines), self._gate.code
        block[fields.NUMBERS] = address(self._numbers)
        up, down, _ = streamed(sample.dtype)
        for function, rows, in_each in ((up, inner, width), (down, width, inner)):
            share = task_rows(in_each, len(experts) * width * inner, threads)
            block[fields.NEXT], block[fields.BLOCK] = 0, share
            block[fields.BLOCKS] = -(-rows // share)
            block[fields.TASKS] = len(experts) * block[fields.BLOCKS]
            pool(threads).run(function, fields.address(block))
        if target is not out:
            for _, start, end in experts:
                rows_out = routed.rows(start, end)
                out[rows_out] = target[rows_out].to(out.dtype)
