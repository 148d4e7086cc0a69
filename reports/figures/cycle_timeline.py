"""A picture of a few cycles: what compute and the link did when, from a Chrome trace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from reports.results.load import ReportError

_COLOURS = {"prefill": "#999999", "draft": "#56B4E9", "verify": "#0072B2", "wait": "#D55E00", "link": "#009E73"}
_LANES = ("compute", "wait", "link")


def draw_timeline(trace: Path, out: Path, cycles: int = 3, skip: int = 2) -> Path:
    """Draw ``cycles`` decode cycles of a trace after the first ``skip`` to a PNG; returns ``out``.

    Raises:
        ReportError: no readable trace, or it holds too few cycles.
    """
    spans = _spans(trace)
    bounds = sorted((s["ts"], s["ts"] + s["dur"]) for s in spans if s["track"] == "cycle")
    if len(bounds) <= skip:
        raise ReportError(f"{trace} holds {len(bounds)} cycles, {skip} are left out: generate more tokens")
    shown = bounds[skip : skip + cycles]
    start, end = shown[0][0], shown[-1][1]

    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    figure, axes = plt.subplots(figsize=(10, 2.6), layout="constrained")
    seen: dict[str, str] = {}
    for span in spans:
        if span["track"] not in _LANES or span["ts"] + span["dur"] < start or span["ts"] > end:
            continue
        kind = span["name"].split()[0] if span["track"] == "compute" else span["track"]
        colour = seen.setdefault(kind, _COLOURS.get(kind, "#777777"))
        left = (span["ts"] - start) / 1e3
        lane = len(_LANES) - 1 - _LANES.index(span["track"])
        axes.broken_barh([(left, span["dur"] / 1e3)], (lane - 0.4, 0.8), color=colour, edgecolor="white", linewidth=0.3)
    for left, _ in shown:
        axes.axvline((left - start) / 1e3, color="black", linewidth=0.8)
    axes.set_yticks(range(len(_LANES)), list(reversed(_LANES)))
    axes.set_xlim(0, (end - start) / 1e3)
    axes.set_xlabel("milliseconds; black lines begin a cycle")
    axes.set_title("What compute and the link do in a cycle")
    handles = [Patch(color=colour, label=kind) for kind, colour in seen.items()]
    figure.legend(handles=handles, loc="outside right center", frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)
    plt.close(figure)
    return out


def _spans(trace: Path) -> list[dict[str, Any]]:
    try:
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
        tracks = {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M"}
        return [{**e, "track": tracks[e["tid"]]} for e in events if e["ph"] == "X"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReportError(f"{trace} is not a timeline of specmoe-bench generate --timeline: {error!r}") from error
