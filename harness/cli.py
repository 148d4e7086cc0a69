"""``specmoe-bench``: list, doctor, run, report, generate."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from harness import generate as generation

DEFAULT_OUT = Path("results")


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
        print(f"specmoe-bench: {error}", file=sys.stderr)
        return 2
    return code


def _expected_errors() -> tuple[type[Exception], ...]:
    """Errors that a user can cause; anything else is ours and shows its traceback."""
    from harness.config import ConfigError
    from harness.record import RecordError
    from harness.runner import RunError
    from reports import ReportError
    from specmoe import SpecMoEError

    return ConfigError, RecordError, RunError, ReportError, SpecMoEError, ValueError, OSError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="specmoe-bench", description="MoE inference under memory limits, measured.")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of expected errors")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    listing = commands.add_parser("list", help="systems, models and presets")
    listing.set_defaults(handler=_list)

    doctor = commands.add_parser("doctor", help="what this machine can enforce and measure")
    doctor.set_defaults(handler=_doctor)

    run = commands.add_parser("run", help="run an experiment; continues where an earlier run stopped")
    run.add_argument("experiment", help="preset name (see list) or YAML file")
    run.add_argument("--out", type=Path, help=f"result folder (default: {DEFAULT_OUT}/NAME)")
    run.add_argument("--report", action="store_true", help="write the report when done")
    run.set_defaults(handler=_run)

    report = commands.add_parser("report", help="page, figures and tables from result files")
    report.add_argument("results", type=Path, nargs="+", help="results.jsonl files")
    report.add_argument("--out", type=Path, help="report folder (default: beside the first file)")
    report.set_defaults(handler=_report)

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

    generate = commands.add_parser("generate", help="continue a text with SpecMoE")
    generation.add_arguments(generate)
    generate.set_defaults(handler=_generate)
    return parser


def _list(args: argparse.Namespace) -> int:
    from baselines import contract
    from harness.config import presets

    print("systems")
    for name, system in contract.systems().items():
        print(f"  {name:18} {system.card.summary} (moves {system.card.grain})")
        for option, field in system.Options.model_fields.items():
            print(f"  {'':18}   {option} = {field.default!r}")
    print("models\n  embedded           trained Qwen3-MoE, 6 layers, 64 experts top-2")
    print("  embedded-xF        the same function with experts F times wider (F a power of two)")
    print("  FOLDER             any Hugging Face MoE checkpoint in safetensors")
    print("presets")
    for name, experiment in presets().items():
        print(f"  {name:22} {experiment.title}: {experiment.model}, batch {experiment.batch_sizes}")
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from harness import environment, limits

    for key, value in environment.capture().items():
        print(f"{key:16} {value}")
    support = limits.detect()
    state = support.mechanism if support.mechanism != "none" else f"no: {support.why_not}"
    print(f"{'memory limit':16} {state}")
    return 0


def _run(args: argparse.Namespace) -> int:
    from harness import config
    from harness.runner import Runner

    named = Path(args.experiment)
    is_file = named.suffix in (".yaml", ".yml") or named.exists()
    experiment = config.from_yaml(named) if is_file else config.preset(args.experiment)
    out = args.out or DEFAULT_OUT / experiment.name
    runner = Runner(experiment, out)
    results = runner.run()
    failed = [r for r in runner.results.read() if r.status in ("failed", "timeout")]
    for record in failed:
        print(f"{record.status}: {record.label}, batch {record.cell.batch_size}: {record.error}", file=sys.stderr)
    print(f"results: {results}")
    if args.report:
        _write_report([results], out)
    return 1 if failed else 0


def _report(args: argparse.Namespace) -> int:
    _write_report(args.results, args.out or args.results[0].parent)
    return 0


def _write_report(results: list[Path], out: Path) -> None:
    from reports import write_report

    paths = write_report(results, out)
    print(paths.markdown.read_text())
    print(f"page: {paths.page}")


def _ablation(args: argparse.Namespace) -> int:
    from reports.ablation import write_ablation

    print(write_ablation(args.results, args.out))
    return 0


def _timeline(args: argparse.Namespace) -> int:
    from reports.timeline import draw_timeline

    print(draw_timeline(args.trace, args.out, args.cycles))
    return 0


def _options(args: argparse.Namespace) -> int:
    from harness import options_page

    args.out.write_text(options_page.markdown())
    print(args.out)
    return 0


def _generate(args: argparse.Namespace) -> int:
    generation.run(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
