"""Result schema, version 1: one JSON line per cell and round, readable without this code.

A *cell* is one system with its options on one workload; a *round* is one pass over all cells.
Every line stands alone: config, limit, environment and raw repetitions are in it.
Sizes are bytes, times seconds, rates ``_tok_s`` (tokens per second) and ``_gb_s`` (1e9 bytes per second).
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

SCHEMA: Literal["specmoe-bench.result/1"] = "specmoe-bench.result/1"

Kind = Literal["measured", "emulated", "oracle", "projected"]
Status = Literal["ok", "failed", "timeout", "not_supported"]


class RecordError(ValueError):
    """A result file that cannot be read; the message names the file, line and mend."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Cell(_Strict):
    """What is run: equal cells have equal ``cell_id``."""

    system: str
    options: dict[str, Any] = Field(default_factory=dict)
    model: str
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch_size: int = Field(ge=1)
    new_tokens: int = Field(ge=1)
    prompt_offset: int = Field(default=0, ge=0)
    expert_budget_bytes: int | None = Field(default=None, gt=0)
    process_limit_bytes: int | None = Field(default=None, gt=0)
    threads: int = Field(default=2, ge=1)
    warmup_tokens: int = Field(default=2, ge=0)
    repetitions: int = Field(default=1, ge=1)

    @property
    def cell_id(self) -> str:
        """Twelve hex digits that depend on every field."""
        canonical = json.dumps(self.model_dump(), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]


class Limit(_Strict):
    """The kernel's memory limit for the whole process, page cache included."""

    enforced: bool
    mechanism: Literal["cgroup-v1", "cgroup-v2", "none"]
    limit_bytes: int | None
    peak_bytes: int | None = None
    why_not: str | None = None


class Repetition(_Strict):
    """One timed ``generate`` call; decode figures leave the prefill and its first token out."""

    prefill_s: float
    decode_s: float
    prompt_tokens: int
    new_tokens: int
    decode_steps: int
    tokens_per_step: float | None = None
    prefill_link_bytes: int | None = None
    decode_link_bytes: int | None = None
    decode_link_busy_s: float | None = None
    decode_link_wait_s: float | None = None
    decode_kernel_read_bytes: int | None = None
    prefill_kernel_read_bytes: int | None = None
    drafted_tokens: int | None = None
    accepted_tokens: int | None = None
    accepted_by_position: list[int] | None = None
    drafted_by_position: list[int] | None = None
    expert_requests: int | None = None
    expert_hits: int | None = None
    prefetched_bytes: int | None = None
    prefetch_useful_bytes: int | None = None
    prefetch_late_bytes: int | None = None
    prefetch_wasted_bytes: int | None = None
    phases_s: dict[str, float] = Field(default_factory=dict)
    cycles: list[dict[str, Any]] = Field(default_factory=list)
    fidelity: float | None = None


class Metrics(_Strict):
    """Medians over the repetitions of one cell in one round."""

    prefill_tok_s: float
    decode_tok_s: float
    ttft_s: float
    tpot_s: float
    tokens_per_step: float
    acceptance_rate: float | None = None
    hit_rate: float | None = None
    link_bytes: int | None = None
    link_bytes_per_token: float | None = None
    kernel_read_bytes: int | None = None
    kernel_read_bytes_per_token: float | None = None
    achieved_link_gb_s: float | None = None
    peak_device_expert_bytes: int | None = None
    peak_rss_bytes: int | None = None
    fidelity: float | None = None


class Record(_Strict):
    """One line of a result file."""

    schema_version: Literal["specmoe-bench.result/1"] = SCHEMA
    run_id: str
    cell_id: str
    round: int = Field(ge=0)
    kind: Kind = "measured"
    status: Status
    error: str | None = None
    label: str
    lossless: bool | None = None
    grain: str | None = None
    cell: Cell
    started_at: str
    wall_s: float
    limit: Limit
    metrics: Metrics | None = None
    repetitions: list[Repetition] = Field(default_factory=list)
    phases_s: dict[str, float] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)
    environment: dict[str, Any] = Field(default_factory=dict)
    config: dict[str, Any] = Field(default_factory=dict)

    @property
    def key(self) -> tuple[str, int]:
        """Identifies finished work: (cell_id, round)."""
        return self.cell_id, self.round


class ResultFile:
    """Append-only JSONL of records; a line torn by a kill is set aside, never parsed as a result."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: Record) -> None:
        """Write one line and force it to disk before returning."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torn = self.path.exists() and self.path.stat().st_size > 0 and not self._ends_with_newline()
        with self.path.open("a", encoding="utf-8") as out:
            out.write(("\n" if torn else "") + record.model_dump_json() + "\n")
            out.flush()
            os.fsync(out.fileno())

    def read(self) -> list[Record]:
        """All whole records in file order; warns about a torn last line.

        Raises:
            RecordError: the file is missing, or a line other than a torn one is not a record.
        """
        if not self.path.exists():
            raise RecordError(f"no result file at {self.path}: run `specmoe-bench run` first")
        lines = self.path.read_text(encoding="utf-8").split("\n")
        records = []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                payload = json.loads(line)
            except json.JSONDecodeError as error:
                warnings.warn(f"{self.path}:{number}: torn line skipped ({error})", stacklevel=2)
                continue
            try:
                records.append(Record.model_validate(payload))
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(str(part) for part in first["loc"])
                raise RecordError(
                    f"{self.path}:{number} is not a {SCHEMA} record: {where}: {first['msg']}; "
                    "remove that line or point to another file"
                ) from error
        return records

    def _ends_with_newline(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"
