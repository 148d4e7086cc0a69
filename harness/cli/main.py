"""``specmoe-bench``: builds the application from one module per command and turns errors into exit codes.

A command is a module of this package with a function ``command`` (or a ``typer.Typer``, for a command with actions)
and its name in ``COMMANDS``; see ``docs/adding-a-command.md``.  Command modules import torch, pandas and our own rooms
inside their functions, so that help and argument errors come at once.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, TextIO

import typer

from harness.cli.arguments import HELP_OPTIONS

PROGRAM = "specmoe-bench"
COMMANDS = (  # in the order of the help, which shows commands with actions last
    "list",
    "doctor",
    "calibrate",
    "run",
    "report",
    "compare",
    "check",
    "export",
    "generate",
    "timeline",
    "project",
    "conformance",
    "ablation",
    "performance",
    "options",
    "models",
    "trace",
)
DONE, FAILED, BAD_INPUT, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    0: done.  1: some cells failed, or a regression.  2: bad input, an unexpected error, or no decision possible.
    130: interrupted.  141: the reader of the output closed it, as ``head`` does.
    """
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            code = _run(list(sys.argv[1:] if argv is None else argv))
            sys.stdout.flush()
        except BrokenPipeError:
            _discard_output()
            return PIPE_CLOSED
        return code


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning in one line, without the line of code that gave it."""
    print(f"{PROGRAM}: warning: {_flat(str(message))}", file=sys.stderr)


def _discard_output() -> None:
    """Send what is still buffered nowhere, so that Python's exit does not report the closed pipe again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _run(arguments: list[str]) -> int:
    debug = False
    try:
        with typer.main.get_command(application()).make_context(PROGRAM, arguments) as context:
            debug = bool(context.params["debug"])
            code = context.command.invoke(context)
            return DONE if code is None else int(code)
    except typer.Exit as ended:
        return ended.exit_code
    except KeyboardInterrupt:
        print("interrupted: finished cells are kept; run the same command again to continue", file=sys.stderr)
        return INTERRUPTED
    except typer.TyperException as error:
        print(f"{PROGRAM}: {_usage_error(error)}", file=sys.stderr)
        return BAD_INPUT
    except BrokenPipeError:
        raise
    except Exception as error:
        if debug:
            raise
        print(f"{PROGRAM}: {_one_line(error)}", file=sys.stderr)
        return BAD_INPUT


def application() -> typer.Typer:
    """The command line with every command of ``COMMANDS``."""
    app = typer.Typer(
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        add_completion=False,
        context_settings=HELP_OPTIONS,
    )
    app.callback(invoke_without_command=True)(_root)
    for name in COMMANDS:
        command = import_module(f"harness.cli.{name}").command
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)
    return app


def _root(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    show_version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Measure Mixture-of-Experts inference under memory limits: SpecMoE and rival systems, one runner for all."""
    if show_version:
        print(f"{PROGRAM} {_version()}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


def _version() -> str:
    try:
        return version(PROGRAM)
    except PackageNotFoundError:
        return "(not installed)"


def _usage_error(error: typer.TyperException) -> str:
    """A wrong command, option or value in one line, with the command whose help shows the right one."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else PROGRAM
    message = _flat(error.format_message()).replace("Value error, ", "").rstrip(".")
    return f"{message} (see {command} --help)"


def _one_line(error: Exception) -> str:
    """Cause and fix in one line, whatever the error."""
    if isinstance(error, _expected_errors()):
        return _flat(str(error))
    return (
        f"unexpected {type(error).__name__}: {_flat(str(error)) or 'no message'} "
        "(add --debug before the command to see where it happened, and report it)"
    )


def _flat(text: str) -> str:
    return " ".join(text.split())


def _expected_errors() -> tuple[type[Exception], ...]:
    """Errors that a user can cause; any other is a bug."""
    from harness.plan.errors import ConfigError
    from harness.run.runner import RunError
    from reports.results.load import ReportError
    from reports.results.record import RecordError
    from specmoe import SpecMoEError

    return ConfigError, RecordError, RunError, ReportError, SpecMoEError, ValueError, OSError


if __name__ == "__main__":
    sys.exit(main())
