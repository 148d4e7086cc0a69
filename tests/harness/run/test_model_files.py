"""The files of an experiment's model are found by its name."""

from __future__ import annotations

from harness.run.model_files import ModelFiles
from workloads import models


def test_a_model_has_its_checkpoint_store_and_prompts() -> None:
    files = ModelFiles.of("llama4-like", "float32")
    assert files.checkpoint == models.path("llama4-like")
    assert files.store == models.store_path("llama4-like", "float32")
    assert files.default_prompts == "llama4-like"
