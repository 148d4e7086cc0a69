"""The environment of a result: hardware, kernel, library versions, code revision."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("torch", "transformers", "accelerate", "safetensors", "numpy", "specmoe-bench")


def capture() -> dict[str, Any]:
    """Facts for every record as plain JSON values, None where unknown; without the names of host and user."""
    revision, dirty = _git()
    return {
        "cpu": _first(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo")) or platform.processor() or None,
        "cores": os.cpu_count(),
        "ram_bytes": int(psutil.virtual_memory().total),
        "gpu": _gpu(),
        "governor": _text(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        "kernel": platform.release(),
        "read_ahead_kib": read_ahead_kib(Path.cwd()),
        "os": _first(r'^PRETTY_NAME="?([^"\n]+)"?$', Path("/etc/os-release")),
        "python": platform.python_version(),
        **{name.replace("-", "_"): _version(name) for name in PACKAGES},
        "blas": _blas(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "mkl_num_threads": os.environ.get("MKL_NUM_THREADS"),
        "git_revision": revision,
        "git_dirty": dirty,
        "date": datetime.now(UTC).date().isoformat(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _blas() -> str | None:
    """The BLAS library that torch was built with."""
    import torch

    found = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    return found[1] if found else None


def _text(file: Path) -> str | None:
    try:
        return file.read_text().strip()
    except OSError:
        return None


def _first(pattern: str, file: Path) -> str | None:
    found = re.search(pattern, _text(file) or "", re.MULTILINE)
    return found[1].strip() if found else None


def read_ahead_kib(folder: Path) -> int | None:
    """Read-ahead of the disk that holds ``folder``; each fault in a mapped file reads this much."""
    device = folder.stat().st_dev
    link = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    for queue in (link / "queue", link.resolve().parent / "queue"):  # a partition's queue is its disk's
        text = _text(queue / "read_ahead_kb")
        if text is not None and text.isdigit():
            return int(text)
    return None


def _gpu() -> str | None:
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle).total
        return f"{pynvml.nvmlDeviceGetName(handle)}, {memory / 1e9:.0f} GB"
    except Exception:  # NVML raises its own errors where there is no driver
        return None


def _git() -> tuple[str | None, bool | None]:
    """(revision, whether files differ from it) of the checkout that this code runs from."""
    folder = Path(__file__).resolve().parent
    try:
        revision = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        )
        status = subprocess.run(
            ["git", "-C", str(folder), "status", "--porcelain"], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None, None
    return revision.stdout.strip(), bool(status.stdout.strip())
