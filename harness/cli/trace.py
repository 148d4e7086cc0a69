"""``specmoe-bench trace``: record a run's routing and acceptance, make a trace from numbers, look at one, replay it."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from harness.cli.generate import parse_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The actions of ``specmoe-bench trace``."""
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    recording = actions.add_parser("record", help="run a model and keep what its gates picked and its target accepted")
    recording.add_argument("out", type=Path, help="FILE.parquet")
    recording.add_argument("--model", default="embedded")
    recording.add_argument("--batch-size", type=int, default=1)
    recording.add_argument("--new-tokens", type=int, default=32)
    recording.add_argument("--warmup-tokens", type=int, default=4, help="of a call before, 0 for none (default: 4)")
    recording.add_argument("--expert-budget", default="25%", help="bytes, 400MB or a share (default: 25%%)")
    recording.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="any of SpecOptions")
    recording.add_argument("--prompts", help="prompt set or file (default: the model's own)")
    recording.set_defaults(trace=_record)

    cells = actions.add_parser("record-cells", help="the traces that cells of result files need to be replayed")
    cells.add_argument("results", type=Path, nargs="+", help="results.jsonl files")
    cells.add_argument("--out", type=Path, required=True, help="folder; traces that are there stay as they are")
    cells.set_defaults(trace=_record_cells)

    making = actions.add_parser("make", help="a synthetic trace with stated skew, locality and acceptance")
    making.add_argument("out", type=Path, help="FILE.parquet")
    making.add_argument("--geometry", default="6x64,2,3932160", help="LAYERSxEXPERTS,TOP_K,EXPERT_BYTES")
    making.add_argument("--skew", default="gini=0.7", help="zipf=1.2, top-10%%=0.6 or gini=0.7 (default)")
    for name, default in (("acceptance", 0.8), ("repeat", 0.0), ("correlation", 0.0)):
        making.add_argument(f"--{name}", type=float, default=default, help=f"probability (default: {default})")
    for name, number in (("rows", 8), ("new-tokens", 32), ("gamma", 5), ("prompt-tokens", 16), ("seed", 0)):
        making.add_argument(f"--{name}", type=int, default=number, help=f"(default: {number})")
    making.set_defaults(trace=_make)

    showing = actions.add_parser("show", help="skew, locality and acceptance of a trace")
    showing.add_argument("file", type=Path)
    showing.set_defaults(trace=_show)

    replaying = actions.add_parser(
        "replay", help="hits and bytes of a trace under a placement policy, without the model"
    )
    replaying.add_argument("file", type=Path)
    replaying.add_argument("--expert-budget", help="bytes, 400MB or a share (default: that of the recorded run)")
    replaying.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="instead of the run's own"
    )
    replaying.set_defaults(trace=_replay)


def run(args: argparse.Namespace) -> int:
    """Carry out an action; returns the exit code."""
    args.trace(args)
    return 0


def _record(args: argparse.Namespace) -> None:
    from harness.projection.record_trace import RunToRecord, record
    from harness.projection.traces import files

    wanted = RunToRecord(
        args.model,
        args.batch_size,
        args.new_tokens,
        args.expert_budget,
        parse_options(args.option),
        warmup_tokens=args.warmup_tokens,
        prompts=args.prompts,
    )
    files.write(record(wanted), args.out)
    print(args.out)


def _record_cells(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from harness.projection import cells

    for measured in tqdm(cells.load(args.results), unit="cell"):
        cells.trace_of(measured, args.out, may_record=True)
    print(args.out)


def _make(args: argparse.Namespace) -> None:
    from harness.projection.record_trace import parse_geometry
    from harness.projection.traces import TraceError, files, synthetic

    measure, _, value = args.skew.partition("=")
    if measure not in ("zipf", "top-10%", "gini"):
        raise TraceError(f"--skew {args.skew!r}: write zipf=1.2, top-10%=0.6 or gini=0.7")
    recipe = synthetic.Recipe(
        args.rows,
        args.new_tokens,
        args.gamma,
        synthetic.Skew(measure, float(value)),
        args.acceptance,
        args.repeat,
        args.correlation,
        args.prompt_tokens,
        args.seed,
    )
    files.write(synthetic.make(parse_geometry(args.geometry), recipe), args.out)
    print(args.out)


def _show(args: argparse.Namespace) -> None:
    from harness.projection.traces import files
    from harness.projection.traces.describe import describe

    trace = files.read(args.file)
    shape = trace.geometry
    print(
        f"{len(shape.experts)} MoE layers of {max(shape.experts)} experts, top-{shape.top_k}, {shape.slot_bytes} bytes"
    )
    print(f"{len(trace.passes)} passes in {len(trace.calls)} calls")
    for name, value in asdict(describe(trace)).items():
        print(f"{name:24} {value:.3f}")


def _replay(args: argparse.Namespace) -> None:
    from harness.projection.replay import replay
    from harness.projection.traces import TraceError, files
    from specmoe import SpecOptions
    from specmoe.sizes import parse_bytes

    trace = files.read(args.file)
    shape = trace.geometry
    options = SpecOptions.of(**(trace.meta.get("options", {}) | parse_options(args.option)))
    given = args.expert_budget or trace.meta.get("expert_budget_bytes")
    if given is None:
        raise TraceError("the trace was not recorded, so it has no budget of its own: give --expert-budget")
    everything = shape.slot_bytes * shape.total_experts
    replayed = replay(trace, options, parse_bytes(given, everything, "expert budget"))
    for call in trace.calls:
        decoded = replayed.of_call(call).totals("verify")
        print(
            f"call {call}: {decoded.requests} experts asked for, hit rate {decoded.hit_rate or 0:.4f}, "
            f"{decoded.moved_bytes / 1e6:.1f} MB moved while decoding, "
            f"{trace.tokens_per_step(call):.3f} tokens per step"
        )
