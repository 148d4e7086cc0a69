"""Runs an experiment: builds what systems need, then every cell in its own limited process, in rounds.

Rounds interleave the systems (A B C, B C A, ...) in shuffled order, so that a slow spell of the machine
falls on all of them; ratios are taken within a round.  Each finished cell is on disk before the next
one starts, and a cell that is on disk is not run again.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm import tqdm

from baselines import registry
from harness.machine import ceilings, environment
from harness.machine.limits import MemoryLimit, clean_stale_groups, detect
from harness.machine.page_cache import drop_page_cache
from harness.machine.throttle import Throttle
from harness.plan import schedule
from harness.plan.experiment import Experiment, PlannedCell, plan
from harness.plan.schedule import Unit
from harness.run import launch as worker_process
from harness.run import manifest
from harness.run.executor import Executor, LocalExecutor
from harness.run.job import Action, Answer, Job, Paths, WorkerLimit
from harness.run.launch import Outcome
from harness.run.metrics import Weights, measured
from harness.timestamp import now
from reports.results.metrics import Metrics
from reports.results.record import Cell, Covers, Limit, Record, ResultFile
from reports.results.repetition import Repetition
from specmoe.drafting.affinity import table_bytes
from specmoe.model.checkpoint import checkpoint_files
from specmoe.model.convert import open_or_build
from workloads import models, prompts
from workloads.cache import cache_dir

BUILD_TIMEOUT_S = 1800.0


class RunError(RuntimeError):
    """The experiment cannot go on; the message names the cause and the mend."""


class Runner:
    """Runs one experiment into one folder: ``results.jsonl``, ``manifest.json`` and the files workers exchange.

    ``built`` is what came of builds on the same model: those in it are not repeated, new ones are added.
    """

    def __init__(
        self,
        experiment: Experiment,
        out: Path,
        show: Callable[[str], None] = print,
        executor: Executor | None = None,
        built: dict[str, Answer] | None = None,
        command: str | None = None,
    ) -> None:
        """``command`` is what a user would type for this run; ``built`` is what earlier runners of its model built."""
        import torch

        self.experiment = experiment
        self.results = ResultFile(out / "results.jsonl")
        self._out = out
        self._show = show
        self._executor = executor or LocalExecutor()
        self._model_path = models.path(experiment.model)
        self._store_path = models.store_path(experiment.model, experiment.dtype)
        self._show(f"model {experiment.model}: experts in {self._store_path}")
        store = open_or_build(self._model_path, self._store_path, getattr(torch, experiment.dtype))
        self._show(f"{store.total_bytes / 1e6:.0f} MB of experts, {table_bytes(store) / 1e3:.0f} kB of affinity tables")
        self.cells = plan(experiment, store.slot_bytes, store.total_experts)
        for name in set(experiment.prompts):  # refused now rather than in every worker
            prompts.load(self._prompts(name))
        self._weights = Weights.of(self._model_path, store)
        self._ceilings = ceilings.latest()
        self._environment = (
            environment.capture() | {"seed": experiment.seed} | ({"command": command} if command else {})
        )
        self._built: dict[str, Answer] = {} if built is None else built
        config = experiment.model_dump_json()
        self._run_id = f"{experiment.name}-{hashlib.sha256(config.encode()).hexdigest()[:8]}"
        self._session = uuid.uuid4().hex[:12]

    def run(self, resume: bool = False) -> Path:
        """Run all cells that have no result yet; returns the result file.

        Args:
            resume: go on in a folder that holds another configuration, keeping what is finished.

        Raises:
            RunError: a reference or build failed, so that no cell could be judged.
            ManifestError: the folder holds another configuration, or another runner is at work in it.
            RecordError: a result could not be written; those before it are kept.
        """
        with manifest.locked(self._out):
            claimed = manifest.claim(self._out, self._plan_of_record(), resume)
            records = self.results.read() if self.results.path.exists() else []
            todo = schedule.todo(self.cells, self.experiment.rounds, self.experiment.seed, records)
            if records:
                finished = len(self.cells) * self.experiment.rounds - len(todo)
                self._show(f"{finished} finished cells kept, {len(todo)} to run")
            with tqdm(total=len(todo), unit="cell", disable=not todo) as bar:
                for record in self._executor.records(self, todo):
                    self.results.append(record)
                    bar.set_postfix_str(f"{record.label}, batch {record.cell.batch_size}: {_headline(record)}")
                    bar.update(record.attempt == 1)
            manifest.write(self._out, claimed, complete=True)
        return self.results.path

    def _plan_of_record(self) -> manifest.Manifest:
        """This run's manifest, as if nothing had been run yet."""
        return manifest.Manifest(
            run_ids=[self._run_id],
            config=self.experiment.model_dump(mode="json"),
            rounds=self.experiment.rounds,
            cells=[manifest.PlannedEntry(cell_id=p.cell.cell_id, label=p.label, cell=p.cell) for p in self.cells],
        )

    def prepare(self, units: list[Unit]) -> None:
        """Make on this machine what the units need and does not belong to their time: stores, references.

        Raises:
            RunError: a reference failed.
        """
        clean_stale_groups(detect())
        for rate in {u.planned.cell.disk_read_limit_bytes_s for u in units} - {None}:
            with MemoryLimit(None, "probe", throttle=Throttle.of(self._store_path, rate)):
                pass  # refused now rather than after the first references
        for key, planned in {_build_key(u.planned): u.planned for u in units}.items():
            self._build(key, planned)
        for planned in {self._reference_path(u.planned): u.planned for u in units}.values():
            self._reference(planned)

    def measure(self, unit: Unit) -> Iterator[Record]:
        """One record for every try of a unit, until one succeeds or the retries are used up."""
        for again in range(self.experiment.retries + 1):
            record = self._measure(unit.planned, unit.round, unit.attempt + again)
            yield record
            if record.status not in schedule.RETRIED:
                return

    def _build(self, key: str, planned: PlannedCell) -> None:
        """Run a system's ``build`` outside of any limit, once; remembers what came of it."""
        if key in self._built:
            return
        answer = self._built[key] = self._work("build", planned, None, BUILD_TIMEOUT_S).answer
        if answer.status != "ok":
            self._show(f"{planned.label} cannot be built: {answer.error or answer.status}")

    def _reference(self, planned: PlannedCell) -> None:
        if self._reference_path(planned).exists():
            return
        self._show(f"reference tokens for batch {planned.cell.batch_size}")
        outcome = self._work("reference", planned, None, BUILD_TIMEOUT_S)
        if outcome.answer.status != "ok":
            raise RunError(
                f"no reference for batch {planned.cell.batch_size}: {outcome.answer.error} "
                "(the resident model must fit this machine: if it does not, choose a smaller one)"
            )

    def _reference_path(self, planned: PlannedCell) -> Path:
        cell = planned.cell
        facts = [
            str(self._model_path.resolve()),
            (self._model_path / "config.json").stat().st_mtime_ns,
            cell.dtype,
            cell.requests,
            prompts.fingerprint(self._prompts(cell.prompts)),
        ]
        name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
        return self._out / "references" / f"{name}.json"

    def _prompts(self, name: str | None) -> str:
        """The named prompt set, or the one that the model is measured on."""
        return name or models.find(self.experiment.model).prompts

    def _measure(self, planned: PlannedCell, number: int, attempt: int) -> Record:
        started_at = now()
        cell = planned.cell
        built = self._built.get(_build_key(planned), Answer())
        if built.status != "ok":
            none = Limit(enforced=False, mechanism="none", limit_bytes=None, why_not="not started")
            outcome = Outcome(built, none, None, 0.0)
        else:
            drop_page_cache([self._model_path, self._store_path, self._scratch(cell.system)])
            limited = registry.systems()[cell.system].card.limited
            limit_bytes = cell.process_limit_bytes if limited else None
            outcome = self._work("measure", planned, limit_bytes, self.experiment.timeout_s)
        return self._record(planned, number, attempt, started_at, outcome)

    def lost(self, unit: Unit, reason: str) -> Record:
        """The record of a unit whose measuring ended without an answer."""
        none = Limit(enforced=False, mechanism="none", limit_bytes=None, why_not="unknown")
        outcome = Outcome(Answer("failed", reason), none, None, 0.0)
        return self._record(unit.planned, unit.round, unit.attempt, now(), outcome)

    def _record(self, planned: PlannedCell, number: int, attempt: int, started_at: str, outcome: Outcome) -> Record:
        cell = planned.cell
        card = registry.systems()[cell.system].card
        answer = outcome.answer
        repetitions, metrics = self._figures(cell, outcome)
        return Record(
            run_id=self._run_id,
            cell_id=cell.cell_id,
            round=number,
            kind="emulated" if cell.disk_read_limit_bytes_s and card.kind == "measured" else card.kind,
            status=answer.status,
            error=answer.error,
            label=planned.label,
            lossless=card.lossless,
            grain=card.grain,
            cell=cell,
            started_at=started_at,
            wall_s=outcome.wall_s,
            limit=outcome.limit,
            metrics=metrics,
            repetitions=repetitions,
            phases_s=answer.phases_s,
            notes=answer.notes,
            environment=self._environment,
            config=self.experiment.model_dump(mode="json"),
            attempt=attempt,
            session=self._session,
            usage=outcome.usage,
            ceilings=self._ceilings,
        )

    def _figures(self, cell: Cell, outcome: Outcome) -> tuple[list[Repetition], Metrics | None]:
        """Raw and summed-up figures; an answer that makes no sense becomes a failure, not an end of the run."""
        answer = outcome.answer
        if answer.status != "ok":
            return [], None
        try:
            repetitions = [Repetition(**r) for r in answer.repetitions]
            return repetitions, measured(repetitions, cell, outcome.usage, self._ceilings, self._weights)
        except (ValueError, TypeError, ArithmeticError) as error:
            answer.status = "failed"
            answer.error = (
                f"the system's figures make no sense ({' '.join(str(error).split())}): its adapter is at fault"
            )
            return [], None

    def _scratch(self, system: str) -> Path:
        return scratch_path(self._model_path, self._store_path, system)

    def _work(self, action: Action, planned: PlannedCell, limit_bytes: int | None, timeout_s: float) -> Outcome:
        """Run one worker process to its end."""
        cell = planned.cell
        measuring = action == "measure"
        own_process = registry.systems()[cell.system].card.own_process
        throttle = Throttle.of(self._store_path, cell.disk_read_limit_bytes_s if measuring else None)
        covers: Covers = "engine" if measuring and own_process else "worker"
        limit = MemoryLimit(limit_bytes, action, throttle=throttle, covers=covers)
        with tempfile.TemporaryDirectory(prefix="specmoe-bench-") as folder:
            job = self._job(action, planned, limit_bytes, Path(folder) / "answer.json")
            return worker_process.run(job, limit, timeout_s)

    def _job(self, action: Action, planned: PlannedCell, limit_bytes: int | None, result: Path) -> Job:
        cell = planned.cell
        paths = Paths(
            model=self._model_path,
            store=self._store_path,
            scratch=self._scratch(cell.system),
            reference=self._reference_path(planned),
            result=result,
        )
        named = cell.model_copy(update={"prompts": self._prompts(cell.prompts)})
        return Job(action=action, cell=named, paths=paths, limit=WorkerLimit(process_limit_bytes=limit_bytes))


def scratch_path(model_path: Path, store_path: Path, system: str) -> Path:
    """A system's own folder for one checkpoint and dtype; other weights of the same name get another."""
    files = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in checkpoint_files(model_path)]
    identity = hashlib.sha256(json.dumps([str(model_path.resolve()), *files]).encode()).hexdigest()[:8]
    return cache_dir() / "scratch" / f"{store_path.name}-{identity}-{system}"


def _build_key(planned: PlannedCell) -> str:
    """Cells of one key are built once: one system, and those of its options that its card says matter."""
    card = registry.systems()[planned.cell.system].card
    options = {name: planned.cell.options.get(name) for name in card.build_options}
    return json.dumps([planned.cell.system, options], sort_keys=True)


def _headline(record: Record) -> str:
    if record.metrics is None:
        return record.status
    return f"{record.metrics.decode_tok_s:.1f} tok/s"
