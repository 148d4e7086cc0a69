"""``specmoe-bench calibrate``."""

from __future__ import annotations

from typing import Annotated

import typer


def command(
    threads: Annotated[int, typer.Option(help="Compute threads, as many as the cells use.")] = 2,
    size: Annotated[str, typer.Option(help="Size of the file read from disk.")] = "1GiB",
) -> None:
    """Measure the peak rates of this machine, and which kernels are fastest.

    Disk, memory, PCIe and matrix products: later results state what share of them they reach.  Systems on our engine
    multiply by the kernels that were fastest for the dtype and number of rows.
    """
    from harness.machine import calibrate, ceilings
    from specmoe.sizes import parse_bytes

    measured = calibrate.calibrate(max(1, threads), parse_bytes(size, 0, "--size:"))
    print(f"saved in {ceilings.store(measured)}")
    print(f"saved in {calibrate.calibrate_kernels(max(1, threads))}")
