"""Doctor says how to fix everything that is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.cli import main as cli
from harness.machine import doctor


@pytest.mark.parametrize(("kib", "fine"), [(128, True), (None, True), (8192, False)])
def test_doctor_warns_of_a_read_ahead_that_slows_mapped_files(
    kib: int | None, fine: bool, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.machine.environment.read_ahead_kib", lambda folder: kib)
    (found,) = [check for check in doctor.examine() if check.name == "read-ahead"]
    assert found.ok is fine
    assert "map files" in found.fix


def test_doctor_says_how_to_fix_what_is_missing(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checks = doctor.examine()
    assert {"memory limit", "disk throttle", "O_DIRECT", "calibration", "PSS", "CPU energy"} <= {c.name for c in checks}
    assert all(check.fix for check in checks if not check.ok)
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert text.count("fix: ") == sum(not c.ok for c in doctor.examine())
    assert "specmoe-bench calibrate" in text
