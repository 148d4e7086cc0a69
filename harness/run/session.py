"""One session of a run: the facts that all of its records share, and the records made with them."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from baselines import registry
from harness.machine import ceilings, environment
from harness.machine.storage import Storage
from harness.plan.experiment import Experiment
from harness.plan.schedule import Unit
from harness.run.job import Answer
from harness.run.launch import Outcome
from harness.run.metrics import Weights, measured
from reports.results import tier
from reports.results.metrics import Metrics
from reports.results.record import Ceilings, Cell, HeldBy, Limit, Record, Usage
from reports.results.repetition import Repetition
from specmoe.offload.slow_tier import SlowTier


@dataclass(frozen=True)
class Session:
    """What is the same for every record of one runner process; ``weights`` by stored dtype."""

    experiment: Experiment
    environment: dict[str, Any]
    ceilings: Ceilings | None
    weights: Mapping[str, Weights]
    session_id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])

    @classmethod
    def start(cls, experiment: Experiment, weights: Mapping[str, Weights], store: Path, command: str | None) -> Session:
        """Capture the environment, with the file system of ``store``; ``command`` is what a user would type."""
        facts = environment.capture() | {"seed": experiment.seed} | ({"command": command} if command else {})
        facts["store_filesystem"] = str(Storage.of(store))
        return cls(experiment, facts, ceilings.latest(), weights)

    @property
    def run_id(self) -> str:
        """Equal for runs of one configuration."""
        config = self.experiment.model_dump_json()
        return f"{self.experiment.name}-{hashlib.sha256(config.encode()).hexdigest()[:8]}"

    def record(self, unit: Unit, attempt: int, started_at: str, outcome: Outcome) -> Record:
        """The record of one try of a unit."""
        cell, answer = unit.planned.cell, outcome.answer
        card = registry.systems()[cell.system].card
        if card.external:  # the worker is a client: its memory and its disk are not the system's
            outcome = replace(outcome, usage=None)
        repetitions, metrics = self._figures(cell, outcome)
        return Record(
            run_id=self.run_id,
            cell_id=cell.cell_id,
            round=unit.round,
            kind="emulated" if cell.emulated and card.kind == "measured" else card.kind,
            status=answer.status,
            error=answer.error,
            label=unit.planned.label,
            lossless=card.lossless,
            grain=card.grain,
            cell=cell,
            started_at=started_at,
            wall_s=outcome.wall_s,
            limit=self._limit(cell, outcome.limit),
            metrics=metrics,
            repetitions=repetitions,
            phases_s=answer.phases_s,
            notes=answer.notes
            + tier_notes(metrics, cell, self.weights[cell.stored].expert_bytes)
            + gpu_notes(outcome.usage, cell),
            environment=self.environment,
            config=self.experiment.model_dump(mode="json"),
            attempt=attempt,
            session=self.session_id,
            usage=outcome.usage,
            ceilings=self.ceilings,
        )

    def _limit(self, cell: Cell, limit: Limit) -> Limit:
        """The limit, with what it contains for experts in host memory, and what bounds the memory of a GPU."""
        changes: dict[str, Any] = {}
        if limit.limit_bytes is not None and tier.in_memory(cell.slow_tier):
            changes["slow_tier_bytes"] = self.weights[cell.stored].all_experts_bytes
        if cell.device != "cpu":
            changes["device_held_by"], changes["device_limit_bytes"] = held_on_device(cell)
        return limit.model_copy(update=changes)

    def _figures(self, cell: Cell, outcome: Outcome) -> tuple[list[Repetition], Metrics | None]:
        """Repetitions and their metrics; an answer that is not valid fails its cell and does not end the run."""
        answer = outcome.answer
        try:
            repetitions = [Repetition(**r) for r in answer.repetitions]
            if answer.status != "ok":
                return repetitions, None
            return repetitions, measured(repetitions, cell, outcome.usage, self.ceilings, self.weights[cell.stored])
        except (ValueError, TypeError, ArithmeticError) as error:
            answer.status = "failed"
            answer.error = f"the system reported invalid figures ({' '.join(str(error).split())}): fix its adapter"
            return [], None


def held_on_device(cell: Cell) -> tuple[HeldBy, int | None]:
    """What bounds the memory that a cell's system takes on a GPU, and how many bytes that is."""
    card = registry.systems()[cell.system].card
    if card.knows_budget:
        return "expert budget", cell.expert_budget_bytes
    if cell.device_limit_bytes is None or card.own_process:
        return "nothing", None
    return "allocator cap", cell.device_limit_bytes


def gpu_notes(usage: Usage | None, cell: Cell) -> list[str]:
    """Why a cell on a GPU has no peak of its memory."""
    if cell.device == "cpu" or usage is None or usage.gpu_memory_reason is None:
        return []
    return [f"no peak of GPU memory: {usage.gpu_memory_reason}"]


def tier_notes(metrics: Metrics | None, cell: Cell, expert_bytes: int) -> list[str]:
    """What a reader must know of the medium that experts came from.

    That the kernel's reads say nothing of experts in host memory; that a paced link was slower than stated; or that
    experts came from memory although the slow tier should be a disk.
    """
    if metrics is None:
        return []
    notes = []
    if tier.in_memory(cell.slow_tier) and metrics.link_bytes is not None:
        notes.append("experts rest in host memory: no reads from a disk to compare the link's bytes with")
    if tier.is_paced(cell.slow_tier):
        notes += _pace_notes(metrics, cell, expert_bytes)
    if tier.not_from_disk(metrics.link_bytes, metrics.kernel_read_bytes, cell.slow_tier):
        moved, read = (metrics.link_bytes or 0) / 1e6, (metrics.kernel_read_bytes or 0) / 1e6
        counts = f"{moved:.1f} MB of experts crossed the link, the kernel read {read:.1f} MB from a disk"
        notes.append(f"{counts}: the slow tier was memory, or this kernel does not count reads")
    return notes


def _pace_notes(metrics: Metrics, cell: Cell, expert_bytes: int) -> list[str]:
    """A note where this machine copied more slowly than the stated rate."""
    stated, reached = SlowTier.of(cell.slow_tier), metrics.achieved_link_gb_s
    if stated.rate_bytes_s is None or not expert_bytes or reached is None:
        return []
    expected = expert_bytes / (stated.latency_s + expert_bytes / stated.rate_bytes_s) / 1e9
    if reached >= tier.LEAST_PACE * expected:
        return []
    return [f"the link was slower than stated: {reached:.2f} of {expected:.2f} GB/s, this machine copies no faster"]


def not_measured(answer: Answer, reason: str) -> Outcome:
    """The outcome of a cell whose worker never started, or never answered."""
    limit = Limit(enforced=False, mechanism="none", limit_bytes=None, reason=reason)
    return Outcome(answer, limit, None, 0.0)
