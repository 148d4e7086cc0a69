"""``specmoe-bench compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.arguments import Reference
from reports.results.roles import REFERENCE


def command(
    first: Annotated[Path, typer.Argument(metavar="A", help="results.jsonl or folder of one run.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="results.jsonl or folder of the other run.")],
    reference: Reference = REFERENCE,
    out: Annotated[Path | None, typer.Option(help="Also write the comparison to this markdown file.")] = None,
) -> None:
    """Compare two result files cell by cell.

    They may differ by run, revision or machine.
    """
    from reports.pages.compare import compare
    from reports.results.files import single

    comparison = compare(single(first), single(second), reference)
    print(comparison.as_text())
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(comparison.as_markdown(), encoding="utf-8")
        print(f"markdown: {out}")
