"""Measured cells that can be replayed: medians over rounds, and the trace that each needs."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baselines import registry
from harness.projection.record_trace import RunToRecord, record
from harness.projection.traces import Trace, TraceError, files
from reports.results import files as result_files
from reports.results.record import Cell, Record, ResultFile
from reports.results.repetition import Repetition
from reports.results.rounds import counted
from specmoe import SpecOptions

ENGINE_SYSTEMS = ("on-demand", "caching", "specmoe")
NEED_CALIBRATION = ("hot-global", "affinity-activation", "merged")


@dataclass(frozen=True)
class MeasuredCell:
    """One cell of committed results, median over its rounds; times in seconds, of the decode phase.

    ``compute_s`` is verification without waits, ``other_s`` acceptance and bookkeeping.
    """

    experiment: str
    label: str
    cell: Cell
    options: SpecOptions
    rounds: int
    decode_s: float
    decode_tok_s: float
    decode_link_bytes: int
    requests: int
    hits: int
    draft_s: float
    compute_s: float
    wait_s: float
    other_s: float
    busy_s: float

    @property
    def name(self) -> str:
        return f"{self.experiment}: {self.label}, batch {self.cell.batch_size}"

    @property
    def link_gb_s(self) -> float | None:
        """Link bytes over the time that the link was busy, in GB/s; None if nothing moved."""
        return self.decode_link_bytes / self.busy_s / 1e9 if self.busy_s else None


def load(results: Sequence[Path]) -> list[MeasuredCell]:
    """All finished cells of the engine's systems that can be replayed, in the order of the files.

    Left out are cells with the controller, with merged experts or with a prefetch that changes the draft experts, since
    these depend on time or weights; emulated cells, which represent another machine; shortened cells
    (``first_tokens``); and cells whose experts are stored in another dtype than they are computed in, since traces
    hold bytes of the latter.

    Raises:
        RecordError: a file cannot be read.
    """
    found: dict[str, list[Record]] = {}
    for entry in counted(line for path in result_files.expand(results) for line in ResultFile(path).read()):
        measured = entry.status == "ok" and entry.kind == "measured" and entry.cell.stored == entry.cell.dtype
        measured = measured and entry.cell.first_tokens is None
        if measured and entry.cell.system in ENGINE_SYSTEMS and replayable(options_of(entry.cell)):
            found.setdefault(f"{entry.config.get('name')} {entry.cell.cell_id}", []).append(entry)
    return [_median_cell(records) for records in found.values()]


def options_of(cell: Cell) -> SpecOptions:
    """The engine options that the adapter of a cell's system uses."""
    arguments: dict[str, Any] = dict(registry.create(cell.system, cell.options).arguments())  # type: ignore[attr-defined]
    options = arguments.pop("options", None)
    return options if options is not None else SpecOptions.of(**arguments)


def replayable(options: SpecOptions) -> bool:
    """Whether the options depend on neither time nor weights nor a calibration.

    Prefetch does, but is replayed as an ideal prefetch if it does not change the draft experts.
    """
    calibrated = options.selection in NEED_CALIBRATION or options.substitution in NEED_CALIBRATION
    same_draft = options.prefetch == "none" or options.draft_pool in ("auto", "pinned")
    return same_draft and options.controller == "fixed" and not calibrated


def _median_cell(records: list[Record]) -> MeasuredCell:
    first = records[0]
    repetitions = [r for one in records for r in one.repetitions]

    def median(of: Any) -> float:
        return float(statistics.median(of(r) for r in repetitions))

    def cycles(r: Repetition, name: str) -> float:
        return float(sum(c[name] for c in r.cycles))

    decoded = first.repetitions[0].new_tokens - first.cell.batch_size
    decode_s = median(lambda r: r.decode_s)
    return MeasuredCell(
        experiment=str(first.config.get("name")),
        label=first.label,
        cell=first.cell,
        options=options_of(first.cell),
        rounds=len(records),
        decode_s=decode_s,
        decode_tok_s=decoded / decode_s,
        decode_link_bytes=int(median(lambda r: r.decode_link_bytes)),
        requests=int(median(lambda r: r.expert_requests)),
        hits=int(median(lambda r: r.expert_hits)),
        draft_s=median(lambda r: cycles(r, "draft_s")),
        compute_s=median(lambda r: cycles(r, "verify_s") - cycles(r, "wait_s")),
        wait_s=median(lambda r: cycles(r, "wait_s")),
        other_s=median(lambda r: cycles(r, "other_s")),
        busy_s=median(lambda r: cycles(r, "busy_s")),
    )


def run_of(measured: MeasuredCell) -> RunToRecord:
    """The run whose trace a cell needs; all cells without drafts share one, since their tokens are the same."""
    cell, options = measured.cell, measured.options
    chosen = _draft_options(options) if options.speculates else {"gamma": 0}
    budget = cell.expert_budget_bytes if options.speculates else "50%"
    if budget is None:
        raise TraceError(f"{measured.name} has no expert budget, so its run cannot be recorded again")
    return RunToRecord(
        cell.model, cell.batch_size, cell.new_tokens, budget, chosen, cell.prompt_offset, cell.warmup_tokens
    )


def _draft_options(options: SpecOptions) -> dict[str, Any]:
    """Options that affect drafted tokens; placement does only if all resident experts draft."""
    chosen = options.model_dump(exclude_defaults=True)
    if options.draft_pool in ("auto", "pinned"):
        for name in ("draft_pool", "placement", "prefetch", "prefetch_share"):
            chosen.pop(name, None)
    return chosen | {"gamma": options.gamma, "draft_experts": options.draft_experts}


def trace_file(measured: MeasuredCell, folder: Path) -> Path:
    """The path of a cell's trace: its workload, and a checksum of everything that the trace depends on."""
    run = run_of(measured)
    facts = {k: v for k, v in vars(run).items() if k != "expert_budget" or run.options.get("draft_pool") == "resident"}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:8]
    return folder / f"{run.model}-b{run.batch_size}-t{run.new_tokens}-g{run.options['gamma']}-{digest}.parquet"


def trace_of(measured: MeasuredCell, folder: Path, may_record: bool = False) -> Trace:
    """A cell's trace; if it is missing and ``may_record``, it is recorded now.

    Raises:
        TraceError: missing and ``may_record`` is False, or damaged.
    """
    path = trace_file(measured, folder)
    if not path.exists() and may_record:
        files.write(record(run_of(measured)), path)
    return files.read(path)
