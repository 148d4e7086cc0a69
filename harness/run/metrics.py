"""The metrics of a finished cell: its repetitions, with weights and calibrated ceilings as context."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from reports.results.metrics import Context, Metrics, combine
from reports.results.record import Ceilings, Cell, Usage
from reports.results.repetition import Repetition
from specmoe.offload.slow_tier import SlowTier
from specmoe.offload.store import ExpertStore


@dataclass(frozen=True)
class Weights:
    """Bytes of a model: one expert as stored, everything that is not an expert in the dtype it is computed in, and all
    experts as they are held in host memory."""

    expert_bytes: int
    other_bytes: int
    all_experts_bytes: int

    @classmethod
    def of(cls, model_path: Path, store: ExpertStore, dtype: str) -> Weights:
        """Sizes from the store and from the headers of the checkpoint's safetensors files."""
        elements = sum(_elements(file) for file in sorted(model_path.glob("*.safetensors")))
        others = max(0, elements - store.total_bytes // store.dtype.itemsize)
        return cls(
            expert_bytes=store.total_bytes // store.total_experts,
            other_bytes=others * getattr(torch, dtype).itemsize,
            all_experts_bytes=store.total_experts * store.slot_bytes,
        )


def measured(
    repetitions: Sequence[Repetition], cell: Cell, usage: Usage | None, ceilings: Ceilings | None, weights: Weights
) -> Metrics:
    """The metrics of a cell; a share of a ceiling is None without a calibration.

    Raises:
        ArithmeticError, ValueError: the figures do not make a metric that every record has.
    """
    disk = _lowest(ceilings.disk_read_gb_s if ceilings else None, cell.disk_read_limit_bytes_s)
    context = Context(
        batch_size=cell.batch_size,
        expert_bytes=weights.expert_bytes,
        other_bytes=weights.other_bytes,
        latency_limit_s=cell.latency_limit_s,
        peak_rss_bytes=usage.peak_rss_bytes if usage else None,
        link_ceiling_gb_s=_link_ceiling(cell, ceilings, disk),
        disk_ceiling_gb_s=disk,
        memory_ceiling_gb_s=ceilings.memory_gb_s if ceilings else None,
        memory_read_ceiling_gb_s=ceilings.memory_read_gb_s if ceilings else None,
    )
    return combine(repetitions, context)


def _link_ceiling(cell: Cell, ceilings: Ceilings | None, disk: float | None) -> float | None:
    """The ceiling of the medium that experts cross: PCIe or memory if they rest in host memory, else the disk.

    A stated rate is the ceiling where it is the lower one.
    """
    stated = SlowTier.of(cell.slow_tier)
    if not stated.in_memory:
        return disk
    copied = None if ceilings is None else ceilings.dram_copy_gb_s
    if cell.device != "cpu":
        copied = None if ceilings is None else ceilings.pcie_to_gpu_gb_s
    return _lowest(copied, stated.rate_bytes_s)


def _lowest(ceiling_gb_s: float | None, throttle_bytes_s: float | None) -> float | None:
    throttle = None if throttle_bytes_s is None else throttle_bytes_s / 1e9
    present = [value for value in (ceiling_gb_s, throttle) if value is not None]
    return min(present) if present else None


def _elements(file: Path) -> int:
    """Elements of all tensors of a safetensors file: an 8-byte header length, then a JSON header."""
    with file.open("rb") as source:
        header = json.loads(source.read(int.from_bytes(source.read(8), "little")))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
