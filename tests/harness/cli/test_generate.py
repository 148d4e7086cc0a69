"""``generate`` takes its defaults from the model's ``generation_config.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.cli import main as cli
from workloads import models


@pytest.fixture
def model(tmp_path: Path, cache: Path) -> Path:
    """The embedded model in a folder of its own, whose generation config a test may replace."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in models.path("embedded").iterdir():
        if file.name != "generation_config.json":
            (folder / file.name).symlink_to(file)
    return folder


def _new_text(model: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, Any], *arguments: str) -> str:
    (model / "generation_config.json").write_text(json.dumps(settings))
    assert cli.main(["generate", "import os", "--model", str(model), "--gamma", "0", *arguments]) == 0
    return capsys.readouterr().out.removeprefix("import os").removesuffix("\n")


def test_the_length_and_the_mode_are_the_files_unless_given(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    free = _new_text(model, capsys, {}, "--max-new-tokens", "6")
    few = _new_text(model, capsys, {"max_new_tokens": 2})
    assert few
    assert len(few) < len(free)
    assert free.startswith(few)
    hot = {"max_new_tokens": 6, "do_sample": True, "temperature": 50.0, "top_k": 0}
    assert _new_text(model, capsys, hot) != free
    assert _new_text(model, capsys, hot, "--greedy") == free


def test_a_setting_that_is_not_supported_is_one_line(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model / "generation_config.json").write_text('{"repetition_penalty": 1.1}')
    assert cli.main(["generate", "import os", "--model", str(model)]) != 0
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "repetition_penalty=1.1 is not supported" in message
    assert "remove it from generation_config.json" in message


def test_a_model_without_a_tokenizer_is_one_line_that_says_what_is_missing(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in model.glob("tokenizer*"):
        file.unlink()
    assert cli.main(["generate", "import os", "--model", str(model)]) == 2
    message = capsys.readouterr().err
    assert "holds no tokenizer that transformers can load" in message
    assert message.strip().endswith("or pass token ids to SpecMoE.generate")
    assert len(message) < 400 + len(str(model))


@pytest.mark.parametrize("prompts", [["import os"], ["import os", "def f(x): return"]])
def test_no_pad_token_is_needed(prompts: list[str], model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*prompts, "--model", str(model), "--gamma", "0", "--max-new-tokens", "3"]
    assert cli.main(["generate", *arguments]) == 0
    with_pad = capsys.readouterr().out
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").unlink()
    (model / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "pad_token"}))
    assert cli.main(["generate", *arguments]) == 0
    assert capsys.readouterr().out == with_pad
