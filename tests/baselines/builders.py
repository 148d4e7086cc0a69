"""Builders for tests of adapters: settings, and the command line with another package installed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.contract import Setting
from tests import ROOT


def needs(package: str) -> pytest.MarkDecorator:
    """Skip a test where an optional package is not installed."""
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


def setting_of(model: Path, scratch: Path, **changes: Any) -> Setting:
    """A float32 setting of a model folder, on one thread and without a limit; its store is in the folder."""
    given: dict[str, Any] = {"dtype": torch.float32, "expert_budget_bytes": None, "threads": 1}
    return Setting(model_path=model, store_path=model / "store", scratch=scratch, **given | changes)


def run_cli(*arguments: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Run ``specmoe-bench`` in a process of its own that can import packages from ``path``."""
    environment = os.environ | {"PYTHONPATH": f"{path}{os.pathsep}{ROOT}"}
    return subprocess.run(
        [sys.executable, "-m", "harness.cli", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
