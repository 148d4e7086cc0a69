"""Runs the experiments of a suite one after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from harness.plan import schedule
from harness.plan.estimate import announcement
from harness.plan.experiment import Experiment
from harness.plan.suite import Suite
from harness.run.executor import Executor
from harness.run.runner import RunError, Runner
from reports.results.record import Record
from specmoe.errors import SpecMoEError


@dataclass(frozen=True)
class Done:
    """One experiment after its run: ``results`` exist unless no cell ever finished.

    ``failed`` holds the last record of every cell that never finished, ``recovered`` the failures after which a later
    try finished; ``error`` is the reason why the experiment could not run.
    """

    name: str
    results: Path | None = None
    failed: list[Record] = field(default_factory=list)
    recovered: list[Record] = field(default_factory=list)
    error: str | None = None


def run(
    suite: Suite, out: Path, executor: Executor, resume: bool = False, show: Callable[[str], None] = print
) -> list[Done]:
    """Run every experiment into its folder below ``out``.

    An experiment of a suite that cannot run is reported and does not stop the others.

    Raises:
        RunError, ManifestError, ConfigError, ...: the suite is a single experiment, which cannot run.
    """
    if not suite.single:
        show(announcement(suite))
    done = []
    for number, experiment in enumerate(suite.experiments, start=1):
        if not suite.single:
            show(f"[{number}/{len(suite.experiments)}] {experiment.name}: {experiment.title or experiment.model}")
        try:
            done.append(_run(suite, experiment, out, executor, resume, show))
        except (RunError, SpecMoEError, ValueError, OSError) as error:
            if suite.single:
                raise
            done.append(_not_run(suite, experiment, out, error))
            show(f"{experiment.name} cannot be run: {done[-1].error}")
    return done


def _run(
    suite: Suite, experiment: Experiment, out: Path, executor: Executor, resume: bool, show: Callable[[str], None]
) -> Done:
    runner = Runner.open(
        experiment, suite.folder(experiment, out), show=show, executor=executor, command=suite.command(experiment)
    )
    results = runner.run(resume)
    records = runner.results.read() if results.exists() else []
    return Done(experiment.name, results, schedule.unresolved(records), schedule.recovered(records))


def _not_run(suite: Suite, experiment: Experiment, out: Path, error: Exception) -> Done:
    """Results of an earlier run are kept, and reported with the others."""
    results = suite.folder(experiment, out) / "results.jsonl"
    return Done(experiment.name, results if results.exists() else None, error=" ".join(str(error).split()))
