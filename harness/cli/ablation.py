"""``specmoe-bench ablation``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.arguments import ResultFiles


def command(
    results: ResultFiles,
    out: Annotated[Path, typer.Option(help="Markdown file to write, such as docs/ablation.md.")],
) -> None:
    """Write the ablation page from results of its presets."""
    from reports.pages.ablation import write_ablation

    print(write_ablation(results, out))
