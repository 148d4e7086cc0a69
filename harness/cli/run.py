"""``specmoe-bench run``."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from harness.cli import report as report_command

if TYPE_CHECKING:
    from harness.plan.suite import Suite
    from harness.run.executor import Executor
    from reports.results.record import Record

DEFAULT_OUT = Path("results")


def command(
    experiment: Annotated[
        str, typer.Argument(help="Preset or suite (see `specmoe-bench list`), or a YAML file of either.")
    ],
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Run only this experiment of a suite; repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Result folder (default: results/NAME).")] = None,
    report: Annotated[bool, typer.Option("--report", help="Write the report when done.")] = False,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change a field, the value as YAML; lists are swept; repeatable."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue in a folder that holds results of another configuration.")
    ] = False,
    executor: Annotated[Literal["local", "ray"], typer.Option(help="Where cells run.")] = "local",
    address: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster (default: a running one, or a new local one).")
    ] = None,
) -> int:
    """Run an experiment or a suite, or continue one.

    Finished cells of an earlier run are kept. Exit code 1: some cells did not finish.
    """
    from harness.plan import suite

    request = _Request(experiment, only or [], out, report, assignments or [], resume, executor, address)
    chosen = suite.find(experiment, request.assignments)
    if chosen is not None:
        return _run_suite(chosen.only(request.only), request)
    if request.only:
        raise ValueError(f"--only {request.only[0]} selects from a suite, but {experiment!r} is a single experiment")
    return _run_experiment(request)


@dataclass(frozen=True)
class _Request:
    """The arguments of the command."""

    experiment: str
    only: list[str]
    out: Path | None
    report: bool
    assignments: list[str]
    resume: bool
    executor: str
    address: str | None

    def as_typed(self) -> str:
        """The command that makes these results, as a user would type it."""
        changes = [word for assignment in self.assignments for word in ("--set", assignment)]
        return shlex.join(["specmoe-bench", "run", self.experiment, *changes, "--report"])


def _run_experiment(request: _Request) -> int:
    from harness.plan.experiment import from_yaml, is_file, preset
    from harness.run.runner import Runner

    named, assignments = request.experiment, request.assignments
    experiment = from_yaml(Path(named), assignments) if is_file(named) else preset(named, assignments)
    out = request.out or DEFAULT_OUT / experiment.name
    executor = make_executor(request.executor, request.address)
    runner = Runner(experiment, out, executor=executor, command=request.as_typed())
    results = runner.run(request.resume)
    failed = _print_failures(runner.results.read() if results.exists() else [])
    print(f"results: {results}")
    if request.report:
        report_command.write([results], out)
    return 1 if failed else 0


def _run_suite(chosen: Suite, request: _Request) -> int:
    from harness.plan import suite
    from harness.run import suite_runner

    out = request.out or DEFAULT_OUT / chosen.name
    print(suite.announce(chosen))
    done = suite_runner.run(chosen, out, lambda: make_executor(request.executor, request.address), request.resume)
    for outcome in done:
        _print_failures(outcome.failed)
        if outcome.error:
            print(f"{outcome.name} cannot be run: {outcome.error}", file=sys.stderr)
    results = [outcome.results for outcome in done if outcome.results]
    if request.report and results:
        report_command.write(results, out, chosen.title)
    return 1 if any(outcome.failed or outcome.error for outcome in done) else 0


def make_executor(name: str, address: str | None = None) -> Executor:
    """The executor called ``name``; ``address`` is a Ray cluster's.

    Raises:
        ValueError: unknown, or its package is not installed.
    """
    from harness.run.executor import LocalExecutor

    if name == "local":
        return LocalExecutor()
    if name != "ray":
        raise ValueError(f"unknown executor {name!r}: use local or ray")
    from harness.run.ray_executor import RayExecutor

    return RayExecutor(address)


def _print_failures(records: list[Record]) -> list[Record]:
    """Print cells that failed, and those that finished after a failure; returns the ones that never finished."""
    from harness.plan import schedule

    failed = schedule.unresolved(records)
    for record in schedule.recovered(records):
        print(f"{record.status}, then finished: {_failure(record)}", file=sys.stderr)
    for record in failed:
        print(f"{record.status}: {_failure(record)}", file=sys.stderr)
    return failed


def _failure(record: Record) -> str:
    return f"{record.label}, batch {record.cell.batch_size}, round {record.round + 1}: {record.error}"
