"""Samples and environment facts."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from harness.machine import environment
from harness.machine.page_cache import drop_page_cache
from harness.machine.proc import group_peak_bytes, kernel_read_bytes, page_cache_bytes, resident_bytes
from harness.machine.telemetry import Telemetry


def test_the_peak_of_a_child_is_seen_from_outside() -> None:
    code = "import time; x = bytearray(150 << 20); time.sleep(1.5); del x; time.sleep(0.2)"
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


def test_totals_are_exact_and_peaks_are_of_samples(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_bytes(os.urandom(24 << 20))
    drop_page_cache([file])
    code = "import sys, time; open(sys.argv[1], 'rb').read()\nwhile time.process_time() < 0.3: pass"
    process = subprocess.Popen([sys.executable, "-c", code, str(file)])
    with Telemetry(process.pid, period_s=0.02) as telemetry:
        process.wait()
    usage = telemetry.usage()
    assert usage.disk_read_bytes >= 24 << 20
    assert usage.cpu_s >= 0.3
    assert 0 < usage.cpu_cores <= (os.cpu_count() or 1)
    assert usage.peak_pss_bytes is None or usage.peak_pss_bytes <= usage.peak_rss_bytes * 1.1
    assert usage.samples >= 3


def test_page_cache_and_peak_of_a_group_are_read_in_both_versions(tmp_path: Path) -> None:
    (tmp_path / "memory.stat").write_text("anon 5\nfile 1234\nfile_mapped 1\n")
    (tmp_path / "memory.peak").write_text("99\n")
    assert (page_cache_bytes(tmp_path), group_peak_bytes(tmp_path)) == (1234, 99)
    (tmp_path / "memory.stat").write_text("cache 77\nrss 3\n")
    (tmp_path / "memory.peak").unlink()
    (tmp_path / "memory.max_usage_in_bytes").write_text("88\n")
    assert (page_cache_bytes(tmp_path), group_peak_bytes(tmp_path)) == (77, 88)


def test_a_costly_sample_stretches_the_period() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.5)"])
    with Telemetry(process.pid, period_s=1e-6) as telemetry:
        process.wait()
    usage = telemetry.usage()
    assert usage.period_s > 1e-4, "an impossible period was not stretched"
    assert usage.sampler_cpu_share < 0.05
