"""What the runner asks of a worker process, and what the worker answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from reports.results.record import Cell, Status

Action = Literal["build", "measure", "reference", "score"]

LEFT_BEHIND = "left behind after close: "


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Paths(_Message):
    """Files of a job: the model's folder, its expert store, the system's own folder, the reference, the answer.

    ``reference`` holds the reference's tokens of each row, or for a sampled cell the scores of its own draws;
    ``sampled`` what a system drew: the new tokens of each row, for each repetition.
    """

    model: Path
    store: Path
    scratch: Path
    reference: Path
    result: Path
    sampled: Path | None = None


class WorkerLimit(_Message):
    """The memory limit in force; ``engine_*`` are the arguments of ``harness.run.engines.Engines``."""

    process_limit_bytes: int | None = None
    engine_prefix: tuple[str, ...] = ()
    engine_groups: tuple[str, ...] = ()
    engine_ids: Path | None = None


class Job(_Message):
    """One task of a worker process; ``cell.prompts`` is the prompt set itself, never the model's default."""

    action: Action
    cell: Cell
    paths: Paths
    limit: WorkerLimit = WorkerLimit()


@dataclass
class Answer:
    """What a worker reports; ``repetitions`` are fields of ``reports.results.repetition.Repetition``.

    ``sampled`` are the tokens of a sampled cell, as in ``Paths``.
    """

    status: Status = "ok"
    error: str | None = None
    repetitions: list[dict[str, Any]] = field(default_factory=list)
    phases_s: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    sampled: list[list[list[int]]] = field(default_factory=list)
