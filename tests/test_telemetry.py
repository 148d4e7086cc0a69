"""Samples and environment facts."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from harness import environment
from harness.limits import drop_page_cache
from harness.proc import kernel_read_bytes, resident_bytes
from harness.telemetry import Telemetry


def test_the_peak_of_a_child_is_seen_from_outside() -> None:
    code = "import time; x = bytearray(150 << 20); time.sleep(0.3); del x; time.sleep(0.2)"
    process = subprocess.Popen([sys.executable, "-c", code])
    with Telemetry(process.pid, period_s=0.01) as telemetry:
        process.wait()
    usage = telemetry.usage()
    assert usage.peak_rss_bytes is not None
    assert 150 << 20 <= usage.peak_rss_bytes <= 250 << 20


def test_a_process_that_is_gone_has_no_figures() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert resident_bytes(process.pid) is None
    assert kernel_read_bytes(process.pid) is None


def test_the_kernel_counts_uncached_reads_once(tmp_path: Path) -> None:
    if kernel_read_bytes() is None:
        pytest.skip("no /proc/PID/io")
    file = tmp_path / "data"
    file.write_bytes(os.urandom(32 << 20))
    drop_page_cache([tmp_path])
    before = kernel_read_bytes()
    file.read_bytes()
    cold = kernel_read_bytes()
    file.read_bytes()
    warm = kernel_read_bytes()
    assert None not in (before, cold, warm)
    assert cold - before == pytest.approx(32 << 20, rel=0.1)  # type: ignore[operator]
    assert warm - cold < 1 << 20  # type: ignore[operator]


def test_the_environment_is_plain_json_and_names_no_host() -> None:
    facts = environment.capture()
    text = json.dumps(facts)
    assert facts["cores"] == os.cpu_count()
    assert facts["ram_bytes"] > 1 << 28
    assert facts["torch"] is not None
    if len(socket.gethostname()) > 6:
        assert socket.gethostname() not in text


def test_the_environment_does_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert environment.capture()["git_revision"] is None
