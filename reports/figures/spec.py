"""What a figure is: its question, its place, the records it needs, its data, and how that data is painted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from reports.figures.style import Looks
from reports.results.kernels import KernelRecord
from reports.results.load import finished
from reports.results.projection import Document

Scope = Literal["section", "across", "projection", "performance"]

GROUPS: dict[str, Scope] = {
    "speed": "section",
    "transfers": "section",
    "time": "section",
    "ablations": "section",
    "drafting": "section",
    "resources": "section",
    "across": "across",
    "projection": "projection",
    "performance": "performance",
}
"""Groups of figures in page order, each with its scope: one experiment, all experiments, or a document of its own."""


@dataclass(frozen=True)
class Material:
    """What figures are made of.

    Args:
        records: of ``reports.results.load``: one workload for figures of a section, everything for figures across.
        summary: of ``reports.results.aggregate.summarize``, of the same records.
        projection: of ``reports.results.projection.load``, for figures of a projection.
        kernels: of ``reports.results.kernels.load``, for the figures of the performance page.
    """

    records: pd.DataFrame = field(default_factory=pd.DataFrame)
    summary: pd.DataFrame = field(default_factory=pd.DataFrame)
    projection: Document = field(default_factory=dict)
    kernels: KernelRecord | None = None

    @property
    def finished(self) -> pd.DataFrame:
        """The records with a result."""
        return finished(self.records)

    @property
    def compares_systems(self) -> bool:
        """Whether the records are of different systems, and not only of different settings of one."""
        return bool(len(self.records) and self.records["system"].nunique() > 1)


@dataclass(frozen=True)
class Spec:
    """One kind of figure.

    ``place`` is (group, rank): figures stand in the order of ``GROUPS``, within a group by rank.  ``data`` returns the
    rows that are drawn, in the units drawn, and an empty frame where records are missing; it has a column ``kind``
    and, where systems are drawn, ``title`` and ``system``.  ``paint`` gets nothing but those rows and the systems'
    looks, so that the CSV beside a picture is all there is in it.  ``needs`` names the records that the figure needs,
    ``command`` produces them.

    Raises:
        ValueError: an unknown group.
    """

    id: str
    place: tuple[str, int]
    title: str
    question: str
    caption: str
    needs: str
    command: str
    data: Callable[[Material], pd.DataFrame]
    paint: Callable[[pd.DataFrame, Looks], Any]
    alt: Callable[[pd.DataFrame], str]
    of_systems: bool = False
    """Drawn only where different systems are compared; an ablation has its own figures."""
    listed_if_missing: bool = True
    """Whether the page lists it among the figures that lack records."""

    def __post_init__(self) -> None:
        if self.place[0] not in GROUPS:
            raise ValueError(f"figure {self.id} has unknown group {self.place[0]!r}: use one of {', '.join(GROUPS)}")

    @property
    def scope(self) -> Scope:
        return GROUPS[self.place[0]]


@dataclass(frozen=True)
class Figure:
    """A drawn figure; ``alt`` describes it in words, ``command`` produces its records again."""

    id: str
    title: str
    question: str
    caption: str
    alt: str
    command: str
    png: Path
    svg: Path
    csv: Path
