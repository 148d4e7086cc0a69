"""Every parameter, buffer and expert has the dtype and value that ``from_pretrained(dtype=...)`` gives it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from specmoe.model.checkpoint import Checkpoint, build_shell
from tests import families
from tests.conftest import build
from tests.specmoe.model.checkpoints import differences, edit
from tests.specmoe.model.coverage import EXPECTED

SUPPORTED = [family for family, row in EXPECTED.items() if not row.refused]


@pytest.mark.slow
@pytest.mark.parametrize("family", SUPPORTED)
def test_everything_loaded_equals_transformers(family: str, tmp_path: Path) -> None:
    families.build(family, tmp_path / "model")
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert differences(tmp_path / "model", dtype, tmp_path) == []


def test_distinct_score_corrections_stay_distinct_in_bfloat16(tmp_path: Path) -> None:
    key = "model.layers.1.mlp.gate.e_score_correction_bias"
    build("deepseek-v3", tmp_path / "model")
    distinct = 1 + torch.arange(8) * 1e-4  # all are 1 in bfloat16
    edit(tmp_path / "model", lambda tensors: tensors | {key: distinct})
    shell = build_shell(tmp_path / "model", torch.bfloat16)
    Checkpoint(tmp_path / "model", shell).load_non_experts(torch.device("cpu"))
    assert torch.equal(shell.get_buffer(key), distinct)


def test_weights_stored_in_another_dtype_than_the_configs_are_converted(tmp_path: Path) -> None:
    build("qwen3", tmp_path / "model")
    edit(tmp_path / "model", lambda t: {k: v.half() if "experts" in k else v for k, v in t.items()})
    for dtype in (torch.bfloat16, torch.float32):
        assert differences(tmp_path / "model", dtype, tmp_path) == []
