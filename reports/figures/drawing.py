"""Draws figures: data to CSV, and the same data painted to PNG and SVG."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd

from reports.figures import style
from reports.figures.registry import all_specs
from reports.figures.spec import Figure, Material, Scope, Spec
from reports.figures.style import Looks
from reports.results.commands import measured_by
from specmoe.files import replacing


def looks_of(rows: pd.DataFrame) -> Looks:
    """The look of every title in some rows; empty for rows that are not of systems."""
    if not {"title", "system"} <= set(rows.columns):
        return {}
    return style.assign(zip(rows["title"], rows["system"], strict=True))


def draw(
    material: Material,
    folder: Path,
    suffix: str = "",
    scope: Scope = "section",
    specs: Sequence[Spec] | None = None,
) -> list[Figure]:
    """Write the figures of a scope to ``folder``, which is created if missing; those without data are left out.

    Args:
        suffix: appended to every file name.
        specs: figures to choose from; by default all that are declared.
    """
    folder.mkdir(parents=True, exist_ok=True)
    looks = looks_of(material.records)
    commands = measured_by(material.records) if scope == "section" else []
    drawn = []
    for spec in all_specs() if specs is None else specs:
        if spec.scope != scope or (spec.of_systems and not material.compares_systems):
            continue
        data = spec.data(material)
        if len(data):
            seen = looks if scope == "section" else looks_of(data)  # shades are for the variants that are drawn
            drawn.append(write(spec, data, seen, folder, suffix, "; ".join(commands) or spec.command))
    return drawn


def missing(drawn: Sequence[Figure]) -> list[Spec]:
    """Figures of measured records that are not among ``drawn``, for lack of records."""
    known = {figure.id for figure in drawn}
    specs = [spec for spec in all_specs() if spec.scope in ("section", "across") and spec.listed_if_missing]
    return [spec for spec in specs if spec.id not in known]


def write(spec: Spec, data: pd.DataFrame, looks: Looks, folder: Path, suffix: str, command: str) -> Figure:
    """Write one figure of the rows it draws: CSV, PNG and SVG with one layout."""
    png, svg, csv = (folder / f"{spec.id}{suffix}.{kind}" for kind in ("png", "svg", "csv"))
    style.setup()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="All-NaN")  # a group of failed cells has no values
        picture = spec.paint(data, looks)
    picture.suptitle(spec.title, x=0.01, ha="left", fontsize=12.5, fontweight="bold")
    width, height = picture.get_size_inches()
    picture.set_size_inches(width, height + 0.3)  # the title's
    picture.draw_without_rendering()  # places everything once, for both formats
    picture.set_layout_engine("none")
    frame = picture.get_tightbbox().padded(mpl.rcParams["savefig.pad_inches"])  # SVG text has a size of its own
    with replacing(csv) as partial:
        data.to_csv(partial, index=False)
    formats = ((png, frame, {"Software": None}), (svg, "tight", {"Date": None}))  # equal data, equal files
    for path, box, metadata in formats:
        with replacing(path) as partial:
            picture.savefig(partial, metadata=metadata, bbox_inches=box)
    plt.close(picture)
    caption = " ".join([spec.caption, *_kinds(data)])
    return Figure(spec.id, spec.title, spec.question, caption, spec.alt(data), command, png, svg, csv)


def _kinds(data: pd.DataFrame) -> list[str]:
    """A sentence for each kind other than measured: what its marks look like."""
    shown = set(data["kind"])
    words = [style.KINDS[kind].words for kind in style.KINDS if kind != "measured" and kind in shown]
    return [f"{text[0].upper()}{text[1:]}." for text in words]
