"""Small experiments for the tests of the harness."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from harness.plan.experiment import PlannedCell, plan, validate
from harness.plan.sizes import ExpertSizes

MINIMAL: dict[str, Any] = {
    "name": "x",
    "model": "embedded",
    "systems": [{"system": "on-demand"}],
    "batch_sizes": [1],
}
SIZES = ExpertSizes(100, {"float32": 1000, "bfloat16": 500, "float16": 500}, own="float32")


def planned(**changes: Any) -> list[PlannedCell]:
    """The cells of ``MINIMAL`` with changed fields, for a model of 100 experts of 1000 bytes in float32."""
    return plan(validate(MINIMAL | changes, "test"), SIZES)


def suite_file(path: Path, *experiments: Any, **more: Any) -> Path:
    """Write a suite of the given entries."""
    fields = {"name": "s", "title": "A suite", "experiments": list(experiments)}
    path.write_text(yaml.safe_dump(fields | more))
    return path
