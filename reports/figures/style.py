"""How systems look: one colour each on every figure (colour-blind safe), and one mark style for each kind of figure."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.colors import to_hex, to_rgb

# Okabe-Ito and Tol; every colour has its own marker, so that no system is identified by colour alone.
KNOWN = {
    "specmoe": ("#0072B2", "o"),
    "specmoe-controller": ("#56B4E9", "P"),
    "on-demand": ("#D55E00", "s"),
    "caching": ("#009E73", "D"),
    "caching-10pct": ("#E69F00", "d"),
    "caching-lfu": ("#882255", "h"),
    "overlap": ("#000000", "v"),
    "accelerate-disk": ("#CC79A7", "^"),
    "accelerate-cpu": ("#F2A0A1", "<"),
    "mmap": ("#6A3D9A", "p"),
    "naive": ("#8C564B", ">"),
    "hf-resident": ("#7F7F7F", "X"),
    "llama-cpp": ("#999933", "*"),
    "deepspeed-zero": ("#44AA99", "8"),
    "deepspeed-inference": ("#117733", "H"),
}
SPARE = (("#B15928", "P"), ("#332288", "X"), ("#DDCC77", "<"), ("#AA4499", ">"), ("#4D4D4D", "p"))
VARIANT_MARKERS = ("o", "s", "D", "^", "P", "X", "*", "h", "8", "p", "v")
SHARE = re.compile(r"caching-(\d+)pct")
"""Caches of a share of the experts: the amber of the paper's 10 %, darker the larger the share."""
LIGHTEST, DARKEST = 0.55, -0.55  # ends of a ramp of variants: towards white, and towards black where negative

PHASES = {  # parts of a whole, not systems: a colour ramp of their own, dark to light
    "draft": ("#00204D", ""),
    "verify": ("#575D6D", ""),
    "wait for link": ("#BCAF6F", ""),
    "refresh": ("#FFEA46", ""),
    "other": ("#FFFFFF", ""),
    "not split": ("#E4E4E4", "///"),
}
OUTCOMES = {"useful": ("#00204D", ""), "late": ("#A69D75", ""), "wasted": ("#FFEA46", "..")}

INK, SOFT = "#222222", "#555555"
PAGE_WIDTH_IN = 6.2
DPI = 160


@dataclass(frozen=True)
class Style:
    """Marks of one system."""

    color: str
    marker: str


Looks = dict[str, Style]


@dataclass(frozen=True)
class KindMarks:
    """Marks of a kind of result, independent of the system: line style, fill of markers, hatch of bars."""

    linestyle: str
    fillstyle: Any
    hatch: str
    words: str


KINDS = {
    "measured": KindMarks("-", "full", "", "filled marks, solid lines: measured"),
    "emulated": KindMarks("--", "left", "////", "marks filled on one side, dashed lines, stripes: emulated"),
    "oracle": KindMarks("-.", "bottom", "xxxx", "half-filled marks, dash-dotted lines, crosses: oracle, a bound"),
    "projected": KindMarks(":", "none", "....", "hollow marks, dotted lines, dots: projected, not run"),
}


def setup() -> None:
    """Fonts and lines for all figures; call before drawing."""
    mpl.rcParams.update(
        {
            "font.size": 11,
            "axes.titlesize": 11,
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": SOFT,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#E2E2E2",
            "grid.linewidth": 0.8,
            "legend.frameon": False,
            "legend.fontsize": 10,
            "legend.handlelength": 2.6,
            "hatch.linewidth": 0.7,
            "figure.dpi": DPI,
            "savefig.dpi": DPI,
            "savefig.bbox": "tight",
            "savefig.pad_inches": 0.06,
            "svg.hashsalt": "specmoe-bench",
            "svg.fonttype": "path",
        }
    )


def assign(systems: Iterable[tuple[str, str]]) -> Looks:
    """Styles by title for (title, system) pairs.

    A system's colour depends on nothing but its name; several variants of one system share its hue, from light to
    dark in the natural order of their titles, with a marker each.
    """
    groups: dict[str, list[str]] = {}
    for title, system in sorted(set(systems), key=lambda pair: (_natural(pair[0]), pair)):
        groups.setdefault(key_of(title, system), []).append(title)
    looks = {}
    for key, titles in groups.items():
        color, marker = look_of(key, groups)
        for place, title in enumerate(titles):
            looks[title] = _variant(color, marker, place, len(titles))
    return looks


def look_of(key: str, among: Iterable[str] = ()) -> tuple[str, str]:
    """Colour and marker of a system's key; an unknown one gets a spare look by its name's checksum.

    ``among`` are the keys on the same page: of unknown systems that fall on one spare look, the later move on.
    """
    if key in KNOWN:
        return KNOWN[key]
    if share := SHARE.fullmatch(key):
        percent = int(share[1])
        amount = max(DARKEST, min(LIGHTEST, (10 - percent) / 40))
        return _shade(KNOWN["caching-10pct"][0], amount), VARIANT_MARKERS[percent % len(VARIANT_MARKERS)]
    places: dict[str, int] = {}
    for name in sorted(name for name in {key, *among} if not _has_own_look(name)):
        place = zlib.crc32(name.encode()) % len(SPARE)
        taken = set(places.values())
        while place in taken and len(taken) < len(SPARE):
            place = (place + 1) % len(SPARE)
        places[name] = place
    return SPARE[places[key]]


def key_of(title: str, system: str) -> str:
    """The known name of a title such as ``caching 10%``, else the adapter's name."""
    slug = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\s*%", "pct", title.lower())).strip("-")
    if system == "specmoe" and ("controller" in slug or "automatic" in slug):
        return "specmoe-controller"
    return slug if slug.startswith(system) and _has_own_look(slug) else system


def _has_own_look(key: str) -> bool:
    return key in KNOWN or SHARE.fullmatch(key) is not None


def line_marks(look: Style, kind: str) -> dict[str, Any]:
    """Keyword arguments of ``plot`` and ``errorbar`` for a system's line of a kind."""
    marks = KINDS[kind]
    return {
        "color": look.color,
        "marker": look.marker,
        "fillstyle": marks.fillstyle,
        "markerfacecoloralt": "white",
        "linestyle": marks.linestyle,
        "markersize": 6.5,
        "linewidth": 1.6,
    }


def bar_marks(color: str, kind: str) -> dict[str, Any]:
    """Keyword arguments of ``barh`` for a kind: full for measured, else outlined with the kind's hatch."""
    if kind == "measured":
        return {"facecolor": color, "edgecolor": color}
    return {"facecolor": "white", "edgecolor": color, "hatch": KINDS[kind].hatch}


def _variant(color: str, marker: str, place: int, of: int) -> Style:
    if of == 1:
        return Style(color, marker)
    amount = LIGHTEST + (DARKEST - LIGHTEST) * place / (of - 1)
    return Style(_shade(color, amount), VARIANT_MARKERS[place % len(VARIANT_MARKERS)])


def _natural(text: str) -> tuple[tuple[int, float, str], ...]:
    """Sorts ``gamma = 2`` before ``gamma = 16``."""
    parts = re.split(r"(\d+(?:\.\d+)?)", text)
    return tuple((0, float(p), "") if i % 2 else (1, 0.0, p) for i, p in enumerate(parts))


def _shade(color: str, amount: float) -> str:
    target = 1.0 if amount > 0 else 0.0
    return str(to_hex([part + (target - part) * abs(amount) for part in to_rgb(color)]))
