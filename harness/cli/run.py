"""``specmoe-bench run``: an experiment or a suite, from its name to its page."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.plan.suite import Suite
    from harness.run.executor import Executor
    from reports.results.record import Record

DEFAULT_OUT = Path("results")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("experiment", help="name of a preset or suite (see list), or a YAML file of either")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="of a suite, this experiment alone")
    parser.add_argument("--out", type=Path, help=f"result folder (default: {DEFAULT_OUT}/NAME)")
    parser.add_argument("--report", action="store_true", help="write the report when done")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a field; lists are swept"
    )
    parser.add_argument("--resume", action="store_true", help="go on in a folder that holds another configuration")
    parser.add_argument("--executor", choices=("local", "ray"), default="local", help="where cells run")
    parser.add_argument("--address", help="of the Ray cluster (default: a running one, or a new local one)")


def run(args: argparse.Namespace) -> int:
    """Run what is named; returns 0 if every cell finished, 1 if some did not.

    Raises:
        ConfigError: nothing of that name, or a field out of place.
    """
    from harness.plan import suite

    chosen = suite.find(args.experiment, args.set)
    if chosen is not None:
        return _suite(chosen.only(args.only), args)
    if args.only:
        raise ValueError(f"--only {args.only[0]} chooses from a suite, and {args.experiment!r} is one experiment")
    return _experiment(args)


def _experiment(args: argparse.Namespace) -> int:
    from harness.plan import experiment as config
    from harness.run.runner import Runner

    is_file = config.is_file(args.experiment)
    experiment = (
        config.from_yaml(Path(args.experiment), args.set) if is_file else config.preset(args.experiment, args.set)
    )
    out = args.out or DEFAULT_OUT / experiment.name
    runner = Runner(experiment, out, executor=make_executor(args.executor, args.address), command=_typed(args))
    results = runner.run(args.resume)
    failed = _tell(runner.results.read() if results.exists() else [])
    print(f"results: {results}")
    if args.report:
        write_report([results], out)
    return 1 if failed else 0


def _suite(chosen: Suite, args: argparse.Namespace) -> int:
    from harness.plan import suite
    from harness.run import suite_runner

    out = args.out or DEFAULT_OUT / chosen.name
    print(suite.announce(chosen))
    done = suite_runner.run(chosen, out, lambda: make_executor(args.executor, args.address), args.resume)
    for outcome in done:
        _tell(outcome.failed)
        if outcome.error:
            print(f"{outcome.name} cannot be run: {outcome.error}", file=sys.stderr)
    results = [outcome.results for outcome in done if outcome.results]
    if args.report and results:
        write_report(results, out, chosen.title)
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


def write_report(results: Sequence[Path], out: Path, title: str | None = None) -> None:
    """Write the report and end with the headline table and where the page is."""
    from reports import write_report as write

    paths = write(results, out, title)
    print(paths.glance)
    print(f"markdown: {paths.markdown}")
    print(f"page: {paths.page}")


def _typed(args: argparse.Namespace) -> str:
    """The command that makes these results, as a user would type it."""
    words = ["specmoe-bench", "run", args.experiment]
    return shlex.join([*words, *(word for assignment in args.set for word in ("--set", assignment)), "--report"])


def _tell(records: list[Record]) -> list[Record]:
    """Print what failed and what finished only later; returns the cells that never finished."""
    from harness.plan import schedule

    failed = schedule.unresolved(records)
    for record in schedule.recovered(records):
        print(f"{record.status}, then finished: {_told(record)}", file=sys.stderr)
    for record in failed:
        print(f"{record.status}: {_told(record)}", file=sys.stderr)
    return failed


def _told(record: Record) -> str:
    return f"{record.label}, batch {record.cell.batch_size}, round {record.round + 1}: {record.error}"
