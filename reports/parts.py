"""Parts of a page that are not a section of one workload: text, tables and figures under a heading."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from reports.figures import Figure
from reports.load import ReportError
from reports.tables import Table


@dataclass(frozen=True)
class Part:
    """A titled part; ``anchor`` is its address on the page and unlike every other."""

    anchor: str
    title: str
    paragraphs: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)


def projected(files: Sequence[Path], folder: Path) -> list[Part]:
    """The parts that ``reports.projection`` makes of projection files (``*.json``), figures in ``folder``.

    Raises:
        ReportError: such a file was given, and this release cannot show it.
    """
    if not files:
        return []
    try:
        projection = importlib.import_module("reports.projection")
    except ModuleNotFoundError as error:
        raise ReportError(f"{files[0]} is no result file: name files that end in .jsonl") from error
    parts: list[Part] = [projection.part(file, folder) for file in files]
    return parts
