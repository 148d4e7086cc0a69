"""What was achieved over what the machine can do: rates of a cell beside the calibrated ceilings."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from reports.results.record import Ceilings, Cell, Metrics, Repetition
from specmoe.offload.store import ExpertStore


@dataclass(frozen=True)
class Weights:
    """Bytes of a model in the dtype it runs in: one expert, and everything that is not an expert."""

    expert_bytes: int
    other_bytes: int

    @classmethod
    def of(cls, model_path: Path, store: ExpertStore) -> Weights:
        """Sizes from the store and from the headers of the checkpoint's safetensors files."""
        elements = sum(_elements(file) for file in sorted(model_path.glob("*.safetensors")))
        return cls(
            expert_bytes=store.total_bytes // store.total_experts,
            other_bytes=max(0, elements * store.dtype.itemsize - store.total_bytes),
        )


def _elements(file: Path) -> int:
    """Elements of all tensors of a safetensors file: an 8-byte header length, then a JSON header."""
    with file.open("rb") as source:
        header = json.loads(source.read(int.from_bytes(source.read(8), "little")))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def complete(
    metrics: Metrics, repetitions: list[Repetition], cell: Cell, ceilings: Ceilings | None, weights: Weights
) -> Metrics:
    """``metrics`` with rates over ceilings; a figure that lacks its rate or its ceiling stays None."""
    disk = _lowest(ceilings.disk_read_gb_s if ceilings else None, cell.disk_read_limit_bytes_s)
    kernel = _median(_rate(r.decode_kernel_read_bytes, r.decode_s) for r in repetitions)
    memory = _median(_rate(_weight_bytes(r, weights), r.decode_s) for r in repetitions)
    return metrics.model_copy(
        update={
            "link_of_ceiling": _share(metrics.achieved_link_gb_s, _link_ceiling(cell, ceilings, disk)),
            "kernel_read_gb_s": kernel,
            "disk_of_ceiling": _share(kernel, disk),
            "modelled_memory_gb_s": memory,
            "memory_of_ceiling": _share(memory, ceilings.memory_gb_s if ceilings else None),
        }
    )


def _link_ceiling(cell: Cell, ceilings: Ceilings | None, disk: float | None) -> float | None:
    """The ceiling of the medium experts cross: PCIe where a GPU is fed from host memory, else the disk."""
    from_host = str(cell.options.get("device", "cpu")).startswith("cuda") and cell.options.get("slow_tier") != "disk"
    if from_host:
        return ceilings.pcie_to_gpu_gb_s if ceilings else None
    return disk


def _weight_bytes(repetition: Repetition, weights: Weights) -> int | None:
    """Bytes of weights that the target passes of the decode phase had to read; drafting is not counted."""
    if repetition.expert_requests is None:
        return None
    return repetition.decode_steps * weights.other_bytes + repetition.expert_requests * weights.expert_bytes


def _rate(nbytes: int | None, seconds: float) -> float | None:
    return None if nbytes is None or seconds <= 0 else nbytes / seconds / 1e9


def _median(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return statistics.median(present) if present else None


def _lowest(ceiling_gb_s: float | None, throttle_bytes_s: int | None) -> float | None:
    throttle = None if throttle_bytes_s is None else throttle_bytes_s / 1e9
    present = [value for value in (ceiling_gb_s, throttle) if value is not None]
    return min(present) if present else None


def _share(rate: float | None, ceiling: float | None) -> float | None:
    return None if rate is None or not ceiling else rate / ceiling
