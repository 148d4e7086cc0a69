"""Converts a checkpoint's experts to an expert store, with one expert in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from specmoe.drafting import affinity
from specmoe.errors import StoreError, UnsupportedModelError
from specmoe.files import folder_appears
from specmoe.model.checkpoint import Checkpoint, build_shell, checkpoint_dtype, checkpoint_files, open_shard
from specmoe.model.load_plan import Group, is_per_expert, target_dtype
from specmoe.model.support import expert_modules
from specmoe.offload.device import host_bytes
from specmoe.offload.store import (
    ExpertStore,
    LayerSpec,
    TensorSpec,
    checksum,
    round_to_pages,
    write_expert,
    write_index,
)

Progress = Callable[[int, int], None]
_SAMPLES = 64


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
    if out.exists():
        raise StoreError(f"{out} already exists: open it with ExpertStore.open, or delete it first")
    dtype = dtype or checkpoint_dtype(checkpoint)
    model = build_shell(checkpoint, dtype)
    reader = Checkpoint(checkpoint, model)
    _check_dtypes(reader, model, dtype)
    try:
        with folder_appears(out) as partial:
            stored = _write(reader, model, partial, dtype, progress)
            affinity.build_tables(stored)
    except OSError as error:
        raise StoreError(
            f"cannot write the expert store at {out} ({error}): free disk space or choose another"
        ) from error
    return ExpertStore.open(out)


def open_or_build(
    checkpoint: str | Path, out: str | Path, dtype: torch.dtype | None = None, progress: Progress | None = None
) -> ExpertStore:
    """The store at ``out``, built if it does not exist yet.

    Raises:
        StoreError: ``out`` holds a damaged store, or one of another checkpoint or dtype.
    """
    out = Path(out)
    if not out.exists():
        return build_store(checkpoint, out, dtype, progress)
    store = ExpertStore.open(out)
    if not fingerprint(Path(checkpoint)).items() <= store.source.items():
        raise StoreError(
            f"{out} was built from another checkpoint than {checkpoint}: delete it or choose another folder"
        )
    if dtype is not None and store.dtype != dtype:
        raise StoreError(f"{out} holds {store.dtype}, not {dtype}: delete it or choose another folder")
    return store


def fingerprint(checkpoint: Path) -> dict[str, Any]:
    """A cheap identification of a checkpoint: the sizes of its files, and a checksum of samples spread over each.

    Retrained weights differ nearly everywhere, so 64 samples of 4 kB distinguish them from others of the same shape.
    """
    files = {}
    for file in checkpoint_files(checkpoint):
        size = file.stat().st_size
        with file.open("rb") as opened:
            samples = bytearray(opened.read(1 << 16))
            for part in range(_SAMPLES):
                opened.seek(size * part // _SAMPLES)
                samples += opened.read(1 << 12)
        files[file.name] = {"bytes": size, "samples_xxh3": checksum(bytes(samples))}
    config = (checkpoint / "config.json").read_bytes()
    return {"files": files, "config_xxh3": checksum(config)}


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
    groups = reader.expert_groups()
    counts = {name: int(module.num_experts) for name, module in expert_modules(model).items()}
    specs: list[LayerSpec] = []
    for module, of_module in groups.items():
        done = sum(spec.experts for spec in specs)
        layer = _Layer(model, of_module, module, counts[module], dtype)
        specs.append(layer.write(folder, _offset(progress, done, sum(counts.values()))))
    facts = {"model_type": model.config.model_type, **fingerprint(reader.path)}
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
