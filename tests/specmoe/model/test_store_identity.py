"""A store belongs to one checkpoint, byte for byte; an unchanged checkpoint is not read again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from harness.run.model_files import ModelFiles
from reports.results.record import Cell
from specmoe import SpecMoE, StoreError
from specmoe.model.convert import build_store, default_store, open_or_build
from specmoe.model.identity import identify
from specmoe.offload.store import INDEX

CELL = Cell(system="specmoe", model="any", batch_size=1, new_tokens=4)


@pytest.fixture
def model(tiny: tuple[Path, PreTrainedModel], tmp_path: Path) -> Path:
    """A copy of the checkpoint ``tiny`` that a test may change."""
    return Path(shutil.copytree(tiny[0], tmp_path / "model", ignore=shutil.ignore_patterns("*store*")))


def edit_one_expert(model: Path) -> None:
    """Flip one bit of the last byte of one expert's matrix; size and key list stay."""
    file = model / "model.safetensors"
    data = bytearray(file.read_bytes())
    header = int.from_bytes(data[:8], "little")
    end = json.loads(data[8 : 8 + header])["model.layers.1.mlp.experts.5.up_proj.weight"]["data_offsets"][1]
    data[8 + header + end - 1] ^= 0x40
    file.write_bytes(data)


def reference(model: Path, store: Path) -> Path:
    return ModelFiles(model, store, "embedded", "float32", "float32").reference(CELL, Path("references"))


def test_one_edited_expert_is_noticed_by_the_store_and_by_the_reference_tokens(model: Path, tmp_path: Path) -> None:
    store = build_store(model, tmp_path / "store")
    before = reference(model, store.path)
    edit_one_expert(model)
    with pytest.raises(StoreError, match="built from another checkpoint"):
        open_or_build(model, store.path)
    assert reference(model, store.path) != before


def test_a_store_in_the_cache_is_rebuilt_for_edited_weights(model: Path, cache: Path) -> None:
    where = default_store(model, torch.float32)
    old = open_or_build(model, where).layers[1].checksums
    edit_one_expert(model)
    new = open_or_build(model, where).layers[1].checksums
    assert [expert for expert in range(8) if old[expert] != new[expert]] == [5]


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_an_edited_json_file_is_noticed_by_the_reference_tokens(file: str, model: Path, tmp_path: Path) -> None:
    before = reference(model, tmp_path / "store")
    (model / file).write_text((model / file).read_text() + "\n")
    assert reference(model, tmp_path / "store") != before


def test_touched_but_equal_weights_are_accepted_and_keep_their_reference_tokens(model: Path, tmp_path: Path) -> None:
    store = build_store(model, tmp_path / "store")
    before = reference(model, store.path)
    os.utime(model / "model.safetensors", ns=(1, 1))
    reopened = open_or_build(model, store.path)
    assert reference(model, store.path) == before
    assert reopened.source["files"]["model.safetensors"]["mtime_ns"] == 1, "the new time is kept: no read next time"
    assert identify(model, json.loads((store.path / INDEX).read_text())["source"]) == identify(model)


def test_unchanged_weights_are_not_read_on_a_second_start(model: Path, tmp_path: Path) -> None:
    store = build_store(model, tmp_path / "store")
    before = reference(model, store.path)
    file = model / "model.safetensors"
    status = file.stat()
    file.write_bytes(b"\0" * status.st_size)  # any read of a byte would show
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    open_or_build(model, store.path)
    assert reference(model, store.path) == before


def test_a_store_of_an_earlier_release_is_refused_outside_the_cache_and_rebuilt_in_it(
    model: Path, tmp_path: Path, cache: Path
) -> None:
    for folder in (tmp_path / "store", default_store(model, torch.float32)):
        index = build_store(model, folder).path / INDEX
        known = json.loads(index.read_text())
        known["source"]["files"] = {"model.safetensors": {"bytes": 1, "samples_xxh3": "0" * 16}}
        index.write_text(json.dumps(known))
    with pytest.raises(StoreError, match="by an earlier release: delete it"):
        open_or_build(model, tmp_path / "store")
    assert "xxh3" in open_or_build(model, default_store(model, torch.float32)).source["files"]["model.safetensors"]


def test_without_a_store_folder_the_store_is_in_the_cache_and_the_models_folder_is_unchanged(
    model: Path, cache: Path
) -> None:
    before = sorted(model.iterdir())
    with SpecMoE.from_pretrained(model, gamma=0) as engine:
        assert engine.store.path.is_relative_to(cache)
        assert engine.store.path.name.endswith("-float32")
    assert sorted(model.iterdir()) == before
    other = Path(shutil.copytree(model, model.parent / "elsewhere" / "model"))
    assert default_store(other, torch.float32) != default_store(model, torch.float32)


@pytest.mark.slow
def test_two_processes_convert_a_checkpoint_once(model: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from specmoe.model.convert import open_or_build\n"
        "seen = []\n"
        "open_or_build(sys.argv[1], sys.argv[2], progress=lambda done, total: seen.append(done))\n"
        "print(len(seen))"
    )
    command = [sys.executable, "-c", code, str(model), str(tmp_path / "store")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    converted = sorted(int(process.communicate()[0]) for process in both)
    assert converted == [0, 24], "one process converts all experts, the other none"


def test_remains_of_a_killed_conversion_are_removed_and_those_of_a_running_one_kept(
    model: Path, tmp_path: Path
) -> None:
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    killed = tmp_path / f"store.partial-{int(gone.stdout)}"
    running = tmp_path / f"store.partial-{os.getppid()}"
    of_another_store = tmp_path / f"store-2.partial-{int(gone.stdout)}"
    for folder in (killed, running, of_another_store):
        folder.mkdir()
    open_or_build(model, tmp_path / "store")
    assert not killed.exists()
    assert running.exists()
    assert of_another_store.exists()


def test_every_shard_of_a_sharded_checkpoint_is_identified(tiny: tuple[Path, PreTrainedModel], tmp_path: Path) -> None:
    tiny[1].save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    files = identify(tmp_path / "sharded")["files"]
    assert sorted(files) == sorted(file.name for file in (tmp_path / "sharded").glob("*.safetensors"))
    assert len(files) > 1
    with safe_open(tmp_path / "sharded" / next(iter(files)), framework="pt") as shard:
        assert shard.keys()
