"""The manifest of a result folder, which names the experiment it holds, and the folder's lock."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.timestamp import now
from reports.results.record import Cell
from specmoe.files import write_text

NAME = "manifest.json"


class ManifestError(ValueError):
    """A result folder that cannot be used for this run; the message names the fix."""


class PlannedEntry(BaseModel):
    """One cell of the plan, as results name it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cell_id: str
    label: str
    cell: Cell


class Manifest(BaseModel):
    """The experiment of a folder.  ``run_ids`` lists every configuration it has held; the last one is current."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal["specmoe-bench.manifest/1"] = "specmoe-bench.manifest/1"
    run_ids: list[str] = Field(min_length=1)
    config: dict[str, Any]
    rounds: int
    cells: list[PlannedEntry]
    created_at: str = Field(default_factory=lambda: now())
    updated_at: str = Field(default_factory=lambda: now())
    complete: bool = False


def read(folder: Path) -> Manifest | None:
    """The folder's manifest, None if it has none.

    Raises:
        ManifestError: it cannot be read.
    """
    path = folder / NAME
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ManifestError(f"cannot read {path} ({error.strerror}): choose another --out") from error
    except ValidationError as error:
        raise ManifestError(
            f"{path} is not a manifest of this release: choose another --out, or delete that one file "
            "(results beside it are kept)"
        ) from error


def claim(folder: Path, plan: Manifest, resume: bool) -> Manifest:
    """Record that a folder is used for ``plan``; returns its manifest, earlier configurations included.

    Raises:
        ManifestError: it holds another configuration and ``resume`` is not set, or it cannot be written.
    """
    known = read(folder)
    agree(known, plan.config, folder, resume)
    if known is not None:
        earlier = [name for name in known.run_ids if name not in plan.run_ids]
        plan = plan.model_copy(update={"run_ids": [*earlier, *plan.run_ids], "created_at": known.created_at})
    write(folder, plan)
    return plan


def write(folder: Path, manifest: Manifest, complete: bool = False) -> None:
    """Replace the folder's manifest atomically: after a crash there is the old one or the new one.

    Raises:
        ManifestError: the disk is full or not writable.
    """
    manifest = manifest.model_copy(update={"complete": complete, "updated_at": now()})
    try:
        write_text(folder / NAME, manifest.model_dump_json(indent=2) + "\n")
    except OSError as error:
        raise ManifestError(
            f"cannot write {folder / NAME} ({error.strerror}): free some space or choose another --out, "
            "then run the same command again to continue"
        ) from error


def agree(known: Manifest | None, config: dict[str, Any], folder: Path, resume: bool) -> None:
    """Check that results of ``config`` may go into a folder; ``resume`` allows a changed configuration.

    The title may differ: it changes no result.

    Raises:
        ManifestError: the folder holds another configuration; names the fields that differ.
    """
    if known is None or resume:
        return
    differ = sorted(key for key in {*known.config, *config} - {"title"} if known.config.get(key) != config.get(key))
    if not differ:
        return
    raise ManifestError(
        f"{folder} holds results of another configuration ({', '.join(differ)} differ): choose another --out, "
        "or add --resume to keep its finished cells and run the rest"
    )


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder for one runner; the kernel releases the lock however the runner ends.

    Raises:
        ManifestError: another runner holds it, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock").acquire(blocking=False)
    except Timeout as error:
        raise ManifestError(f"another run is writing to {folder}: wait for it, or choose another --out") from error
    except OSError as error:
        raise ManifestError(f"cannot write to {folder} ({error.strerror}): choose another --out") from error
    with lock:
        yield
