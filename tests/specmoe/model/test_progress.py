"""A long conversion shows how far it is, a short one shows nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from specmoe.model.progress import SILENT_S, ShownProgress


def run(seconds: float, experts: int) -> None:
    """Convert ``experts`` experts of 1 GB evenly within ``seconds``."""
    now = 0.0
    shown = ShownProgress(Path("cache/model-bfloat16"), experts * 10**9, lambda: now)
    for done in range(1, experts + 1):
        now = seconds * done / experts
        shown(done, experts)


def test_without_a_terminal_there_is_a_line_for_every_five_percent(capsys: pytest.CaptureFixture[str]) -> None:
    run(seconds=1000, experts=200)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 21
    assert lines[1] == "converting experts to model-bfloat16: 5 % (10.0 of 200.0 GB)"
    assert lines[-1] == "converting experts to model-bfloat16: 100 % (200.0 of 200.0 GB)"


def test_a_short_conversion_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    run(seconds=SILENT_S / 2, experts=200)
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_one_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    run(seconds=1000, experts=200)
    assert "100%" in capsys.readouterr().err.splitlines()[-1]
