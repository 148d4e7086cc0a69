"""Exact commands: those that measured the records, and the one that reproduces the report from the same files."""

from __future__ import annotations

import shlex
from typing import Any

import pandas as pd


def measured_by(frame: pd.DataFrame) -> list[str]:
    """The commands that wrote these records, where recorded; else the preset named like the experiment."""
    return list(dict.fromkeys(_command(record) for record in frame["record"]))


def redrawn_by(frame: pd.DataFrame) -> str:
    """The command that writes the same report from the same files, without measuring."""
    return shlex.join(["specmoe-bench", "report", *dict.fromkeys(frame["file"]), "--out", "report"])


def _command(record: dict[str, Any]) -> str:
    config = record.get("config") or {}
    known = (record.get("environment") or {}).get("command") or config.get("command")
    if isinstance(known, list):
        return shlex.join(map(str, known))
    name = config.get("name")
    return str(known or f"specmoe-bench run {name} --report" if known or name else "nox -s reproduce")
