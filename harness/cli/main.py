"""``specmoe-bench``: the command line; each command is a thin handler over the module that does the work."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from harness.cli import generate as generation
from harness.cli import list as listing
from harness.cli import project as project_command
from harness.cli import run as running
from harness.cli import trace as trace_command


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 done, 1 some cells failed, 2 bad input."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        code: int = args.handler(args)
    except KeyboardInterrupt:
        print("interrupted: finished cells are kept, run the same command to go on", file=sys.stderr)
        return 130
    except _expected_errors() as error:
        if args.debug:
            raise
        print(f"specmoe-bench: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except Exception as error:  # ours to mend, but the user's to read: one line, the traceback on demand
        if args.debug:
            raise
        print(
            f"specmoe-bench: unexpected {type(error).__name__}: {' '.join(str(error).split()) or 'no message'} "
            "(add --debug before the command for where it happened, and report it)",
            file=sys.stderr,
        )
        return 2
    return code


def _expected_errors() -> tuple[type[Exception], ...]:
    """Errors that a user can cause; anything else is ours and shows its traceback."""
    from harness.plan.experiment import ConfigError
    from harness.run.runner import RunError
    from reports import ReportError
    from reports.results.record import RecordError
    from specmoe import SpecMoEError

    return ConfigError, RecordError, RunError, ReportError, SpecMoEError, ValueError, OSError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="specmoe-bench", description="MoE inference under memory limits, measured.")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of expected errors")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    listed = commands.add_parser("list", help="systems, models, workloads and presets")
    listing.add_arguments(listed)
    listed.set_defaults(handler=_list)

    models = commands.add_parser("models", help="build a model into the cache").add_subparsers(
        required=True, metavar="ACTION"
    )
    build = models.add_parser("build", help="make a model that takes longer than a moment; goes on after a kill")
    build.add_argument("model", metavar="NAME", help="see list models")
    build.set_defaults(handler=_build_model)

    doctor = commands.add_parser("doctor", help="what this machine can enforce and measure")
    doctor.set_defaults(handler=_doctor)

    run = commands.add_parser("run", help="run an experiment or suite; continues where an earlier run stopped")
    running.add_arguments(run)
    run.set_defaults(handler=_run)

    calibrate = commands.add_parser("calibrate", help="measure this machine's ceilings; results then quote them")
    calibrate.add_argument("--threads", type=int, default=2, help="as the cells use (default: 2)")
    calibrate.add_argument("--size", default="1GiB", help="of the file read from disk (default: 1GiB)")
    calibrate.set_defaults(handler=_calibrate)

    check = commands.add_parser("check", help="regression gate: 0 passed, 1 regression, 2 cannot tell")
    check.add_argument("--against", type=Path, required=True, metavar="BASELINE", help="results.jsonl to be held to")
    check.add_argument("--max-slowdown", default="5%", help="allowed, such as 5%% (default)")
    check.add_argument("--results", type=Path, help="compare this file instead of running anything")
    check.add_argument("--revision", help="run this git revision and the present code in turns")
    check.add_argument("--reference", default="on-demand", help="system that speeds are taken relative to")
    check.add_argument("--max-rounds", type=int, default=20, help="stop undecided after so many (default: 20)")
    check.add_argument("--out", type=Path, help="folder for what is run (default: a new one under results/check)")
    check.set_defaults(handler=_check)

    export = commands.add_parser("export", help="result files as one table for other tools")
    export.add_argument("results", type=Path, nargs="+", help="results.jsonl files")
    export.add_argument("--out", type=Path, required=True, help="FILE.csv, FILE.parquet or FILE.md")
    export.add_argument("--rows", choices=("records", "repetitions"), default="records")
    export.add_argument("--overwrite", action="store_true", help="replace an existing file")
    export.set_defaults(handler=_export)

    report = commands.add_parser("report", help="page, figures and tables from result files")
    report.add_argument("results", type=Path, nargs="+", help="results.jsonl files")
    report.add_argument("--out", type=Path, help="report folder (default: beside the first file)")
    report.set_defaults(handler=_report)

    compare = commands.add_parser("compare", help="two result files side by side: runs, revisions or machines")
    compare.add_argument("first", type=Path, metavar="A", help="results.jsonl of one run")
    compare.add_argument("second", type=Path, metavar="B", help="results.jsonl of the other")
    compare.add_argument("--reference", default="on-demand", help="system that speeds are taken relative to")
    compare.add_argument("--out", type=Path, help="write it as markdown, too")
    compare.set_defaults(handler=_compare)

    ablation = commands.add_parser("ablation", help="the ablation page from result files, as markdown")
    ablation.add_argument("results", type=Path, nargs="+", help="results of the ablation presets")
    ablation.add_argument("--out", type=Path, default=Path("docs/ablation.md"), help="default: docs/ablation.md")
    ablation.set_defaults(handler=_ablation)

    timeline = commands.add_parser("timeline", help="a picture of a few cycles from a trace of generate --trace")
    timeline.add_argument("trace", type=Path)
    timeline.add_argument("--out", type=Path, default=Path("timeline.png"), help="default: timeline.png")
    timeline.add_argument("--cycles", type=int, default=3, help="cycles to show (default: 3)")
    timeline.set_defaults(handler=_timeline)

    options = commands.add_parser("options", help="the page of algorithm options, as markdown")
    options.add_argument("--out", type=Path, default=Path("docs/options.md"), help="default: docs/options.md")
    options.set_defaults(handler=_options)
    conformance = commands.add_parser("conformance", help="does a system keep the adapter contract?")
    conformance.add_argument("system")
    conformance.add_argument("--options", type=json.loads, default={}, help='its options as JSON: {"placement": "lru"}')
    conformance.add_argument("--check", action="append", default=[], metavar="NAME", help="this check only; repeatable")
    conformance.add_argument("--work", type=Path, help="folder that keeps reference outputs for the next system")
    conformance.set_defaults(handler=_conformance)

    generate = commands.add_parser("generate", help="continue a text with SpecMoE")
    generation.add_arguments(generate)
    generate.set_defaults(handler=_generate)

    trace = commands.add_parser("trace", help="routing and acceptance traces: record, make, show, replay")
    trace_command.add_arguments(trace)
    trace.set_defaults(handler=trace_command.run)

    project = commands.add_parser("project", help="project the paper's table to its machine, with both validations")
    project_command.add_arguments(project)
    project.set_defaults(handler=project_command.run)
    return parser


def _list(args: argparse.Namespace) -> int:
    listing.run(args)
    return 0


def _build_model(args: argparse.Namespace) -> int:
    from workloads import models

    folder = models.find(args.model).build(lambda line: print(line, file=sys.stderr))
    print(folder)
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from harness.machine import doctor, environment

    for key, value in environment.capture().items():
        print(f"{key:20} {value}")
    print()
    for check in doctor.examine():
        print(check)
    return 0


def _calibrate(args: argparse.Namespace) -> int:
    from harness.machine import calibrate, ceilings
    from specmoe.sizes import parse_bytes

    measured = calibrate.calibrate(max(1, args.threads), parse_bytes(args.size, 0, "--size:"))
    print(f"kept in {ceilings.store(measured)}")
    return 0


def _check(args: argparse.Namespace) -> int:
    from harness.gate import evidence
    from harness.gate import judge as check

    judgement = check.gate(evidence.of(args), evidence.percentage(args.max_slowdown))
    print(judgement)
    return check.EXIT_CODES[judgement.verdict]


def _export(args: argparse.Namespace) -> int:
    from reports.pages.export import export

    print(f"{export(args.results, args.out, args.rows, args.overwrite)} rows: {args.out}")
    return 0


def _run(args: argparse.Namespace) -> int:
    return running.run(args)


def _report(args: argparse.Namespace) -> int:
    running.write_report(args.results, args.out or args.results[0].parent)
    return 0


def _compare(args: argparse.Namespace) -> int:
    from reports.pages.compare import compare

    comparison = compare(args.first, args.second, args.reference)
    print(comparison.as_text())
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(comparison.as_markdown(), encoding="utf-8")
        print(f"markdown: {args.out}")
    return 0


def _ablation(args: argparse.Namespace) -> int:
    from reports.pages.ablation import write_ablation

    print(write_ablation(args.results, args.out))
    return 0


def _timeline(args: argparse.Namespace) -> int:
    from reports.figures.cycle_timeline import draw_timeline

    print(draw_timeline(args.trace, args.out, args.cycles))
    return 0


def _options(args: argparse.Namespace) -> int:
    from harness.cli import options as options_page

    args.out.write_text(options_page.markdown())
    print(args.out)
    return 0


def _conformance(args: argparse.Namespace) -> int:
    from harness.conformance.examine import examine

    with tempfile.TemporaryDirectory(prefix="specmoe-bench-") as work:
        checks = examine(args.system, args.options, args.work or Path(work), args.check)
    for check in checks:
        print(f"{check.status:8} {check.name:26} {check.detail}")
    return 1 if any(check.status == "failed" for check in checks) else 0


def _generate(args: argparse.Namespace) -> int:
    generation.run(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
