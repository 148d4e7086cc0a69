"""``specmoe-bench models``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from harness.cli.arguments import group

command = group("Build a model into the cache folder.")


@command.command("build")
def build(
    model: Annotated[str, typer.Argument(metavar="NAME", help="Model name, see `specmoe-bench list models`.")],
) -> None:
    """Build a model that is not built on first use; an interrupted build continues where it stopped."""
    from workloads import models

    print(models.find(model).build(lambda line: print(line, file=sys.stderr)))
