"""Conversion reads each file of a checkpoint once, hashes what it converts, and bounds what waits in memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from specmoe import UnsupportedModelError
from specmoe.model.convert import build_store, open_or_build
from specmoe.model.identity import identify
from specmoe.model.stream import ExpertStream, Piece, data_starts
from specmoe.offload.page_memory import PageMemory
from tests.specmoe.model.checkpoints import rearranged


@pytest.fixture
def sharded(tiny: tuple[Path, PreTrainedModel], tmp_path: Path) -> Path:
    """The checkpoint ``tiny`` in four shards that end within layers, expert after expert as published models are."""
    return rearranged(tiny[0], tmp_path / "model", lambda key, place: str(4 * place // len(tiny_keys(tiny[0]))))


def tiny_keys(folder: Path) -> list[str]:
    return sorted(load_file(folder / "model.safetensors"))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of every read of a checkpoint file."""
    found: list[int] = []
    original = os.preadv

    def preadv(handle: int, buffers: list[memoryview], offset: int) -> int:
        count = original(handle, buffers, offset)
        if os.readlink(f"/proc/self/fd/{handle}").endswith(".safetensors"):
            found.append(count)
        return count

    monkeypatch.setattr(os, "preadv", preadv)
    return found


def test_every_byte_is_read_once_and_the_store_is_identified_by_what_was_read(
    sharded: Path, tmp_path: Path, reads: list[int]
) -> None:
    store = build_store(sharded, tmp_path / "store")
    assert sum(reads) == sum(file.stat().st_size for file in sharded.glob("*.safetensors"))
    assert store.source["files"] == identify(sharded)["files"]
    del reads[:]
    open_or_build(sharded, tmp_path / "store")
    assert not reads, "an unchanged checkpoint is not read again"


def test_experts_whose_matrices_are_far_apart_are_read_again_rather_than_kept(
    tiny: tuple[Path, PreTrainedModel], tmp_path: Path, reads: list[int]
) -> None:
    usual = build_store(tiny[0], tmp_path / "usual")
    folder = rearranged(tiny[0], tmp_path / "model", lambda key, _: key.split(".")[-2] if "experts" in key else "other")
    del reads[:]
    store = build_store(folder, tmp_path / "store")
    assert [spec.checksums for spec in store.layers] == [spec.checksums for spec in usual.layers]
    total = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert total < sum(reads) < 2 * total
    store.verify()


def test_parts_that_wait_stay_within_their_limit(tmp_path: Path) -> None:
    tensors = {f"{kind}{i:02d}": torch.full((256,), float(i)) for kind in "abc" for i in range(20)}
    file = tmp_path / "x.safetensors"
    save_file(tensors, file)
    starts = data_starts(file)
    pieces = [Piece(i, k, file, starts[f"{k}{i:02d}"], (256,), torch.float32) for k in "abc" for i in range(20)]
    reader = ExpertStream([file], pieces, 8 * 1024, PageMemory(1 << 20))
    seen, held = {}, []
    for owner, parts in reader:
        seen[owner] = {part: tensor.clone() for part, tensor in parts.items()}
        held.append(reader.waiting_bytes)
    assert seen.keys() == set(range(20))
    assert all(bool((t == owner).all()) for owner, parts in seen.items() for t in parts.values())
    assert max(held) <= 8 * 1024 + 1024, "the limit, and the part that completes an expert"


def test_a_file_that_changes_while_it_is_converted_is_an_error(sharded: Path, tmp_path: Path) -> None:
    first = sorted(sharded.glob("*.safetensors"))[0]

    def touch(done: int, total: int) -> None:
        os.utime(first, ns=(done, done))

    with pytest.raises(UnsupportedModelError, match=r"changed while it was read: wait until its download"):
        build_store(sharded, tmp_path / "store", progress=touch)
    assert not (tmp_path / "store").exists()
