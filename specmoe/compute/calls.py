"""Calls of the compiled products: experts of a layer, or one matrix, on few rows each or on many rows in panels."""

from __future__ import annotations

import functools
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from specmoe.compute import fields
from specmoe.compute.threads import pool

KINDS = {torch.float32: fields.FLOAT32, torch.bfloat16: fields.BFLOAT16, torch.float16: fields.FLOAT16}
MANY_ROWS = 16
"""Fewest rows that are packed into panels: the same for all dtypes, so that widened weights give the same bits."""
CHUNK_BYTES = 1 << 20
"""Most bytes of input rows that are multiplied while they stay in the cache of a core."""
MOST_ELEMENTS, FEWEST_ELEMENTS = 1 << 15, 1 << 13
"""Weights per task: few enough to share the work evenly, enough to make the cost of taking a task negligible."""
ROWS_AT_ONCE = 8
Addresses = tuple[int, int, int, int, int, int]
"""Of one expert: weight and bias of the first and of the second product, scales of both; 0 for none."""


@dataclass(frozen=True)
class Layout:
    """Of one layer's experts: ``width`` is H, ``inner`` I; ``depth`` and ``up`` are H and I as weight rows have them.

    ``kind`` of the weights and code of the ``gate`` are those of ``fields``; ``functions`` returns the addresses of the
    two products of few rows; ``numbers`` is the address of the gate's numbers.
    """

    width: int
    inner: int
    depth: int
    up: int
    kind: int
    gate: int
    numbers: int
    functions: Callable[[], tuple[int, int]]

    @property
    def line(self) -> int:
        """Numbers per row between the two products."""
        return self.up if self.gate & fields.UNGATED else 2 * self.up


def multiply_experts(
    layout: Layout,
    experts: Sequence[tuple[Addresses, int, int]],
    x: torch.Tensor,
    order: int,
    number: int,
    top_k: int,
    out: torch.Tensor,
) -> None:
    """Write the outputs of experts into ``out``, float32 [.., H].

    Args:
        experts: with the runs of their picks.
        x: float32 [T, depth], contiguous.
        order: address of the picks as indices into [T * K], int64, which are rows of ``out``; ``number`` of them, also
            those that are not computed here.
        top_k: K.
    """
    block = new_block()
    block[fields.X], block[fields.OUT], block[fields.ORDER], block[fields.TOP_K] = (
        x.data_ptr(),
        out.data_ptr(),
        order,
        top_k,
    )
    block[fields.WIDTH], block[fields.INNER], block[fields.KIND] = layout.width, layout.inner, layout.kind
    block[fields.DEPTH], block[fields.UP], block[fields.LINE] = layout.depth, layout.up, layout.line
    block[fields.GATE], block[fields.NUMBERS] = layout.gate, layout.numbers
    new = x.new_empty if layout.up == layout.inner else x.new_zeros  # padding must not add to sums
    few, many = array("q"), []
    for addresses, start, end in experts:
        if end - start < MANY_ROWS:
            few.extend((*addresses[:4], start, end, *addresses[4:], 0))
        else:
            many.append((addresses, start, end))
    if few:
        between = new(number * layout.line)
        block[fields.HIDDEN], block[fields.GROUPS] = between.data_ptr(), fields.address(few)
        up, down = layout.functions()
        _both(block, up, down, len(few) // fields.EXPERT_FIELDS)
    if many:
        panels = Panels(many, layout.depth, layout.up, layout.kind)
        panels.pack(block, x)
        between = new(panels.number * panels.lanes * layout.line)
        block[fields.HIDDEN] = between.data_ptr()
        _both(block, panels.up, panels.down, panels.experts)


class Panels:
    """Runs of picks of experts as panels, and what the products with them need; it must outlive their calls."""

    def __init__(self, runs: Sequence[tuple[Addresses, int, int]], depth: int, up: int, kind: int) -> None:
        self.lanes, self._pack, self.up, self.down, _ = panel_functions()
        chunk = max(3, CHUNK_BYTES // (4 * depth * self.lanes)) * self.lanes
        self._groups, self._ranges = array("q"), array("q")
        self.number = self.experts = 0
        for addresses, first, last in runs:
            for start in range(first, last, chunk):
                end = min(last, start + chunk)
                self._groups.extend((*addresses[:4], start, end, *addresses[4:], self.number))
                for panel in range(start, end, self.lanes):
                    self._ranges.extend((panel, min(self.lanes, end - panel)))
                    self.number += 1
                self.experts += 1
        self._depth = depth
        self._scratch_bytes = 0 if kind == fields.FLOAT32 else 4 * ROWS_AT_ONCE * max(depth, up)
        self._memory: list[torch.Tensor] = []

    def pack(self, block: array[int], x: torch.Tensor) -> None:
        """Make the panels and describe them in ``block``."""
        threads = torch.get_num_threads()
        panels, scratch = x.new_empty(self.number * self.lanes * self._depth), x.new_empty(0)
        if self._scratch_bytes:
            scratch = torch.empty(threads * self._scratch_bytes, dtype=torch.uint8)
        self._memory = [panels, scratch]
        block[fields.PANELS], block[fields.RANGES] = panels.data_ptr(), fields.address(self._ranges)
        block[fields.SCRATCH], block[fields.SCRATCH_BYTES] = scratch.data_ptr(), self._scratch_bytes
        block[fields.GROUPS] = fields.address(self._groups)
        launch(block, self._pack, self.number, threads)


def new_block() -> array[int]:
    """Fields for torch's current number of threads, all 0."""
    return array("q", bytes(8 * (fields.FIELDS + fields.APART * torch.get_num_threads())))


def launch(block: array[int], function: int, tasks: int, threads: int) -> None:
    """Run a compiled function on the fields of ``block``."""
    block[fields.SLOT], block[fields.TASKS], block[fields.THREADS] = 0, tasks, threads
    for share in range(threads):
        block[fields.NEXT + fields.APART * share] = 0
    pool(threads).run(function, fields.address(block))


def shared(block: array[int], rows: int, width: int, experts: int, weights: int, threads: int) -> int:
    """Set the weight rows per task of a product with ``rows`` of ``width`` numbers; returns the number of tasks.

    ``weights``: numbers of the whole call, so that each thread gets several tasks.
    """
    elements = max(FEWEST_ELEMENTS, min(MOST_ELEMENTS, weights // (8 * threads)))
    block[fields.BLOCK] = max(ROWS_AT_ONCE, elements // width // ROWS_AT_ONCE * ROWS_AT_ONCE)
    block[fields.BLOCKS] = -(-rows // block[fields.BLOCK])
    return experts * block[fields.BLOCKS]


def _both(block: array[int], up: int, down: int, experts: int) -> None:
    threads = torch.get_num_threads()
    width, inner = block[fields.WIDTH], block[fields.INNER]
    weights = experts * width * inner
    launch(block, up, shared(block, inner, width, experts, weights, threads), threads)
    launch(block, down, shared(block, width, inner, experts, weights, threads), threads)


class StreamedProduct:
    """Products with one contiguous weight matrix by the streaming kernel; its arguments are kept by number of rows.

    ``weight`` [out, in] and ``bias`` [out] of the same dtype.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weight, self.bias = weight, bias
        self.function = streamed(weight.dtype)[1]
        self._blocks: dict[tuple[int, int], tuple[array[int], tuple[array[int], ...]]] = {}

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[n, in] -> [n, out]."""
        single = x.float().contiguous()
        rows, threads = len(single), torch.get_num_threads()
        out = single.new_empty(rows, len(self.weight))
        block = self.arguments(rows, threads)
        block[fields.X] = block[fields.HIDDEN] = single.data_ptr()
        block[fields.OUT] = out.data_ptr()
        if rows < MANY_ROWS:
            launch(block, self.function, block[fields.TASKS], threads)
            return out.to(x.dtype)
        inner = self.weight.shape[1]
        panels = Panels([(self._addresses, 0, rows)], inner, inner, block[fields.KIND])
        panels.pack(block, single)
        block[fields.HIDDEN] = block[fields.PANELS]
        launch(block, panels.down, panels.experts * block[fields.BLOCKS], threads)
        return out.to(x.dtype)

    def arguments(self, rows: int, threads: int) -> array[int]:
        """Fields for ``function`` without the addresses of a call (``HIDDEN``, its input, and ``OUT``), as a copy; they
        point to what this object keeps."""
        known = self._blocks.get((rows, threads))
        if known is None:
            known = self._blocks[rows, threads] = self._arguments(rows, threads)
        return known[0][:]

    def lines(self, threads: int) -> int:
        """Lines of the arguments, the last of which have counters."""
        return (fields.NEXT + fields.APART * threads) // fields.APART

    @property
    def _addresses(self) -> Addresses:
        return 0, 0, self.weight.data_ptr(), 0 if self.bias is None else self.bias.data_ptr(), 0, 0

    def _arguments(self, rows: int, threads: int) -> tuple[array[int], tuple[array[int], ...]]:
        """The fields of a call, and the numbers that they point to."""
        width, inner = self.weight.shape
        order = array("q", range(rows))
        expert = array("q", (*self._addresses[:4], 0, rows, 0, 0, 0))
        block = new_block()
        block[fields.ORDER], block[fields.TOP_K] = fields.address(order), 1
        block[fields.WIDTH], block[fields.KIND] = width, KINDS[self.weight.dtype]
        block[fields.DEPTH] = block[fields.UP] = block[fields.LINE] = inner
        block[fields.GROUPS] = fields.address(expert)
        block[fields.TASKS] = shared(block, width, inner, 1, self.weight.numel(), threads)
        block[fields.THREADS] = threads
        return block, (order, expert)


@functools.cache
def streamed(dtype: torch.dtype) -> tuple[int, int]:
    """``specmoe.compute.streaming.compiled``; numba is imported when it is first needed."""
    from specmoe.compute import streaming

    return streaming.compiled(dtype)


@functools.cache
def panel_functions() -> tuple[int, int, int, int, int]:
    """Tokens of a panel, and ``specmoe.compute.panels.compiled``."""
    from specmoe.compute import panels
    from specmoe.compute.vectors import LANES

    return LANES, *panels.compiled()
