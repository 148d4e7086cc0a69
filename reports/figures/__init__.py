"""Figures, drawn from records alone: a module per figure or family; each figure as PNG, SVG and the CSV of its data."""

from __future__ import annotations

from reports.figures.drawing import draw, looks_of, missing, write
from reports.figures.registry import all_specs
from reports.figures.spec import GROUPS, Figure, Material, Spec

__all__ = ["GROUPS", "Figure", "Material", "Spec", "all_specs", "draw", "looks_of", "missing", "write"]
