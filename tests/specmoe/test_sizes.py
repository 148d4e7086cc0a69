"""Sizes are read as bytes: numbers, decimal and binary units, and shares of a whole."""

from __future__ import annotations

import pytest

from specmoe.sizes import parse_bytes


@pytest.mark.parametrize(
    ("text", "nbytes"), [("256MB", 256_000_000), ("1.5GiB", 1_610_612_736), ("10%", 1_000), (77, 77), ("77", 77)]
)
def test_sizes_are_read(text: str | int, nbytes: int) -> None:
    assert parse_bytes(text, 10_000, "budget") == nbytes
