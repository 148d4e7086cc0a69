"""How systems look: one colour and marker each (Okabe-Ito, safe for colour-blind readers)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.colors import to_hex, to_rgb

KNOWN = {
    "specmoe": ("#0072B2", "o"),
    "on-demand": ("#D55E00", "s"),
    "caching": ("#009E73", "D"),
    "caching-10pct": ("#E69F00", "d"),
    "caching-lfu": ("#882255", "h"),
    "accelerate-disk": ("#CC79A7", "^"),
    "overlap": ("#000000", "v"),
}
SPARE = (("#56B4E9", "P"), ("#7F7F7F", "X"), ("#8C564B", "<"), ("#6A3D9A", ">"))
VARIANT_MARKERS = ("o", "P", "X", "*", "h", "8", "p")
SHADES = (0.0, -0.5, 0.45, -0.75, 0.65)  # towards white, or black where negative

PAGE_WIDTH_IN = 6.8
DPI = 150


@dataclass(frozen=True)
class Style:
    """Marks of one system; figures of kinds other than measured are drawn hollow and dashed."""

    color: str
    marker: str


def setup() -> None:
    """Fonts and lines for all figures; call before drawing."""
    mpl.rcParams.update(
        {
            "font.size": 10.5,
            "axes.titlesize": 12,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#DDDDDD",
            "grid.linewidth": 0.8,
            "legend.frameon": False,
            "figure.dpi": DPI,
            "savefig.dpi": DPI,
            "savefig.bbox": "tight",
        }
    )


def assign(systems: Iterable[tuple[str, str]]) -> dict[str, Style]:
    """Styles by title for (title, system) pairs: a system's further variants get shades of its colour."""
    pairs = sorted(set(systems))
    strangers = sorted({key for key in (_key(*pair) for pair in pairs) if key not in KNOWN})
    spare = {key: SPARE[i % len(SPARE)] for i, key in enumerate(strangers)}
    seen: dict[str, int] = {}
    styles = {}
    for title, system in pairs:
        key = _key(title, system)
        variant = seen[key] = seen.get(key, -1) + 1
        color, marker = KNOWN.get(key) or spare[key]
        if variant:
            marker = VARIANT_MARKERS[variant % len(VARIANT_MARKERS)]
        styles[title] = Style(_shade(color, SHADES[variant % len(SHADES)]), marker)
    return styles


def _key(title: str, system: str) -> str:
    """The known name of a title such as ``caching 10%``, else the adapter's name."""
    slug = re.sub(r"[^a-z0-9]+", "-", title.lower().replace("%", "pct")).strip("-")
    return slug if slug in KNOWN else system


def _shade(color: str, amount: float) -> str:
    target = 1.0 if amount > 0 else 0.0
    return str(to_hex([part + (target - part) * abs(amount) for part in to_rgb(color)]))
