"""Arguments that several commands share, each declared once, and the group type for commands with actions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}

Options = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="NAME=VALUE", help="Option of the system, the value as YAML; repeatable."),
]
ExpertBudget = Annotated[str, typer.Option(help="Memory for experts: bytes, 400MB, or a share of all experts.")]
ResultFiles = Annotated[list[Path], typer.Argument(metavar="RESULTS", help="Result files, or folders of runs.")]
Reference = Annotated[str, typer.Option(metavar="SYSTEM", help="System that speeds are relative to.")]


def group(text: str) -> typer.Typer:
    """A command with actions (``specmoe-bench trace record``); without an action it prints its help."""
    app = typer.Typer(help=text, rich_markup_mode=None, add_completion=False)

    @app.callback(invoke_without_command=True)
    def show_help(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            print(context.get_help())

    return app


def parse_options(pairs: list[str] | None) -> dict[str, Any]:
    """Options of a system from ``NAME=VALUE`` pairs, values read as YAML.

    Raises:
        ValueError: no ``=``, or a value that is not YAML.
    """
    from harness.plan import overrides

    return overrides.options(pairs or [])
