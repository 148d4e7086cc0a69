"""``specmoe-bench run``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from harness.cli import report as report_command
from harness.cli.arguments import Options, parse_options

if TYPE_CHECKING:
    from harness.run.executor import Executor
    from harness.run.suite_runner import Done
    from reports.results.record import Record

DEFAULT_OUT = Path("results")


def command(
    experiment: Annotated[
        str | None,
        typer.Argument(help="Preset or suite (see `specmoe-bench list`), or a YAML file of either."),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Run only this experiment of a suite; repeatable.")
    ] = None,
    system: Annotated[
        list[str] | None,
        typer.Option(
            "--system", "--systems", metavar="NAME,...", help="Run only these systems; without an experiment: run them."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model name or folder.", show_default="the experiment's, else embedded")
    ] = None,
    batch: Annotated[
        list[str] | None,
        typer.Option(metavar="SIZE,...", help="Batch sizes.", show_default="the experiment's, else 1"),
    ] = None,
    option: Options = None,
    out: Annotated[Path | None, typer.Option(help="Result folder.", show_default="results/NAME")] = None,
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
        str | None, typer.Option(help="Address of a Ray cluster.", show_default="a running one, or a new local one")
    ] = None,
) -> int:
    """Run an experiment or a suite, or continue one.

    --system, --model and --batch cut an experiment down, or make one: --system specmoe,caching --batch 1,8. Finished
    cells of an earlier run are kept. Exit code 1: some cells did not finish.
    """
    from harness.plan.choice import Choice
    from harness.plan.loader import compose, load
    from harness.run import suite_runner

    choice = Choice.parse(system or [], model, batch or [], parse_options(option))
    if experiment is None:
        suite = compose(choice, assignments or []).only(only or [])
    else:
        suite = choice.of(load(experiment, assignments or []).only(only or []))
    folder = out or DEFAULT_OUT / suite.name
    done = suite_runner.run(suite, folder, make_executor(executor, address), resume)
    for one in done:
        _print_outcome(one)
    results = [one.results for one in done if one.results]
    if report and results:
        report_command.write(results, folder, suite.title)
    return 1 if any(one.failed or one.error for one in done) else 0


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


def _print_outcome(done: Done) -> None:
    """Print where the results are, the cells that failed, and those that finished after a failure."""
    for record in done.recovered:
        print(f"{record.status}, then finished: {_failure(record)}", file=sys.stderr)
    for record in done.failed:
        print(f"{record.status}: {_failure(record)}", file=sys.stderr)
    if done.error:
        print(f"{done.name} cannot be run: {done.error}", file=sys.stderr)
    if done.results:
        print(f"results: {done.results}")


def _failure(record: Record) -> str:
    return f"{record.label}, batch {record.cell.batch_size}, round {record.round + 1}: {record.error}"
