"""Runs an experiment: builds what systems need, then every cell in its own limited process, in rounds.

Rounds interleave the systems (A B C, B C A, ...) in shuffled order, so that a slow spell of the machine
falls on all of them; ratios are taken within a round.  Each finished cell is on disk before the next
one starts, and a cell that is on disk is not run again.
"""

from __future__ import annotations

import hashlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from tqdm import tqdm

from baselines import contract
from harness import environment
from harness.config import Experiment, PlannedCell, plan
from harness.limits import MemoryLimit, clean_stale_groups, detect, drop_page_cache
from harness.record import Limit, Metrics, Record, Repetition, ResultFile
from harness.telemetry import Telemetry
from harness.worker import Answer, Job
from specmoe.checkpoint import checkpoint_files
from specmoe.convert import open_or_build
from workloads import models

BUILD_TIMEOUT_S = 1800.0


class RunError(RuntimeError):
    """The experiment cannot go on; the message names the cause and the mend."""


@dataclass(frozen=True)
class Outcome:
    """What a worker process came to."""

    answer: Answer
    limit: Limit
    peak_rss_bytes: int | None
    wall_s: float


class Runner:
    """Runs one experiment into one folder: ``results.jsonl`` and the files workers exchange."""

    def __init__(self, experiment: Experiment, out: Path, show: Callable[[str], None] = print) -> None:
        import torch

        self.experiment = experiment
        self.results = ResultFile(out / "results.jsonl")
        self._out = out
        self._show = show
        self._model_path = models.path(experiment.model)
        self._store_path = models.store_path(experiment.model, experiment.dtype)
        self._show(f"model {experiment.model}: experts in {self._store_path}")
        store = open_or_build(self._model_path, self._store_path, getattr(torch, experiment.dtype))
        self.cells = plan(experiment, store.slot_bytes, store.total_experts)
        self._environment = environment.capture()
        config = experiment.model_dump_json()
        self._run_id = f"{experiment.name}-{hashlib.sha256(config.encode()).hexdigest()[:8]}"

    def run(self) -> Path:
        """Run all cells that have no result yet; returns the result file.

        Raises:
            RunError: a reference or build failed, so that no cell could be judged.
        """
        clean_stale_groups(detect())
        finished = self._finished()
        todo = [(r, p) for r in range(self.experiment.rounds) for p in self._order(r)]
        todo = [(r, p) for r, p in todo if (p.cell.cell_id, r) not in finished]
        if finished:
            self._show(f"{len(finished)} finished cells kept, {len(todo)} to run")
        unbuilt = self._build({_build_key(p): p for _, p in todo})
        for batch in sorted({p.cell.batch_size for _, p in todo}):
            self._reference(next(p for _, p in todo if p.cell.batch_size == batch))
        with tqdm(total=len(todo), unit="cell", disable=not todo) as bar:
            for number, planned in todo:
                bar.set_description(f"round {number + 1}: {planned.label}, batch {planned.cell.batch_size}")
                record = self._measure(planned, number, unbuilt.get(_build_key(planned)))
                self.results.append(record)
                bar.set_postfix_str(_headline(record))
                bar.update()
        return self.results.path

    def _finished(self) -> set[tuple[str, int]]:
        if not self.results.path.exists():
            return set()
        return {r.key for r in self.results.read() if r.status in ("ok", "not_supported")}

    def _order(self, number: int) -> list[PlannedCell]:
        cells = list(self.cells)
        random.Random(f"{self.experiment.seed}-{number}").shuffle(cells)
        return cells

    def _build(self, cells: dict[str, PlannedCell]) -> dict[str, Answer]:
        """Run each ``build`` outside of any limit; returns the answers of those that came to nothing."""
        unbuilt = {}
        for key, planned in cells.items():
            answer = self._work("build", planned, None, BUILD_TIMEOUT_S).answer
            if answer.status != "ok":
                unbuilt[key] = answer
                self._show(f"{planned.label} cannot be built: {answer.error or answer.status}")
        return unbuilt

    def _reference(self, planned: PlannedCell) -> None:
        if self._reference_path(planned).exists():
            return
        self._show(f"reference tokens for batch {planned.cell.batch_size}")
        outcome = self._work("reference", planned, None, BUILD_TIMEOUT_S)
        if outcome.answer.status != "ok":
            raise RunError(
                f"no reference for batch {planned.cell.batch_size}: {outcome.answer.error}; "
                "the resident model must fit this machine: choose a smaller model"
            )

    def _reference_path(self, planned: PlannedCell) -> Path:
        cell = planned.cell
        facts = [
            str(self._model_path.resolve()),
            (self._model_path / "config.json").stat().st_mtime_ns,
            cell.dtype,
            cell.batch_size,
            cell.new_tokens,
            cell.prompt_offset,
            self.experiment.prompts,
        ]
        name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
        return self._out / "references" / f"{name}.json"

    def _measure(self, planned: PlannedCell, number: int, unbuilt: Answer | None) -> Record:
        started_at = datetime.now(UTC).isoformat(timespec="seconds")
        cell = planned.cell
        card = contract.systems()[cell.system].card
        if unbuilt is not None:
            none = Limit(enforced=False, mechanism="none", limit_bytes=None, why_not="not started")
            outcome = Outcome(unbuilt, none, None, 0.0)
        else:
            drop_page_cache([self._model_path, self._store_path, self._scratch(cell.system)])
            limit_bytes = cell.process_limit_bytes if card.limited else None
            outcome = self._work("measure", planned, limit_bytes, self.experiment.timeout_s)
        answer = outcome.answer
        repetitions = [Repetition(**r) for r in answer.repetitions]
        return Record(
            run_id=self._run_id,
            cell_id=cell.cell_id,
            round=number,
            kind=card.kind,
            status=answer.status,
            error=answer.error,
            label=planned.label,
            lossless=card.lossless,
            grain=card.grain,
            cell=cell,
            started_at=started_at,
            wall_s=outcome.wall_s,
            limit=outcome.limit,
            metrics=summarise(repetitions, cell.batch_size, outcome) if answer.status == "ok" else None,
            repetitions=repetitions,
            phases_s=answer.phases_s,
            notes=answer.notes,
            environment=self._environment,
            config=self.experiment.model_dump(),
        )

    def _scratch(self, system: str) -> Path:
        return scratch_path(self._model_path, self._store_path, system)

    def _work(self, action: str, planned: PlannedCell, limit_bytes: int | None, timeout_s: float) -> Outcome:
        """Run one worker process to its end, its limit in force before it imports anything."""
        with tempfile.TemporaryDirectory(prefix="specmoe-bench-") as folder:
            result = Path(folder) / "answer.json"
            job = self._job(action, planned, limit_bytes, result)
            started = time.monotonic()
            with MemoryLimit(limit_bytes, action) as limit:
                process = subprocess.Popen(
                    [sys.executable, "-m", "harness.worker"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                )
                limit.add(process.pid)
                with Telemetry(process.pid) as telemetry:
                    try:
                        _, stderr = process.communicate(json.dumps(asdict(job)) + "\n", timeout=timeout_s)
                        answer = _read_answer(result, process.returncode, stderr, limit)
                    except subprocess.TimeoutExpired:
                        process.kill()
                        process.communicate()
                        answer = Answer("timeout", f"ran longer than {timeout_s:.0f} s: raise timeout_s")
                    except BaseException:
                        process.kill()
                        process.wait()
                        raise
                report = limit.report()
            return Outcome(answer, report, telemetry.peak_rss_bytes, time.monotonic() - started)

    def _job(self, action: str, planned: PlannedCell, limit_bytes: int | None, result: Path) -> Job:
        cell = planned.cell
        return Job(
            action=action,
            system=cell.system,
            options=cell.options,
            model_path=str(self._model_path),
            store_path=str(self._store_path),
            scratch=str(self._scratch(cell.system)),
            dtype=cell.dtype,
            batch_size=cell.batch_size,
            new_tokens=cell.new_tokens,
            prompt_offset=cell.prompt_offset,
            prompts=self.experiment.prompts,
            expert_budget_bytes=cell.expert_budget_bytes,
            threads=cell.threads,
            warmup_tokens=cell.warmup_tokens,
            repetitions=cell.repetitions,
            reference_path=str(self._reference_path(planned)),
            result_path=str(result),
            process_limit_bytes=limit_bytes,
        )


def scratch_path(model_path: Path, store_path: Path, system: str) -> Path:
    """A system's own folder for one checkpoint and dtype; other weights of the same name get another."""
    files = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in checkpoint_files(model_path)]
    identity = hashlib.sha256(json.dumps([str(model_path.resolve()), *files]).encode()).hexdigest()[:8]
    return models.cache_dir() / "scratch" / f"{store_path.name}-{identity}-{system}"


def _build_key(planned: PlannedCell) -> str:
    """Cells of one key are built once: what is built may depend on the options."""
    return json.dumps([planned.cell.system, planned.cell.options], sort_keys=True)


def _read_answer(result: Path, returncode: int, stderr: str, limit: MemoryLimit) -> Answer:
    if result.exists():
        return Answer(**json.loads(result.read_text()))
    last = stderr.strip().splitlines()[-1] if stderr.strip() else "no message"
    if limit.oom_kills():
        last = "killed by the kernel at the memory limit: raise process_overhead or lower expert_budget"
    return Answer("failed", f"worker ended with code {returncode}: {last}")


def summarise(repetitions: list[Repetition], batch_size: int, outcome: Outcome) -> Metrics:
    """Medians over repetitions; rates and per-token figures are computed per repetition first."""

    def median(values: list[float | None]) -> float | None:
        present = [v for v in values if v is not None]
        return statistics.median(present) if present else None

    def required(values: list[float]) -> float:
        return statistics.median(values)

    decoded = [r.new_tokens - batch_size for r in repetitions]  # the prefill gives each row its first token
    pairs = list(zip(repetitions, decoded, strict=True))
    link = median([r.decode_link_bytes for r in repetitions])
    kernel = median([r.decode_kernel_read_bytes for r in repetitions])
    return Metrics(
        prefill_tok_s=required([r.prompt_tokens / r.prefill_s for r in repetitions]),
        decode_tok_s=required([n / r.decode_s for r, n in pairs]),
        ttft_s=required([r.prefill_s for r in repetitions]),
        tpot_s=required([r.decode_s * batch_size / n for r, n in pairs]),
        tokens_per_step=required([r.tokens_per_step or n / (r.decode_steps * batch_size) for r, n in pairs]),
        acceptance_rate=median([_ratio(r.accepted_tokens, r.drafted_tokens) for r in repetitions]),
        hit_rate=median([_ratio(r.expert_hits, r.expert_requests) for r in repetitions]),
        link_bytes=None if link is None else int(link),
        link_bytes_per_token=median([_ratio(r.decode_link_bytes, n) for r, n in pairs]),
        kernel_read_bytes=None if kernel is None else int(kernel),
        kernel_read_bytes_per_token=median([_ratio(r.decode_kernel_read_bytes, n) for r, n in pairs]),
        achieved_link_gb_s=median([_ratio(r.decode_link_bytes, r.decode_link_busy_s, scale=1e-9) for r in repetitions]),
        peak_device_expert_bytes=outcome.answer.peak_expert_bytes,
        peak_rss_bytes=outcome.peak_rss_bytes,
        fidelity=min((r.fidelity for r in repetitions if r.fidelity is not None), default=None),
    )


def _ratio(part: float | None, whole: float | None, scale: float = 1.0) -> float | None:
    return None if part is None or not whole else part / whole * scale


def _headline(record: Record) -> str:
    if record.metrics is None:
        return record.status
    return f"{record.metrics.decode_tok_s:.1f} tok/s"
