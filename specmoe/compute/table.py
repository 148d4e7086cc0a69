"""Which kernel multiplies: a table by what is multiplied, dtypes and number of rows, measured once per machine.

Weights may rest in a narrower dtype than the one computed in, so a product has two: ``stored`` and that of its rows.

``specmoe-bench calibrate`` measures it.  Without a measurement a rule decides, never a measurement at load: one taken
beside other work would choose badly for as long as the file exists, and two runs could choose differently.
"""

from __future__ import annotations

import json
import os
import platform
from bisect import bisect_left
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from specmoe.compute.threads import available
from specmoe.files import cache_dir, write_text

Kernel = Literal["streaming", "onednn", "onednn-widened", "torch"]
"""``streaming``: ours, by numba.  ``onednn``: oneDNN of torch on plain weights; ``-widened`` to float32 first."""
Product = Literal["experts", "linear"]
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PAIRS = (*((d, d) for d in DTYPES), (torch.bfloat16, torch.float32), (torch.float16, torch.float32))
"""(dtype of the weights, dtype computed in)."""
WAIT_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
STREAMED_ROWS = 16
"""Most rows that the rule gives to the streaming kernel; twice as many of narrow weights in float32, four times as many
where oneDNN has to widen rows and weights, and all rows in float32 on a processor with AVX-512."""
SMALL = 1 << 16
"""Linear layers with fewer weights are left to torch: calling it costs less than reading them saves."""


@dataclass(frozen=True)
class KernelTable:
    """Kernels by product and dtypes (``key``), one for each of ``ROWS``; ``origin`` says where the table comes from."""

    origin: str
    kernels: dict[str, list[Kernel]] = field(default_factory=dict)

    def choose(self, product: Product, dtype: torch.dtype, rows: int, stored: torch.dtype | None = None) -> Kernel:
        """The kernel measured with the least number of rows that is not below ``rows``, else the last.

        ``stored`` is the dtype of the weights, by default ``dtype``, which is computed in.
        """
        measured = self.kernels.get(key(product, dtype, stored))
        if measured is None:
            return "torch"
        return measured[min(bisect_left(ROWS, rows), len(ROWS) - 1)]

    def streamed_rows(self, product: Product, dtype: torch.dtype, stored: torch.dtype | None = None) -> int:
        """Most rows that the streaming kernel takes; 0 when it takes none."""
        return max((n for n in ROWS if self.choose(product, dtype, n, stored) == "streaming"), default=0)

    def describe(self, dtype: torch.dtype, stored: torch.dtype | None = None) -> str:
        """The kernels by rows, the table's origin, and how threads wait for work, for a record.

        ``stored`` is the dtype of the experts, by default ``dtype``.
        """
        parts = []
        uses: tuple[tuple[Product, torch.dtype | None], ...] = (("experts", stored), ("linear", None))
        for product, resting in uses:
            chosen = [self.choose(product, dtype, rows, resting) for rows in ROWS]
            starts = [i for i, kernel in enumerate(chosen) if not i or kernel != chosen[i - 1]]
            ends = [f"to {ROWS[following - 1]} rows" for following in starts[1:]] + ["above" if starts[1:] else ""]
            steps = ", ".join(f"{chosen[i]} {end}".strip() for i, end in zip(starts, ends, strict=True))
            parts.append(f"{product}: {steps}")
        waits = [f"{name}={os.environ[name]}" for name in WAIT_VARIABLES if name in os.environ]
        threads = ", ".join([f"{torch.get_num_threads()} threads", *waits])
        return f"{'; '.join(parts)} ({self.origin}; {threads})"


TORCH = KernelTable("kernels=torch", {})
"""Every product by torch alone."""


def rule() -> KernelTable:
    """The kernels for a machine that was not measured: streaming for few rows, oneDNN above on x86."""
    kernels: dict[str, list[Kernel]] = {}
    products: tuple[Product, ...] = ("experts", "linear")
    for stored, dtype in PAIRS:
        few: Kernel = "streaming" if available() else "torch"
        many = _for_many_rows(dtype, stored)
        most = STREAMED_ROWS * (2 if stored != dtype else 4 if many == "onednn-widened" else 1)
        if dtype == torch.float32 and "AVX512" in torch.backends.cpu.get_cpu_capability():
            most = ROWS[-1]
        kernels |= {key(product, dtype, stored): [few if n <= most else many for n in ROWS] for product in products}
    return KernelTable("default rule", kernels)


def key(product: Product, dtype: torch.dtype, stored: torch.dtype | None = None) -> str:
    """``experts float32``, or ``experts bfloat16 in float32`` where the weights' dtype is another."""
    if stored is None or stored == dtype:
        return f"{product} {name_of(dtype)}"
    return f"{product} {name_of(stored)} in {name_of(dtype)}"


def candidates(dtype: torch.dtype, stored: torch.dtype | None = None) -> list[Kernel]:
    """The kernels that this machine can run on weights of ``stored`` (by default ``dtype``) without rounding rows."""
    streaming: list[Kernel] = ["streaming"] if available() else []
    onednn: list[Kernel] = []
    if _on_x86():
        onednn = ["onednn"] if stored in (None, dtype) and _onednn_runs(dtype) else []
        onednn += ["onednn-widened"] if (stored or dtype) != torch.float32 else []
    return [*streaming, *onednn, "torch"]


def _for_many_rows(dtype: torch.dtype, stored: torch.dtype) -> Kernel:
    if not _on_x86():
        return "torch"
    return "onednn" if stored == dtype and _onednn_runs(dtype) else "onednn-widened"


def _on_x86() -> bool:
    return platform.machine() in ("x86_64", "AMD64") and torch.backends.mkldnn.is_available()


@cache
def _onednn_runs(dtype: torch.dtype) -> bool:
    """Whether oneDNN has products for the dtype on this processor."""
    x = torch.zeros(32, 32, dtype=dtype)
    try:
        torch.ops.mkldnn._linear_pointwise(x, x, None, "none", [], "")
    except RuntimeError:
        return False
    return True


def path() -> Path:
    """The file of measured tables: a JSON list, one per machine, number of threads and release of torch."""
    return cache_dir() / "kernels.json"


def machine(threads: int) -> dict[str, Any]:
    """What a measurement holds for."""
    return {"cpu": _processor(), "threads": threads, "torch": torch.__version__}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return " ".join(found.get(key, "") for key in ("model name", "cpu family", "model", "stepping")).strip()


def load() -> KernelTable:
    """The table measured for this machine and torch's number of threads, else the rule.

    Raises:
        ValueError: the file is damaged.
    """
    here = machine(torch.get_num_threads())
    measured = [entry for entry in _entries() if entry["machine"] == here]
    if not measured:
        return rule()
    usable = {name: list(kernels) for name, kernels in measured[-1]["kernels"].items()}
    others = {name: kernels for name, kernels in rule().kernels.items() if name not in usable}
    origin = f"measured {measured[-1]['date']}" + (", what was not measured by the default rule" if others else "")
    return KernelTable(origin, usable | others)


def save(table: KernelTable, date: str) -> Path:
    """Keep a measured table of this machine in place of an earlier one; returns the file.

    Raises:
        OSError: the file cannot be written.
    """
    here = machine(torch.get_num_threads())
    others = [entry for entry in _entries() if entry["machine"] != here]
    entries = [*others, {"machine": here, "date": date, "kernels": table.kernels}]
    write_text(path(), json.dumps(entries, indent=1) + "\n")
    return path()


def _entries() -> list[dict[str, Any]]:
    try:
        entries = json.loads(path().read_text(encoding="utf-8"))
        for entry in entries:
            known = all(len(k) == len(ROWS) and set(k) <= set(get_args(Kernel)) for k in entry["kernels"].values())
            if not known or not isinstance(entry["date"], str) or not isinstance(entry["machine"], dict):
                raise ValueError("an entry is not a table of kernels")
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path()} is damaged: delete it and run `specmoe-bench calibrate`") from error
    return list(entries)


def name_of(dtype: torch.dtype) -> str:
    """``float32`` of ``torch.float32``."""
    return str(dtype).removeprefix("torch.")
