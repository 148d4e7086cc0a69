"""The table of kernels: which kernel a number of rows gets, the rule without a measurement, and the file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from specmoe.compute import table
from specmoe.compute.table import PAIRS, ROWS, TORCH, Kernel, KernelTable, Product

FEW: list[Kernel] = ["streaming"] * 4 + ["onednn"] * 4 + ["torch"]


def test_rows_between_two_measured_numbers_get_the_kernel_of_the_larger() -> None:
    one = KernelTable("test", {"experts float32": FEW})
    chosen = [one.choose("experts", torch.float32, rows) for rows in (1, 8, 9, 16, 128, 129, 256, 5000)]
    assert chosen == ["streaming"] * 2 + ["onednn"] * 3 + ["torch"] * 3
    assert one.streamed_rows("experts", torch.float32) == 8


def test_what_is_not_in_the_table_is_left_to_torch() -> None:
    one = KernelTable("test", {"experts float32": FEW})
    assert one.choose("linear", torch.float32, 1) == "torch"
    assert one.choose("experts", torch.float64, 1) == "torch"
    assert TORCH.streamed_rows("experts", torch.float32) == 0


def test_a_record_names_kernels_their_origin_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "123")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    one = KernelTable("default rule", {"experts float32": FEW})
    assert one.describe(torch.float32) == (
        "experts: streaming to 8 rows, onednn to 128 rows, torch above; linear: torch "
        f"(default rule; {torch.get_num_threads()} threads, GOMP_SPINCOUNT=123)"
    )


def test_the_rule_uses_only_kernels_that_run_here(cache: Path) -> None:
    chosen = table.load()
    assert chosen.origin == "default rule"
    products: tuple[Product, ...] = ("experts", "linear")
    for stored, dtype in PAIRS:
        for product in products:
            kernels = {chosen.choose(product, dtype, rows, stored) for rows in ROWS}
            assert kernels <= set(table.candidates(dtype, stored))


def test_narrow_weights_in_float32_have_entries_of_their_own() -> None:
    one = KernelTable("test", {"experts float32": FEW, "experts bfloat16 in float32": ["streaming"] * len(ROWS)})
    assert one.choose("experts", torch.float32, 999, torch.bfloat16) == "streaming"
    assert one.choose("experts", torch.float32, 999, torch.float32) == "torch"
    assert one.choose("experts", torch.float32, 1, torch.float16) == "torch", "there is no entry for it"
    assert one.describe(torch.float32, torch.bfloat16).startswith("experts: streaming; linear: torch (test;")


def test_a_measured_table_is_kept_per_machine_and_number_of_threads(cache: Path) -> None:
    before = torch.get_num_threads()
    measured = KernelTable("now", {"experts float32": FEW})
    try:
        torch.set_num_threads(2)
        table.save(KernelTable("first", {"experts float32": ["torch"] * len(ROWS)}), "2026-01-01")
        table.save(measured, "2026-01-02")
        kernels = table.rule().kernels | measured.kernels
        assert table.load() == KernelTable("measured 2026-01-02, what was not measured by the default rule", kernels)
        table.save(KernelTable("now", kernels), "2026-01-03")
        assert table.load() == KernelTable("measured 2026-01-03", kernels)
        torch.set_num_threads(1)
        assert table.load().origin == "default rule"
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("text", ["[", "[{}]", '[{"machine": {}, "date": "", "kernels": {"experts float32": ["x"]}}]'])
def test_a_damaged_file_is_named(text: str, cache: Path) -> None:
    cache.mkdir(parents=True)
    table.path().write_text(text)
    with pytest.raises(ValueError, match=r"kernels\.json is damaged: delete it"):
        table.load()
