"""Exact commands: what measured some records, and what draws their report again."""

from __future__ import annotations

import shlex
from typing import Any

import pandas as pd


def measured_by(frame: pd.DataFrame) -> list[str]:
    """The commands that wrote these records, as far as they tell; a preset of the experiment's name otherwise."""
    return list(dict.fromkeys(_command(record) for record in frame["record"]))


def redrawn_by(frame: pd.DataFrame) -> str:
    """The command that draws the same page from the same files, none of them measured anew."""
    return shlex.join(["specmoe-bench", "report", *dict.fromkeys(frame["file"]), "--out", "report"])


def _command(record: dict[str, Any]) -> str:
    config = record.get("config") or {}
    told = (record.get("environment") or {}).get("command") or config.get("command")
    if isinstance(told, list):
        return shlex.join(map(str, told))
    name = config.get("name")
    return str(told or f"specmoe-bench run {name} --report" if told or name else "nox -s reproduce")
