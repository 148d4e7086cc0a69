"""Every system is what its card says: conformance for all, and what is special to some."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines import contract, fused, gpu_only, overlap
from baselines.contract import CapabilityCard, NotSupported, Request, Setting
from harness import leaks
from harness.conformance import Check
from harness.record import Record
from harness.runner import Runner, scratch_path
from harness.config import validate
from specmoe.convert import open_or_build

EXAMPLE = Path(__file__).parent / "example_system"


def _needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


def _system(name: str, *needs: str, **options: Any) -> Any:
    title = "-".join([name, *map(str, options.values())])
    return pytest.param(id=title, marks=[pytest.mark.conformance(name, **options), *map(_needs, needs)])


SYSTEMS = [
    _system("hf-resident"),
    _system("naive"),
    _system("mmap"),
    _system("on-demand"),
    _system("overlap"),
    _system("caching"),
    _system("caching", policy="lru"),
    _system("accelerate-disk"),
    _system("accelerate-cpu"),
    _system("specmoe", gamma=3, draft_experts=4),
    _system("deepspeed-zero", "deepspeed", offload="nvme"),
    _system("deepspeed-zero", "deepspeed", offload="cpu"),
    _system("deepspeed-inference", "deepspeed"),
    _system("llama-cpp", "llama_cpp", "gguf"),
]


@pytest.fixture(scope="session", autouse=True)
def _session_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One cache for all conformance runs of the session: stores and compiled parts are made once."""
    os.environ.setdefault("SPECMOE_CACHE", str(tmp_path_factory.getbasetemp() / "adapters-cache"))


@pytest.mark.slow
@pytest.mark.parametrize((), SYSTEMS)
def test_systems_keep_the_contract(conformance_check: Check) -> None:
    assert conformance_check.passed, conformance_check.detail
