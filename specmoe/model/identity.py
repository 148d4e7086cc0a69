"""Which checkpoint a folder holds: the checksum of every safetensors file and of ``config.json``.

A checksum is kept with the file's size and modification time, in the index of the store made from it: while both are
the same, the file is not read again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from specmoe.errors import UnsupportedModelError
from specmoe.model.shards import checkpoint_files


def identify(checkpoint: Path, known: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """``files`` (bytes, mtime_ns and xxh3-64 by name) and ``config_xxh3`` of a checkpoint folder.

    Args:
        checkpoint: folder with ``config.json`` and safetensors files.
        known: an earlier result; the checksum of a file with the same size and modification time is taken from it.

    Raises:
        UnsupportedModelError: a file is missing or cannot be read.
    """
    earlier = _files(known or {})
    files = {}
    for file in checkpoint_files(checkpoint):
        name = file.relative_to(checkpoint).as_posix()
        files[name] = _identify_file(file, earlier.get(name))
    return {"files": files, "config_xxh3": checksum_of(checkpoint / "config.json")}


def content(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an identity that is equal for equal bytes: modification times are left out."""
    files = {name: (entry.get("bytes"), entry.get("xxh3")) for name, entry in _files(identity).items()}
    return {"files": files, "config_xxh3": identity.get("config_xxh3")}


def checksum_of(file: Path) -> str:
    """xxh3-64 of a whole file, as 16 hex digits.

    Raises:
        UnsupportedModelError: the file is missing or cannot be read.
    """
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, xxhash.xxh3_64).hexdigest()  # type: ignore[arg-type]
    except OSError as error:
        raise UnsupportedModelError(
            f"{file} cannot be read ({error.strerror}): check its disk and permissions, or download it again"
        ) from error


def _identify_file(file: Path, earlier: Mapping[str, Any] | None) -> dict[str, Any]:
    status = file.stat()
    found = {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
    if earlier and isinstance(earlier.get("xxh3"), str) and all(earlier.get(k) == v for k, v in found.items()):
        return {**found, "xxh3": earlier["xxh3"]}
    return {**found, "xxh3": checksum_of(file)}


def _files(identity: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    files = identity.get("files")
    return {n: e for n, e in files.items() if isinstance(e, Mapping)} if isinstance(files, Mapping) else {}
