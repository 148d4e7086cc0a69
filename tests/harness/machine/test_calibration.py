"""A calibration measures every peak rate, and the last one of this machine is found again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness.machine import calibrate, ceilings
from reports.results.record import Ceilings

KEPT = Ceilings(date="2026-01-01T00:00:00+00:00", disk_read_gb_s=2.0, memory_gb_s=10.0)


@pytest.mark.slow
def test_a_calibration_measures_every_ceiling_and_cleans_up(cache: Path) -> None:
    lines: list[str] = []
    measured = calibrate.calibrate(1, size_bytes=32 << 20, show=lines.append)
    assert measured.dram_copy_gb_s > 0.05
    assert measured.memory_gb_s > measured.dram_copy_gb_s * 0.5
    assert measured.memory_read_gb_s > measured.dram_copy_gb_s * 0.5
    assert set(measured.gemm_tflop_s) == {"float32", "bfloat16", "float16"}
    assert (measured.pcie_to_gpu_gb_s is not None) == torch.cuda.is_available()
    assert len(lines) == 10
    assert f"{cache} is on " in lines[0]
    assert list(cache.iterdir()) == []


def test_a_calibration_is_kept_and_the_last_of_this_machine_is_found(cache: Path) -> None:
    assert ceilings.latest() is None
    ceilings.store(KEPT)
    ceilings.store(KEPT.model_copy(update={"disk_read_gb_s": 3.0}))
    path = ceilings.path()
    path.write_text(path.read_text().replace("]\n", ', {"machine": {"cpu": "another"}, "ceilings": {"date": "x"}}]\n'))
    assert ceilings.latest().disk_read_gb_s == 3.0
    path.write_text("[")
    with pytest.raises(ValueError, match="delete it and run `specmoe-bench calibrate`"):
        ceilings.latest()


def test_a_full_disk_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="SPECMOE_CACHE"):
        calibrate.disk_read_gb_s(tmp_path, 1 << 60)
    assert list(tmp_path.iterdir()) == []
