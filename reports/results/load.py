"""Result files as one data frame, with columns derived from the record's fields."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from baselines.decoding import Decoding
from reports.results import files
from reports.results.fidelity import kind_of
from reports.results.lines import read_lines
from reports.results.metrics import METRICS
from reports.results.migrate import SCHEMA
from reports.results.record import Cell, Limit, Record, first_problem
from reports.results.rounds import IDENTITY, counted_lines, warn_of_replaced
from reports.results.tier import tier_text
from reports.text import dtypes
from workloads.arrivals import Poisson

_NOT_COLUMNS = {"schema_version", "cell", "limit", "metrics", "repetitions", "phases_s", "notes", "environment"}
_NOT_COLUMNS |= {"config", "usage", "ceilings"}
_TOP = {name: field for name, field in Record.model_fields.items() if name not in _NOT_COLUMNS}
_WITHIN_WORKLOAD = {
    "system",
    "options",
    "batch_size",
    "expert_budget_bytes",
    "fills_limit",
    "first_tokens",
    "warmup_tokens",
    "repetitions",
}
_SAME_WORKLOAD = ("model", "dtype", "new_tokens", "prompt_offset", "process_limit_bytes", "threads")
_HOST = ("cpu", "cores", "gpu")


class ReportError(ValueError):
    """Results that cannot be reported; the message names the file, the line and the fix."""


def load(paths: Iterable[Path]) -> pd.DataFrame:
    """One row per record, in file order; a results folder stands for the files in it.

    Columns: the plain fields of the record and of its cell, ``METRICS`` as floats (NaN where not applicable),
    ``limit_*``, and ``record`` with the parsed line. Added: ``file``, ``line``, ``experiment`` (its name, empty if
    unnamed), ``workload`` (equal for records that belong in one table), ``lengths`` (of prompts and outputs), ``host``,
    ``fidelity_kind``, and ``title`` (the label, made unique where one label names several cells). Of several records of
    the same run, cell, kind and round the last finished one counts (``reports.results.rounds``); ``failed_attempts``
    counts the others that had failed.

    Raises:
        ReportError: a missing file, no record at all, or a line that is JSON but not a record.
    """
    rows = [_row(path, number, payload) for path in _files(paths) for number, payload in _lines(path)]
    if not rows:
        raise ReportError("no records in the result files: run `specmoe-bench run` first, or name other files")
    frame = pd.DataFrame(rows)
    frame[list(METRICS)] = frame[list(METRICS)].astype(float)
    failed = frame["status"].isin(["failed", "timeout"])
    keys = list(frame[list(IDENTITY)].itertuples(index=False, name=None))
    counts = frame.index.isin(counted_lines(keys, frame["status"] == "ok"))
    earlier = Counter(key for key, lost in zip(keys, failed & ~counts, strict=True) if lost)
    frame["failed_attempts"] = [earlier[key] for key in keys]
    warn_of_replaced(int((~counts).sum()))
    frame = frame[counts].reset_index(drop=True)
    frame["title"] = _titles(frame)
    return frame


def finished(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows with a result, of records or of a summary; the same as ``Record.finished``."""
    return frame[frame["status"] == "ok"]


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
    """A name for each workload of a loaded frame: model, dtype, length, and whatever else differs between them."""
    first = frame.drop_duplicates("workload").set_index("workload")
    facts = pd.DataFrame(
        {
            "model": first["model"].astype(str),
            "dtype": pd.Series(map(dtypes, first["dtype"].astype(str), first["stored_dtype"]), first.index),
            "length": first["new_tokens"].map(lambda n: f"{n} new tokens"),
            "set": first["prompts"].map(lambda name: f"{name or 'default'} prompts"),
            "lengths": first["lengths"],
            "queue": first["requests"].map(lambda n: "one batch" if pd.isna(n) else f"{n:.0f} requests"),
            "arrivals": first["arrivals"].map(arrivals_text),
            "decoding": first["decoding"].map(lambda d: decoding_text(d)),
            "prompts": first["prompt_offset"].map(lambda n: f"prompts from {n or 0}"),
            "limit": first["process_limit_bytes"].map(
                lambda n: "no limit" if pd.isna(n) else f"limit {n / 1e9:.4g} GB"
            ),
            "disk": first["disk_read_limit_bytes_s"].map(
                lambda n: "full disk rate" if pd.isna(n) else f"disk throttled to {n / 1e9:.3g} GB/s"
            ),
            "device": first["device"].map(lambda device: f"on {device}"),
            "slow_tier": first["slow_tier"].map(lambda tier: f"experts from {tier_text(tier)}"),
            "threads": first["threads"].map(lambda n: f"{n} threads"),
            "host": first["host"].map(lambda host: f"on {host or 'an unnamed machine'}"),
        }
    )
    always = ["model", "dtype", "length"]
    shown = [name for name in facts if name in always or facts[name].nunique() > 1]
    return {str(workload): ", ".join(row) for workload, row in zip(facts.index, facts[shown].to_numpy(), strict=True)}


def _files(paths: Iterable[Path]) -> list[Path]:
    try:
        return files.expand(paths)
    except ValueError as error:
        raise ReportError(str(error)) from error


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
    fix = "remove that line or name another file"
    if not isinstance(payload, dict) or "schema_version" not in payload:
        raise ReportError(f"{where} is not a {SCHEMA} record: {fix}")
    cell = payload.get("cell")
    missing = [name for name in _required(Record) if name not in payload]
    missing += [f"cell.{name}" for name in _required(Cell) if not isinstance(cell, dict) or name not in cell]
    if payload.get("status") == "ok" and not isinstance(payload.get("metrics"), dict):
        missing.append("metrics")
    if missing:
        raise ReportError(f"{where} lacks {', '.join(missing)}: {fix}")
    for name in METRICS:
        value = (payload.get("metrics") or {}).get(name)
        if value is not None and not (isinstance(value, int | float) and math.isfinite(value)):
            raise ReportError(f"{where}: metrics.{name} is {value!r}, not a finite number: {fix}")
    try:
        Record.model_validate(payload)
    except ValidationError as error:
        raise ReportError(f"{where}: {first_problem(error)}: {fix}") from error


def _required(model: type[Record] | type[Cell]) -> list[str]:
    return [name for name, field in model.model_fields.items() if field.is_required()]


def _row(path: Path, number: int, record: dict[str, Any]) -> dict[str, Any]:
    cell, limit, metrics = record["cell"], record["limit"], record.get("metrics") or {}
    config, environment = record.get("config") or {}, record.get("environment") or {}
    experiment, host = str(config.get("name") or ""), _host(environment)
    row: dict[str, Any] = {"file": str(path), "line": number, "record": record}
    row |= _values(record, _TOP) | _values(cell, Cell.model_fields)
    row["stored_dtype"] = _stored(cell)
    row["options"] = json.dumps(cell.get("options") or {}, sort_keys=True)
    row |= {name: metrics.get(name) for name in METRICS}
    row |= {f"limit_{name.removeprefix('limit_')}": value for name, value in _values(limit, Limit.model_fields).items()}
    row |= {"host": host, "lengths": _lengths(cell), "experiment": experiment}
    row["fidelity_kind"] = kind_of(record)
    row["workload"] = _workload(experiment, host, cell)
    return row


def _values(payload: dict[str, Any], fields: dict[str, FieldInfo]) -> dict[str, Any]:
    """Each field's value in a line; the default where an older line lacks it."""
    return {
        name: payload.get(name, None if field.is_required() else field.get_default(call_default_factory=True))
        for name, field in fields.items()
    }


def _host(environment: dict[str, Any]) -> str:
    found = [(name, environment[name]) for name in _HOST if environment.get(name)]
    return ", ".join(f"{value} cores" if name == "cores" else str(value) for name, value in found)


def _workload(experiment: str, host: str, cell: dict[str, Any]) -> str:
    """Equal for records that belong in one table: of one experiment and host, with every other setting equal."""
    known = {*_WITHIN_WORKLOAD, *_SAME_WORKLOAD, "stored_dtype"}
    rest = {name: field.default for name, field in Cell.model_fields.items() if name not in known}
    same = [*(cell.get(name) for name in _SAME_WORKLOAD), _stored(cell)]
    changed = {name: cell[name] for name, default in rest.items() if cell.get(name) and cell[name] != default}
    return json.dumps([experiment, host, *same, changed])


def _stored(cell: dict[str, Any]) -> Any:
    """The dtype of the stored experts; before it was recorded they were stored in the one computed in."""
    return cell.get("stored_dtype") or cell.get("dtype") or Cell.model_fields["dtype"].default


def arrivals_text(arrivals: dict[str, Any] | None) -> str:
    """How the requests of a record arrived."""
    return "all at once" if arrivals is None else str(Poisson.model_validate(arrivals))


def decoding_text(decoding: dict[str, Any] | None) -> str:
    """How the tokens of a record were chosen."""
    return "greedy decoding" if decoding is None else str(Decoding.model_validate(decoding))


def _lengths(cell: dict[str, Any]) -> str:
    """Prompt and output lengths as text."""
    prompt, output = cell.get("prompt_tokens"), cell.get("output_tokens")
    return f"prompts {_length(prompt) or 'at full length'}, outputs {_length(output) or 'of equal length'}"


def _length(length: Any) -> str:
    if isinstance(length, dict):
        return " ".join(f"{value:g}" if name != "distribution" else str(value) for name, value in length.items())
    return f"of {length} tokens" if length else ""


def _titles(frame: pd.DataFrame) -> list[str]:
    """The label of each row, with the budget or a number added where one label names different cells."""
    variants: dict[tuple[str, str], list[tuple[Any, ...]]] = {}
    keys = []
    columns = ["workload", "label", "system", "options", "expert_budget_bytes", "first_tokens"]
    for workload, label, system, options, budget, first in frame[columns].itertuples(index=False):
        sizes = (None if pd.isna(value) else int(value) for value in (budget, first))
        variant = (system, options, *sizes)
        seen = variants.setdefault((workload, label), [])
        if variant not in seen:
            seen.append(variant)
        keys.append((workload, label, variant))
    return [_title(label, variant, variants[workload, label]) for workload, label, variant in keys]


def _title(label: str, variant: tuple[Any, ...], among: Sequence[tuple[Any, ...]]) -> str:
    if len(among) == 1:
        return label
    budgets = [one[2] for one in among]
    if len(set(budgets)) == len(among) and variant[2]:
        return f"{label} ({variant[2] / 1e6:.4g} MB)"
    return f"{label} #{among.index(variant) + 1}"
