"""Conversion stores exactly the model's experts, and refuses what it cannot convert."""

from __future__ import annotations

import ctypes
import errno
import gc
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3MoeConfig, Qwen3MoeForCausalLM

from specmoe import ExpertStore, SpecMoE, StoreError, UnsupportedModelError
from specmoe.drafting import affinity
from specmoe.model import convert
from specmoe.model.checkpoint import build_shell
from specmoe.model.convert import build_store, open_or_build
from specmoe.model.layout import plan_layers
from specmoe.offload.device import allocate_pages
from specmoe.offload.sources import DiskSource
from tests.conftest import build
from tests.specmoe.model.checkpoints import rearranged


@pytest.mark.parametrize("family", ["qwen3", "mixtral-sliding-window", "deepseek-v3"])
def test_stored_experts_equal_the_models_fused_weights(family: str, tmp_path: Path) -> None:
    model = build(family, tmp_path / "model")
    store = build_store(tmp_path / "model", tmp_path / "store")
    modules = dict(model.named_modules())
    source = DiskSource(store)
    for layer, spec in enumerate(store.layers):
        for expert in range(spec.experts):
            buffer = allocate_pages(spec.stride_bytes)
            source.read(layer, expert, memoryview(buffer.numpy()))
            for name, tensor in store.tensors(layer, buffer).items():
                assert torch.equal(tensor, getattr(modules[spec.module], name)[expert])
    source.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["qwen3", "deepseek-v3", "qwen3-dense-between"])
def test_the_layout_of_a_store_is_known_before_it_is_written(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    build(family, tmp_path / "model")
    planned = plan_layers(build_shell(tmp_path / "model", dtype), dtype)
    store = build_store(tmp_path / "model", tmp_path / "store", dtype)
    assert [replace(spec, checksums=("",) * spec.experts) for spec in store.layers] == list(planned.values())


def test_dense_layers_have_no_file(tmp_path: Path) -> None:
    build("qwen3-dense-between", tmp_path / "model")
    store = build_store(tmp_path / "model", tmp_path / "store")
    assert [spec.model_layer for spec in store.layers] == [1, 3]


def test_a_store_of_another_checkpoint_is_refused(store: ExpertStore, tmp_path: Path) -> None:
    build("olmoe", tmp_path / "other")
    with pytest.raises(StoreError, match="another checkpoint"):
        open_or_build(tmp_path / "other", store.path)


def test_a_store_of_another_dtype_is_refused(store: ExpertStore, tiny: tuple[Path, PreTrainedModel]) -> None:
    with pytest.raises(StoreError, match=r"not torch\.bfloat16: delete it"):
        open_or_build(tiny[0], store.path, torch.bfloat16)


def test_a_model_without_experts_is_refused(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="no MoE layer"):
        SpecMoE.from_pretrained(tmp_path)


def test_an_unknown_model_family_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-family"}))
    with pytest.raises(UnsupportedModelError, match="no causal language model that transformers can build"):
        SpecMoE.from_pretrained(tmp_path)


def test_a_checkpoint_with_a_missing_expert_is_refused(tiny: tuple[Path, PreTrainedModel], tmp_path: Path) -> None:
    shutil.copytree(tiny[0], tmp_path / "model", ignore=shutil.ignore_patterns("*store*"))
    file = tmp_path / "model" / "model.safetensors"
    tensors = {k: v for k, v in load_file(file).items() if ".layers.1.mlp.experts.5." not in k}
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UnsupportedModelError, match="has 8 experts, the checkpoint holds 7"):
        build_store(tmp_path / "model", tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_truncated_checkpoint_is_refused(tiny: tuple[Path, PreTrainedModel], tmp_path: Path, cache: Path) -> None:
    shutil.copytree(tiny[0], tmp_path / "model", ignore=shutil.ignore_patterns("*store*"))
    file = tmp_path / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(UnsupportedModelError, match=r"model\.safetensors cannot be read"):
        SpecMoE.from_pretrained(tmp_path / "model")


def test_progress_counts_every_expert(tiny: tuple[Path, PreTrainedModel], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    build_store(tiny[0], tmp_path / "store", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 24) for i in range(1, 25)]


@pytest.mark.parametrize("experts", [8, 64])
@pytest.mark.parametrize("layout", ["one tensor per expert", "one tensor per layer"])
def test_conversion_holds_no_more_than_a_layer_in_memory(layout: str, experts: int, tmp_path: Path) -> None:
    """Anonymous memory: the kernel drops mapped pages of the checkpoint when it needs them."""
    config = build("qwen3", tmp_path / "unused").config.to_dict()
    size = {"moe_intermediate_size": 4096 // experts, "num_local_experts": experts}
    wide = Qwen3MoeConfig(**config | {"hidden_size": 512} | size)
    Qwen3MoeForCausalLM(wide).save_pretrained(
        tmp_path / "model", save_original_format=layout == "one tensor per expert"
    )
    layer_bytes = 3 * 4096 * 512 * 4
    gc.collect()
    before, held = _anonymous_bytes(), []
    build_store(tmp_path / "model", tmp_path / "store", progress=lambda *_: held.append(_anonymous_bytes()))
    assert len(held) == 3 * experts
    assert max(held) - before < 1.1 * layer_bytes + _THREADS_BYTES


@pytest.mark.parametrize("memory_bytes", [0, 16 << 20], ids=["short of memory", "in memory"])
@pytest.mark.parametrize("layout", ["one file", "layers end in other files", "a file per matrix"])
def test_affinity_tables_do_not_depend_on_where_they_are_computed(
    layout: str, memory_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = build("qwen3", tmp_path / "unused").config
    many = Qwen3MoeConfig(**config.to_dict() | {"num_local_experts": 48})
    Qwen3MoeForCausalLM(many).save_pretrained(tmp_path / "model")
    shard = {
        "one file": lambda key, place: "all",
        "layers end in other files": lambda key, place: str(place % 2 if "experts" in key else 2),
        "a file per matrix": lambda key, place: key.split(".")[-2] if "experts" in key else "other",
    }[layout]
    rearranged(tmp_path / "model", tmp_path / "sharded", shard)
    monkeypatch.setattr(convert, "_LEAST_MEMORY_BYTES", memory_bytes)
    store = build_store(tmp_path / "sharded", tmp_path / "store")
    store.verify()
    for layer, spec in enumerate(store.layers):
        experts = torch.from_file(str(store.layer_file(layer)), size=48 * spec.stride_bytes, dtype=torch.uint8)
        weights = experts.view(48, -1)[:, : spec.expert_bytes].view(store.dtype).double()
        wanted = torch.cdist(weights, weights, compute_mode="donot_use_mm_for_euclid_dist")
        assert (affinity.load_table(store, layer) - wanted / wanted.max()).abs().max() < 2**-11, "float16's rounding"


_THREADS_BYTES = 2 << 20  # whatever the size of the model


def _anonymous_bytes() -> int:
    """Memory in use, without what the C library has freed and keeps for reuse."""
    ctypes.CDLL(None).malloc_trim(0)
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("RssAnon")).split()[1]) * 1024


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {}}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": "../b"}}',
    ],
)
def test_a_malformed_index_is_refused_with_its_name(
    text: str, tiny: tuple[Path, PreTrainedModel], tmp_path: Path
) -> None:
    shutil.copytree(tiny[0], tmp_path / "model", ignore=shutil.ignore_patterns("*store*"))
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "a.safetensors")
    (tmp_path / "model" / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UnsupportedModelError, match=r"index\.json is not an index .* download it again"):
        build_store(tmp_path / "model", tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    tiny: tuple[Path, PreTrainedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(StoreError, match=r"takes 0\.0 GB, 0\.0 GB are free there: free disk space or choose another"):
        build_store(tiny[0], tmp_path / "store", progress=lambda *_: pytest.fail("an expert was converted"))
    assert not list(tmp_path.glob("store*"))


def test_a_folder_that_cannot_be_written_is_named_with_the_fix(
    tiny: tuple[Path, PreTrainedModel], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"file.store \(.*\): make its folder writable or choose .*SPECMOE_CACHE"):
        build_store(tiny[0], tmp_path / "file" / "store")


def test_a_disk_that_fills_up_leaves_nothing_and_is_named(
    tiny: tuple[Path, PreTrainedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StoreError, match=r"No space left on device\): free disk space or choose another folder"):
        build_store(tiny[0], tmp_path / "store")
    assert not list(tmp_path.glob("store*"))
