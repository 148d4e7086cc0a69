"""A part of a page: text, tables and figures under a heading."""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd

from reports.figures import Figure
from reports.pages import against_paper
from reports.results import paper
from reports.wording.tables import Table


@dataclass(frozen=True)
class Part:
    """A titled part; ``anchor`` is its address and unique on the page."""

    anchor: str
    title: str
    paragraphs: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)


_ABOUT_PAPER = (
    f"The paper (arXiv {paper.ARXIV}) measured on one H100 with experts in host memory over PCIe 5.0; the last column "
    "gives the conditions of our figure. The error compares different machines, models and sets of experts: it does "
    "not say that either side is wrong. Absolute speeds are not compared. Ratios are ratios of decode speed."
)

_ABOUT_EMULATED = (
    "Emulated figures are of a CPU with experts in its memory, each transfer made to take as long as on a link of the "
    "stated rate. They show the paper's regime in shape, not the speed of a GPU: products cost more beside reads on a "
    "CPU, most of all at large batch, and a paced transfer takes processor time that a GPU's copy engine would not."
)


def common(frame: pd.DataFrame, summary: pd.DataFrame, across: list[Figure]) -> list[Part]:
    """Parts that span the sections: figures over several experiments, and our figures against the paper's."""
    parts = []
    if across:
        parts.append(Part("across", "Across experiments", figures=across))
    compared = against_paper.tables(frame, summary)
    if compared:
        about = [_ABOUT_PAPER, *([_ABOUT_EMULATED] if any(t.kind == "emulated" for t in compared) else [])]
        parts.append(Part("paper", "Against the paper", about, compared))
    return parts
