"""Result files by name: a file stands for itself, a results folder for what a run has written into it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

NAME = "results.jsonl"


def expand(paths: Iterable[Path]) -> list[Path]:
    """The files named, each folder replaced by its ``results.jsonl``, or, of a suite, by those of its experiments.

    Raises:
        ValueError: a folder holds neither.
    """
    return [file for path in map(Path, paths) for file in (_within(path) if path.is_dir() else [path])]


def single(path: Path) -> Path:
    """The one result file that a file or folder stands for.

    Raises:
        ValueError: the folder holds none, or those of several experiments.
    """
    files = expand([path])
    if len(files) > 1:
        raise ValueError(
            f"{path} holds results of {len(files)} experiments: name one of {', '.join(map(str, files[:3]))}"
            f"{', ...' if len(files) > 3 else ''}"
        )
    return files[0]


def _within(folder: Path) -> list[Path]:
    own = folder / NAME
    files = [own] if own.exists() else sorted(folder.glob(f"*/{NAME}"))
    if not files:
        raise ValueError(f"{folder} holds no {NAME}: name a result file, or the folder of a run")
    return files
