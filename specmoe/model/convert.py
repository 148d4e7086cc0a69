"""Converts a checkpoint's experts to an expert store, with one expert in memory at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from specmoe.drafting import affinity
from specmoe.errors import StoreError, UnsupportedModelError
from specmoe.files import folder_appears
from specmoe.model.checkpoint import Checkpoint, ExpertKey, build_shell, checkpoint_files, expert_modules, open_shard
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

# Checkpoint names of an expert's matrices -> (tensor in the store, which part of it)
_PARTS = {
    "gate_proj": ("gate_up_proj", 0),
    "w1": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
    "w3": ("gate_up_proj", 1),
    "down_proj": ("down_proj", None),
    "w2": ("down_proj", None),
}


@dataclass
class _LayerSource:
    """Sources of one experts module: [expert][store tensor][part] -> (file, key, index into a fused tensor)."""

    parts: dict[int, dict[str, dict[int, tuple[Any, str, int | None]]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(dict))
    )


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
    model = build_shell(checkpoint)
    reader = Checkpoint(checkpoint, model)
    sources = _collect(reader, model)
    try:
        with folder_appears(out) as partial:
            stored = _write(reader, model, sources, partial, dtype, progress)
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


def _collect(reader: Checkpoint, model: PreTrainedModel) -> dict[str, _LayerSource]:
    """Assign every expert key to its module, expert and place."""
    modules = expert_modules(model)
    sources: dict[str, _LayerSource] = {name: _LayerSource() for name in modules}
    for file, _, key in reader.entries():
        place = reader.expert_key(key)
        if place is None:
            continue
        if place.module not in modules:
            raise UnsupportedModelError(
                f"checkpoint key {key} matches no experts module of {type(model).__name__}: its layout is not supported"
            )
        _assign(sources[place.module], place, modules[place.module], file, key)
    for name, source in sources.items():
        expected = modules[name].num_experts
        if len(source.parts) != expected:
            raise UnsupportedModelError(
                f"{name} has {expected} experts, the checkpoint holds {len(source.parts)}: "
                "it is incomplete, or its key layout is not supported"
            )
    return sources


def _assign(source: _LayerSource, place: ExpertKey, module: Any, file: Path, key: str) -> None:
    if place.expert is None:  # fused [E, ...]: one slice per expert
        for expert in range(module.num_experts):
            source.parts[expert][place.part][0] = (file, key, expert)
        return
    if place.part not in _PARTS:
        raise UnsupportedModelError(
            f"checkpoint key {key}: unknown part {place.part!r} of an expert, its layout is not supported"
        )
    name, part = _PARTS[place.part]
    source.parts[place.expert][name][part or 0] = (file, key, None)


class _Reader:
    """Keeps the current safetensors file open between tensors."""

    def __init__(self) -> None:
        self._file: Path | None = None
        self._opened: Any = None

    def tensor(self, file: Path, key: str, index: int | None) -> torch.Tensor:
        if file != self._file:
            self._opened, self._file = open_shard(file), file
        loaded: torch.Tensor = (
            self._opened.get_tensor(key) if index is None else self._opened.get_slice(key)[index : index + 1][0]
        )
        return loaded


def _write(
    reader: Checkpoint,
    model: PreTrainedModel,
    sources: dict[str, _LayerSource],
    folder: Path,
    dtype: torch.dtype | None,
    progress: Progress | None,
) -> ExpertStore:
    """Write all layer files and the index; ``dtype`` defaults to that of the first expert."""
    tensors = _Reader()
    first = next(iter(sources))
    dtype = dtype or next(iter(_expert_tensors(tensors, sources[first], 0, None, first).values())).dtype
    total = sum(len(source.parts) for source in sources.values())
    specs: list[LayerSpec] = []
    for module, source in sources.items():
        done = sum(spec.experts for spec in specs)
        specs.append(_write_layer(tensors, source, module, folder, dtype, _offset(progress, done, total)))
    facts = {"model_type": model.config.model_type, **fingerprint(reader.path)}
    write_index(folder, dtype, specs, facts)
    return ExpertStore(folder, dtype, specs, facts)


def _offset(progress: Progress | None, done: int, total: int) -> Callable[[int], None]:
    """Reports experts of one layer as experts of all, of which ``done`` were written before."""
    return lambda experts: progress(done + experts, total) if progress else None


def _write_layer(
    reader: _Reader,
    source: _LayerSource,
    module: str,
    folder: Path,
    dtype: torch.dtype,
    progress: Callable[[int], None],
) -> LayerSpec:
    """Write the file of one layer's experts, one expert in memory at a time."""
    model_layer = next(int(part) for part in module.split(".") if part.isdigit())
    file = f"layer_{model_layer:03d}.bin"
    checksums: list[str] = []
    tensors: tuple[TensorSpec, ...] = ()
    size = 0
    with (folder / file).open("wb") as out:
        for expert in range(len(source.parts)):
            tensors, data = _pack(_expert_tensors(reader, source, expert, dtype, module))
            size = len(data)
            checksums.append(write_expert(out, data))
            progress(expert + 1)
    return LayerSpec(model_layer, module, len(checksums), size, round_to_pages(size), file, tensors, tuple(checksums))


def _expert_tensors(
    reader: _Reader, source: _LayerSource, expert: int, dtype: torch.dtype | None, module: str
) -> dict[str, torch.Tensor]:
    """The expert's store tensors, gate and up concatenated [2I, H] as transformers' experts hold them."""
    if expert not in source.parts:
        raise UnsupportedModelError(f"the checkpoint lacks expert {expert} of {module}: download it again")
    named: dict[str, torch.Tensor] = {}
    for name, parts in sorted(source.parts[expert].items(), reverse=True):
        loaded = [reader.tensor(*parts[i]) for i in sorted(parts)]
        tensor = loaded[0] if len(loaded) == 1 else torch.cat(loaded, dim=0)
        named[name] = tensor.to(dtype or tensor.dtype).contiguous()
    if "down_proj" not in named or not {"gate_up_proj", "up_proj"} & set(named):
        raise UnsupportedModelError(
            f"{module} expert {expert} lacks a matrix (found {sorted(named)}): download the checkpoint again"
        )
    return named


def _pack(named: dict[str, torch.Tensor]) -> tuple[tuple[TensorSpec, ...], bytes]:
    """Concatenate tensors, each at a multiple of 64 bytes."""
    specs, data = [], bytearray()
    for name, tensor in named.items():
        data += b"\0" * (-len(data) % 64)
        specs.append(TensorSpec(name, tuple(tensor.shape), len(data)))
        data += tensor.flatten().view(torch.uint8).numpy().tobytes()
    return tuple(specs), bytes(data)
