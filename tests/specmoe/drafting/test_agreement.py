"""Low-bit copies are made where they are right often enough for their memory."""

from __future__ import annotations

import pytest

from specmoe.drafting.agreement import ASSUMED, Agreement


@pytest.mark.parametrize(
    ("by_bits", "likely"),
    [
        ({3: 0.96, 4: 0.98, 8: 1.0}, [3, 4, 8]),
        ({2: 0.1, 3: 0.4, 4: 0.85, 8: 0.96}, [4, 8]),
        ({3: 0.97, 4: 0.971, 8: 0.99}, [3, 8]),
        ({3: 0.2, 4: 0.3}, []),
        ({}, []),
    ],
)
def test_more_bits_must_save_errors(by_bits: dict[int, float], likely: list[int]) -> None:
    assert Agreement({}, by_bits, "measured").likely_bits() == likely


def test_without_a_calibration_four_and_eight_bits_are_likely() -> None:
    assert ASSUMED.likely_bits() == [4, 8]
