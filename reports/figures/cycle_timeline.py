"""A few decode cycles as a picture: compute, waits and transfers over time, from a timeline file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.patches import Patch

from reports.results.load import ReportError
from specmoe.files import replacing

_COLORS = {"prefill": "#999999", "draft": "#56B4E9", "verify": "#0072B2", "wait": "#D55E00", "link": "#009E73"}
_LANES = ("compute", "wait", "link")


def draw_timeline(timeline: Path, out: Path, cycles: int = 3, skip: int = 2) -> Path:
    """Draw ``cycles`` decode cycles of a Chrome-format timeline, after the first ``skip``, to a PNG; returns ``out``.

    Raises:
        ReportError: the file is not a readable timeline, or has too few cycles.
    """
    spans = _spans(timeline)
    bounds = sorted((s["ts"], s["ts"] + s["dur"]) for s in spans if s["track"] == "cycle")
    if len(bounds) <= skip:
        raise ReportError(f"{timeline} has {len(bounds)} cycles and {skip} are skipped: generate more tokens")
    starts = [start for start, _ in bounds[skip : skip + cycles]]
    end = bounds[skip : skip + cycles][-1][1]

    figure, axes = plt.subplots(figsize=(10, 2.6), layout="constrained")
    colors = _bars(axes, [s for s in spans if s["ts"] + s["dur"] >= starts[0] and s["ts"] <= end], starts[0])
    for start in starts:
        axes.axvline((start - starts[0]) / 1e3, color="black", linewidth=0.8)
    axes.set_yticks(range(len(_LANES)), list(reversed(_LANES)))
    axes.set_xlim(0, (end - starts[0]) / 1e3)
    axes.set_xlabel("ms; black lines: start of a cycle")
    axes.set_title("Compute, waits and transfers in decode cycles")
    handles = [Patch(color=color, label=name) for name, color in colors.items()]
    figure.legend(handles=handles, loc="outside right center", frameon=False)
    with replacing(out) as partial:
        figure.savefig(partial, dpi=150)
    plt.close(figure)
    return out


def _bars(axes: Any, spans: list[dict[str, Any]], start_us: float) -> dict[str, str]:
    """Draw the spans of every lane; returns the colours used, by the name of what they show."""
    colors: dict[str, str] = {}
    for span in spans:
        if span["track"] not in _LANES:
            continue
        name = span["name"].split()[0] if span["track"] == "compute" else span["track"]
        color = colors.setdefault(name, _COLORS.get(name, "#777777"))
        lane = len(_LANES) - 1 - _LANES.index(span["track"])
        bar = ((span["ts"] - start_us) / 1e3, span["dur"] / 1e3)
        axes.broken_barh([bar], (lane - 0.4, 0.8), color=color, edgecolor="white", linewidth=0.3)
    return colors


def _spans(timeline: Path) -> list[dict[str, Any]]:
    """Complete events with the name of their track; ``ts`` and ``dur`` are in microseconds."""
    try:
        events = json.loads(timeline.read_text(encoding="utf-8"))["traceEvents"]
        tracks = {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M"}
        return [{**e, "track": tracks[e["tid"]]} for e in events if e["ph"] == "X"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReportError(
            f"{timeline} is not a timeline ({error!r}): write one with specmoe-bench generate --timeline"
        ) from error
