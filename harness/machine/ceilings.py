"""Calibrations of this machine, stored with their date in the cache folder; results refer to the latest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.machine import environment
from reports.results.record import Ceilings
from specmoe.files import cache_dir, write_text

_MACHINE = ("cpu", "cores", "ram_bytes", "gpu")


def path() -> Path:
    """The calibration file: a JSON list, oldest first."""
    return cache_dir() / "calibration.json"


def machine() -> dict[str, Any]:
    """Facts that identify this machine in the calibration file; several machines may share a cache folder."""
    facts = environment.capture()
    return {name: facts[name] for name in _MACHINE}


def store(ceilings: Ceilings) -> Path:
    """Add a calibration of this machine; returns the file.

    Raises:
        OSError: the file cannot be written; earlier calibrations are kept.
    """
    entries = [*_entries(), {"machine": machine(), "ceilings": ceilings.model_dump()}]
    write_text(path(), json.dumps(entries, indent=2) + "\n")
    return path()


def latest() -> Ceilings | None:
    """The last calibration of this machine, or None."""
    here = machine()
    ours = [entry["ceilings"] for entry in _entries() if entry["machine"] == here]
    return Ceilings.model_validate(ours[-1]) if ours else None


def _entries() -> list[dict[str, Any]]:
    """All entries of the file.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        entries = json.loads(path().read_text(encoding="utf-8"))
        for entry in entries:
            Ceilings.model_validate(entry["ceilings"])
            dict(entry["machine"])
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError, ValidationError, RecursionError) as error:
        raise ValueError(f"{path()} is damaged: delete it and run `specmoe-bench calibrate`") from error
    return list(entries)
