"""A worker imports nothing heavy before its job arrives, and no reporting library at all: both would be measured."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests import ROOT


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("harness.run.__main__", ("torch", "numpy", "pydantic", "transformers", "baselines", "reports", "specmoe")),
        ("harness.run.worker", ("pandas", "matplotlib", "seaborn", "jinja2", "omegaconf")),
    ],
)
def test_a_worker_carries_only_what_its_cell_needs(module: str, absent: tuple[str, ...]) -> None:
    code = f"import {module}, sys; print(*[name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
