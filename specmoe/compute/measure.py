"""Measures the table of kernels on this machine: every kernel in turn, as the engine runs it.

A call computes several experts of a layer.  They lie in memory as the engine's do, and the next call takes others, so
that weights come from memory and not from a cache.  A kernel makes its calls one after another, after a pause: threads
of another library that still wait for work would take a core from it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import cycle

import numpy as np
import torch
import torch.nn.functional as F

from specmoe.compute.expert import ExpertTraits
from specmoe.compute.gate import Gate
from specmoe.compute.layer import ExpertKernels
from specmoe.compute.products import product
from specmoe.compute.routed import Routed
from specmoe.compute.table import PAIRS, ROWS, Kernel, KernelTable, Product, candidates, key
from specmoe.compute.widening import Widening

WIDTH, INNER = 512, 640  # H and I: 3.9 MB in float32
EXPERTS = 4
"""Computed by one call."""
ROUNDS = 3
PAUSE_S = 0.005
HOPELESS = 4.0
"""A kernel this many times slower than the best is not tried with more rows."""
Weights = dict[str, torch.Tensor]
Allocate = Callable[[int], torch.Tensor]
"""Memory of so many bytes as a uint8 tensor, aligned to pages."""
Run = Callable[[], object]


def measure(allocate: Allocate, budget_s: float = 0.05, footprint_bytes: int = 128 << 20) -> KernelTable:
    """The fastest kernel for each product, pair of dtypes and number of rows, with torch's current number of threads.

    Args:
        allocate: memory of experts.
        budget_s: time for each kernel and number of rows.
        footprint_bytes: of the weights that calls take in turn.
    """
    kernels: dict[str, list[Kernel]] = {}
    with torch.inference_mode():
        for stored, dtype in PAIRS:
            weights = experts(stored, footprint_bytes, allocate)
            kernels[key("experts", dtype, stored)] = list(_fastest("experts", dtype, weights, budget_s))
            weights = experts(stored, footprint_bytes, _ordinary)
            kernels[key("linear", dtype, stored)] = list(_fastest("linear", dtype, weights, budget_s))
    return KernelTable("measured now", kernels)


def experts(dtype: torch.dtype, footprint_bytes: int, allocate: Allocate) -> list[Weights]:
    """As many gated experts as fill the footprint, at least one call's, one after another in memory."""
    first, second = torch.randn(2 * INNER, WIDTH) / WIDTH**0.5, torch.randn(WIDTH, INNER) / INNER**0.5
    each = first.numel() + second.numel()
    copies = max(EXPERTS, footprint_bytes // (each * dtype.itemsize))
    memory = allocate(copies * each * dtype.itemsize).view(dtype).view(copies, each)
    memory.copy_(torch.cat([first.flatten(), second.flatten()]).to(dtype))
    ends = first.numel()
    return [
        {"gate_up_proj": one[:ends].view(first.shape), "down_proj": one[ends:].view(second.shape)} for one in memory
    ]


def action(what: Product, kernel: Kernel, rows: int, dtype: torch.dtype, weights: list[Weights]) -> Run:
    """A call of a kernel on ``rows`` rows of ``dtype`` for each of ``EXPERTS`` experts, or on one linear layer."""
    widening, turn = Widening(), cycle(weights)
    x = torch.randn(rows * EXPERTS, WIDTH, generator=torch.Generator().manual_seed(rows)).to(dtype)
    if what == "linear":
        return lambda: product(x[:rows], next(turn)["gate_up_proj"], None, kernel, widening)
    stored = weights[0]["down_proj"].dtype
    only = KernelTable("measured now", {key("experts", dtype, stored): [kernel] * len(ROWS)})
    layer = ExpertKernels(TRAITS, Gate("silu"), only, widening)
    order, out = np.arange(len(x)), torch.empty_like(x)
    bounds = {expert: (expert * rows, (expert + 1) * rows) for expert in range(EXPERTS)}
    return lambda: layer.compute([(e, next(turn)) for e in range(EXPERTS)], Routed(x, order, bounds, 1), out)


def times_s(actions: Mapping[str, Run], budget_s: float, rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Seconds per call of each action: in every round the median of its calls, at least three."""
    for run in actions.values():
        run()  # compiles, and makes oneDNN's primitives
    found: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, run in actions.items():
            time.sleep(PAUSE_S)
            run()  # wakes threads
            found[name].append(_median_s(run, budget_s / rounds))
    return found


def _median_s(run: Run, budget_s: float) -> float:
    taken: list[float] = []
    until = time.perf_counter() + budget_s
    while len(taken) < 3 or time.perf_counter() < until:
        started = time.perf_counter()
        run()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def _fastest(what: Product, dtype: torch.dtype, weights: list[Weights], budget_s: float) -> Iterator[Kernel]:
    tried = candidates(dtype, weights[0]["down_proj"].dtype)
    for rows in ROWS:
        actions: dict[str, Run] = {kernel: action(what, kernel, rows, dtype, weights) for kernel in tried}
        shortest = {kernel: min(taken) for kernel, taken in times_s(actions, budget_s).items()}
        best = min(tried, key=shortest.__getitem__)
        yield best
        tried = [kernel for kernel in tried if shortest[kernel] <= HOPELESS * shortest[best]]


def _ordinary(nbytes: int) -> torch.Tensor:
    return torch.empty(nbytes, dtype=torch.uint8)


def _swiglu(x: torch.Tensor) -> torch.Tensor:
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


TRAITS = ExpertTraits(True, False, _swiglu)
"""Of the experts measured."""
