"""Figures from records alone: PNG and SVG, each with a CSV of exactly the data drawn beside it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from reports.figures import across, drafting, memory, phases, speedup, style, sweeps, systems
from reports.figures.spec import Figure, Material, Spec
from reports.figures.style import Looks
from reports.results.commands import measured_by

__all__ = ["REGISTRY", "Figure", "Material", "Spec", "draw", "looks_of", "missing", "write"]

REGISTRY: tuple[Spec, ...] = (
    *systems.SPECS[:2],
    *speedup.SPECS,
    *systems.SPECS[2:4],
    *phases.SPECS,
    *sweeps.SPECS,
    *systems.SPECS[4:6],
    *drafting.SPECS,
    *memory.SPECS,
    *systems.SPECS[6:],
    *across.SPECS,
)


def looks_of(records: pd.DataFrame) -> Looks:
    """The look of every title of some records."""
    return style.assign(zip(records["title"], records["system"], strict=True))


def draw(
    material: Material,
    folder: Path,
    suffix: str = "",
    scope: str = "section",
    specs: Sequence[Spec] = REGISTRY,
) -> list[Figure]:
    """Write the figures of a scope to ``folder``, which is made if missing; those without data are left out.

    Args:
        suffix: appended to every file name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    looks = looks_of(material.records)
    command = "; ".join(measured_by(material.records))
    drawn = []
    for spec in specs:
        if spec.scope != scope or (spec.of_systems and not material.compares_systems):
            continue
        data = spec.data(material)
        if len(data):
            seen = looks if scope == "section" else looks_of(data)  # variants beyond the picture take no shades
            drawn.append(write(spec, data, seen, folder, suffix, command))
    return drawn


def missing(drawn: Sequence[Figure], specs: Sequence[Spec] = REGISTRY) -> list[Spec]:
    """Figures that no section had the records for."""
    known = {figure.id for figure in drawn}
    return [spec for spec in specs if spec.id not in known]


def write(spec: Spec, data: pd.DataFrame, looks: Looks, folder: Path, suffix: str, command: str) -> Figure:
    """Write one figure of the rows it draws: CSV, PNG and SVG with one layout."""
    png, svg, csv = (folder / f"{spec.id}{suffix}.{kind}" for kind in ("png", "svg", "csv"))
    data.to_csv(csv, index=False)
    style.setup()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="All-NaN")  # a group of failed cells has no values
        picture = spec.paint(data, looks)
    picture.suptitle(spec.title, x=0.01, ha="left", fontsize=12.5, fontweight="bold")
    width, height = picture.get_size_inches()
    picture.set_size_inches(width, height + 0.3)  # the title's
    picture.canvas.draw()
    picture.set_layout_engine("none")
    picture.savefig(png)
    picture.savefig(svg, metadata={"Date": None})
    plt.close(picture)
    caption = " ".join([spec.caption, *_kinds(data)])
    return Figure(spec.id, spec.title, spec.question, caption, spec.alt(data), command, png, svg, csv)


def _kinds(data: pd.DataFrame) -> list[str]:
    """What the marks of kinds other than measured look like, if there are any."""
    shown = set(data["kind"])
    words = [style.KINDS[kind].words for kind in style.KINDS if kind != "measured" and kind in shown]
    return [f"{text[0].upper()}{text[1:]}." for text in words]
