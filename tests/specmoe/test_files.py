"""A file or folder is never seen half written: not after an error, a crash, or with two writers."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from specmoe.files import folder_appears, replacing, sync_folder, write_text

CRASH = """
import os, sys
from pathlib import Path
from specmoe.files import {writer}
with {writer}(Path(sys.argv[1])) as partial:
    ({target}).write_text("half")
    os._exit(9)
"""


def _crash(path: Path, writer: str, target: str) -> None:
    """Run a process that dies between writing and renaming."""
    code = CRASH.format(writer=writer, target=target)
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 9


def _fail_after_writing(path: Path) -> None:
    path.write_text("half")
    raise RuntimeError


def test_a_written_file_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "result.json"
    for text in ("old", "schön\n"):
        write_text(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert os.listdir(path.parent) == ["result.json"]


def test_a_crash_before_the_rename_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("old")
    _crash(path, "replacing", "partial")
    assert path.read_text() == "old"
    write_text(path, "new")
    assert path.read_text() == "new"


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as partial:
        _fail_after_writing(partial)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.json"]


def test_a_block_that_writes_nothing_is_an_error_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), replacing(path):
        pass
    assert path.read_text() == "old"


def test_the_temporary_file_keeps_the_suffix_and_is_hidden_in_the_same_folder(tmp_path: Path) -> None:
    with replacing(tmp_path / "array.npz") as partial:
        partial.write_bytes(b"")
        assert partial.suffix == ".npz"
        assert partial.parent == tmp_path
        assert partial.name.startswith(".")


def test_of_two_processes_that_write_one_file_the_later_wins_whole(tmp_path: Path) -> None:
    path = tmp_path / "result.txt"
    other = f"from specmoe.files import write_text; from pathlib import Path; write_text(Path({str(path)!r}), 'b' * 9)"
    with replacing(path) as partial:
        partial.write_text("a" * 99)
        subprocess.run([sys.executable, "-c", other], check=True)
        assert path.read_text() == "b" * 9
    assert path.read_text() == "a" * 99
    assert os.listdir(tmp_path) == ["result.txt"]


def test_readers_see_whole_files_while_one_is_replaced(tmp_path: Path) -> None:
    path, texts = tmp_path / "result.txt", {"a" * 100_000, "b" * 200_000}
    write_text(path, "a" * 100_000)
    done = threading.Event()

    def write() -> None:
        for _ in range(10):
            for text in sorted(texts):
                write_text(path, text)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not done.is_set():
        seen.add(path.read_text())
    writer.join()
    assert seen <= texts


def test_a_folder_appears_with_all_its_files(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "store"
    with folder_appears(path) as partial:
        (partial / "one").write_text("1")
        assert not path.exists()
        assert partial.parent == path.parent
    assert (path / "one").read_text() == "1"
    assert os.listdir(path.parent) == ["store"]


def test_an_error_leaves_no_folder_behind(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), folder_appears(tmp_path / "store") as partial:
        _fail_after_writing(partial / "one")
    assert os.listdir(tmp_path) == []


def test_a_crash_leaves_no_folder_under_the_final_name(tmp_path: Path) -> None:
    path = tmp_path / "store"
    _crash(path, "folder_appears", "partial / 'one'")
    assert not path.exists()


def test_of_two_writers_of_a_folder_the_first_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with folder_appears(path) as partial:
        (partial / "one").write_text("ours")
        path.mkdir()
        (path / "one").write_text("theirs")
    assert (path / "one").read_text() == "theirs"
    assert os.listdir(tmp_path) == ["store"]


def test_a_folder_that_cannot_be_renamed_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with pytest.raises(NotADirectoryError), folder_appears(path):
        path.write_text("a file is in the way")
    assert os.listdir(tmp_path) == ["store"]


def test_a_missing_folder_cannot_be_forced_to_disk(tmp_path: Path) -> None:
    sync_folder(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync_folder(tmp_path / "missing")
