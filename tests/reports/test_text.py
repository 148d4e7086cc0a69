"""Numbers and shares keep their meaning when they are shortened to text."""

from __future__ import annotations

import pytest

from reports.wording.tables import number, percent


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (float("nan"), "–"), (0, "0"), (1234.5, "1,234"), (12.34, "12.3"), (0.01234, "0.012")],
)
def test_numbers_keep_three_digits(value: float | None, text: str) -> None:
    assert number(value) == text


def test_a_share_below_one_is_never_shown_as_100_percent() -> None:
    assert percent(0.9999) == "99.9 %"
    assert percent(1.0) == "100.0 %"
