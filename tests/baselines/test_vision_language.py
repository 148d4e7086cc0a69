"""Adapters measure the text model of a vision-language checkpoint, or say that they cannot load it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from baselines import registry
from baselines.contract import NotSupported, Request
from specmoe.model.wrappers import load_whole
from tests import families
from tests.baselines.builders import setting_of
from tests.conftest import prompts, reference

NEW = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vision-language") / "model"
    families.build("qwen3_vl_moe", path)
    return path


@pytest.mark.parametrize("name", ["specmoe", "naive", "mmap", "accelerate-cpu", "hf-resident"])
def test_new_tokens_are_those_of_the_wrapper(name: str, folder: Path, tmp_path: Path) -> None:
    options = {"gamma": 2, "draft_experts": 2} if name == "specmoe" else {}
    system, setting = registry.create(name, options), setting_of(folder, tmp_path)
    ids, mask = prompts(3)
    try:
        system.build(setting)
        system.prepare(setting)
        found = system.generate(Request(ids, mask, NEW, lambda: None)).rows()
    finally:
        system.close()
    expected = reference(load_whole(folder, torch.float32), ids, mask, NEW)
    assert found == expected[:, -NEW:].tolist()


def test_accelerate_disk_says_that_it_cannot_load_it(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(NotSupported, match="loads causal language models alone"):
        registry.create("accelerate-disk", {}).build(setting_of(folder, tmp_path))
