"""``specmoe-bench export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from harness.cli.arguments import ResultFiles


def command(
    results: ResultFiles,
    out: Annotated[Path, typer.Option(help="FILE.csv, FILE.json, FILE.md, or FILE.parquet (extra `export`).")],
    rows: Annotated[Literal["records", "repetitions"], typer.Option(help="What one row of the table is.")] = "records",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Export result files as one table for other tools."""
    from reports.pages.export import export

    print(f"{export(results, out, rows, overwrite)} rows: {out}")
