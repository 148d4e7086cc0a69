"""``specmoe-bench performance``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RECORDS = Path("docs/records/performance")
KERNELS = Path("docs/records/kernels.json")


def command(
    results: Annotated[
        list[Path] | None, typer.Argument(metavar="RESULTS", help=f"Result files (default: {RECORDS}/*.jsonl).")
    ] = None,
    kernels: Annotated[Path, typer.Option(help="Record of the kernels; left out if it does not exist.")] = KERNELS,
    out: Annotated[Path, typer.Option(help="Markdown file to write.")] = Path("docs/performance.md"),
) -> None:
    """Write the performance page from results of its suite."""
    from reports.pages import performance

    files = results or sorted(RECORDS.glob("*.jsonl"))
    print(performance.write(files, kernels if kernels.exists() else None, out))
