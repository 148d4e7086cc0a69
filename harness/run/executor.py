"""Where cells run: one after another on this machine, or spread over a cluster (``harness.run.ray_executor``)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from harness.plan.schedule import Unit
from reports.results.record import Record

if TYPE_CHECKING:
    from harness.run.runner import Runner

NAMES = ("local", "ray")


class Executor(Protocol):
    """Turns units into records, at least one each, handed over as soon as each is known."""

    def records(self, runner: Runner, units: list[Unit]) -> Iterator[Record]: ...


class LocalExecutor:
    """One cell at a time on this machine, in the order given."""

    def records(self, runner: Runner, units: list[Unit]) -> Iterator[Record]:
        if units:
            runner.prepare(units)
        for unit in units:
            yield from runner.measure(unit)


def make(name: str, address: str | None = None) -> Executor:
    """The executor called ``name``.

    Raises:
        ValueError: unknown, or its package is not installed.
    """
    if name == "local":
        return LocalExecutor()
    if name != "ray":
        raise ValueError(f"unknown executor {name!r}: use one of {', '.join(NAMES)}")
    from harness.run.ray_executor import RayExecutor

    return RayExecutor(address)
