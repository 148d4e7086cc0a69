"""A record says what bounded the memory of a GPU, why its peak is unknown, and when a paced link was too slow."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from baselines import registry
from harness.run import worker
from harness.run.session import gpu_notes, held_on_device, tier_notes
from reports.results.record import Cell, Usage
from tests.reports.records import record

CELL = Cell(system="specmoe", model="m", batch_size=1, new_tokens=4, expert_budget_bytes=100, device="cuda")


def test_a_gpu_is_held_by_the_budget_by_a_cap_or_by_nothing() -> None:
    capped = {"system": "hf-resident", "device_limit_bytes": 500}
    assert held_on_device(CELL) == ("expert budget", 100)
    assert held_on_device(CELL.model_copy(update=capped)) == ("allocator cap", 500)
    assert held_on_device(CELL.model_copy(update={"system": "hf-resident"})) == ("nothing", None)
    assert held_on_device(CELL.model_copy(update=capped | {"system": "llama-cpp"})) == ("nothing", None)


@pytest.mark.parametrize(("system", "expected"), [("hf-resident", [0.5]), ("specmoe", []), ("llama-cpp", [])])
def test_torch_is_capped_for_systems_that_know_no_budget(
    system: str, expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[float] = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=1000))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, device: shares.append(share))
    cell = CELL.model_copy(update={"system": system, "device_limit_bytes": 500})
    worker.cap_device(cell, registry.systems()[system].card)
    worker.cap_device(cell.model_copy(update={"device": "cpu"}), registry.systems()[system].card)
    assert shares == expected


def test_a_missing_peak_is_noted_for_cells_on_a_gpu_only() -> None:
    usage = Usage(samples=1, period_s=0.1, sampler_cpu_share=0.0, gpu_memory_reason="NVML hides processes")
    assert gpu_notes(usage, CELL) == ["no peak of GPU memory: NVML hides processes"]
    assert gpu_notes(usage, CELL.model_copy(update={"device": "cpu"})) == []
    assert gpu_notes(usage.model_copy(update={"gpu_memory_reason": None, "peak_gpu_bytes": 5}), CELL) == []


@pytest.mark.parametrize(("reached_gb_s", "slow"), [(0.95, False), (0.5, True), (None, False)])
def test_a_link_slower_than_stated_is_noted(reached_gb_s: float | None, slow: bool) -> None:
    entry = record("specmoe", 5, slow_tier="paced:1GB/s")
    assert entry.metrics is not None
    metrics = entry.metrics.model_copy(update={"achieved_link_gb_s": reached_gb_s})
    notes: list[Any] = tier_notes(metrics, entry.cell, 1_000_000)
    assert any("slower than stated: 0.50 of 1.00 GB/s" in note for note in notes) is slow
