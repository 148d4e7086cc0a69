"""Result files as CSV, JSON, parquet or markdown tables, with a row per record or per repetition."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from reports import text
from reports.results.load import ReportError, load
from specmoe.files import replacing

Format = Literal["csv", "json", "parquet", "markdown"]
Rows = Literal["records", "repetitions"]
SUFFIXES: dict[str, Format] = {".csv": "csv", ".json": "json", ".parquet": "parquet", ".md": "markdown"}
_NESTED = ("usage", "ceilings", "environment")  # objects with a column for each member


def frame_of(results: Sequence[Path], rows: Rows = "records") -> pd.DataFrame:
    """Every field of every record in flat columns; ``rows="repetitions"`` adds the raw figures as ``raw_*``.

    Members of an object become columns with its name as prefix (``usage_cpu_s``); lists and maps become JSON text.

    Raises:
        ReportError: as ``reports.results.load``.
    """
    loaded = load(results)
    flat = []
    for row in loaded.to_dict("records"):
        record = row.pop("record")
        line = {str(name): value for name, value in row.items()} | _extra(record)
        repetitions = record.get("repetitions") or [] if rows == "repetitions" else [None]
        for number, repetition in enumerate(repetitions):
            own = {} if repetition is None else {"repetition": number} | {f"raw_{k}": v for k, v in repetition.items()}
            flat.append({name: _plain(value) for name, value in (line | own).items()})
    return pd.DataFrame(flat)


def export(results: Sequence[Path], out: Path, rows: Rows = "records", overwrite: bool = False) -> int:
    """Write a table to ``out`` in the format of its suffix; returns the number of rows.

    Raises:
        ReportError: unknown suffix, ``out`` exists or cannot be written, parquet without pyarrow, or unreadable
            results.
    """
    if out.suffix not in SUFFIXES:
        raise ReportError(f"unknown table format {out.suffix!r} of {out}: use one of {', '.join(SUFFIXES)}")
    if out.exists() and not overwrite:
        raise ReportError(f"{out} exists: choose another name, or add --overwrite")
    frame = frame_of(results, rows)
    try:
        with replacing(out) as partial:
            _write(frame, partial)
    except OSError as error:
        raise ReportError(f"cannot write {out} ({error.strerror}): free disk space or choose another folder") from error
    return len(frame)


def _write(frame: pd.DataFrame, out: Path) -> None:
    match SUFFIXES[out.suffix]:
        case "csv":
            frame.to_csv(out, index=False)
        case "json":
            frame.to_json(out, orient="records", indent=1, double_precision=15)
        case "markdown":
            table = _markdown(frame.dropna(axis="columns", how="all"))
            out.write_text(f"{table}\n", encoding="utf-8")
        case "parquet":
            try:
                frame.to_parquet(out, index=False)
            except ImportError as error:
                raise ReportError("parquet needs pyarrow: pip install 'specmoe-bench[export]', or use .csv") from error


def _extra(record: dict[str, Any]) -> dict[str, Any]:
    fields = {name: record.get(name) for name in ("phases_s", "notes", "config")}
    for group in _NESTED:
        fields |= {f"{group}_{name}": value for name, value in (record.get(group) or {}).items()}
    return fields


def _plain(value: Any) -> Any:
    return json.dumps(value, sort_keys=True) if isinstance(value, list | dict) else value


def _markdown(frame: pd.DataFrame) -> str:
    rows = [["" if pd.isna(value) else str(value) for value in row] for row in frame.itertuples(index=False)]
    return text.markdown([str(name) for name in frame.columns], rows)
