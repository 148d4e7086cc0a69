"""Reads ``projection.json``, which ``specmoe-bench project`` writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from reports.results.load import ReportError

SCHEMA = "specmoe-bench.projection/1"

Document = dict[str, Any]


def load(path: Path) -> Document:
    """Read a projection.

    Raises:
        ReportError: missing, not JSON, or of another schema.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ReportError(f"no projection at {path} ({error.strerror}): run `specmoe-bench project`") from error
    except ValueError as error:
        raise ReportError(f"{path} is not JSON ({error}): run `specmoe-bench project` again") from error
    if not isinstance(content, dict) or content.get("schema_version") != SCHEMA:
        raise ReportError(f"{path} is no {SCHEMA} file: run `specmoe-bench project` again")
    return content
