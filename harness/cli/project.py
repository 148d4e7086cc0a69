"""``specmoe-bench project``: what the systems would do on another machine, with both validations."""

from __future__ import annotations

import argparse
from pathlib import Path

RECORDS = Path("docs/records")
ONE_RUN = RECORDS / "full"
"""Cells of one run: what a shared machine does on another day is nothing that calibration could know."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--preset", choices=("paper",), default="paper", help="what to project (default: paper)")
    parser.add_argument("--out", type=Path, default=Path("results/projection/projection.json"))
    parser.add_argument(
        "--results", type=Path, nargs="*", help=f"measured cells to validate with (default: {ONE_RUN}/*.jsonl)"
    )
    parser.add_argument(
        "--traces", type=Path, default=RECORDS / "traces", help=f"their traces (default: {RECORDS}/traces)"
    )
    parser.add_argument("--record-missing", action="store_true", help="record traces that are missing (runs the model)")
    parser.add_argument("--from", type=Path, dest="source", metavar="FILE", help="show this projection, compute none")
    parser.add_argument("--page", type=Path, help="also write the page with its figures, such as docs/projection.md")
    parser.add_argument("--no-machines", action="store_true", help="leave the table of other machines out (faster)")


def run(args: argparse.Namespace) -> int:
    """Project, write the file, print its tables; returns the exit code.

    Raises:
        ValueError: no calibration cell in the results.
        TraceError: a missing trace.
        RecordError: a result file that cannot be read.
        OSError: the output cannot be written.
    """
    from reports.pages import projection_page
    from reports.pages.projection import markdown

    path = args.source or _compute(args)
    print(markdown(path))
    if args.page is not None:
        print(f"page: {projection_page.write(path, args.page)}")
    print(f"projection: {path}")
    return 0


def _compute(args: argparse.Namespace) -> Path:
    from harness.projection import output, validate

    results = sorted(ONE_RUN.glob("*.jsonl")) if args.results is None else args.results
    validation = validate.validate(results, args.traces, args.record_missing) if results else None
    return output.write(output.document(validation, not args.no_machines), args.out)
