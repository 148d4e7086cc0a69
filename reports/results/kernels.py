"""Reads ``docs/records/kernels.json``, which the benchmark of the kernels writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reports.results.load import ReportError


class Timing(BaseModel):
    """One expert by the chosen kernel and by ``F.linear``: medians in milliseconds, and the median ratio of pairs."""

    model_config = ConfigDict(frozen=True)

    kernel: str
    ms: float
    f_linear_ms: float
    speedup: float
    read_gb_s: float

    @property
    def f_linear_gb_s(self) -> float:
        """Rate at which ``F.linear`` reads the same weights."""
        return self.read_gb_s * self.ms / self.f_linear_ms


class Resident(BaseModel):
    """A generation with all experts in memory: seconds here and by transformers, and the median ratio of pairs."""

    model_config = ConfigDict(frozen=True)

    s: float
    transformers_s: float
    ratio: float
    experts_implementation: str


class KernelRecord(BaseModel):
    """Kernels of one machine by dtype (``experts bfloat16 in float32``) and rows, and the rate of its memory."""

    model_config = ConfigDict(frozen=True)

    date: str
    environment: dict[str, Any]
    threads: int
    memory_read_gb_s: float
    kernels: dict[str, dict[int, Timing]]
    resident: dict[int, Resident] = Field(default_factory=dict)


def load(path: Path) -> KernelRecord:
    """Read the record.

    Raises:
        ReportError: missing, or not what the benchmark writes.
    """
    fix = "run `pytest -m benchmark tests/benchmarks/test_kernels.py`"
    try:
        return KernelRecord.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ReportError(f"no kernel record at {path} ({error.strerror}): {fix}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ReportError(f"{path} is no kernel record ({where}: {first['msg']}): {fix} again") from error
    except ValueError as error:
        raise ReportError(f"{path} is not JSON ({error}): {fix} again") from error
