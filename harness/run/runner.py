"""Runs an experiment: builds what systems need, then every cell in its own limited process, in rounds.

Rounds interleave the systems (A B C, B C A, ...) in shuffled order, so that a slow phase of the machine affects all of
them; ratios are taken within a round.  Each finished cell is on disk before the next one starts, and a cell that is on
disk is not run again.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from baselines import registry
from harness.machine.limits import LimitSupport, MemoryLimit, clean_stale_groups, detect
from harness.machine.page_cache import drop_page_cache
from harness.machine.throttle import Throttle
from harness.plan import schedule
from harness.plan.experiment import Experiment, PlannedCell, plan, variants_of
from harness.plan.schedule import Unit
from harness.plan.sizes import ExpertSizes
from harness.run import launch, manifest, reference
from harness.run.executor import Executor, LocalExecutor
from harness.run.job import Action, Answer, Job, Paths, WorkerLimit
from harness.run.launch import Outcome
from harness.run.memory_rate import memory_read_gb_s
from harness.run.metrics import Weights
from harness.run.model_files import ModelFiles
from harness.run.progress import Progress
from harness.run.session import Session, not_measured
from harness.timestamp import now
from reports.results.record import Covers, Record, ResultFile
from specmoe.drafting.affinity import table_bytes
from specmoe.offload.device import check_device
from workloads import prompts, tokenizers

BUILD_TIMEOUT_S = 1800.0
_OUTSIDE = "the server was started by its user, outside of this run: its memory is not limited"


class RunError(RuntimeError):
    """The experiment cannot continue; the message names the cause and the fix."""


@dataclass
class Runner:
    """One experiment, ready to run into one folder: ``results.jsonl``, ``manifest.json`` and reference tokens.

    ``files`` are the model's by stored dtype.  ``builds`` holds the answers to builds that are done, by system, options
    and stored dtype; those in it are not repeated.  ``progress`` is that of ``run``.
    """

    experiment: Experiment
    out: Path
    files: dict[str, ModelFiles]
    cells: list[PlannedCell]
    session: Session
    executor: Executor = field(default_factory=LocalExecutor)
    show: Callable[[str], None] = print
    builds: dict[str, Answer] = field(default_factory=dict)
    progress: Progress | None = None

    @classmethod
    def open(
        cls,
        experiment: Experiment,
        out: Path,
        *,
        executor: Executor | None = None,
        show: Callable[[str], None] = print,
        builds: dict[str, Answer] | None = None,
        command: str | None = None,
    ) -> Runner:
        """Find or build the model and its expert store, plan the cells and capture the environment.

        Args:
            experiment: what to run.
            out: folder of the results; nothing is written to it yet.
            executor: where cells run; this machine by default.
            show: called with every line for the user.
            builds: shared by runners of the same model, so that each system is built once.
            command: what a user would type for this run; kept in the records.

        Raises:
            ConfigError: an unknown system or option, or a malformed budget.
            ValueError: no such model or prompt set, or a device that this machine lacks.
            StoreError: the expert store is damaged or cannot be written.
        """
        for entry in experiment.systems:
            variants_of(experiment, entry)  # a wrong option is refused here rather than after the model is built
        if executor is None or isinstance(executor, LocalExecutor):  # the nodes of a cluster check their own
            for name in experiment.device:
                check_device(name or "cpu")
        asked = {dtype: ModelFiles.of(experiment.model, experiment.dtype, dtype) for dtype in experiment.stored_dtype}
        files = {found.stored_dtype: found for found in asked.values()}
        first = next(iter(files.values()))
        tokenizers.load(first.checkpoint)  # one that is missing is refused here rather than in every worker
        stores = {}
        for dtype, found in files.items():
            show(f"model {experiment.model}: experts in {found.store}")
            store = stores[dtype] = found.open_store()
            show(f"{store.total_bytes / 1e6:.0f} MB of experts, {table_bytes(store) / 1e3:.0f} kB of affinity tables")
        own = asked[None].stored_dtype if None in asked else first.stored_dtype
        slot_bytes = {dtype: store.slot_bytes for dtype, store in stores.items()}
        sizes = ExpertSizes(stores[own].total_experts, slot_bytes, own)
        cells = plan(experiment, sizes, memory_read_gb_s(experiment, show))
        for name in set(experiment.prompts):  # a missing prompt set is refused here rather than in every worker
            prompts.load(first.prompts(name))
        weights = {dtype: Weights.of(first.checkpoint, store, experiment.dtype) for dtype, store in stores.items()}
        session = Session.start(experiment, weights, first.store, command)
        known = {} if builds is None else builds
        return cls(experiment, out, files, cells, session, executor or LocalExecutor(), show, known)

    @cached_property
    def results(self) -> ResultFile:
        return ResultFile(self.out / "results.jsonl")

    def run(self, resume: bool = False) -> Path:
        """Run all cells that have no result yet; returns the result file.

        Args:
            resume: continue in a folder that holds another configuration, keeping what is finished.

        Raises:
            RunError: a reference or build failed, so that no cell could be judged.
            ManifestError: the folder holds another configuration, or another runner is at work in it.
            RecordError: a result could not be written; those before it are kept.
        """
        with manifest.locked(self.out):
            claimed = manifest.claim(self.out, self._manifest(), resume)
            earlier = self.results.read() if self.results.path.exists() else []
            todo = self._todo(earlier)
            with Progress(todo, earlier) as self.progress:
                for record in self.executor.records(self, todo):
                    self.results.append(record)
                    self.progress.finish(record)
            manifest.write(self.out, claimed, complete=True)
        return self.results.path

    def _todo(self, records: list[Record]) -> list[Unit]:
        todo = schedule.todo(self.cells, self.experiment.rounds, self.experiment.seed, records)
        if records:
            finished = len(self.cells) * self.experiment.rounds - len(todo)
            self.show(f"{finished} finished cells kept, {len(todo)} to run")
        return todo

    def _manifest(self) -> manifest.Manifest:
        """This run's manifest before anything has run."""
        return manifest.Manifest(
            run_ids=[self.session.run_id],
            config=self.experiment.model_dump(mode="json"),
            rounds=self.experiment.rounds,
            cells=[manifest.PlannedEntry(cell_id=p.cell.cell_id, label=p.label, cell=p.cell) for p in self.cells],
        )

    def prepare(self, units: list[Unit]) -> None:
        """Build on this machine what the units need and no cell's time includes: systems' files, reference tokens.

        Raises:
            RunError: a reference failed.
            ThrottleError: a disk limit cannot be enforced here.
        """
        clean_stale_groups(detect())
        store = next(iter(self.files.values())).store  # they are beside each other
        for rate in {u.planned.cell.disk_read_limit_bytes_s for u in units} - {None}:
            with MemoryLimit(None, "probe", throttle=Throttle.of(store, rate)):
                pass  # a throttle that cannot be enforced is refused here rather than after the first references
        for key, planned in {_build_key(u.planned): u.planned for u in units}.items():
            self._build(key, planned)
        for planned in {self._reference_path(u.planned): u.planned for u in units}.values():
            self._reference(planned)
        if self.progress is not None:
            self.progress.begin()

    def measure(self, unit: Unit) -> Iterator[Record]:
        """One record for every try of a unit, until one succeeds or the retries are used up."""
        for again in range(self.experiment.retries + 1):
            record = self._measure(unit, unit.attempt + again)
            yield record
            if record.status not in schedule.RETRIED:
                return

    def lost(self, unit: Unit, reason: str) -> Record:
        """The record of a unit whose worker or node ended without an answer."""
        return self.session.record(unit, unit.attempt, now(), not_measured(Answer("failed", reason), "unknown"))

    def _build(self, key: str, planned: PlannedCell) -> None:
        """Run a system's ``build`` without a limit, once, and keep its answer."""
        if key in self.builds:
            return
        if not registry.systems()[planned.cell.system].card.builds:
            self.builds[key] = Answer()  # the expert store is all it needs, and that is open
            return
        self.show(f"files of {planned.cell.system}")
        answer = self.builds[key] = self._work("build", planned, None, BUILD_TIMEOUT_S).answer
        if answer.status != "ok":
            self.show(f"{planned.label} cannot be built: {answer.error or answer.status}")

    def _reference(self, planned: PlannedCell) -> None:
        if reference.is_complete(self._reference_path(planned), planned.cell.decoding is not None):
            return
        batch = planned.cell.batch_size
        self.show(f"reference tokens for batch {batch}")
        answer = self._work("reference", planned, None, BUILD_TIMEOUT_S).answer
        if answer.status != "ok":
            raise RunError(
                f"no reference tokens for batch {batch}: {answer.error} "
                "(the whole model must fit into this machine's memory: if it does not, choose a smaller one)"
            )

    def _reference_path(self, planned: PlannedCell) -> Path:
        return self._files(planned).reference(planned.cell, self.out / "references")

    def _files(self, planned: PlannedCell) -> ModelFiles:
        return self.files[planned.cell.stored]

    def _measure(self, unit: Unit, attempt: int) -> Record:
        started_at = now()
        cell = unit.planned.cell
        built = self.builds.get(_build_key(unit.planned), Answer())
        if built.status != "ok":
            return self.session.record(unit, attempt, started_at, not_measured(built, "not started"))
        drop_page_cache(self._files(unit.planned).folders(cell.system))
        card = registry.systems()[cell.system].card
        limit_bytes = cell.process_limit_bytes if card.limited and not card.external else None
        outcome = self._work("measure", unit.planned, limit_bytes, self.experiment.timeout_s)
        if cell.decoding is not None and outcome.answer.status == "ok":
            self._score(unit.planned, outcome.answer)
        return self.session.record(unit, attempt, started_at, outcome)

    def _score(self, planned: PlannedCell, answer: Answer) -> None:
        """Have the reference model score what a system drew; its figures join those of the repetitions."""
        scored = self._work("score", planned, None, BUILD_TIMEOUT_S, answer.sampled).answer
        if scored.status != "ok":
            answer.status, answer.error = "failed", f"the reference model cannot score the tokens: {scored.error}"
            return
        for repetition, figures in zip(answer.repetitions, scored.repetitions, strict=True):
            repetition |= figures

    def _work(
        self,
        action: Action,
        planned: PlannedCell,
        limit_bytes: int | None,
        timeout_s: float,
        sampled: list[list[list[int]]] | None = None,
    ) -> Outcome:
        """Run one worker process to its end; ``sampled`` are the tokens to score."""
        cell = planned.cell
        measuring = action == "measure"
        card = registry.systems()[cell.system].card
        throttled = measuring and not card.external
        throttle = Throttle.of(self._files(planned).store, cell.disk_read_limit_bytes_s if throttled else None)
        covers: Covers = "engine" if measuring and card.own_process else "worker"
        outside = LimitSupport("none", reason=_OUTSIDE) if card.external else None
        limit = MemoryLimit(limit_bytes, action, outside, throttle=throttle, covers=covers)
        with tempfile.TemporaryDirectory(prefix="specmoe-bench-") as folder:
            job = self._job(action, planned, limit_bytes, Path(folder) / "answer.json")
            if job.paths.sampled is not None:
                job.paths.sampled.write_text(json.dumps(sampled))
            return launch.run(job, limit, timeout_s)

    def _job(self, action: Action, planned: PlannedCell, limit_bytes: int | None, result: Path) -> Job:
        cell, files = planned.cell, self._files(planned)
        paths = Paths(
            model=files.checkpoint,
            store=files.store,
            scratch=files.scratch(cell.system),
            reference=self._reference_path(planned),
            result=result,
            sampled=result.with_name("sampled.json") if action == "score" else None,
        )
        named = cell.model_copy(update={"prompts": files.prompts(cell.prompts)})
        return Job(action=action, cell=named, paths=paths, limit=WorkerLimit(process_limit_bytes=limit_bytes))


def _build_key(planned: PlannedCell) -> str:
    """Cells of equal key share one build: of one system, dtype, tier, and options that its card lists for builds."""
    cell = planned.cell
    options = {name: cell.options.get(name) for name in registry.systems()[cell.system].card.build_options}
    place = [cell.device, cell.slow_tier.partition(":")[0]]
    return json.dumps([cell.system, options, cell.dtype, cell.stored, *place], sort_keys=True)
