"""Measured tokens are greedy and of fixed length, whatever the checkpoint's ``generation_config.json`` asks for."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import GenerationConfig

from baselines import registry
from baselines.contract import Request
from tests.baselines.builders import setting_of
from tests.conftest import build, prompts, reference


@pytest.mark.parametrize("name", ["specmoe", "on-demand", "hf-resident", "naive"])
def test_no_setting_of_the_file_reaches_a_measured_run(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    model = build("qwen3", folder)
    ids, mask = prompts(3)
    expected = reference(model, ids, mask, 8)[:, ids.shape[1] :].tolist()
    GenerationConfig(
        do_sample=True,
        temperature=2.0,
        repetition_penalty=1.5,
        min_new_tokens=3,
        max_new_tokens=2,
        eos_token_id=[expected[0][1], expected[1][2]],
    ).save_pretrained(folder)
    system, setting = registry.create(name, {}), setting_of(folder, tmp_path)
    try:
        system.build(setting)
        system.prepare(setting)
        assert system.generate(Request(ids, mask, 8, lambda: None)).rows() == expected
    finally:
        system.close()
