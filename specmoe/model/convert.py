"""Converts a checkpoint's experts to an expert store, with one expert in memory at a time."""

from __future__ import annotations

import contextlib
import hashlib
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import PreTrainedModel

from specmoe.drafting import affinity
from specmoe.errors import StoreError, UnsupportedModelError
from specmoe.files import cache_dir, folder_appears, remove_partials
from specmoe.model.checkpoint import Checkpoint, build_shell, checkpoint_dtype, open_shard
from specmoe.model.identity import content, identify
from specmoe.model.load_plan import Group, is_per_expert, target_dtype
from specmoe.model.support import expert_modules
from specmoe.offload.device import host_bytes
from specmoe.offload.store import (
    ExpertStore,
    LayerSpec,
    TensorSpec,
    round_to_pages,
    write_expert,
    write_index,
)

Progress = Callable[[int, int], None]


def build_store(
    checkpoint: str | Path, out: str | Path, dtype: torch.dtype | None = None, progress: Progress | None = None
) -> ExpertStore:
    """Convert the experts of a safetensors checkpoint into a new store at ``out``.

    Args:
        checkpoint: folder with ``config.json`` and safetensors files.
        out: folder to create; it appears only when complete.
        dtype: dtype of the stored experts; default is the checkpoint's own.
        progress: called with (experts done, all experts).

    Raises:
        UnsupportedModelError: the family or the key layout is not supported.
        StoreError: ``out`` exists, or the disk is full.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    plan = _plan(checkpoint, dtype)  # a checkpoint that is refused leaves nothing behind, not even a lock
    with _only_converter(out):
        if out.exists():
            raise StoreError(f"{out} already exists: open it with ExpertStore.open, or delete it first")
        return _convert(plan, out, progress)


def open_or_build(
    checkpoint: str | Path, out: str | Path, dtype: torch.dtype | None = None, progress: Progress | None = None
) -> ExpertStore:
    """The store at ``out``, built if it does not exist yet; a second process waits for the first one's conversion.

    A store of other weights, or of a release that did not identify them in full, is rebuilt if ``out`` is in the cache
    folder (``specmoe.files.cache_dir``) and refused elsewhere.

    Raises:
        UnsupportedModelError: the family or the key layout is not supported.
        StoreError: ``out`` holds a damaged store, or one of another checkpoint or dtype.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    if out.exists() and (store := _open_checked(checkpoint, out, dtype)) is not None:
        return store
    plan = _plan(checkpoint, dtype)
    with _only_converter(out):
        if out.exists():
            if (store := _open_checked(checkpoint, out, dtype)) is not None:
                return store
            shutil.rmtree(out)
        return _convert(plan, out, progress)


def default_store(checkpoint: str | Path, dtype: torch.dtype) -> Path:
    """The folder in the cache for the store of a checkpoint folder in a dtype; other paths have other folders."""
    folder = Path(checkpoint).resolve()
    path_hash = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
    return cache_dir() / "stores" / f"{folder.name}-{path_hash}-{str(dtype).removeprefix('torch.')}"


@contextlib.contextmanager
def _only_converter(out: Path) -> Iterator[None]:
    """Wait until no other process converts to ``out``, and remove what killed ones left.

    Raises:
        StoreError: the folder of ``out`` cannot be written.
    """
    lock = FileLock(out.with_name(f".{out.name}.lock"))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise _not_writable(out, error) from error
    try:
        remove_partials(out)
        yield
    finally:
        lock.release()


def _open_checked(checkpoint: Path, out: Path, dtype: torch.dtype | None) -> ExpertStore | None:
    """The store at ``out`` if it is this checkpoint's; None if it is not and may be rebuilt.

    Raises:
        StoreError: damaged, of another dtype, or of another checkpoint outside the cache folder.
    """
    store = ExpertStore.open(out)
    if dtype is not None and store.dtype != dtype:
        raise StoreError(f"{out} holds {store.dtype}, not {dtype}: delete it or choose another folder")
    found = identify(checkpoint, store.source)
    if content(found) == content(store.source):
        if not found.items() <= store.source.items():
            _keep_times(store, found)
        return store
    if out.resolve().is_relative_to(cache_dir().resolve()):
        return None
    raise StoreError(
        f"{out} was built from another checkpoint than {checkpoint}, or by an earlier release: "
        "delete it or choose another folder"
    )


def _keep_times(store: ExpertStore, found: dict[str, Any]) -> None:
    """Keep the new modification times of equal files, so that the next start does not read them."""
    store.source |= found
    with contextlib.suppress(OSError):  # a read-only store: the files are read again next time
        write_index(store.path, store.dtype, store.layers, store.source)


@dataclass(frozen=True)
class _Plan:
    """A checkpoint that has been checked, its shell and the dtype of the store."""

    reader: Checkpoint
    model: PreTrainedModel
    dtype: torch.dtype


def _plan(checkpoint: Path, dtype: torch.dtype | None) -> _Plan:
    """Check a checkpoint in full; nothing is written.

    Raises:
        UnsupportedModelError: it cannot be converted.
    """
    dtype = dtype or checkpoint_dtype(checkpoint)
    model = build_shell(checkpoint, dtype)
    reader = Checkpoint(checkpoint, model)
    _check_dtypes(reader, model, dtype)
    return _Plan(reader, model, dtype)


def _convert(plan: _Plan, out: Path, progress: Progress | None) -> ExpertStore:
    try:
        with folder_appears(out) as partial:
            stored = _write(plan.reader, plan.model, partial, plan.dtype, progress)
            affinity.build_tables(stored)
    except OSError as error:
        raise _not_writable(out, error) from error
    return ExpertStore.open(out)


def _not_writable(out: Path, error: OSError) -> StoreError:
    return StoreError(f"cannot write the expert store at {out} ({error}): free disk space or choose another")


def _check_dtypes(reader: Checkpoint, model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Check that every expert tensor has the store's dtype.

    Raises:
        UnsupportedModelError: ``from_pretrained`` keeps an expert tensor in another dtype.
    """
    for groups in reader.expert_groups().values():
        for group in groups:
            kept = target_dtype(model, group.target, dtype)
            if kept != dtype:
                raise UnsupportedModelError(
                    f"{type(model).__name__} keeps {group.target} in {kept} when loaded in {dtype}, an expert store "
                    f"has one dtype: load it in {kept}"
                )


def _write(
    reader: Checkpoint, model: PreTrainedModel, folder: Path, dtype: torch.dtype, progress: Progress | None
) -> ExpertStore:
    """Write all layer files and the index."""
    identity = identify(reader.path)  # first: files that change while they are converted do not match it
    groups = reader.expert_groups()
    counts = {name: int(module.num_experts) for name, module in expert_modules(model).items()}
    specs: list[LayerSpec] = []
    for module, of_module in groups.items():
        done = sum(spec.experts for spec in specs)
        layer = _Layer(model, of_module, module, counts[module], dtype)
        specs.append(layer.write(folder, _offset(progress, done, sum(counts.values()))))
    facts = {"model_type": model.config.model_type, **identity}
    write_index(folder, dtype, specs, facts)
    return ExpertStore(folder, dtype, specs, facts)


def _offset(progress: Progress | None, done: int, total: int) -> Callable[[int], None]:
    """Reports experts of one layer as experts of all, of which ``done`` were written before."""
    return lambda experts: progress(done + experts, total) if progress else None


class _Layer:
    """Reads, converts and writes the experts of one module, one in memory at a time."""

    def __init__(
        self, model: PreTrainedModel, groups: list[Group], module: str, experts: int, dtype: torch.dtype
    ) -> None:
        self._model, self._groups, self._module, self._experts, self._dtype = model, groups, module, experts, dtype
        self._opened: dict[Path, Any] = {}  # of this layer only: mapped pages of earlier layers are given back

    def write(self, folder: Path, progress: Callable[[int], None]) -> LayerSpec:
        """Write the layer's file and describe it."""
        number = next(int(part) for part in self._module.split(".") if part.isdigit())
        file = f"layer_{number:03d}.bin"
        specs, size = _layout({name: tuple(t.shape) for name, t in self._expert(0).items()}, self._dtype)
        data = torch.zeros(size, dtype=torch.uint8)
        checksums: list[str] = []
        with (folder / file).open("wb") as out:
            for expert in range(self._experts):
                tensors = self._expert(expert)
                for name, view in _views(specs, self._dtype, data).items():
                    view.copy_(tensors[name])
                checksums.append(write_expert(out, host_bytes(data)))
                progress(expert + 1)
        return LayerSpec(number, self._module, self._experts, size, round_to_pages(size), file, specs, tuple(checksums))

    def _expert(self, expert: int) -> dict[str, torch.Tensor]:
        """The expert's parameters by name, as transformers' experts modules hold them."""
        found: dict[str, torch.Tensor] = {}
        for group in self._groups:
            tensors = {pattern: [self._read(group, pattern, expert)] for pattern in group.sources}
            for target, tensor in group.convert(self._model, tensors).items():
                found[target.rpartition(".")[2]] = tensor[0]
        return {name: found[name] for name in sorted(found, reverse=True)}

    def _read(self, group: Group, pattern: str, expert: int) -> torch.Tensor:
        """An expert's tensor as stored: by itself, or [1, ...] from one that holds all experts."""
        apart = is_per_expert(pattern)
        stored = group.sources[pattern][expert if apart else 0]
        if stored.file not in self._opened:
            self._opened[stored.file] = open_shard(stored.file)
        tensor = self._opened[stored.file].get_slice(stored.key)
        loaded: torch.Tensor = tensor[:] if apart else tensor[expert : expert + 1]
        return loaded


def _layout(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> tuple[tuple[TensorSpec, ...], int]:
    """Place tensors one after another, each at a multiple of 64 bytes; returns their places and all bytes."""
    specs: list[TensorSpec] = []
    end = 0
    for name, shape in shapes.items():
        start = end + -end % 64
        specs.append(TensorSpec(name, shape, start))
        end = start + math.prod(shape) * dtype.itemsize
    return tuple(specs), end


def _views(specs: tuple[TensorSpec, ...], dtype: torch.dtype, data: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors of an expert as views of its bytes."""
    return {
        spec.name: data[spec.offset : spec.offset + math.prod(spec.shape) * dtype.itemsize].view(dtype).view(spec.shape)
        for spec in specs
    }
