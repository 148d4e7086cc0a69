"""Threads, processes and files that a system leaves behind are found."""

from __future__ import annotations

import mmap
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.run import leaks


@pytest.fixture
def seen(tmp_path: Path) -> Callable[[], list[str]]:
    before = leaks.thread_names()
    return lambda: leaks.left_behind([tmp_path], before)


def test_a_thread_is_seen_until_it_ends(seen: Callable[[], list[str]]) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="stray")
    thread.start()
    assert seen() == ["thread stray"]
    stop.set()
    thread.join()
    assert seen() == []


def test_a_child_process_is_seen_until_it_ends(seen: Callable[[], list[str]]) -> None:
    child = subprocess.Popen(["sleep", "60"])
    assert seen() == [f"child process {child.pid}"]
    child.kill()
    child.wait()
    assert seen() == []


def test_open_and_mapped_files_are_seen(seen: Callable[[], list[str]], tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(b"x" * 8192)
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0):
        assert f"open file {file}" in seen()
        assert f"mapped file {file}" in seen()
    assert seen() == []


def test_a_marked_descendant_is_found() -> None:
    child = subprocess.Popen(["sleep", "60"], env=os.environ | {leaks.MARK: "test-mark"})
    try:
        assert leaks.marked_processes("test-mark") == [child.pid]
    finally:
        child.kill()
        child.wait()
