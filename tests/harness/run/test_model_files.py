"""The files of an experiment's model are found by its name, and a model that cannot be measured is refused first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.run.model_files import ModelFiles
from workloads import models


def test_a_model_has_its_checkpoint_store_and_prompts() -> None:
    files = ModelFiles.of("llama4-like", "float32")
    assert files.checkpoint == models.path("llama4-like")
    assert files.store == models.store_path("llama4-like", "float32")
    assert files.default_prompts == "llama4-like"


def test_an_encoder_decoder_is_refused_before_anything_is_written(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nllb-moe", "is_encoder_decoder": True}))
    with pytest.raises(ValueError, match="is an encoder-decoder, and experiments measure decoders: name another model"):
        ModelFiles.of(str(tmp_path), "float32")
    assert not list(cache.glob("*"))
