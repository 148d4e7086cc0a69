"""Where cells run: one after another on this machine, or on a cluster (``harness.run.ray_executor``)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from harness.plan.experiment import Experiment
from harness.plan.schedule import Unit
from reports.results.record import Record


class CellRunner(Protocol):
    """The part of a runner that executors use."""

    @property
    def experiment(self) -> Experiment: ...

    def prepare(self, units: list[Unit]) -> None: ...

    def measure(self, unit: Unit) -> Iterator[Record]: ...

    def lost(self, unit: Unit, reason: str) -> Record: ...


class Executor(Protocol):
    """Turns units into records, at least one each, yielded as soon as each is known."""

    def records(self, runner: CellRunner, units: list[Unit]) -> Iterator[Record]: ...


class LocalExecutor:
    """One cell at a time on this machine, in the order given."""

    def records(self, runner: CellRunner, units: list[Unit]) -> Iterator[Record]:
        if units:
            runner.prepare(units)
        for unit in units:
            yield from runner.measure(unit)
