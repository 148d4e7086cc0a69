"""``specmoe-bench trace``: record routing and acceptance traces, make synthetic ones, describe and replay them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.arguments import ExpertBudget, Options, ResultFiles, group, parse_options

command = group("Routing and acceptance traces: record, make, show, replay.")

NewTrace = Annotated[Path, typer.Argument(metavar="FILE.parquet", help="Trace to write.")]
ExistingTrace = Annotated[Path, typer.Argument(metavar="FILE.parquet", help="Trace to read.")]


@command.command("record")
def record_command(
    out: NewTrace,
    model: Annotated[str, typer.Option(help="Model name or folder.")] = "embedded",
    batch_size: Annotated[int, typer.Option(help="Prompts in the batch.")] = 1,
    new_tokens: Annotated[int, typer.Option(help="Tokens to generate per prompt.")] = 32,
    warmup_tokens: Annotated[int, typer.Option(help="Tokens of a warm-up call before; 0 for none.")] = 4,
    expert_budget: ExpertBudget = "25%",
    option: Options = None,
    prompts: Annotated[str | None, typer.Option(help="Prompt set or file.", show_default="the model's own")] = None,
) -> None:
    """Record routing and acceptance of a run.

    The trace holds the experts that the gates choose and the tokens that the target accepts.
    """
    from harness.projection.record_trace import RunToRecord, record
    from harness.projection.traces import files

    wanted = RunToRecord(
        model,
        batch_size,
        new_tokens,
        expert_budget,
        parse_options(option),
        warmup_tokens=warmup_tokens,
        prompts=prompts,
    )
    print(files.write(record(wanted), out))


@command.command("record-cells")
def record_cells(
    results: ResultFiles,
    out: Annotated[Path, typer.Option(help="Folder for the traces; existing ones are kept.")],
) -> None:
    """Record the traces that result files need for a replay."""
    from tqdm import tqdm

    from harness.projection import cells

    for measured in tqdm(cells.load(results), unit="cell"):
        cells.trace_of(measured, out, may_record=True)
    print(out)


@command.command("make")
def make(
    out: NewTrace,
    geometry: Annotated[
        str, typer.Option(metavar="LAYERSxEXPERTS,TOP_K,EXPERT_BYTES", help="MoE layers of the model.")
    ] = "6x64,2,3932160",
    skew: Annotated[
        str, typer.Option(metavar="MEASURE=VALUE", help="Expert popularity: zipf=1.2, top-10%=0.6 or gini=0.7.")
    ] = "gini=0.7",
    acceptance: Annotated[float, typer.Option(help="Probability that a drafted token is accepted.")] = 0.8,
    repeat: Annotated[float, typer.Option(help="Probability that a token uses the previous token's experts.")] = 0.0,
    correlation: Annotated[
        float, typer.Option(help="Probability that a token uses the experts common to all rows.")
    ] = 0.0,
    rows: Annotated[int, typer.Option(help="Rows of the batch.")] = 8,
    new_tokens: Annotated[int, typer.Option(help="Tokens decoded per row.")] = 32,
    gamma: Annotated[int, typer.Option(help="Draft tokens per cycle; 0 for none.")] = 5,
    prompt_tokens: Annotated[int, typer.Option(help="Prompt tokens per row.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the random draws.")] = 0,
) -> None:
    """Make a synthetic trace from stated statistics."""
    from harness.projection.traces import Geometry, files, synthetic

    recipe = synthetic.Recipe(
        rows=rows,
        new_tokens=new_tokens,
        gamma=gamma,
        skew=synthetic.Skew.parse(skew),
        acceptance=acceptance,
        repeat=repeat,
        correlation=correlation,
        prompt_tokens=prompt_tokens,
        seed=seed,
    )
    print(files.write(synthetic.make(Geometry.parse(geometry), recipe), out))


@command.command("show")
def show(file: ExistingTrace) -> None:
    """Show skew, locality and acceptance of a trace."""
    from harness.projection.traces import files
    from harness.projection.traces.describe import describe

    trace = files.read(file)
    shape = trace.geometry
    print(
        f"{len(shape.experts)} MoE layers of {max(shape.experts)} experts, top-{shape.top_k}, {shape.slot_bytes} bytes"
    )
    print(f"{len(trace.passes)} passes in {len(trace.calls)} calls")
    for name, value in asdict(describe(trace)).items():
        print(f"{name:24} {value:.3f}")


@command.command("replay")
def replay_command(
    file: ExistingTrace,
    expert_budget: Annotated[
        str | None,
        typer.Option(help="Memory for experts: bytes, 400MB, or a share.", show_default="the recorded run's"),
    ] = None,
    option: Options = None,
) -> None:
    """Replay a trace under a placement policy.

    Needs no model; prints hits and bytes moved. Options of placement and draft selection given here replace those of
    the recorded run; what its drafts were (gamma, drafter, substitution) stays.
    """
    from harness.projection.replay import replay
    from harness.projection.replay_options import options_of
    from harness.projection.traces import TraceError, files
    from specmoe.sizes import parse_bytes

    trace = files.read(file)
    shape = trace.geometry
    options = options_of(trace, parse_options(option))
    given = expert_budget or trace.meta.get("expert_budget_bytes")
    if given is None:
        raise TraceError("a synthetic trace has no expert budget of its own: give --expert-budget")
    everything = shape.slot_bytes * shape.total_experts
    replayed = replay(trace, options, parse_bytes(given, everything, "expert budget"))
    for call in trace.calls:
        decoded = replayed.of_call(call).totals("verify")
        print(
            f"call {call}: {decoded.requests} expert requests, hit rate {decoded.hit_rate or 0:.4f}, "
            f"{decoded.moved_bytes / 1e6:.1f} MB moved while decoding, "
            f"{trace.tokens_per_step(call):.3f} tokens per step"
        )
