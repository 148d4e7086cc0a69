"""A measured table names, for each product, dtype and number of rows, a kernel that runs on this machine."""

from __future__ import annotations

import pytest

from specmoe.compute import measure
from specmoe.compute.table import DTYPES, ROWS, candidates, name_of


@pytest.mark.slow
def test_every_product_dtype_and_number_of_rows_gets_a_kernel_that_runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "WIDTH", 48)
    monkeypatch.setattr(measure, "INNER", 32)
    table = measure.measure(budget_s=0.0, footprint_bytes=1)
    assert set(table.kernels) == {f"{what} {name_of(dtype)}" for what in ("experts", "linear") for dtype in DTYPES}
    for dtype in DTYPES:
        for what in ("experts", "linear"):
            chosen = table.kernels[f"{what} {name_of(dtype)}"]
            assert len(chosen) == len(ROWS)
            assert set(chosen) <= set(candidates(dtype))
