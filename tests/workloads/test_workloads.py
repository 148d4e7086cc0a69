"""Widening keeps a model's tokens and routing; the embedded model and its prompts are as stated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, Qwen3MoeForCausalLM

from tests.conftest import build, reference
from tests.conftest import prompts as random_prompts
from tests.specmoe.model.checkpoints import edit
from workloads import inflate, models, prompts


@pytest.fixture(scope="module")
def embedded() -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(models.path("embedded"), dtype=torch.float32)
    return model.eval()


def test_the_embedded_model_is_a_plain_qwen3_moe_with_many_small_experts(embedded: PreTrainedModel) -> None:
    assert isinstance(embedded, Qwen3MoeForCausalLM)
    assert embedded.config.num_experts >= 64
    assert embedded.config.num_experts_per_tok == 2
    assert 6 <= embedded.config.num_hidden_layers <= 8


def test_the_embedded_model_was_trained_to_the_loss_its_card_states(embedded: PreTrainedModel) -> None:
    """Held-out prompts are far better than chance (ln 4096 = 8.3 nats) and near the stated held-out loss."""
    stated = json.loads((models.path("embedded") / "result.json").read_text())["held_out_loss_nats"]
    tokenizer = AutoTokenizer.from_pretrained(models.path("embedded"))
    losses = []
    for prompt in prompts.load()[:64]:
        ids = tokenizer(prompt.text, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            losses.append(float(embedded(ids, labels=ids).loss))
    assert stated < 3.0
    assert sum(losses) / len(losses) < stated + 1.0  # short windows have little context


def test_prompts_are_distinct_enough_and_fit_the_model() -> None:
    loaded = prompts.load()
    assert len({p.text for p in loaded}) == len({p.id for p in loaded}) == len(loaded) >= 256
    tokenizer = AutoTokenizer.from_pretrained(models.path("embedded"))
    lengths = [len(tokenizer(p.text)["input_ids"]) for p in loaded]
    assert min(lengths) >= 16
    assert max(lengths) <= 64
    assert len(set(lengths)) > 10, "batches must be ragged"


def test_prompts_wrap_around_at_the_end_of_the_set() -> None:
    count = len(prompts.measured(prompts.load()))
    assert prompts.select(3, offset=count - 1)[1:] == prompts.select(2)


def test_a_malformed_prompt_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"id": "a", "text": "x"}\n{"id": "b"}\n')
    with pytest.raises(ValueError, match=r"p\.jsonl:2 is not a prompt"):
        prompts.load(file)


def test_an_unknown_model_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"use .embedded.*, one of them as NAME-x32, a folder"):
        models.path("no-such-model")


@pytest.mark.parametrize("factor", [2, 8])
@pytest.mark.parametrize("family", ["qwen3", "qwen3-dense-between", "qwen2-shared-expert", "mixtral-sliding-window"])
def test_inflation_keeps_tokens_and_routing(family: str, factor: int, tmp_path: Path) -> None:
    model = build(family, tmp_path / "narrow")
    out = inflate.inflated(tmp_path / "narrow", tmp_path / "wide", factor)
    wide = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    ids, mask = random_prompts(4, longest=8)
    assert reference(wide, ids, mask, 12).tolist() == reference(model, ids, mask, 12).tolist()
    with torch.inference_mode():
        narrow_out = model(ids, attention_mask=mask, output_router_logits=True)
        wide_out = wide(ids, attention_mask=mask, output_router_logits=True)
    torch.testing.assert_close(wide_out.logits, narrow_out.logits, atol=1e-4, rtol=1e-5)
    for a, b in zip(wide_out.router_logits, narrow_out.router_logits, strict=True):
        assert torch.equal(a.topk(2).indices, b.topk(2).indices)


@pytest.mark.parametrize(
    ("family", "kept", "widened"),
    [
        ("qwen3-dense-between", "layers.0.mlp.gate_proj", "layers.1.mlp.experts.0.gate_proj"),
        ("qwen2-shared-expert", "layers.0.mlp.shared_expert.gate_proj", "layers.0.mlp.experts.0.gate_proj"),
        ("mixtral-sliding-window", "layers.0.self_attn.q_proj", "layers.0.block_sparse_moe.experts.0.w1"),
    ],
)
def test_only_routed_experts_are_widened(family: str, kept: str, widened: str, tmp_path: Path) -> None:
    build(family, tmp_path / "narrow")
    out = inflate.inflated(tmp_path / "narrow", tmp_path / "wide", 4)
    narrow, wide = _shapes(tmp_path / "narrow"), _shapes(out)
    assert wide[f"model.{kept}.weight"] == narrow[f"model.{kept}.weight"]
    rows, columns = narrow[f"model.{widened}.weight"]
    assert wide[f"model.{widened}.weight"] == [4 * rows, columns]


def test_a_family_whose_width_field_is_unknown_is_refused(tmp_path: Path) -> None:
    build("deepseek-v3", tmp_path / "narrow")  # its shared experts have the same width field
    with pytest.raises(ValueError, match=r"is a deepseek_v3 model: only qwen2_moe, .* can be widened"):
        inflate.inflated(tmp_path / "narrow", tmp_path / "wide", 2)
    assert not (tmp_path / "wide").exists()


def test_weights_are_written_in_bfloat16_where_that_is_exact(tmp_path: Path) -> None:
    build("qwen3", tmp_path / "narrow")
    edit(tmp_path / "narrow", lambda t: {k: v.bfloat16() for k, v in t.items()}, dtype="bfloat16")
    out = inflate.inflated(tmp_path / "narrow", tmp_path / "wide", 8)
    wide = inflate.inflated(tmp_path / "narrow", tmp_path / "float32", 8, torch.float32)
    for name in ("model-layer-001.safetensors", "model-rest.safetensors"):
        exact, found = load_file(wide / name), load_file(out / name)
        assert {t.dtype for t in found.values()} == {torch.bfloat16}
        assert all(torch.equal(found[key].float(), exact[key]) for key in exact)
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("value", [1 + 2**-12, 2.0**-133])  # needs more digits, or is lost when it is divided by 8
def test_one_value_that_bfloat16_does_not_hold_keeps_a_model_wider(value: float, tmp_path: Path) -> None:
    key = "model.layers.1.mlp.experts.3.down_proj.weight"
    build("qwen3", tmp_path / "narrow")
    edit(tmp_path / "narrow", lambda t: {k: v.bfloat16().float() for k, v in t.items()})
    edit(tmp_path / "narrow", lambda t: t | {key: torch.full_like(t[key], value)})
    out = inflate.inflated(tmp_path / "narrow", tmp_path / "wide", 8)
    found = load_file(out / "model-layer-001.safetensors")[key]
    assert found.dtype == torch.float32
    assert bool((found == value / 8).all())


def _shapes(folder: Path) -> dict[str, list[int]]:
    shapes = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            shapes |= {key: opened.get_slice(key).get_shape() for key in opened.keys()}  # noqa: SIM118
    return shapes


@pytest.mark.slow
def test_inflating_the_embedded_model_keeps_its_greedy_tokens(embedded: PreTrainedModel, tmp_path: Path) -> None:
    out = inflate.inflated(models.path("embedded"), tmp_path / "wide", 4)
    wide = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(out, padding_side="left")
    encoded = tokenizer([p.text for p in prompts.select(8)], return_tensors="pt", padding=True)
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    assert reference(wide, ids, mask, 32).tolist() == reference(embedded, ids, mask, 32).tolist()


def test_inflation_multiplies_expert_bytes_and_nothing_else(tiny: tuple[Path, PreTrainedModel], tmp_path: Path) -> None:
    out = inflate.inflated(tiny[0], tmp_path / "wide", 4)
    with safe_open(out / "model-layer-001.safetensors", "pt") as wide:
        assert wide.get_slice("model.layers.1.mlp.experts.3.down_proj.weight").get_shape() == [32, 64]
        assert wide.get_slice("model.layers.1.mlp.experts.3.up_proj.weight").get_shape() == [64, 32]
        assert wide.get_slice("model.layers.1.self_attn.q_proj.weight").get_shape() == [32, 32]


def test_an_inflation_that_would_not_be_exact_is_refused(tiny: tuple[Path, PreTrainedModel], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a power of two"):
        inflate.inflated(tiny[0], tmp_path / "wide", 3)
    assert not (tmp_path / "wide").exists()


def test_inflated_models_are_made_once_in_the_cache(cache: Path) -> None:
    folder = models.path("embedded-x2")
    made = (folder / "config.json").stat().st_mtime_ns
    assert folder.is_relative_to(cache)
    assert models.path("embedded-x2") == folder
    assert (folder / "config.json").stat().st_mtime_ns == made
