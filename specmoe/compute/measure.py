"""Measures the table of kernels on this machine: every kernel in turn on one expert and on one linear layer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import cycle

import numpy as np
import torch
import torch.nn.functional as F

from specmoe.compute.expert import ExpertTraits, expert_mlp
from specmoe.compute.gate import Gate
from specmoe.compute.layer import ExpertKernels
from specmoe.compute.products import product
from specmoe.compute.routed import Routed
from specmoe.compute.table import PAIRS, ROWS, Kernel, KernelTable, Product, candidates, key
from specmoe.compute.widening import Widening

WIDTH, INNER = 512, 640  # H and I: 3.9 MB in float32
HOPELESS = 4.0
"""A kernel this many times slower than the best is not tried with more rows."""
Run = Callable[[], object]


def measure(budget_s: float = 0.05, footprint_bytes: int = 128 << 20) -> KernelTable:
    """The fastest kernel for each product, pair of dtypes and number of rows, with torch's current number of threads.

    Args:
        budget_s: time for each kernel and number of rows; at least five runs are made.
        footprint_bytes: of the weights that runs take in turn, so that they come from memory and not from a cache.
    """
    kernels: dict[str, list[Kernel]] = {}
    with torch.inference_mode():
        products: tuple[Product, ...] = ("experts", "linear")
        for stored, dtype in PAIRS:
            copies = max(2, footprint_bytes // (3 * WIDTH * INNER * stored.itemsize))
            weights = [expert(stored) for _ in range(copies)]
            for what in products:
                kernels[key(what, dtype, stored)] = list(_fastest(what, dtype, weights, budget_s))
    return KernelTable("measured now", kernels)


def times_s(
    what: Product,
    rows: int,
    dtype: torch.dtype,
    weights: list[dict[str, torch.Tensor]],
    kernels: list[Kernel],
    budget_s: float,
) -> dict[Kernel, list[float]]:
    """Seconds of each run of each kernel on rows of ``dtype``; kernels take turns, each run takes the next weights."""
    x = torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(rows)).to(dtype)
    turn = cycle(weights)
    actions: dict[Kernel, Run] = {kernel: _action(what, kernel, x, turn) for kernel in kernels}
    for action in actions.values():
        action()  # compiles, and makes oneDNN's primitives
    taken: dict[Kernel, list[float]] = {kernel: [] for kernel in kernels}
    spent = 0.0
    while len(taken[kernels[0]]) < 5 or spent < budget_s * len(kernels):
        for kernel, action in actions.items():
            started = time.perf_counter()
            action()
            taken[kernel].append(time.perf_counter() - started)
            spent += taken[kernel][-1]
    return taken


def _fastest(
    what: Product, dtype: torch.dtype, weights: list[dict[str, torch.Tensor]], budget_s: float
) -> Iterator[Kernel]:
    tried = candidates(dtype, weights[0]["down_proj"].dtype)
    for rows in ROWS:
        shortest = {k: min(t) for k, t in times_s(what, rows, dtype, weights, tried, budget_s).items()}
        best = min(tried, key=shortest.__getitem__)
        yield best
        tried = [kernel for kernel in tried if shortest[kernel] <= HOPELESS * shortest[best]]


def _action(what: Product, kernel: Kernel, x: torch.Tensor, turn: Iterator[dict[str, torch.Tensor]]) -> Run:
    widening = Widening()
    if what == "linear":
        return lambda: product(x, next(turn)["gate_up_proj"], None, kernel, widening)
    traits = ExpertTraits(True, False, _swiglu)
    if kernel != "streaming":
        return lambda: expert_mlp(x, next(turn), traits, kernel, widening)
    stored = next(turn)["down_proj"].dtype
    only = KernelTable("measured now", {key("experts", x.dtype, stored): ["streaming"] * len(ROWS)})
    experts = ExpertKernels(traits, Gate("silu"), only)
    order, out = np.arange(len(x)), torch.empty_like(x)
    return lambda: experts.compute([(0, next(turn))], Routed(x, order, {0: (0, len(x))}, 1), out)


def _swiglu(x: torch.Tensor) -> torch.Tensor:
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


def expert(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Random weights of one gated expert."""
    first, second = torch.randn(2 * INNER, WIDTH) / WIDTH**0.5, torch.randn(WIDTH, INNER) / INNER**0.5
    return {"gate_up_proj": first.to(dtype), "down_proj": second.to(dtype)}
