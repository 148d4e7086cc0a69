"""``specmoe-bench timeline``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    file: Annotated[Path, typer.Argument(help="Timeline written by `specmoe-bench generate --timeline`.")],
    out: Annotated[Path | None, typer.Option(help="Figure to write.", show_default="FILE with the suffix .png")] = None,
    cycles: Annotated[int, typer.Option(help="Number of cycles to show.")] = 3,
) -> None:
    """Draw a few decode cycles of a timeline.

    The figure shows compute, waits and transfers.
    """
    from reports.figures.cycle_timeline import draw_timeline

    print(draw_timeline(file, out or file.with_suffix(".png"), cycles))
