"""Comparison of two result files: two runs, two revisions or two machines.

Speeds are compared as ratios to the reference *of the same rounds*; times of different machines are never divided.
For one machine absolute speeds are shown too, with a warning that they come from two sessions. Figures that do not
depend on the machine's speed (``Metric.repeats``) are compared directly.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from reports.results.aggregate import first_named, round_ratios
from reports.results.load import ReportError, configured_order, finished, load
from reports.results.metrics import METRICS
from reports.results.roles import REFERENCE, Row
from reports.results.stats import Ratio, bootstrap, quotient
from reports.results.tier import tier_text
from reports.text import NONE, dtypes, number
from reports.wording.tables import Table, TableCell, markdown, plain

_PLACE = ["kind", "model", "dtype", "new_tokens", "prompt_offset", "threads", "disk_read_limit_bytes_s", "batch_size"]
_PLACE += ["prompts", "lengths", "stored_dtype", "device", "slow_tier"]
_MACHINE = ("cpu", "cores", "ram_bytes", "gpu")
_EVER_NEW = ("date", "command", "seed")  # differ between any two runs, or belong to the configuration
_SIDE = "AB"
_FIGURES = {name: metric for name, metric in METRICS.items() if metric.repeats}
WARNING = (
    "Same machine, two sessions: absolute speeds also reflect other load on the machine; rely on the ratios within a "
    "round."
)
APART = "Different machines: only ratios between systems are compared, not times."


@dataclass(frozen=True)
class Comparison:
    """Two result files compared; ``same_machine`` tells whether the tables hold absolute speeds."""

    files: tuple[Path, Path]
    same_machine: bool
    differences: Table
    limits: list[str]
    cells: list[Table]
    alone: list[str] = field(default_factory=list)

    def as_text(self) -> str:
        """For a terminal."""
        parts = [*self._head(), "differences\n" + (plain(self.differences) if self.differences.rows else "none")]
        parts += [f"{table.caption}\n{plain(table)}" for table in self.cells]
        return "\n\n".join([*parts, *self.alone])

    def as_markdown(self) -> str:
        """For a pull request."""
        differences = markdown(self.differences) if self.differences.rows else "None."
        parts = ["# Comparison", *self._head(), "## Differences", differences, "## Cells"]
        parts += [f"### {table.caption}\n\n{markdown(table)}" for table in self.cells]
        return "\n\n".join([*parts, *self.alone]) + "\n"

    def _head(self) -> list[str]:
        named = "; ".join(f"{side}: {file}" for side, file in zip(_SIDE, self.files, strict=True))
        return [named, WARNING if self.same_machine else APART, "\n".join(f"- {line}" for line in self.limits)]


def compare(first: Path, second: Path, reference: str = REFERENCE) -> Comparison:
    """The comparison of two result files; speeds are relative to the system ``reference``.

    In a file without it, the first system of the experiment replaces it; it must be the same in both files.

    Raises:
        ReportError: a file cannot be read, no cell finished in both, or a ``reference`` other than the default is in
            neither file.
    """
    frames = [configured_order(load([path])) for path in (first, second)]
    systems = dict.fromkeys(system for frame in frames for system in frame["system"])
    if reference not in (REFERENCE, *systems):
        raise ReportError(f"no result of the reference {reference!r} in either file: use one of {', '.join(systems)}")
    machines = [_machines(frame) for frame in frames]
    same = machines[0] == machines[1] and len(machines[0]) == 1 and any(map(bool, next(iter(machines[0]))))
    keys = [{_key(row) for row in frame.to_dict("records")} for frame in frames]
    shared = [key for key in dict.fromkeys(map(_key, frames[0].to_dict("records"))) if key in keys[1]]
    cells = [_cell(key, frames, reference, same) for key in shared]
    cells = [table for table in cells if table.rows]
    if not cells:
        raise ReportError(
            f"{first} and {second} have no finished cell in common (model, data type, tokens, batch size): "
            "compare runs of one experiment"
        )
    limits = [f"Limit of {side}: {text}" for side, frame in zip(_SIDE, frames, strict=True) for text in _limits(frame)]
    return Comparison((first, second), same, _differences(frames), limits, cells, _alone(keys, frames))


def _machines(frame: pd.DataFrame) -> set[tuple[Any, ...]]:
    environments = [record.get("environment") or {} for record in frame["record"]]
    return {tuple(environment.get(name) for name in _MACHINE) for environment in environments}


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(None if pd.isna(row.get(name)) else row[name] for name in _PLACE)


def _rows_at(frame: pd.DataFrame, key: tuple[Any, ...]) -> pd.DataFrame:
    return frame[[_key(row) == key for row in frame.to_dict("records")]]


def _cell(key: tuple[Any, ...], frames: list[pd.DataFrame], reference: str, same: bool) -> Table:
    """Every system of one cell in both files."""
    places = [_rows_at(frame, key) for frame in frames]
    titles = [title for title in dict.fromkeys(places[0]["title"]) if title in set(places[1]["title"])]
    over = _reference(places, frames, key, reference)
    headers = ["system", "A ÷ reference", "B ÷ reference", "B over A [95 % CI]", "verdict"]
    headers += [metric.header or name for name, metric in _FIGURES.items()]
    headers += [*(["A tok/s", "B tok/s", "B over A"] if same else []), "notes"]
    rows = []
    for title in titles:
        pair = [place[place["title"] == title] for place in places]
        done = [finished(part) for part in pair]
        if all(len(part) for part in done):
            row = [title, *_ratios(done, places, title, over), *_figures(done)]
            row += _absolute(done) if same else []
            rows.append([TableCell(text, text) for text in [*row, _notes(pair)]])
    facts = dict(zip(_PLACE, key, strict=True))
    throttle = facts["disk_read_limit_bytes_s"]
    request = "".join(f", {facts[name]}" for name in ("prompts", "lengths") if facts[name])
    disk = "" if throttle is None else f", disk throttled to {throttle / 1e9:.3g} GB/s"
    if (facts["device"], facts["slow_tier"]) != ("cpu", "disk"):
        disk += f", on {facts['device']}, experts from {tier_text(facts['slow_tier'])}"
    dtype = dtypes(facts["dtype"], facts["stored_dtype"])
    caption = f"{facts['model']}, {dtype}, {facts['new_tokens']} tokens, batch {facts['batch_size']}{request}{disk}"
    caption += "" if facts["kind"] == "measured" else f" ({facts['kind']})"
    return Table(str(facts["kind"]), f"{caption}; reference: {over or 'none in both'}", headers, rows)


def _reference(
    places: list[pd.DataFrame], frames: list[pd.DataFrame], key: tuple[Any, ...], reference: str
) -> str | None:
    """Title of the reference that both files have; for an oracle, one that ran."""
    if key[0] == "oracle":
        ran = [[_rows_at(f, (kind, *key[1:])) for kind in ("measured", "emulated")] for f in frames]
        places[:] = [pd.concat([place, *rows]) for place, rows in zip(places, ran, strict=True)]
    named = [finished(place[place["system"] == reference])["title"] for place in places]
    candidates = [list(titles) or [first_named(place)] for titles, place in zip(named, places, strict=True)]
    return next((title for title in candidates[0] if title and title in candidates[1]), None)


def _ratios(done: list[pd.DataFrame], places: list[pd.DataFrame], title: str, over: str | None) -> list[str]:
    if title == over:
        return ["1 (reference)", "1 (reference)", NONE, NONE]
    lists = []
    for part, place in zip(done, places, strict=True):
        others = finished(place[place["title"] == over]) if over else place.iloc[:0]
        lists.append(round_ratios(part, others, "decode_tok_s"))
    change = quotient(lists[1], lists[0]) if all(lists) else Ratio(None, None, None, 0)
    words = {
        "faster": "B faster",
        "slower": "B slower",
        "same": "no significant difference",
        "single": "too few rounds",
    }
    return [*(str(bootstrap(ratios)) for ratios in lists), str(change), words.get(change.verdict, NONE)]


def _figures(done: list[pd.DataFrame]) -> list[str]:
    """Figures independent of the machine's speed: one value where both files agree, else both."""
    out = []
    for name, metric in _FIGURES.items():
        a, b = (metric.shown(part[name].median()) for part in done)
        out.append(a if a == b else f"{a} → {b}")
    return out


def _absolute(done: list[pd.DataFrame]) -> list[str]:
    speeds = [part["decode_tok_s"].tolist() for part in done]
    return [*(number(pd.Series(values).median()) for values in speeds), str(quotient(speeds[1], speeds[0]))]


def _notes(pair: list[pd.DataFrame]) -> str:
    first, second = (part.iloc[0] for part in pair)
    notes = []
    if first["options"] != second["options"]:
        notes.append(f"options {first['options']} → {second['options']}")
    for name, text in (("expert_budget_bytes", "budget"), ("process_limit_bytes", "limit")):
        if first[name] != second[name] and not (pd.isna(first[name]) and pd.isna(second[name])):
            notes.append(f"{text} {number(first[name] / 1e6)} → {number(second[name] / 1e6)} MB")
    tokens = [
        row["new_tokens"] if pd.isna(row["first_tokens"]) else int(row["first_tokens"]) for row in (first, second)
    ]
    if tokens[0] != tokens[1]:
        notes.append(f"first {tokens[0]} → {tokens[1]} tokens of a row")
    for side, part in zip(_SIDE, pair, strict=True):
        lost = int((part["status"] != "ok").sum())
        notes += [f"{lost} of {len(part)} rounds of {side} without a result"] if lost else []
    return "; ".join(notes)


def _limits(frame: pd.DataFrame) -> list[str]:
    """Each limit in force with the process it covers."""
    lines: dict[str, None] = {}
    for row in frame.to_dict("records"):
        size = "none" if pd.isna(row["limit_bytes"]) else f"{number(row['limit_bytes'] / 1e9)} GB"
        if row["limit_enforced"]:
            process = "the system's engine" if row["limit_covers"] == "engine" else "the whole process"
            covered = f"{size} for {process}, page cache included ({row['limit_mechanism']})"
        else:
            covered = f"{size}, not enforced" + (f": {row['limit_reason']}" if row["limit_reason"] else "")
        lines[covered] = None
    return list(lines)


def _differences(frames: list[pd.DataFrame]) -> Table:
    """Fields of the configurations and environments that differ."""
    rows = []
    for group, ignored in (("config", ()), ("environment", _EVER_NEW)):
        seen = [_values(frame, group, ignored) for frame in frames]
        for name in dict.fromkeys([*seen[0], *seen[1]]):
            texts = [", ".join(sorted(side.get(name, {NONE}))) for side in seen]
            if texts[0] != texts[1]:
                rows.append([TableCell(text, text) for text in (f"{group}: {name}", *map(_short, texts))])
    return Table("measured", "Differences", ["field", *_SIDE], rows)


def _values(frame: pd.DataFrame, group: str, ignored: tuple[str, ...]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for record in frame["record"]:
        for name, value in (record.get(group) or {}).items():
            if name not in ignored:
                found.setdefault(name, set()).add(
                    value if isinstance(value, str) else json.dumps(value, sort_keys=True)
                )
    return found


def _short(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _alone(keys: list[set[tuple[Any, ...]]], frames: list[pd.DataFrame]) -> list[str]:
    """Cells that are in one file only."""
    out = []
    for i, side in enumerate(_SIDE):
        rows = frames[i].to_dict("records")
        theirs = {(_key(row), row["title"]) for row in frames[1 - i].to_dict("records")}
        only = dict.fromkeys(
            f"{r['title']} at batch {r['batch_size']}" for r in rows if (_key(r), r["title"]) not in theirs
        )
        if only:
            out.append(f"Only in {side}: {', '.join(only)}.")
    return out
