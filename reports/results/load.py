"""Result files into one data frame; the only place that knows how a result line is laid out."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from reports.results.lines import read_lines
from reports.results.metrics import METRICS
from reports.results.migrate import SCHEMA

_TOP = ("run_id", "cell_id", "round", "kind", "status", "error", "label", "lossless", "grain", "started_at", "wall_s")
_REQUIRED = ("run_id", "cell_id", "round", "status", "label", "cell", "limit")
_CELL_REQUIRED = ("system", "model", "batch_size", "new_tokens")
_CELL = (
    *_CELL_REQUIRED,
    "options",
    "dtype",
    "prompt_offset",
    "expert_budget_bytes",
    "process_limit_bytes",
    "threads",
    "disk_read_limit_bytes_s",
    "prompts",
)
_REQUEST = ("prompts", "prompt_tokens", "output_tokens", "request_seed")
_HOST = ("cpu", "cores", "gpu")
_IDENTITY = ["run_id", "cell_id", "kind", "round"]


class ReportError(ValueError):
    """Results that cannot be reported; the message names the file, the line and the mend."""


def load(paths: Iterable[Path]) -> pd.DataFrame:
    """One row per record, in file order.

    Columns: the record's own fields, those of its cell, ``METRICS`` as floats (NaN where not applicable),
    ``limit_*``, and ``record`` with the parsed line.  Added: ``file``, ``line``, ``experiment`` (its name, empty if
    unnamed), ``workload`` (equal for records that may stand in one table), ``host`` and ``title`` (the label, told
    apart where one label names several cells).  A record written again for the same run, cell, kind and round
    replaces the earlier one; ``failed_attempts`` counts the earlier ones that had failed.

    Raises:
        ReportError: a missing file, no record at all, or a line that is JSON but not a record.
    """
    rows = [_row(path, number, payload) for path in paths for number, payload in _lines(Path(path))]
    if not rows:
        raise ReportError("no records in the result files: run `specmoe-bench run` first, or name other files")
    frame = pd.DataFrame(rows)
    frame[list(METRICS)] = frame[list(METRICS)].astype(float)
    failed = frame["status"].isin(["failed", "timeout"])
    earlier = frame[failed & frame.duplicated(_IDENTITY, keep="last")].groupby(_IDENTITY).size()
    frame["failed_attempts"] = [int(earlier.get(key, 0)) for key in frame[_IDENTITY].itertuples(index=False, name=None)]
    repeated = int(frame.duplicated(_IDENTITY, keep="last").sum())
    if repeated:
        warnings.warn(
            f"{repeated} records were written again for the same cell and round: the last counts", stacklevel=2
        )
        frame = frame.drop_duplicates(_IDENTITY, keep="last").reset_index(drop=True)
    frame["title"] = _titles(frame)
    return frame


def configured_order(frame: pd.DataFrame) -> pd.DataFrame:
    """The same rows, systems in the order their experiment names them (rounds are shuffled), batches ascending."""
    place = []
    for record, label in zip(frame["record"], frame["label"], strict=True):
        systems = (record.get("config") or {}).get("systems") or []
        names = [entry.get("label") or entry.get("system") for entry in systems]
        starts = [i for i, name in enumerate(names) if label == name or str(label).startswith(f"{name} ")]
        place.append(max(starts, key=lambda i: len(names[i]), default=len(names)))
    experiment = {name: i for i, name in enumerate(frame["workload"].unique())}
    keyed = frame.assign(_workload=frame["workload"].map(experiment), _place=place)
    ordered = keyed.sort_values(["_workload", "_place", "batch_size"], kind="stable")
    return ordered.drop(columns=["_workload", "_place"]).reset_index(drop=True)


def workload_names(frame: pd.DataFrame) -> dict[str, str]:
    """A name for each workload of a loaded frame: its model, dtype and length, and what else tells it apart."""
    first = frame.drop_duplicates("workload").set_index("workload")
    facts = pd.DataFrame(
        {
            "model": first["model"].astype(str),
            "dtype": first["dtype"].astype(str),
            "length": first["new_tokens"].map(lambda n: f"{n} new tokens"),
            "set": first["prompts"].map(lambda name: f"{name or 'default'} prompts"),
            "lengths": first["lengths"],
            "prompts": first["prompt_offset"].map(lambda n: f"prompts from {n or 0}"),
            "limit": first["process_limit_bytes"].map(
                lambda n: "no limit" if pd.isna(n) else f"limit {n / 1e9:.4g} GB"
            ),
            "disk": first["disk_read_limit_bytes_s"].map(
                lambda n: "full disk rate" if pd.isna(n) else f"disk throttled to {n / 1e9:.3g} GB/s"
            ),
            "threads": first["threads"].map(lambda n: f"{n} threads"),
            "host": first["host"].map(lambda host: f"on {host or 'an unnamed machine'}"),
        }
    )
    always = ["model", "dtype", "length"]
    shown = [name for name in facts if name in always or facts[name].nunique() > 1]
    return {str(workload): ", ".join(row) for workload, row in zip(facts.index, facts[shown].to_numpy(), strict=True)}


def _lines(path: Path) -> Iterable[tuple[int, dict[str, Any]]]:
    try:
        for number, payload in read_lines(path, stacklevel=5):
            _check(payload, f"{path}:{number}")
            yield number, payload
    except OSError as error:
        raise ReportError(f"cannot read result file {path} ({error.strerror}): name an existing file") from error
    except ReportError:
        raise
    except ValueError as error:
        raise ReportError(str(error)) from error


def _check(payload: Any, where: str) -> None:
    mend = "remove that line or name another file"
    if not isinstance(payload, dict) or "schema_version" not in payload:
        raise ReportError(f"{where} is not a {SCHEMA} record: {mend}")
    missing = [name for name in _REQUIRED if name not in payload]
    cell = payload.get("cell")
    missing += [f"cell.{name}" for name in _CELL_REQUIRED if not isinstance(cell, dict) or name not in cell]
    if payload.get("status") == "ok" and not isinstance(payload.get("metrics"), dict):
        missing.append("metrics")
    if missing:
        raise ReportError(f"{where} lacks {', '.join(missing)}: {mend}")
    for name in METRICS:
        value = (payload.get("metrics") or {}).get(name)
        if value is not None and not isinstance(value, int | float):
            raise ReportError(f"{where}: metrics.{name} is {value!r}, not a number: {mend}")


def _row(path: Path, number: int, record: dict[str, Any]) -> dict[str, Any]:
    cell, limit, metrics = record["cell"], record["limit"], record.get("metrics") or {}
    row: dict[str, Any] = {"file": str(path), "line": number, "record": record}
    row |= {name: record.get(name) for name in _TOP}
    row["kind"] = record.get("kind") or "measured"
    row |= {name: cell.get(name) for name in _CELL}
    row["options"] = json.dumps(cell.get("options") or {}, sort_keys=True)
    row |= {name: metrics.get(name) for name in METRICS}
    for name in ("enforced", "mechanism", "why_not"):
        row[f"limit_{name}"] = limit.get(name)
    row["limit_covers"] = limit.get("covers") or "worker"
    row["limit_bytes"], row["limit_peak_bytes"] = limit.get("limit_bytes"), limit.get("peak_bytes")
    environment = record.get("environment") or {}
    host = [(name, environment[name]) for name in _HOST if environment.get(name)]
    row["host"] = ", ".join(f"{value} cores" if name == "cores" else str(value) for name, value in host)
    same = ("model", "dtype", "new_tokens", "prompt_offset", "process_limit_bytes", "threads")
    throttle = cell.get("disk_read_limit_bytes_s")
    asked = {name: cell[name] for name in _REQUEST if cell.get(name)}
    row["lengths"] = _lengths(cell)
    config = record.get("config") or {}
    row["experiment"] = str(config.get("name") or "")
    row["workload"] = json.dumps(
        [
            row["experiment"],
            row["host"],
            *(cell.get(name) for name in same),
            *([throttle] if throttle else []),
            *([asked] if asked else []),
        ]
    )
    return row


def _lengths(cell: dict[str, Any]) -> str:
    """Prompt and output lengths in words."""
    prompt, output = cell.get("prompt_tokens"), cell.get("output_tokens")
    return f"prompts {_length(prompt) or 'as they are'}, outputs {_length(output) or 'all alike'}"


def _length(length: Any) -> str:
    if isinstance(length, dict):
        return " ".join(f"{value:g}" if name != "distribution" else str(value) for name, value in length.items())
    return f"of {length} tokens" if length else ""


def _titles(frame: pd.DataFrame) -> list[str]:
    """The label of each row; with the budget or a number added where one label names different cells."""
    variants: dict[tuple[str, str], list[tuple[Any, ...]]] = {}
    keys = []
    columns = ["workload", "label", "system", "options", "expert_budget_bytes"]
    for workload, label, system, options, budget in frame[columns].itertuples(index=False):
        variant = (system, options, None if pd.isna(budget) else int(budget))
        seen = variants.setdefault((workload, label), [])
        if variant not in seen:
            seen.append(variant)
        keys.append((workload, label, variant))
    return [_told_apart(label, variant, variants[workload, label]) for workload, label, variant in keys]


def _told_apart(label: str, variant: tuple[Any, ...], among: Sequence[tuple[Any, ...]]) -> str:
    if len(among) == 1:
        return label
    budgets = [budget for _, _, budget in among]
    if len(set(budgets)) == len(among) and variant[2]:
        return f"{label} ({variant[2] / 1e6:.4g} MB)"
    return f"{label} #{among.index(variant) + 1}"
