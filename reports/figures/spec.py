"""What a figure is: its question, the records it needs, the data it draws, and how it is painted from that data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from reports.figures.style import Looks


@dataclass(frozen=True)
class Material:
    """What figures are made of.

    Args:
        records: of ``reports.results.load``: one workload for figures of a section, everything for figures across.
        summary: of ``reports.results.aggregate.summarize``, of the same records.
    """

    records: pd.DataFrame
    summary: pd.DataFrame

    @property
    def compares_systems(self) -> bool:
        """Whether different systems stand beside each other, and not only settings of one."""
        return bool(self.records["system"].nunique() > 1)


@dataclass(frozen=True)
class Spec:
    """One kind of figure.

    ``data`` gives the rows that are drawn, in the units drawn, and an empty frame where records are missing;
    ``paint`` sees nothing but those rows and the systems' looks, so the CSV beside a picture is all there is in it.
    ``command`` makes records that are enough for it, ``needs`` says in words what those are.
    """

    id: str
    title: str
    question: str
    caption: str
    needs: str
    command: str
    data: Callable[[Material], pd.DataFrame]
    paint: Callable[[pd.DataFrame, Looks], Any]
    alt: Callable[[pd.DataFrame], str]
    scope: Literal["section", "across"] = "section"
    of_systems: bool = False
    """Drawn only where different systems are compared; an ablation has its own figures."""


@dataclass(frozen=True)
class Figure:
    """A drawn figure; ``alt`` says in words what it shows, ``command`` makes its records anew."""

    id: str
    title: str
    question: str
    caption: str
    alt: str
    command: str
    png: Path
    svg: Path
    csv: Path
