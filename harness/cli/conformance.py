"""``specmoe-bench conformance``."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.arguments import Options, parse_options


def command(
    system: Annotated[str, typer.Argument(help="System name, see `specmoe-bench list systems`.")],
    option: Options = None,
    check: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only this check; repeatable.")] = None,
    work: Annotated[Path | None, typer.Option(help="Folder that keeps reference outputs for further systems.")] = None,
) -> int:
    """Check that a system keeps the adapter contract.

    Exit code 1: a check failed.
    """
    from harness.conformance.examine import examine

    with tempfile.TemporaryDirectory(prefix="specmoe-bench-") as temporary:
        checks = examine(system, parse_options(option or []), work or Path(temporary), check or [])
    for one in checks:
        print(f"{one.status:8} {one.name:26} {one.detail}")
    return 1 if any(one.status == "failed" for one in checks) else 0
