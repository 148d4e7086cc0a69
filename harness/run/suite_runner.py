"""Runs the experiments of a suite one after the other, each into a folder of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from harness.plan import schedule
from harness.plan.suite import Suite
from harness.run.executor import Executor
from harness.run.runner import RunError, Runner
from reports.results.record import Record
from specmoe.errors import SpecMoEError


@dataclass(frozen=True)
class Done:
    """What came of one experiment: its results, cells that never finished, or why it could not run."""

    name: str
    results: Path | None = None
    failed: list[Record] = field(default_factory=list)
    error: str | None = None


def run(
    suite: Suite,
    out: Path,
    executor: Callable[[], Executor],
    resume: bool = False,
    show: Callable[[str], None] = print,
) -> list[Done]:
    """Run every experiment into ``out/NAME``; one that cannot run here is told of and does not stop the others."""
    outcomes = []
    for number, experiment in enumerate(suite.experiments, start=1):
        show(f"[{number}/{len(suite.experiments)}] {experiment.name}: {experiment.title or experiment.model}")
        command = f"specmoe-bench run {suite.name} --only {experiment.name} --report"
        try:
            runner = Runner(experiment, out / experiment.name, show, executor(), command=command)
            results = runner.run(resume)
        except (RunError, SpecMoEError, ValueError, OSError) as error:
            outcomes.append(Done(experiment.name, _kept(out / experiment.name), error=" ".join(str(error).split())))
            show(f"{experiment.name} cannot be run: {outcomes[-1].error}")
            continue
        failed = schedule.unresolved(runner.results.read()) if results.exists() else []
        outcomes.append(Done(experiment.name, results, failed))
    return outcomes


def _kept(folder: Path) -> Path | None:
    """Results of an earlier run of an experiment that cannot be gone on with."""
    results = folder / "results.jsonl"
    return results if results.exists() else None
