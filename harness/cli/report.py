"""``specmoe-bench report``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.arguments import ResultFiles


def command(
    results: ResultFiles,
    out: Annotated[
        Path | None, typer.Option(help="Report folder.", show_default="the folder of the first file")
    ] = None,
) -> None:
    """Write the report of result files.

    It is an HTML page, the same as markdown, its tables as JSON, and the figures with their CSV tables.
    """
    first = results[0]
    write(results, out or (first if first.is_dir() else first.parent))


def write(results: Sequence[Path], out: Path, title: str | None = None) -> None:
    """Write a report into ``out``; print its headline table and where the pages are."""
    from reports import write_report

    paths = write_report(results, out, title)
    if paths.overview:
        print(paths.overview)
    print(f"markdown: {paths.markdown}")
    print(f"tables: {paths.tables}")
    print(f"page: {paths.page}")
