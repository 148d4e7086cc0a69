"""The files of an experiment's model are found by its name."""

from __future__ import annotations

import pytest

from harness.run.model_files import ModelFiles
from specmoe.errors import OptionError
from workloads import models


def test_a_model_has_its_checkpoint_store_and_prompts() -> None:
    files = ModelFiles.of("llama4-like", "float32")
    assert files.checkpoint == models.path("llama4-like")
    assert files.stored_dtype == "bfloat16"  # the checkpoint's own
    assert files.store == models.store_path("llama4-like", "bfloat16")
    assert files.default_prompts == "llama4-like"


def test_each_stored_dtype_has_a_store_and_scratch_folders_of_its_own() -> None:
    asked = [("float32", None), ("float32", "float32"), ("bfloat16", None), ("float16", None)]
    files = [ModelFiles.of("llama4-like", *dtypes) for dtypes in asked]
    assert [f.stored_dtype for f in files] == ["bfloat16", "float32", "bfloat16", "float16"]
    assert len({f.store for f in files}) == 3, "the two that are stored in bfloat16 share a store"
    assert len({f.scratch("mmap") for f in files}) == 4, "no file in one compute dtype is taken for the other"


def test_a_stored_dtype_that_would_change_results_is_refused_by_name() -> None:
    with pytest.raises(OptionError, match=r"stored_dtype=float16 with dtype=float32 would change .* are in bfloat16"):
        ModelFiles.of("llama4-like", "float32", "float16")
