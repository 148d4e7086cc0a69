"""``generation_config.json`` is followed as transformers does; settings that are not supported are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from specmoe import OptionError, SpecMoE
from specmoe.errors import UnsupportedModelError
from specmoe.generation import merge, plain_settings
from specmoe.sampling import Sampling
from tests.conftest import build, prompts, reference


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    build("qwen3", folder)
    return folder


@pytest.fixture(scope="module")
def free(checkpoint: Path) -> list[list[int]]:
    """The tokens of three rows that never stop."""
    ids, mask = prompts(3)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    rows: list[list[int]] = reference(model, ids, mask, 30)[:, ids.shape[1] :].tolist()
    return rows


def _write(folder: Path, text: str) -> None:
    (folder / "generation_config.json").write_text(text)


def _engine(folder: Path) -> SpecMoE:
    return SpecMoE.from_pretrained(folder, store=folder / "store", gamma=3, draft_experts=2)


def _same(folder: Path, file: dict[str, Any], **call: Any) -> torch.Tensor:
    """This engine's sequences, which must be those of transformers, for a generation config file and a call."""
    _write(folder, json.dumps(file))
    ids, mask = prompts(3)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    expected = model.generate(ids, attention_mask=mask, **call)
    with _engine(folder) as engine:
        found = engine.generate(ids, mask, **call).sequences
    assert isinstance(found, torch.Tensor)
    assert found.tolist() == expected.tolist()
    return found


@pytest.mark.parametrize(
    ("file", "call"),
    [
        ({"max_new_tokens": 5}, {"max_new_tokens": 7}),
        ({"max_new_tokens": 5}, {"max_length": 30}),
        ({"max_length": 30}, {"max_new_tokens": 4}),
        ({"do_sample": True, "temperature": 0.6}, {"do_sample": False}),
        ({"typical_p": 0.5, "num_beams": 1, "use_cache": False, "length_penalty": 2.0}, {}),
        ({"max_new_tokens": 9}, {"generation_config": GenerationConfig(max_new_tokens=3, pad_token_id=2)}),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ({}, {}),
                ({"max_new_tokens": 5}, {}),
                ({"max_length": 30}, {}),
                ({"max_length": 30}, {"max_length": 20}),
                ({"max_length": 30, "max_new_tokens": 6}, {}),
                ({"do_sample": True, "top_k": 1}, {"max_new_tokens": 8}),
                ({"repetition_penalty": 1.3, "max_new_tokens": 8}, {"repetition_penalty": 1.0}),
                ({"min_new_tokens": 4}, {"min_new_tokens": None}),
            ]
        ),
    ],
    ids=str,
)
def test_limits_and_modes_are_those_of_transformers(
    file: dict[str, Any], call: dict[str, Any], checkpoint: Path
) -> None:
    _same(checkpoint, file, **call)


@pytest.mark.parametrize("pad", [95, None])
def test_each_of_several_stop_tokens_ends_a_row_and_the_first_fills_it(
    pad: int | None, checkpoint: Path, free: list[list[int]]
) -> None:
    stop = [max(free[0][3], free[1][6]), min(free[0][3], free[1][6])]
    found = _same(checkpoint, {"eos_token_id": stop, "pad_token_id": pad, "max_new_tokens": 30})
    assert (found[:, -1] == (stop[0] if pad is None else pad)).any(), "a row ended early"
    _same(checkpoint, {"eos_token_id": stop, "pad_token_id": pad}, eos_token_id=None)


def test_without_the_file_the_model_config_counts(checkpoint: Path, tmp_path: Path, free: list[list[int]]) -> None:
    build("qwen3", tmp_path)
    (tmp_path / "generation_config.json").unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"eos_token_id": free[0][3], "pad_token_id": 95}))
    ids, mask = prompts(3)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with _engine(tmp_path) as engine:
        found = engine.generate(ids, mask).sequences
    assert found.tolist() == model.generate(ids, attention_mask=mask).tolist()
    assert (found == 95).any()


def test_a_missing_mask_is_inferred_from_the_pad_token(checkpoint: Path) -> None:
    ids, mask = prompts(3)
    assert not mask.all()
    for file in ({"pad_token_id": 0}, {"pad_token_id": 0, "eos_token_id": 0}, {}):
        _write(checkpoint, json.dumps(file))
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
        with _engine(checkpoint) as engine:
            assert engine.generate(ids).sequences.tolist() == model.generate(ids).tolist(), file


def test_default_limit_ends_at_the_last_position(tmp_path: Path) -> None:
    build("qwen3", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 16}))
    assert _same(tmp_path, {}).shape[1] == 16


@pytest.mark.parametrize(
    "file",
    [
        {"do_sample": True},
        {"do_sample": True, "temperature": 0.5, "top_k": 7, "top_p": 0.8},
        {"do_sample": True, "top_k": 0, "min_p": 0.05},
    ],
    ids=str,
)
def test_sampled_distributions_are_those_of_transformers(file: dict[str, Any], checkpoint: Path) -> None:
    _write(checkpoint, json.dumps(file))
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    config, _ = model._prepare_generation_config(None)
    logits = torch.randn(4, 97) * 3
    expected = model._get_logits_processor(config, 1)(torch.ones(4, 1).long(), logits).softmax(-1)
    settings = merge(GenerationConfig.from_pretrained(checkpoint), None, {})
    torch.testing.assert_close(Sampling.of(settings, 0, torch.device("cpu")).probabilities(logits), expected)


@pytest.mark.parametrize(
    "setting",
    [
        {"repetition_penalty": 1.05},
        {"num_beams": 2},
        {"do_sample": True, "num_return_sequences": 2},
        {"min_length": 30},
        {"min_new_tokens": 2},
        {"bad_words_ids": [[5]]},
        {"suppress_tokens": [5]},
        {"begin_suppress_tokens": [5]},
        {"forced_bos_token_id": 0},
        {"forced_eos_token_id": 0},
        {"no_repeat_ngram_size": 2},
        {"encoder_repetition_penalty": 1.2},
        {"penalty_alpha": 0.6},
        {"guidance_scale": 1.5},
        {"sequence_bias": [[[5], 1.0]]},
        {"exponential_decay_length_penalty": [5, 1.1]},
        {"stop_strings": ["a"]},
        {"max_time": 1.0},
        {"cache_implementation": "quantized"},
        {"do_sample": True, "typical_p": 0.5},
    ],
    ids=str,
)
def test_a_setting_that_is_not_supported_is_refused_and_can_be_neutralised(
    setting: dict[str, Any], checkpoint: Path
) -> None:
    name = list(setting)[-1]
    _write(checkpoint, json.dumps(setting))
    config = GenerationConfig.from_pretrained(checkpoint)
    with pytest.raises(OptionError, match=rf"{name}=.* is not supported: pass {name}=.* or remove it from") as refusal:
        merge(config, None, {})
    assert len(str(refusal.value)) < 300
    merge(config, None, {name: plain_settings()[name]})
    with pytest.raises(OptionError, match=name):
        merge(GenerationConfig(), None, setting)


def test_unknown_settings_are_refused_in_a_call_and_ignored_in_a_file() -> None:
    config = GenerationConfig()
    merge(config, None, {})
    merge(GenerationConfig(chat_format="chatml"), None, {})  # entries of a checkpoint's own are ignored
    with pytest.raises(OptionError, match="no setting 'repetition_penalti'"):
        merge(config, None, {"repetition_penalti": 1.0})


def test_refusals_come_before_anything_runs(checkpoint: Path) -> None:
    _write(checkpoint, json.dumps({"repetition_penalty": 1.05}))
    ids, mask = prompts(2)
    with _engine(checkpoint) as engine:
        with pytest.raises(OptionError, match=r"repetition_penalty=1\.05 is not supported"):
            engine.generate(ids, mask)
        assert engine.link.snapshot().moved_bytes == 0
        engine.calibrate(ids, mask)


def test_malformed_settings_are_refused(tmp_path: Path) -> None:
    build("qwen3", tmp_path)
    for text in ("{", "[]", '{"max_new_tokens": 0}'):
        _write(tmp_path, text)
        with pytest.raises(
            UnsupportedModelError, match=r"generation_config.json is not valid .*: correct or remove it"
        ):
            _engine(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"max_new_tokens": -1}))
    with pytest.raises(UnsupportedModelError, match=r"max_new_tokens.* must be greater than 0"):
        _engine(tmp_path)
    assert not (tmp_path / "store").exists()
