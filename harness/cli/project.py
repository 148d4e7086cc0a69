"""``specmoe-bench project``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

RECORDS = Path("docs/records")
ONE_RUN = RECORDS / "full"
"""Cells of a single run: a shared machine performs differently on another day, which calibration cannot know."""


def command(
    preset: Annotated[Literal["paper"], typer.Option(help="What to project.")] = "paper",
    out: Annotated[Path, typer.Option(help="Projection file to write.")] = Path("results/projection/projection.json"),
    results: Annotated[
        list[Path] | None,
        typer.Option(help="Measured cells to validate with; repeatable.", show_default=f"{ONE_RUN}/*.jsonl"),
    ] = None,
    validate: Annotated[
        bool, typer.Option("--validate/--no-validate", help="Compare projections with measured cells.")
    ] = True,
    traces: Annotated[Path, typer.Option(help="Folder of the measured cells' routing traces.")] = RECORDS / "traces",
    record_missing: Annotated[
        bool, typer.Option("--record-missing", help="Record traces that are missing (runs the model).")
    ] = False,
    source: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="Show this projection file; compute nothing.")
    ] = None,
    page: Annotated[
        Path | None, typer.Option(help="Also write the page with its figures, such as docs/projection.md.")
    ] = None,
    no_machines: Annotated[
        bool, typer.Option("--no-machines", help="Leave out the table of other machines (faster).")
    ] = False,
) -> None:
    """Project the paper's table to the paper's machine.

    The projection is validated against the paper's numbers and against cells measured here.
    """
    from reports.pages import projection

    if source is None:
        measured = (results or sorted(ONE_RUN.glob("*.jsonl"))) if validate else []
        source = _compute(measured, traces, out, record_missing, machines=not no_machines)
    print(projection.markdown(source))
    if page is not None:
        print(f"page: {projection.write(source, page)}")
    print(f"projection: {source}")


def _compute(results: list[Path], traces: Path, out: Path, record_missing: bool, machines: bool) -> Path:
    from harness.projection import output, validate

    validation = validate.validate(results, traces, record_missing) if results else None
    return output.write(output.document(validation, machines), out)
