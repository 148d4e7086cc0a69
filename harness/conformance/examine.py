"""Whether a system keeps the adapter contract, by the same processes, limits and counters as a benchmark.

``examine`` runs a system on the embedded model and on one eight times wider, and judges the results by ``CHECKS``.
A system that cannot run here is skipped with its reason and is not a failure.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from baselines import registry
from harness.conformance.checks import CHECKS, NEEDS, Check, judge
from harness.conformance.evidence import Evidence
from harness.machine.limits import MemoryLimit
from harness.machine.page_cache import drop_page_cache
from harness.machine.proc import kernel_read_bytes
from harness.plan.experiment import validate
from harness.plan.schedule import Unit
from harness.run import launch, leaks
from harness.run.job import Answer, Job, Paths
from harness.run.model_files import ModelFiles
from harness.run.runner import Runner
from reports.results.record import Cell
from specmoe.offload.store import INDEX
from workloads import models

__all__ = ["CHECKS", "Check", "examine"]

SMALL, LARGE = "embedded", "embedded-x8"
RAGGED = {"distribution": "uniform", "low": 2, "high": 14}
WORKER_TIMEOUT_S = 300
OVERHEAD, RESIDENT_OVERHEAD = "900MB", "1600MB"
"""``process_overhead``; the second for systems that move nothing, whose loader holds the experts in both dtypes."""


def examine(name: str, options: dict[str, Any], work: Path, only: Collection[str] = ()) -> list[Check]:
    """Verdicts on one system.

    Args:
        name: the system.
        options: its options.
        work: keeps reference outputs, so share it between systems examined one after another.
        only: names of checks, all by default; only the runs that they need are made.

    Raises:
        ValueError: unknown system, option or check.
    """
    unknown = sorted(set(only) - CHECKS.keys())
    if unknown:
        raise ValueError(f"unknown check {unknown[0]!r}: use one of {', '.join(CHECKS)}")
    chosen = [check for check in CHECKS if not only or check in only]
    evidence = Evidence(registry.create(name, options).card)
    with _private_temporary_folder(work) as (temporary, mark):
        _gather(name, options, work, frozenset().union(*(NEEDS[check] for check in chosen)), evidence)
        evidence.leftovers += [f"temporary file {path}" for path in leaks.listing([temporary])]
        evidence.leftovers += [f"process {pid}" for pid in leaks.marked_processes(mark)]
    return [judge(check, evidence) for check in chosen]


def _gather(name: str, options: dict[str, Any], work: Path, runs: frozenset[str], evidence: Evidence) -> None:
    """Make the named runs, and note what they left."""
    try:
        registry.create(name, {**options, "no_such_option": 1})
    except ValueError as error:
        evidence.unknown_option = str(error)
    small, large = _Place(name, options, work, SMALL), _Place(name, options, work, LARGE)
    if "one row" in runs:
        _run(small, "one row", evidence, batch=1, budget="50%")
    if "ragged" in runs and not _refused(evidence):
        _run(small, "ragged", evidence, batch=5, budget="50%", new_tokens=RAGGED)
    if "large" in runs and not _refused(evidence):
        _run(large, "large", evidence, batch=3, budget="25%")
        evidence.large_expert_bytes = sum(leaks.listing([models.store_path(LARGE, "float32")]).values())
        evidence.kernel_counts_reads = _kernel_counts_reads(models.store_path(LARGE, "float32") / INDEX)
    if "refusals" in runs and not _refused(evidence):
        evidence.refusals["a model folder that does not exist"] = _refusal(small, Path("/no/such/model"), None)
        if evidence.card.knows_budget:
            evidence.refusals["an expert budget of one byte"] = _refusal(small, models.path(SMALL), 1)


@dataclass
class _Place:
    """A system on one model; reference tokens and results are kept in ``work``."""

    system: str
    options: dict[str, Any]
    work: Path
    model: str
    builds: dict[str, Answer] = field(default_factory=dict)

    @property
    def files(self) -> ModelFiles:
        return ModelFiles.of(self.model, "float32", "float32")

    def folders(self) -> list[Path]:
        return self.files.folders(self.system)


def _refused(evidence: Evidence) -> bool:
    """Whether the first run was ``not_supported``: then no other run is made."""
    return any(record.status == "not_supported" for record in list(evidence.records.values())[:1])


def _run(place: _Place, run: str, evidence: Evidence, batch: int, budget: str, new_tokens: Any = 10) -> None:
    """Run one cell as a benchmark does; notes its record and the files it leaves."""
    experiment = {
        "name": "conformance",
        "model": place.model,
        "stored_dtype": "float32",
        "device": "cpu",  # the kernel counts what a disk gives, and limits what the CPU holds
        "slow_tier": "disk",
        "systems": [{"system": place.system, "options": place.options}],
        "batch_sizes": [batch],
        "expert_budget": budget,
        "new_tokens": new_tokens,
        "process_overhead": RESIDENT_OVERHEAD if evidence.card.grain == "nothing" else OVERHEAD,
        "rounds": 1,
        "warmup_tokens": 2,
        "repetitions": 2,
        "threads": 1,
        "timeout_s": WORKER_TIMEOUT_S,
    }
    runner = Runner.open(validate(experiment, "conformance"), place.work, show=lambda line: None, builds=place.builds)
    (planned,) = runner.cells
    unit = Unit(planned, round=0)
    runner.prepare([unit])
    before = leaks.listing(place.folders())
    (evidence.records[run],) = runner.measure(unit)
    evidence.leftovers += [f"file {path}" for path in leaks.listing(place.folders()).keys() - before.keys()]


def _kernel_counts_reads(file: Path) -> bool:
    """Whether the kernel's counter sees the read of an uncached file (on tmpfs it does not)."""
    drop_page_cache([file])
    before = kernel_read_bytes()
    file.read_bytes()
    after = kernel_read_bytes()
    return before is not None and after is not None and after > before


def _refusal(place: _Place, model: Path, budget: int | None) -> Answer:
    """The answer of a worker to a request that it must refuse."""
    result, reference = place.work / "refusal.json", place.work / "refusal-reference.json"
    result.unlink(missing_ok=True)
    reference.write_text("[[0, 0]]")  # so that only the system itself can refuse
    existing = model == models.path(SMALL)
    paths = Paths(
        model=model,
        store=place.files.store if existing else model / "store",
        scratch=place.files.scratch(place.system) if existing else place.work / "no-scratch",
        reference=reference,
        result=result,
    )
    cell = Cell(
        system=place.system,
        options=place.options,
        model=SMALL,
        batch_size=1,
        new_tokens=2,
        expert_budget_bytes=budget,
        threads=1,
        warmup_tokens=0,
    )
    job = Job(action="measure", cell=cell, paths=paths)
    answer = launch.run(job, MemoryLimit(None, "refusal"), WORKER_TIMEOUT_S).answer
    return answer if result.exists() else replace(answer, notes=["died"])


@contextlib.contextmanager
def _private_temporary_folder(work: Path) -> Iterator[tuple[Path, str]]:
    """Give workers a temporary folder of their own, and a mark in the environment that identifies descendants."""
    mark = uuid.uuid4().hex
    temporary = work / f"tmp-{mark}"
    temporary.mkdir(parents=True)
    given = {"TMPDIR": str(temporary), leaks.MARK: mark}
    before = {key: os.environ.get(key) for key in given}
    os.environ.update(given)
    try:
        yield temporary, mark
    finally:
        for key, value in before.items():
            os.environ.pop(key)
            if value is not None:
                os.environ[key] = value
