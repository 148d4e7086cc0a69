"""A measured table names, for each product, dtype and number of rows, a kernel that runs on this machine."""

from __future__ import annotations

import pytest

from specmoe.compute import measure
from specmoe.compute.table import PAIRS, ROWS, Product, candidates, key
from specmoe.offload.device import allocate_pages


@pytest.mark.slow
def test_every_product_pair_of_dtypes_and_number_of_rows_gets_a_kernel_that_runs_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measure, "WIDTH", 48)
    monkeypatch.setattr(measure, "INNER", 32)
    table = measure.measure(allocate_pages, budget_s=0.0, footprint_bytes=1)
    products: tuple[Product, ...] = ("experts", "linear")
    assert set(table.kernels) == {key(what, dtype, stored) for what in products for stored, dtype in PAIRS}
    for stored, dtype in PAIRS:
        for what in products:
            chosen = table.kernels[key(what, dtype, stored)]
            assert len(chosen) == len(ROWS)
            assert set(chosen) <= set(candidates(dtype, stored))
