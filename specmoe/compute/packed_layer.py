"""Low-bit copies of a layer's experts on their tokens: few rows in one call, many rows by unpacked weights."""

from __future__ import annotations

import functools
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F

from specmoe.compute import fields
from specmoe.compute.codes import GROUP, SCALES, bits_of, groups, inner_of, widened_expert
from specmoe.compute.expert import ExpertTraits, expert_mlp
from specmoe.compute.gate import Gate
from specmoe.compute.products import task_rows
from specmoe.compute.routed import Routed, address
from specmoe.compute.table import KernelTable
from specmoe.compute.threads import pool

Tensors = Mapping[str, torch.Tensor]
PACKED_ROWS = 16
"""Most rows that are computed from packed weights: unpacking them once costs less for more."""


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

    def compute(self, experts: Sequence[tuple[int, Tensors]], routed: Routed, out: torch.Tensor) -> None:
        """Write the outputs of the copies' picks into ``out`` [T * K, H], row by pick, without those that have none."""
        has_kernels = routed.hidden.device.type == "cpu" and self._table.streamed_rows("experts", torch.float32) > 0
        may_stream = has_kernels and self._gate is not None and routed.scales is None
        few: list[tuple[Tensors, int, int]] = []
        for expert, tensors in experts:
            if expert not in routed.bounds:
                continue
            start, end = routed.bounds[expert]
            if may_stream and end - start <= PACKED_ROWS:
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
        if self._gate is None or self._numbers is None:
            raise RuntimeError("the packed kernel was chosen where it cannot run")
        sample, threads = experts[0][0], torch.get_num_threads()
        width, inner = routed.hidden.shape[1], inner_of(sample)
        x, length = _padded(routed.single), groups(width)
        target = out if out.dtype == torch.float32 else out.new_empty(out.shape, dtype=torch.float32)
        whole = inner % GROUP == 0
        between = (x.new_empty if whole else x.new_zeros)(len(routed.order), groups(inner) * GROUP)
        described = array("q")
        for tensors, start, end in experts:
            for name in (self._first, "down_proj"):
                bias = tensors.get(f"{name}_bias")
                described.extend((tensors[name].data_ptr(), 0 if bias is None else bias.data_ptr()))
            described.extend((start, end, *(tensors[f"{n}{SCALES}"].data_ptr() for n in (self._first, "down_proj"))))
        block = array("q", bytes(8 * fields.FIELDS))
        block[fields.X], block[fields.OUT], block[fields.WIDTH] = x.data_ptr(), target.data_ptr(), width
        block[fields.LENGTH], block[fields.UNITS] = length, inner
        block[fields.INNER], block[fields.HIDDEN] = between.shape[1], between.data_ptr()
        block[fields.GROUPS], block[fields.TOKENS] = fields.address(described), address(routed.tokens)
        block[fields.PICKS], block[fields.GATE] = address(routed.lines), self._gate.code
        block[fields.NUMBERS] = address(self._numbers)
        up, down, _ = packed(bits_of(sample["down_proj"], sample[f"down_proj{SCALES}"]))
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
        share = task_rows(length * GROUP, found.numel(), threads)
        block = array("q", bytes(8 * fields.FIELDS))
        block[fields.TASKS], block[fields.BLOCK], block[fields.WIDTH] = -(-rows // share), share, rows
        block[fields.LENGTH], block[fields.OUT] = length, found.data_ptr()
        block[fields.WEIGHT], block[fields.SCALES] = codes.data_ptr(), scales.data_ptr()
        pool(threads).run(packed(bits_of(codes, scales))[2], fields.address(block))
        return found


def _padded(rows: torch.Tensor) -> torch.Tensor:
    """Float32 rows [n, C] with zeros up to whole groups of 32."""
    missing = -rows.shape[1] % GROUP
    return F.pad(rows, (0, missing)) if missing else rows


@functools.cache
def packed(bits: int) -> tuple[int, int, int]:
    """``specmoe.compute.packed.compiled``; numba is imported when it is first needed."""
    from specmoe.compute import packed as kernels

    return kernels.compiled(bits)
