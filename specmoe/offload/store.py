"""The expert store: a model's experts on disk, one after another and page-aligned, with an index and checksums.

Layout of a store folder (format version 1)::

    index.json          sizes, dtypes, tensor offsets, checksums (xxh3-64 per expert), source
    layer_003.bin       experts of decoder layer 3, one after another, each at a multiple of 4096 bytes
    affinity_003.npy    E x E float16 weight distances (specmoe.drafting.affinity)

The files of an encoder's layers are named ``layer_encoder_003.bin``.

Each expert is one contiguous read that O_DIRECT accepts, whatever tensors it holds.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
import xxhash

from specmoe.errors import StoreError
from specmoe.files import write_text
from specmoe.offload.device import PAGE_BYTES, allocate_pages, host_bytes
from specmoe.sizes import parse_bytes

FORMAT = "specmoe-expert-store"
VERSION = 1
INDEX = "index.json"


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of an expert: ``offset`` in bytes from the expert's start."""

    name: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class LayerSpec:
    """The experts of one MoE layer; ``stride_bytes`` is ``expert_bytes`` rounded up to whole pages.

    ``model_layer`` is the decoder layer's number in the model (``layer`` in the index); everywhere else ``layer``
    is the MoE layer's place in ``ExpertStore.layers``, which differs where a model has dense layers.
    """

    model_layer: int
    module: str
    experts: int
    expert_bytes: int
    stride_bytes: int
    file: str
    tensors: tuple[TensorSpec, ...]
    checksums: tuple[str, ...]


def round_to_pages(nbytes: int) -> int:
    """``nbytes`` rounded up to a multiple of 4096."""
    return -(-nbytes // PAGE_BYTES) * PAGE_BYTES


def checksum(data: Any) -> str:
    """xxh3-64 of a bytes-like object, as 16 hex digits."""
    return xxhash.xxh3_64_hexdigest(data)


def write_expert(out: BinaryIO, data: Any) -> str:
    """Append one expert's bytes and padding to a layer file; returns their checksum."""
    out.write(data)
    out.write(b"\0" * (round_to_pages(len(data)) - len(data)))
    return checksum(data)


def write_index(path: Path, dtype: torch.dtype, layers: list[LayerSpec], source: dict[str, Any]) -> None:
    """Write the index of a folder of layer files, which makes it a store."""
    index = {
        "format": FORMAT,
        "version": VERSION,
        "dtype": str(dtype).removeprefix("torch."),
        "source": source,
        "layers": [_layer_to_json(spec) for spec in layers],
    }
    write_text(path / INDEX, json.dumps(index) + "\n")


class ExpertStore:
    """An opened store: the place of every expert, and views of its bytes as tensors.

    ``dtype`` is that of all tensors.  ``open`` checks the index and all file sizes, ``verify`` also every byte.
    """

    def __init__(self, path: Path, dtype: torch.dtype, layers: list[LayerSpec], source: dict[str, Any]) -> None:
        self.path = path
        self.dtype = dtype
        self.layers = layers
        self.source = source

    @classmethod
    def open(cls, path: str | Path) -> ExpertStore:
        """Open an existing store.

        Raises:
            StoreError: no index, a malformed one, another version, or a missing or truncated file.
        """
        path = Path(path)
        index = _read_index(path)
        try:
            layers = [_layer_from_json(entry) for entry in index["layers"]]
            dtype = getattr(torch, index["dtype"])
            source = dict(index["source"])
            if not layers or not isinstance(dtype, torch.dtype):
                raise ValueError("no layers, or an unknown dtype")
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise StoreError(f"{path / INDEX} is malformed ({error!r}): {_REBUILD}") from error
        for spec in layers:
            _check_size(path / spec.file, spec)
        return cls(path, dtype, layers, source)

    @property
    def total_bytes(self) -> int:
        """Bytes of all experts, without padding."""
        return sum(spec.experts * spec.expert_bytes for spec in self.layers)

    @property
    def total_experts(self) -> int:
        return sum(spec.experts for spec in self.layers)

    @property
    def slot_bytes(self) -> int:
        """Bytes of a slot that fits any expert of the model."""
        return max(spec.stride_bytes for spec in self.layers)

    def budget_bytes(self, budget: int | str | None) -> int:
        """A budget in bytes; percentages are of the slots of all experts, None is all of them.

        Raises:
            ValueError: malformed or not positive.
        """
        everything = self.slot_bytes * self.total_experts
        return everything if budget is None else parse_bytes(budget, everything, "expert budget")

    def layer_file(self, layer: int) -> Path:
        """The file of a MoE layer."""
        return self.path / self.layers[layer].file

    def tensors(self, layer: int, buffer: torch.Tensor) -> dict[str, torch.Tensor]:
        """Views into ``buffer`` (uint8, at least ``expert_bytes``) as the expert's named tensors."""
        views = {}
        for spec in self.layers[layer].tensors:
            nbytes = self.dtype.itemsize
            for size in spec.shape:
                nbytes *= size
            views[spec.name] = buffer[spec.offset : spec.offset + nbytes].view(self.dtype).view(spec.shape)
        return views

    def check(self, layer: int, expert: int, data: memoryview) -> None:
        """Compare an expert's bytes with its checksum.

        Raises:
            StoreError: they differ; the message names layer, expert and file.
        """
        spec = self.layers[layer]
        if checksum(data[: spec.expert_bytes]) != spec.checksums[expert]:
            raise StoreError(
                f"expert {expert} of layer {spec.model_layer} in {self.layer_file(layer)} is corrupt "
                f"(checksum differs): {_REBUILD}"
            )

    def verify(self) -> None:
        """Read every expert and compare its checksum.

        Raises:
            StoreError: at the first corrupt expert.
        """
        for layer, spec in enumerate(self.layers):
            buffer = host_bytes(allocate_pages(spec.stride_bytes))
            with self.layer_file(layer).open("rb") as file:
                for expert in range(spec.experts):
                    file.seek(expert * spec.stride_bytes)
                    file.readinto(buffer)
                    self.check(layer, expert, buffer)


_REBUILD = "delete the store folder and convert the checkpoint again"


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index = json.loads((path / INDEX).read_text())
    except FileNotFoundError as error:
        raise StoreError(
            f"no expert store at {path}: convert a checkpoint with specmoe.model.convert.build_store"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StoreError(f"{path / INDEX} is not JSON ({error}): {_REBUILD}") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise StoreError(f"{path / INDEX} is not an expert store index: {_REBUILD}")
    if index.get("version") != VERSION:
        raise StoreError(
            f"{path} has store version {index.get('version')}, this release reads version {VERSION}: {_REBUILD}"
        )
    return index


def _layer_to_json(spec: LayerSpec) -> dict[str, Any]:
    fields = asdict(spec)
    return {"layer": fields.pop("model_layer"), **fields}


def _layer_from_json(entry: dict[str, Any]) -> LayerSpec:
    tensors = tuple(TensorSpec(t["name"], tuple(t["shape"]), int(t["offset"])) for t in entry["tensors"])
    fields = {"tensors": tensors, "checksums": tuple(entry["checksums"]), "model_layer": entry["layer"]}
    spec = LayerSpec(**{name: value for name, value in entry.items() if name != "layer"} | fields)
    sizes = (spec.model_layer, spec.experts, spec.expert_bytes, spec.stride_bytes)
    numbers = all(type(size) is int and size >= 0 for size in (*sizes, *(n for t in tensors for n in t.shape)))
    texts = all(isinstance(text, str) for text in (spec.module, spec.file, *spec.checksums, *(t.name for t in tensors)))
    if not numbers or not texts or not 0 < spec.expert_bytes <= spec.stride_bytes or Path(spec.file).name != spec.file:
        raise ValueError(f"layer {spec.model_layer} has a field of a wrong type or size")
    if len(spec.checksums) != spec.experts:
        raise ValueError(f"layer {spec.model_layer} has {len(spec.checksums)} checksums for {spec.experts} experts")
    return spec


def _check_size(file: Path, spec: LayerSpec) -> None:
    expected = spec.experts * spec.stride_bytes
    try:
        actual = file.stat().st_size
    except FileNotFoundError as error:
        raise StoreError(f"{file} is missing: {_REBUILD}") from error
    if actual != expected:
        raise StoreError(f"{file} has {actual} bytes, the index says {expected} (truncated?): {_REBUILD}")
