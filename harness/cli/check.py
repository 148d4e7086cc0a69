"""``specmoe-bench check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.arguments import Reference
from reports.results.roles import REFERENCE


def command(
    against: Annotated[
        Path | None, typer.Option(metavar="BASELINE", help="Baseline: a result file, or the folder of a run.")
    ] = None,
    max_slowdown: Annotated[str, typer.Option(help="Allowed slowdown.")] = "5%",
    results: Annotated[Path | None, typer.Option(help="Compare this result file instead of running anything.")] = None,
    revision: Annotated[str | None, typer.Option(help="Run this git revision and the present code in turns.")] = None,
    reference: Reference = REFERENCE,
    floor: Annotated[
        str | None,
        typer.Option(help="Instead of a baseline: least speed of the automatic setting over its best rival."),
    ] = None,
    max_rounds: Annotated[int, typer.Option(help="Stop undecided after this many rounds.")] = 20,
    out: Annotated[Path | None, typer.Option(help="Folder for new results.", show_default="results/check/TIME")] = None,
) -> int:
    """Check for a performance regression.

    Exit code 0: passed, 1: regression, 2: bad input, 3: cannot tell.
    """
    from harness.gate import floor as floors
    from harness.gate import judge, sources
    from reports.results.files import single

    if floor is not None:
        if results is None or against is not None:
            raise ValueError("--floor judges one result file: give it with --results, and no --against")
        judgement = floors.judge(single(results), judge.percentage(floor))
        print(judgement)
        return judge.EXIT_CODES[judgement.verdict]
    if against is None:
        raise ValueError("nothing to compare with: give --against BASELINE, or --floor 0.97 with --results FILE")
    allowed = judge.percentage(max_slowdown)
    against, results = single(against), single(results) if results else None
    found = sources.of(against, results=results, revision=revision, reference=reference, max_rounds=max_rounds, out=out)
    judgement = judge.gate(found, allowed)
    print(judgement)
    return judge.EXIT_CODES[judgement.verdict]
