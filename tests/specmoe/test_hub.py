"""A hub id is loaded from huggingface_hub's cache, downloaded on first use, or one error names cause and fix."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import OfflineModeIsEnabled
from transformers import PreTrainedModel

from specmoe import SpecMoE, hub
from tests.conftest import prompts, reference


def test_a_hub_id_is_fetched_and_generates(
    tiny: tuple[Path, PreTrainedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, model = tiny
    asked: list[str] = []

    def snapshot(name: str, **_: Any) -> str:
        asked.append(name)
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    ids, mask = prompts(2)
    with SpecMoE.from_pretrained("Qwen/Qwen3-30B-A3B", store=tmp_path / "store", gamma=0) as engine:
        output = engine.generate(ids, mask, max_new_tokens=5)
    assert asked == ["Qwen/Qwen3-30B-A3B"]
    assert output.sequences.tolist() == reference(model, ids, mask, 5).tolist()


def test_weights_are_fetched_once_in_one_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """gpt-oss and Mistral publish the same weights again for other libraries."""
    from huggingface_hub.utils import filter_repo_objects

    wanted: dict[str, Any] = {}
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **patterns: wanted.update(patterns) or str(tmp_path))
    hub.fetch("owner/name")
    files = ["config.json", "model-1.safetensors", "original/model.safetensors", "consolidated.safetensors", "x.bin"]
    assert list(filter_repo_objects(files, **wanted)) == ["config.json", "model-1.safetensors"]


def test_offline_without_the_model_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> str:
        raise OfflineModeIsEnabled("offline mode is enabled")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(ValueError, match=r"'owner/name' is not a local folder and cannot be fetched.*check the name"):
        SpecMoE.from_pretrained("owner/name")


def test_a_local_folder_named_like_an_id_is_used_as_it_is(
    tiny: tuple[Path, PreTrainedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny[0], tmp_path / "owner" / "name", ignore=shutil.ignore_patterns("*store*"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: pytest.fail("the hub was asked"))
    assert hub.resolve("owner/name") == Path("owner/name")
    shell = SpecMoE.from_pretrained("owner/name", dtype=torch.float32, gamma=0)
    shell.close()
