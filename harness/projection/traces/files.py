"""Traces as parquet files: one row per token, MoE layer and pass, readable with pandas or polars.

Columns: ``call``, ``cycle``, ``phase`` (prefill, draft, verify), ``step`` (of the draft), ``row`` (of the request),
``position`` (of the token in its sequence), ``layer`` (MoE layer, from 0), ``picks`` (expert ids in the order of the
gate), ``kept`` (prefill and verify: the token stays; draft: the proposed token was accepted).  The key-value metadata
``specmoe_trace`` holds version, geometry and facts of the run as JSON.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.projection.traces.trace import PHASES, Geometry, Pass, Trace, TraceError
from specmoe.files import replacing

KEY = b"specmoe_trace"
VERSION = 1


def write(trace: Trace, path: Path) -> Path:
    """Write a trace atomically; returns ``path``.

    Raises:
        TraceError: pyarrow is not installed, or there is no pass.
        OSError: the file cannot be written.
    """
    pyarrow, parquet = _arrow()
    if not trace.passes:
        raise TraceError("the trace has no passes: record a run first")
    columns = [_columns(one) for one in trace.passes]
    merged = {name: np.concatenate([c[name] for c in columns]) for name in columns[0]}
    picks = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(merged.pop("picks").ravel()), trace.geometry.top_k)
    phases = pyarrow.DictionaryArray.from_arrays(merged.pop("phase"), list(PHASES))
    table = pyarrow.table({**merged, "phase": phases, "picks": picks})
    meta = {"version": VERSION, "geometry": vars(trace.geometry), **trace.meta}
    table = table.replace_schema_metadata({KEY: json.dumps(meta).encode()})
    with replacing(path) as partial:
        parquet.write_table(table, partial, compression="zstd")
    return path


def _columns(one: Pass) -> dict[str, np.ndarray]:
    """One pass as columns: layer by layer, tokens in the order of the pass."""
    row, place = (i.numpy() for i in one.valid.nonzero(as_tuple=True))  # [n] each
    count, layers = len(row), len(one.picks)
    picked = np.concatenate([p.numpy()[row, place] for p in one.picks])  # [layers * n, K]

    def constant(value: int, dtype: Any) -> np.ndarray:
        return np.full(layers * count, value, dtype)

    return {
        "call": constant(one.call, np.int16),
        "cycle": constant(one.cycle, np.int32),
        "phase": constant(PHASES.index(one.phase), np.int8),
        "step": constant(one.step, np.int16),
        "row": np.tile(one.rows.numpy()[row], layers).astype(np.int32),
        "position": np.tile(one.start.numpy()[row] + place, layers).astype(np.int32),
        "layer": np.repeat(np.arange(layers, dtype=np.int16), count),
        "picks": picked.astype(np.int16),
        "kept": np.tile(one.kept.numpy()[row, place], layers),
    }


def read(path: Path) -> Trace:
    """Read a trace.

    Raises:
        TraceError: no such file, not a trace of this version, or pyarrow is not installed.
    """
    _, parquet = _arrow()
    if not path.exists():
        raise TraceError(f"no trace at {path}: record one with `specmoe-bench trace record`")
    try:
        table = parquet.read_table(path)
        meta = json.loads(table.schema.metadata[KEY])
        if meta.pop("version") != VERSION:
            raise ValueError(f"not of version {VERSION}")
        geometry = meta.pop("geometry")
        shape = Geometry(tuple(geometry["experts"]), tuple(geometry["stride_bytes"]), geometry["top_k"])
        return Trace(shape, _passes(table, shape), meta)
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise TraceError(f"{path} is not a trace ({error}): record it again") from error


def _passes(table: Any, shape: Geometry) -> list[Pass]:
    picks = table["picks"].combine_chunks().flatten().to_numpy().reshape(-1, shape.top_k)
    phase = np.array([PHASES.index(p) for p in table["phase"].combine_chunks().to_pylist()], np.int64)
    numbers = {name: table[name].to_numpy() for name in ("call", "cycle", "step", "row", "position", "layer", "kept")}
    key = np.stack([numbers["call"], numbers["cycle"], phase, numbers["step"]])
    bounds = [0, *(np.nonzero((key[:, 1:] != key[:, :-1]).any(axis=0))[0] + 1).tolist(), len(phase)]
    passes = [
        _pass(key[:, a], {n: v[a:b] for n, v in numbers.items()}, picks[a:b], len(shape.experts))
        for a, b in pairwise(bounds)
    ]
    kept = {(p.call, p.cycle): (p.rows, p.accepted) for p in passes if p.phase == "verify"}
    for one in passes:
        if one.phase == "draft":
            rows, accepted = kept[one.call, one.cycle]
            one.accepted = accepted[torch.searchsorted(rows, one.rows)]
    return passes


def _pass(key: np.ndarray, numbers: dict[str, np.ndarray], picks: np.ndarray, layers: int) -> Pass:
    """One pass from its slice of the columns; ``key`` is (call, cycle, phase, step)."""
    count = len(picks) // layers
    if count * layers != len(picks) or (numbers["layer"] != np.repeat(np.arange(layers), count)).any():
        raise ValueError(f"a pass of cycle {key[1]} does not have the same tokens in every layer")
    position = numbers["position"][:count]
    rows, first, place = np.unique(numbers["row"][:count], return_index=True, return_inverse=True)
    column = position - position[first][place]
    at = torch.from_numpy(place).long(), torch.from_numpy(column).long()
    valid = torch.zeros(len(rows), int(column.max()) + 1, dtype=torch.bool)
    valid[at] = True
    shaped = torch.zeros(layers, *valid.shape, picks.shape[1], dtype=torch.long)
    shaped[:, at[0], at[1]] = torch.from_numpy(picks.astype(np.int64)).view(layers, count, -1)
    stay = torch.from_numpy(numbers["kept"][:count].astype(np.int64))
    call, cycle, phase, step = (int(part) for part in key)
    return Pass(
        call,
        cycle,
        PHASES[phase],
        step,
        torch.from_numpy(rows.astype(np.int64)),
        torch.from_numpy(position[first].astype(np.int64)),
        valid,
        list(shaped),
        torch.zeros(len(rows), dtype=torch.long).index_add_(0, at[0], stay) - 1,
    )


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise TraceError("traces are parquet files: pip install 'specmoe-bench[export]'") from error
    return pyarrow, pyarrow.parquet
