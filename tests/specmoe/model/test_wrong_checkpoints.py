"""Checkpoints that are wrong in ways that people meet: loaded as transformers loads them, or refused before anything is
written, with the cause and the fix.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from specmoe import SpecMoE, UnsupportedModelError

NAME = "model.safetensors"
EXPERT = "model.layers.1.mlp.experts.5.up_proj.weight"


@pytest.fixture
def model(tiny: tuple[Path, PreTrainedModel], tmp_path: Path, cache: Path) -> Path:
    """A copy of the checkpoint ``tiny`` that a test may damage."""
    return Path(shutil.copytree(tiny[0], tmp_path / "model", ignore=shutil.ignore_patterns("*store*")))


def configure(**values: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | values))

    return edit


def rename(new: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / NAME).rename(folder / new)

    return edit


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        found = load_file(folder / NAME)
        change(found)
        save_file(found, folder / NAME, metadata={"format": "pt"})

    return edit


def second_shard(key: str) -> Callable[[Path], None]:
    """All tensors in one shard, and ``key`` again in another."""

    def edit(folder: Path) -> None:
        found = load_file(folder / NAME)
        (folder / NAME).rename(folder / "a.safetensors")
        save_file({key: found[key] * 2}, folder / "b.safetensors", metadata={"format": "pt"})
        weight_map = dict.fromkeys(found, "a.safetensors") | {key: "b.safetensors"}
        (folder / f"{NAME}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    return edit


def dangling_link(folder: Path) -> None:
    (folder / NAME).unlink()
    (folder / NAME).symlink_to(folder / "blobs" / "0123")


def folder_of_that_name(folder: Path) -> None:
    (folder / NAME).unlink()
    (folder / NAME).mkdir()


def pointer(folder: Path) -> None:
    (folder / NAME).write_text("version https://git-lfs.github.com/spec/v1\nsize 123\n")


def adapter(folder: Path) -> None:
    (folder / NAME).rename(folder / "adapter_model.safetensors")
    (folder / "config.json").rename(folder / "adapter_config.json")


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "more picks than experts": (configure(num_experts_per_tok=9), "num_experts_per_tok is 9 for layers of 8 experts"),
    "no picks": (configure(num_experts_per_tok=0), "num_experts_per_tok is 0 for layers of 8 experts"),
    "fewer experts in the config": (configure(num_local_experts=7), "expert 7 is one too many; check that config"),
    "more experts in the config": (configure(num_local_experts=9), "the first missing is expert 8; check that config"),
    "pad token outside the vocabulary": (configure(pad_token_id=10**6), r"can build \(Padding_idx must be within"),
    "no heads": (configure(num_attention_heads=0), r"can build \(integer division or modulo by zero"),
    "unknown activation": (configure(hidden_act="nope"), r"can build \(unknown name 'nope'\)"),
    "text for a number": (configure(num_hidden_layers="3"), "Field 'num_hidden_layers' expected int, got str"),
    "expert twice": (second_shard(EXPERT), "one is there twice"),
    "norm twice": (
        second_shard("model.norm.weight"),
        "in a.safetensors and model.norm.weight in b.safetensors are",
    ),
    "transposed expert": (tensors(lambda t: t.update({EXPERT: t[EXPERT].t().contiguous()})), "the other experts have"),
    "empty expert": (tensors(lambda t: t.update({EXPERT: t[EXPERT][:0].clone()})), r"has the shape \(0, "),
    "other name of an expert": (
        tensors(lambda t: t.update({f"{EXPERT}_orig": t.pop(EXPERT)})),
        "has no place for",
    ),
    "other dtype of an expert": (
        tensors(lambda t: t.update({EXPERT: t[EXPERT].char()})),
        "holds I8 numbers of an",
    ),
    "prefix of a wrapper": (
        tensors(lambda t: [t.update({f"module.{key}": t.pop(key)}) for key in list(t)]),
        "has no place for module.lm_head.weight",
    ),
    "pickle": (rename("pytorch_model.bin"), "convert pytorch_model.bin with transformers' from_pretrained and save"),
    "llama.cpp": (rename("model.Q4_K_M.gguf"), "Q4_K_M.gguf is of llama.cpp, use the safetensors"),
    "shard without index": (
        rename("model-00001-of-00001.safetensors"),
        "without model.safetensors.index.json",
    ),
    "name in capitals": (rename("Model.safetensors"), "a single file must be named model.safetensors"),
    "dangling link": (dangling_link, "is a link to a file that is not there, download it again"),
    "folder": (folder_of_that_name, r"model\.safetensors cannot be read"),
    "pointer of git-lfs": (pointer, r"model\.safetensors cannot be read .*download it again"),
    "adapter": (adapter, "holds an adapter, which is not applied: merge it"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_checkpoint_is_refused_before_anything_is_written(case: str, model: Path, cache: Path) -> None:
    damage, message = WRONG[case]
    damage(model)
    with pytest.raises(UnsupportedModelError, match=message) as refused:
        SpecMoE.from_pretrained(model)
    assert len(str(refused.value).replace(str(model), "")) < 300
    assert not list(cache.rglob("*"))


def single_file_beside_an_index(folder: Path) -> None:
    """Shards with other weights that an index names, as after a merge into one file."""
    halves = {key: tensor / 2 for key, tensor in load_file(folder / NAME).items()}
    save_file(halves, folder / "a.safetensors", metadata={"format": "pt"})
    weight_map = dict.fromkeys(halves, "a.safetensors")
    (folder / f"{NAME}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def link(folder: Path) -> None:
    """A file of the hub's cache."""
    (folder / NAME).rename(folder.parent / "blob")
    (folder / NAME).symlink_to(folder.parent / "blob")


LOADED = {
    "single file beside an index": single_file_beside_an_index,
    "link": link,
    "one expert in half precision": tensors(lambda t: t.update({EXPERT: t[EXPERT].half()})),
    "one expert in double precision": tensors(lambda t: t.update({EXPERT: t[EXPERT].double()})),
    "tied embeddings and another head": configure(tie_word_embeddings=True),
    "keys without the model's prefix": tensors(
        lambda t: [t.update({key.removeprefix("model."): t.pop(key)}) for key in list(t)]
    ),
}


@pytest.mark.parametrize("case", LOADED)
def test_an_unusual_checkpoint_gives_the_tokens_of_transformers(case: str, model: Path) -> None:
    LOADED[case](model)
    ids = torch.arange(1, 11).view(2, 5)
    mask = torch.ones_like(ids)
    settings = {"max_new_tokens": 8, "do_sample": False}
    expected = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).generate(
        ids, attention_mask=mask, **settings
    )
    with SpecMoE.from_pretrained(model, dtype=torch.float32, gamma=3, draft_experts=2) as engine:
        assert torch.equal(engine.generate(ids, mask, **settings).sequences, expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("values", [{"output_router_logits": True}, {"return_dict": False}])
def test_other_outputs_than_logits_that_a_config_asks_for_change_nothing(values: dict[str, bool], model: Path) -> None:
    """transformers itself generates with neither."""
    ids = torch.arange(1, 11).view(2, 5)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1] * 5])
    found = []
    for change in ({}, values):
        configure(**change)(model)
        with SpecMoE.from_pretrained(model, dtype=torch.float32, gamma=3, draft_experts=2) as engine:
            found.append(engine.generate(ids, mask, max_new_tokens=8).sequences)
    assert torch.equal(*found)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_expert_that_is_no_number_is_refused_and_leaves_no_store(value: float, model: Path, cache: Path) -> None:
    tensors(lambda t: t[EXPERT][3].fill_(value))(model)
    with pytest.raises(UnsupportedModelError, match=r"expert 5 of layer 1 has NaN or infinite weights"):
        SpecMoE.from_pretrained(model)
    assert not list(cache.rglob("*.bin"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_in_another_weight_is_loaded_as_transformers_does_and_named(value: float, model: Path) -> None:
    key = "model.layers.1.self_attn.o_proj.weight"
    tensors = load_file(model / NAME)
    tensors[key][0, 0] = value
    save_file(tensors, model / NAME, metadata={"format": "pt"})
    with (
        SpecMoE.from_pretrained(model, gamma=0) as engine,
        pytest.warns(UserWarning, match=rf"logits of Qwen3MoeForCausalLM are NaN, {key} holds NaN or infinite"),
    ):
        engine.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=1)
