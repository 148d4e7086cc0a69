"""Files and folders that are never seen half written (made under another name, then renamed), and the cache folder."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; when the block ends, the file written there replaces ``path``.

    The file and its folder are forced to disk, so that the result also outlives a power loss.  The temporary path
    keeps the suffix of ``path``, by which some writers choose a format, and holds the process id, so that two
    processes do not write to one file.  After an error ``path`` is as it was and the temporary file is removed.

    Raises:
        OSError: the disk is full or not writable.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial-{os.getpid()}{path.suffix}")
    try:
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file by ``replacing``.

    Raises:
        OSError: the disk is full or not writable; ``path`` is left as it was.
    """
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def folder_appears(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``path``; when the block ends, it is renamed to ``path``.

    If another process has made ``path`` in the meantime, that one is kept and ours removed: both hold the same.

    Raises:
        OSError: the disk is full or not writable; ``path`` does not exist then.
    """
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        sync_folder(partial)
        try:
            partial.rename(path)
            sync_folder(path.parent)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_partials(path: Path) -> None:
    """Remove what killed processes left of ``folder_appears(path)``; folders of running processes are kept."""
    if not path.parent.is_dir():
        return
    for partial in path.parent.iterdir():
        name, _, process = partial.name.rpartition(".partial-")
        if name == path.name and process.isdecimal() and not _is_running(int(process)):
            shutil.rmtree(partial, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def cache_dir() -> Path:
    """The folder that keeps expert stores, constructed models and exported prompts between runs.

    ``SPECMOE_CACHE``, or ``~/.cache/specmoe-bench`` if it is not set.
    """
    named = os.environ.get("SPECMOE_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "specmoe-bench"


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to disk, so that a file made or renamed in it outlives a power loss."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
