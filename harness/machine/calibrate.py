"""Measures the peak rates of this machine: disk, memory, PCIe, matrix products.  Results state their share of these.

Each rate is the best of several passes, not an average.
"""

from __future__ import annotations

import math
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from harness.machine.page_cache import drop_page_cache
from harness.machine.storage import Storage
from harness.timestamp import now
from reports.results.record import Ceilings
from specmoe.compute import measure
from specmoe.compute import table as kernel_table
from specmoe.files import cache_dir
from specmoe.offload.device import allocate_pages, host_bytes

BLOCK_BYTES = 8 << 20  # about one expert; larger blocks were no faster on the disks tested
PASSES = 3
DTYPES = ("float32", "bfloat16", "float16")


def calibrate(threads: int, size_bytes: int = 1 << 30, show: Callable[[str], None] = print) -> Ceilings:
    """Measure every peak rate that this machine has.

    Args:
        threads: for memory and matrix products; use as many as the cells.
        size_bytes: size of the file read; memory is copied in buffers of a quarter of it.
        show: called with a line for each figure.

    Raises:
        ValueError: too little disk space.
        OSError: the cache folder cannot be written.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        on_gpu = torch.cuda.is_available()
        show(f"{'cache folder':24} {cache_dir()} is on {Storage.of(cache_dir())}")
        measured = Ceilings(
            date=now(),
            disk_read_gb_s=_shown(show, "disk, O_DIRECT", "GB/s", disk_read_gb_s(cache_dir(), size_bytes)),
            dram_copy_gb_s=_shown(show, "memory copy", "GB/s", dram_copy_gb_s(size_bytes // 4)),
            memory_gb_s=_shown(show, "memory traffic (triad)", "GB/s", memory_gb_s(size_bytes // 4)),
            memory_read_gb_s=_shown(show, "memory read", "GB/s", memory_read_gb_s(size_bytes // 2)),
            pcie_to_gpu_gb_s=_shown(show, "to the GPU", "GB/s", pcie_gb_s(size_bytes // 4, True) if on_gpu else None),
            pcie_from_gpu_gb_s=_shown(
                show, "from the GPU", "GB/s", pcie_gb_s(size_bytes // 4, False) if on_gpu else None
            ),
            gemm_tflop_s=_gemms("cuda" if on_gpu else "cpu", show),
            gemm_device="cuda" if on_gpu else "cpu",
            threads=threads,
        )
    finally:
        torch.set_num_threads(before)
    return measured


def calibrate_kernels(threads: int, show: Callable[[str], None] = print) -> Path:
    """Measure which kernel is fastest by dtype and number of rows, and keep the table; returns its file.

    Raises:
        OSError: the file cannot be written.
        ValueError: the file is damaged.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        table = measure.measure(allocate_pages)
        for stored, dtype in kernel_table.PAIRS:
            show(f"{kernel_table.key('experts', dtype, stored):24} {table.describe(dtype, stored)}")
        return kernel_table.save(table, now())
    finally:
        torch.set_num_threads(before)


def _shown(show: Callable[[str], None], what: str, unit: str, value: float | None) -> float | None:
    show(f"{what:24} {'not available' if value is None else f'{value:.3g} {unit}'}")
    return value


def disk_read_gb_s(folder: Path, size_bytes: int) -> float | None:
    """Sequential O_DIRECT reads by one and by two threads, the faster of both, in GB/s.

    None without O_DIRECT, and for a folder in memory (tmpfs), which is no disk.

    Raises:
        ValueError: less than twice ``size_bytes`` free in ``folder``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if Storage.of(folder).in_memory:
        return None
    if shutil.disk_usage(folder).free < 2 * size_bytes:
        raise ValueError(f"less than {2 * size_bytes / 1e9:.1f} GB free in {folder}: free some, or set SPECMOE_CACHE")
    blocks = max(2, size_bytes // BLOCK_BYTES)
    file = folder / f"calibration.{os.getpid()}.bin"
    try:
        with file.open("wb") as out:
            for _ in range(blocks):
                out.write(os.urandom(BLOCK_BYTES))
            out.flush()
            os.fsync(out.fileno())
        drop_page_cache([file])
        try:
            os.close(os.open(file, os.O_RDONLY | os.O_DIRECT))
        except OSError:
            return None
        return max(_read_rate(file, blocks, readers) for readers in (1, 2) for _ in range(PASSES))
    finally:
        file.unlink(missing_ok=True)


def _read_rate(file: Path, blocks: int, readers: int) -> float:
    def read(first: int) -> None:
        handle = os.open(file, os.O_RDONLY | os.O_DIRECT)
        buffer = host_bytes(allocate_pages(BLOCK_BYTES))
        try:
            for block in range(first, blocks, readers):
                os.preadv(handle, [buffer], block * BLOCK_BYTES)
        finally:
            os.close(handle)

    workers = [threading.Thread(target=read, args=(first,)) for first in range(readers)]
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return blocks * BLOCK_BYTES / (time.perf_counter() - started) / 1e9


def dram_copy_gb_s(nbytes: int) -> float:
    """Bytes copied per second in memory, in GB/s; each byte is read once and written once."""
    source, target = torch.ones(nbytes, dtype=torch.uint8), torch.zeros(nbytes, dtype=torch.uint8)
    return nbytes / _best_s(lambda: target.copy_(source)) / 1e9


def memory_gb_s(nbytes: int) -> float:
    """Bytes read and written per second by ``a = b + 2 c`` (STREAM triad), in GB/s; write-allocate is not counted."""
    a, b, c = (torch.ones(nbytes // 4, dtype=torch.float32) for _ in range(3))
    return 3 * nbytes / _best_s(lambda: torch.add(b, c, alpha=2.0, out=a)) / 1e9


def memory_read_gb_s(nbytes: int) -> float:
    """Bytes read per second by torch's threads, as the sum of a float32 tensor in pages as experts have, in GB/s."""
    x = allocate_pages(nbytes).view(torch.float32).fill_(1)
    return nbytes / _best_s(x.sum) / 1e9


def pcie_gb_s(nbytes: int, to_gpu: bool) -> float:
    """Bytes copied per second between pinned host memory and the first GPU, in GB/s."""
    host = torch.ones(nbytes, dtype=torch.uint8, pin_memory=True)
    device = torch.ones(nbytes, dtype=torch.uint8, device="cuda")
    source, target = (host, device) if to_gpu else (device, host)

    def copy() -> None:
        target.copy_(source, non_blocking=True)
        torch.cuda.synchronize()

    return nbytes / _best_s(copy) / 1e9


def _gemms(device: str, show: Callable[[str], None]) -> dict[str, float]:
    rates = {}
    for dtype in DTYPES:
        rates[dtype] = gemm_tflop_s(device, getattr(torch, dtype))
        show(f"{'matrix product, ' + dtype:24} {rates[dtype]:.3g} TFLOP/s on {device}")
    return rates


def gemm_tflop_s(device: str, dtype: torch.dtype, budget_s: float = 1.0) -> float:
    """Rate of square matrix products of about 20 ms or more, in TFLOP/s (a multiply-add counts as two operations)."""
    side = 1024 if device == "cpu" else 8192
    a, b = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))
    out = torch.empty(side, side, dtype=dtype, device=device)

    def product() -> None:
        torch.mm(a, b, out=out)
        if device == "cuda":
            torch.cuda.synchronize()

    return 2 * side**3 / _best_s(product, budget_s) / 1e12


def _best_s(action: Callable[[], object], budget_s: float = 1.0) -> float:
    """Shortest time of ``action``: a warm-up, then at least ``PASSES`` runs, and more until ``budget_s`` is spent."""
    action()
    best, spent, runs = math.inf, 0.0, 0
    while runs < PASSES or spent < budget_s:
        started = time.perf_counter()
        action()
        took = time.perf_counter() - started
        best, spent, runs = min(best, took), spent + took, runs + 1
        if spent > 10 * budget_s:
            break
    return best
