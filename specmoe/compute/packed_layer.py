"""Low-bit copies of a layer's experts on their tokens: few rows in one call, many rows by unpacked weights."""

from __future__ import annotations

import functools
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F

from specmoe.compute import fields
from specmoe.compute.calls import Addresses, Layout, launch, multiply_experts, new_block, panel_functions, shared
from specmoe.compute.codes import GROUP, SCALES, bits_of, groups, inner_of, widened_expert
from specmoe.compute.expert import ExpertTraits, expert_mlp
from specmoe.compute.gate import Gate
from specmoe.compute.routed import Routed, address
from specmoe.compute.table import KernelTable

Tensors = Mapping[str, torch.Tensor]
PACKED_ROWS = 16
"""Most rows that are computed from packed weights where the table has another kernel for more of them."""


class PackedKernels:
    """Computes low-bit copies of one layer's experts.

    Copies are float32 biases, codes and scales of matrices [out, in], also where the family stores [in, out].

    Args:
        gate: of the experts, where the streaming kernel knows it; without it every copy is unpacked.
        scratch: memory for unpacked weights by name, shared by the layers of a model.
    """

    def __init__(
        self, traits: ExpertTraits, gate: Gate | None, table: KernelTable, scratch: dict[str, torch.Tensor]
    ) -> None:
        self._traits, self._gate, self._table = replace(traits, is_transposed=False), gate, table
        self._first = "gate_up_proj" if traits.has_gate else "up_proj"
        self._numbers = gate.numbers() if gate is not None else None
        self._scratch = scratch
        self._names = (self._first, "down_proj", f"{self._first}{SCALES}", f"down_proj{SCALES}")
        self._biases = (f"{self._first}_bias", "down_proj_bias")
        self._layouts: dict[int, Layout] = {}  # by bits
        self._has_kernels = table.streamed_rows("experts", torch.float32) > 0
        self._most = max(PACKED_ROWS, table.streamed_rows("experts", torch.float32))

    def compute(self, experts: Sequence[tuple[int, Tensors]], routed: Routed, out: torch.Tensor) -> None:
        """Write the outputs of the copies' picks into ``out`` [T * K, H], row by pick, without those that have none."""
        has_kernels = routed.hidden.device.type == "cpu" and self._has_kernels
        may_stream = has_kernels and self._gate is not None and routed.scales is None
        few: list[tuple[Tensors, int, int]] = []
        for expert, tensors in experts:
            if expert not in routed.bounds:
                continue
            start, end = routed.bounds[expert]
            if may_stream and end - start <= self._most:
                few.append((tensors, start, end))
                continue
            hidden = routed.hidden.shape[1]
            wide = self._unpacked(tensors, hidden) if has_kernels else widened_expert(tensors, hidden)
            x = routed.input(start, end).float()
            kernel = self._table.choose("experts", torch.float32, len(x)) if has_kernels else "torch"
            out[routed.rows(start, end)] = expert_mlp(x, wide, self._traits, kernel).to(out.dtype)
        if few:
            self._stream(few, routed, out)

    def _stream(self, experts: list[tuple[Tensors, int, int]], routed: Routed, out: torch.Tensor) -> None:
        sample = experts[0][0]
        bits = bits_of(sample["down_proj"], sample[self._names[3]])
        layout = self._layouts.get(bits) or self._described(routed.hidden.shape[1], sample, bits)
        target = out if out.dtype == torch.float32 else out.new_empty(out.shape, dtype=torch.float32)
        described = [(self._addresses(tensors), start, end) for tensors, start, end in experts]
        order = routed.order_address, len(routed.order), routed.top_k
        multiply_experts(layout, described, _padded(routed.single), *order, target)
        if target is not out:
            for _, start, end in experts:
                rows_out = routed.rows(start, end)
                out[rows_out] = target[rows_out].to(out.dtype)

    def _described(self, width: int, sample: Tensors, bits: int) -> Layout:
        """The layout of this layer's copies of so many bits."""
        if self._gate is None or self._numbers is None:
            raise RuntimeError("the packed kernel was chosen where it cannot run")
        inner = inner_of(sample)
        depth, up, gate = groups(width) * GROUP, groups(inner) * GROUP, self._gate.code
        functions, kind = functools.partial(packed, bits), fields.BITS + bits
        layout = Layout(width, inner, depth, up, kind, gate, address(self._numbers), functions)
        self._layouts[bits] = layout
        return layout

    def _addresses(self, tensors: Tensors) -> Addresses:
        first, down, first_scales, down_scales = (tensors[name].data_ptr() for name in self._names)
        if len(tensors) == len(self._names):
            return first, 0, down, 0, first_scales, down_scales
        biases = [tensors.get(name) for name in self._biases]
        first_bias, down_bias = (0 if bias is None else bias.data_ptr() for bias in biases)
        return first, first_bias, down, down_bias, first_scales, down_scales

    def _unpacked(self, tensors: Tensors, hidden: int) -> dict[str, torch.Tensor]:
        """``widened_expert``, by all threads, into memory that the next copy uses again."""
        wide = {name: tensor for name, tensor in tensors.items() if name.endswith("_bias")}
        for name, width in ((self._first, hidden), ("down_proj", inner_of(tensors))):
            wide[name] = self._fill(name, tensors[name], tensors[f"{name}{SCALES}"])[:, :width].contiguous()
        return wide

    def _fill(self, name: str, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """A matrix as float32 [R, G * 32]."""
        rows, length = scales.shape
        threads = torch.get_num_threads()
        found = self._scratch.get(name)
        if found is None or found.shape != (rows, length * GROUP):
            found = self._scratch[name] = torch.empty(rows, length * GROUP)
        block = new_block()
        expert = array("q", (0, 0, codes.data_ptr(), 0, 0, 0, 0, scales.data_ptr(), 0))
        block[fields.WIDTH], block[fields.UP], block[fields.OUT] = rows, length * GROUP, found.data_ptr()
        block[fields.KIND], block[fields.GROUPS] = fields.BITS + bits_of(codes, scales), fields.address(expert)
        launch(block, panel_functions()[4], shared(block, rows, length * GROUP, 1, found.numel(), threads), threads)
        return found


def _padded(rows: torch.Tensor) -> torch.Tensor:
    """Float32 rows [n, C] with zeros up to whole groups of 32."""
    missing = -rows.shape[1] % GROUP
    return F.pad(rows, (0, missing)) if missing else rows


@functools.cache
def packed(bits: int) -> tuple[int, int]:
    """``specmoe.compute.packed.compiled``; numba is imported when it is first needed."""
    from specmoe.compute import packed as kernels

    return kernels.compiled(bits)
