"""Result schema, version 2: one JSON line per cell and round, readable without this code.

A *cell* is one system with its options on one workload; a *round* is one pass over all cells.
Every line is self-contained: it holds configuration, limit, environment and raw repetitions, and ends in a checksum.
Sizes are bytes, times seconds, rates ``_tok_s`` (tokens per second) and ``_gb_s`` (1e9 bytes per second).
Fields may be added with defaults; ``reports.results.migrate`` describes any other change of the schema.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from baselines.decoding import Decoding
from reports.results import tier
from reports.results.fidelity import Kind as FidelityKind
from reports.results.fidelity import worst
from reports.results.lines import read_lines, seal
from reports.results.metrics import Metrics
from reports.results.migrate import SCHEMA
from reports.results.repetition import Repetition, Strict
from specmoe.files import sync_folder
from workloads.arrivals import Poisson
from workloads.lengths import Fixed, Length, RequestShape

Kind = Literal["measured", "emulated", "oracle", "projected"]
Status = Literal["ok", "failed", "timeout", "not_supported"]
Covers = Literal["worker", "engine"]
HeldBy = Literal["expert budget", "allocator cap", "nothing"]


class RecordError(ValueError):
    """A result file that cannot be read or written; the message names the file, the line and the fix."""


class Cell(Strict):
    """What is run: equal cells have equal ``cell_id``.  ``docs/adding-a-setting.md`` says how to add a field."""

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
    disk_read_limit_bytes_s: int | None = Field(default=None, gt=0)
    """Kernel throttle on reads from disk, to emulate a slower one."""
    prompts: str | None = None
    """The prompt set: a name, a file, or ``hf:...``; None is the set that the model is measured on."""
    prompt_tokens: Length | None = None
    """Length of prompts: a number of tokens or a distribution; None is as long as they are."""
    output_tokens: Length | None = None
    """Distribution of output lengths, of which ``new_tokens`` is the longest; None is ``new_tokens`` for every row."""
    request_seed: int = 0
    """Of the lengths drawn from distributions."""
    stored_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Dtype in which experts rest in the slow tier and cross the link; None, as in older records, is ``dtype``."""
    fills_limit: bool = False
    """The system takes as much for experts as the process limit leaves (``expert_budget: fill``); each repetition
    holds what that was (``chosen_budget_bytes``), and ``expert_budget_bytes`` is that of all experts."""

    device: str = "cpu"
    """Where the system computes and keeps resident experts: ``cpu``, ``cuda``, ``cuda:1``."""
    slow_tier: str = "disk"
    """Where all experts rest: ``disk``; ``host``, memory of the process (pinned where there is a GPU); or that memory
    paced to a stated rate and latency per transfer, as in ``paced:25GB/s+10us``."""
    decoding: Decoding | None = None
    """How tokens are chosen; None is greedily."""
    requests: int | None = Field(default=None, ge=1)
    """Length of a queue, of which ``batch_size`` are decoded at once; None is one batch and no queue."""
    arrivals: Poisson | None = None
    """How the requests of a queue arrive; None is all at once."""
    latency_limit_s: float | None = Field(default=None, gt=0)
    """The latency within which a request of a queue counts as goodput."""
    first_tokens: int | None = Field(default=None, ge=2)
    """A slow system generates only the first so many tokens of each row, and its rates are over those; None is all."""

    device_limit_bytes: int | None = Field(default=None, gt=0)
    """Memory of a GPU for systems that know no expert budget; None, as on the CPU, for no cap."""

    @property
    def emulated(self) -> bool:
        """Whether the link is slowed on purpose."""
        return self.disk_read_limit_bytes_s is not None or tier.is_paced(self.slow_tier)

    @property
    def stored(self) -> str:
        """The dtype of the stored experts."""
        return self.stored_dtype or self.dtype

    @property
    def shape(self) -> RequestShape:
        """Lengths of the rows."""
        return RequestShape(
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens or Fixed(self.new_tokens),
            seed=self.request_seed,
        )

    @property
    def rows(self) -> int:
        """Prompts of the cell: those of its queue or of its batch."""
        return self.requests or self.batch_size

    @property
    def asked(self) -> str:
        """Equal for cells whose prompts and lengths are equal."""
        facts = [self.prompts, self.prompt_offset, self.batch_size, self.shape.model_dump(mode="json")]
        return json.dumps(facts + ([self.requests] if self.requests else []))

    @property
    def conditions(self) -> str:
        """Every field but those of one system (options, budget, length): cells of equal conditions are compared."""
        same = self.model_copy(update={"stored_dtype": self.stored})
        return same.model_dump_json(exclude={"system", "options", "expert_budget_bytes", "fills_limit", "first_tokens"})

    @property
    def cell_id(self) -> str:
        """Twelve hex digits that depend on every field; fields newer than the schema count once they are set.

        ``stored_dtype`` counts where it is not ``dtype``: experts were stored in that before the field was added.
        """
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        values = self.model_dump() | ({"stored_dtype": None} if self.stored == self.dtype else {})
        counted = {k: v for k, v in values.items() if k in _ALWAYS_COUNTED or v != defaults[k]}
        return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()[:12]


_ALWAYS_COUNTED = {
    *("system", "options", "model", "dtype", "batch_size", "new_tokens", "prompt_offset", "expert_budget_bytes"),
    *("process_limit_bytes", "threads", "warmup_tokens", "repetitions"),
}
"""Fields of the first schema.  Any later field is left out of ``cell_id`` at its default: old ids stay valid."""


class Limit(Strict):
    """The kernel's memory limit for a whole process, page cache included, and its disk throttle."""

    enforced: bool
    mechanism: Literal["cgroup-v1", "cgroup-v2", "systemd-run", "none"]
    limit_bytes: int | None
    peak_bytes: int | None = None
    reason: str | None = None
    """Why no limit was enforced."""
    disk_read_limit_bytes_s: int | None = None
    """The throttle in force; None if none was requested (a cell whose throttle cannot be set fails)."""
    covers: Covers = "worker"
    """The limited process: the worker, which runs the system, or the system's engine, driven by an unlimited worker."""
    slow_tier_bytes: int | None = None
    """What ``limit_bytes`` contains for all experts, where they rest in the limited process; None if on disk."""
    device_held_by: HeldBy | None = None
    """What bounds the memory of a GPU: the system's own expert budget, a cap on torch's allocator in its process, or
    nothing; None on the CPU."""
    device_limit_bytes: int | None = None
    """That budget or cap."""


class Usage(Strict):
    """What the kernel and the GPU driver report of the whole worker process, loading and warm-up included; where the
    limit covers an engine, peaks are the engine's, totals (CPU time, disk) those of engine and worker together.

    Peaks are of samples, so a short peak can be missed; totals are exact. None: not readable on this machine.
    """

    samples: int
    period_s: float
    """Time between samples; longer than configured where sampling would have exceeded its share of CPU time."""
    sampler_cpu_share: float
    """CPU time of the sampling thread over wall time: the cost of telemetry."""
    peak_rss_bytes: int | None = None
    peak_pss_bytes: int | None = None
    peak_cgroup_bytes: int | None = None
    peak_page_cache_bytes: int | None = None
    disk_read_bytes: int | None = None
    disk_write_bytes: int | None = None
    cpu_s: float | None = None
    """User and system time of all threads."""
    cpu_cores: float | None = None
    """``cpu_s`` over wall time: mean number of busy cores."""
    peak_gpu_bytes: int | None = None
    gpu_memory_reason: str | None = None
    """Why ``peak_gpu_bytes`` is None."""
    pcie_to_gpu_gb_s: float | None = None
    """Mean of the driver's rate samples, over all processes on the GPU."""
    pcie_from_gpu_gb_s: float | None = None
    gpu_power_w: float | None = None
    gpu_energy_j: float | None = None
    cpu_energy_j: float | None = None
    """RAPL package energy: of the machine's processors, not of this process alone."""
    memory_gb_s: float | None = None
    """Memory traffic of the whole machine, from the memory controllers' counters."""


class Ceilings(Strict):
    """Rates that ``specmoe-bench calibrate`` measured on this machine, from the last calibration before the cell."""

    date: str
    disk_read_gb_s: float | None = None
    dram_copy_gb_s: float | None = None
    memory_gb_s: float | None = None
    memory_read_gb_s: float | None = None
    """Of memory that is only read, as weights are; ``memory_gb_s`` is of reads and writes together."""
    pcie_to_gpu_gb_s: float | None = None
    pcie_from_gpu_gb_s: float | None = None
    gemm_tflop_s: dict[str, float] = Field(default_factory=dict)
    """By dtype, on the device named in ``gemm_device``."""
    gemm_device: str | None = None
    threads: int | None = None


class Record(Strict):
    """One line of a result file."""

    schema_version: Literal["specmoe-bench.result/3"] = "specmoe-bench.result/3"
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
    attempt: int = Field(default=1, ge=1)
    """1 for the first attempt of a cell in a round; failed attempts keep their lines."""
    session: str | None = None
    """Equal for records of one runner process; a resumed run has several."""
    node: str | None = None
    """The cluster node that ran the cell, in a distributed run."""
    usage: Usage | None = None
    ceilings: Ceilings | None = None

    @property
    def finished(self) -> bool:
        """Whether the cell gave a result; ``reports.results.load.finished`` selects the same rows of a frame."""
        return self.status == "ok" and self.metrics is not None

    @property
    def fidelity_kind(self) -> FidelityKind | None:
        """The worst of the repetitions; None in older records."""
        return worst(repetition.fidelity_kind for repetition in self.repetitions)

    @property
    def key(self) -> tuple[str, int]:
        """Identifies finished work: (cell_id, round)."""
        return self.cell_id, self.round


class ResultFile:
    """Append-only JSONL of sealed records; a line cut off by a kill is skipped, never parsed as a result."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: Record) -> None:
        """Write one line and force it to disk before returning.

        Raises:
            RecordError: the disk is full or not writable; the file is left as it was.
        """
        line = (seal(record.model_dump_json()) + "\n").encode()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            new = not self.path.exists()
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            try:
                _append(file, line)
            finally:
                os.close(file)
            if new:
                sync_folder(self.path.parent)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            fix = "free some space" if full else "make the folder writable"
            raise RecordError(
                f"cannot write {self.path} ({error.strerror}): finished cells are kept; {fix} "
                "and run the same command to continue"
            ) from error

    def read(self) -> list[Record]:
        """All intact records in file order; warns about damaged lines.

        Raises:
            RecordError: the file is missing, or an intact line is not a record.
        """
        if not self.path.exists():
            raise RecordError(f"no result file at {self.path}: run `specmoe-bench run` first")
        try:
            return [self._record(number, payload) for number, payload in read_lines(self.path)]
        except RecordError:
            raise
        except OSError as error:
            raise RecordError(f"cannot read result file {self.path} ({error.strerror}): name another file") from error
        except ValueError as error:
            raise RecordError(str(error)) from error

    def _record(self, number: int, payload: Any) -> Record:
        try:
            return Record.model_validate(payload)
        except ValidationError as error:
            raise RecordError(
                f"{self.path}:{number} is not a {SCHEMA} record: {first_problem(error)}; "
                "remove that line or point to another file"
            ) from error


def first_problem(error: ValidationError) -> str:
    """The first field of a line that is not as the schema asks, and why."""
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc']) or 'line'}: {first['msg']}"


def _append(file: int, line: bytes) -> None:
    """Append ``line`` on a new line and sync it to disk; on an error nothing of it remains in the file."""
    size = os.fstat(file).st_size
    torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"
    rest = memoryview((b"\n" if torn else b"") + line)
    try:
        while rest:
            rest = rest[os.write(file, rest) :]
        os.fsync(file)
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(file, size)
        raise
