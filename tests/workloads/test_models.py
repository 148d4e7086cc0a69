"""Named models have the weights and cards that they state, and are built only when asked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from harness.cli import main as cli
from specmoe import SpecMoE, hub
from specmoe.model.families.nllb_moe import follow_router
from tests.conftest import reference
from workloads import models
from workloads import prompts as prompt_sets
from workloads.model_card import ModelCard, sha256_of
from workloads.models import ModelSpec
from workloads.train import publish, samples
from workloads.train.architectures import load_trained
from workloads.train.recipe import RECIPES

COMMITTED = [spec for spec in models.catalogue() if spec.at is not None]
BY_NAME = pytest.mark.parametrize("spec", COMMITTED, ids=lambda spec: spec.name)


@BY_NAME
def test_committed_weights_are_those_their_card_describes(spec: ModelSpec) -> None:
    card = spec.card()
    assert card is not None
    weights = spec.folder() / "model.safetensors"
    assert sha256_of(weights) == card.weights_sha256
    with safe_open(weights, "pt") as opened:
        slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118
        assert {piece.get_dtype() for piece in slices.values()} == {"BF16"}
        sizes = {key: torch.Size(piece.get_shape()).numel() for key, piece in slices.items()}
    assert card.parameters == sum(sizes.values())
    assert card.expert_parameters == sum(size for key, size in sizes.items() if ".experts." in key)


@BY_NAME
def test_cards_follow_from_the_committed_recipes(spec: ModelSpec) -> None:
    card, recipe = spec.card(), RECIPES[spec.name]
    assert card is not None
    assert card.data_sha256 == recipe.data_sha256
    assert (card.experts, card.experts_per_token, card.steps) == (
        recipe.experts,
        recipe.experts_per_token,
        recipe.steps,
    )
    assert [layer.layer for layer in card.routing] == list(
        range(recipe.sparse_step - 1, recipe.layers, recipe.sparse_step)
    )
    page = (spec.folder() / "README.md").read_text()
    for fact in (card.data_sha256, "held-out loss", "final train loss", "op-10 % share", "epeat rate", "licence"):
        assert fact in page


def test_committed_weights_stay_small() -> None:
    sizes = {spec.name: (spec.folder() / "model.safetensors").stat().st_size for spec in COMMITTED}
    assert max(sizes.values()) < 30e6
    assert sum(size for name, size in sizes.items() if name not in models.SUPERSEDED) < 60e6


def test_superseded_models_have_a_successor_and_no_others() -> None:
    named = {spec.name for spec in COMMITTED}
    assert set(models.SUPERSEDED) | set(models.SUPERSEDED.values()) <= named
    assert not set(models.SUPERSEDED) & set(models.SUPERSEDED.values())


PAPER_CLASSES = [spec for spec in COMMITTED if spec.name in models.SUPERSEDED.values()]
IN_PAPER_CLASSES = pytest.mark.parametrize("spec", PAPER_CLASSES, ids=lambda spec: spec.name)


def _trained(spec: ModelSpec) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, Path]:
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(spec.folder())
    return load_trained(RECIPES[spec.name], spec.folder()), tokenizer, prompt_sets.FOLDER / f"{spec.prompts}.jsonl"


@pytest.mark.slow
@IN_PAPER_CLASSES
def test_weights_in_the_papers_classes_have_the_loss_that_their_card_states(spec: ModelSpec) -> None:
    card, result = spec.card(), json.loads((spec.folder() / "result.json").read_text())
    assert card is not None
    assert card.prompts_loss_nats is not None
    assert samples.prompts_loss(*_trained(spec)) == pytest.approx(card.prompts_loss_nats, abs=1e-3)
    assert card.held_out_loss_nats == pytest.approx(result["held_out_loss_nats"], abs=1e-4)
    assert card.prompts_loss_nats == pytest.approx(card.held_out_loss_nats, abs=0.6)  # prompts are longer than most


@pytest.mark.slow
@IN_PAPER_CLASSES
def test_what_a_card_shows_is_what_generate_gives(spec: ModelSpec, tmp_path: Path) -> None:
    model, tokenizer, file = _trained(spec)
    shown = publish.SHOWN[model.config.is_encoder_decoder]
    first = tmp_path / "first.jsonl"
    first.write_text("".join(file.read_text(encoding="utf-8").splitlines(keepends=True)[: samples.BATCH]))
    page = (spec.folder() / "README.md").read_text(encoding="utf-8")
    for sample in samples.continuations(model, tokenizer, first)[:shown]:
        assert sample.continuation.strip().replace("|", "\\|") in page


@pytest.mark.slow
@IN_PAPER_CLASSES
def test_widened_models_in_the_papers_classes_write_the_same_text(spec: ModelSpec, cache: Path) -> None:
    wide = models.path(f"{spec.name}-x2")
    assert wide.is_relative_to(cache)
    narrow_model, tokenizer, _ = _trained(spec)
    wide_model = load_trained(RECIPES[spec.name], wide)
    texts = [p.text for p in prompt_sets.load(spec.prompts)[:3]]
    encoded = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
    same = [m.generate(**encoded, max_new_tokens=12, do_sample=False) for m in (narrow_model, wide_model)]
    assert torch.equal(*same)


def test_the_translator_needs_no_argument_to_write_french() -> None:
    spec = models.find("nllb-moe-like")
    model, tokenizer, _ = _trained(spec)
    output = model.generate(**tokenizer(["Open the file", "Cancel"], return_tensors="pt", padding=True))
    assert output[:, 0].tolist() == [tokenizer.eos_token_id] * 2
    assert output[:, 1].tolist() == [tokenizer.convert_tokens_to_ids("fra_Latn")] * 2
    alone = model.generate(**tokenizer(["Cancel"], return_tensors="pt"))[0]
    assert tokenizer.decode(output[1], skip_special_tokens=True) == tokenizer.decode(alone, skip_special_tokens=True)


@IN_PAPER_CLASSES
def test_committed_tokenizers_keep_the_text_of_their_prompts(spec: ModelSpec) -> None:
    tokenizer = AutoTokenizer.from_pretrained(spec.folder())
    for prompt in prompt_sets.load(spec.prompts)[:50]:
        ids = tokenizer(prompt.text)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == prompt.text.strip()


@BY_NAME
def test_default_prompts_are_distinct_and_fit_the_model(spec: ModelSpec) -> None:
    loaded = prompt_sets.load(spec.prompts)
    assert len({p.text for p in loaded}) == len({p.id for p in loaded}) == len(loaded) >= 256
    tokenizer = AutoTokenizer.from_pretrained(spec.folder())
    lengths = [len(tokenizer(p.text)["input_ids"]) for p in loaded]
    assert 8 <= min(lengths) < max(lengths) <= 64


DECODERS = [s for s in COMMITTED if s.name not in ("embedded", "nllb-moe-like")]


@pytest.mark.parametrize("spec", DECODERS, ids=lambda spec: spec.name)
def test_trained_models_run_token_for_token_through_the_engine(spec: ModelSpec, tmp_path: Path) -> None:
    folder = spec.folder()
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    texts = [p.text for p in prompt_sets.load(spec.prompts)[7:9]]
    encoded = tokenizer(texts, return_tensors="pt", padding=True)
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    with SpecMoE.from_pretrained(
        folder, dtype=torch.float32, store=tmp_path / "store", gamma=4, draft_experts=2, expert_budget="50%"
    ) as engine:
        output = engine.generate(ids, mask, max_new_tokens=12, eos_token_id=None)
    assert output.sequences is not None
    assert output.sequences.tolist() == reference(model, ids, mask, 12).tolist()


@pytest.mark.parametrize("gamma", [pytest.param(0, marks=pytest.mark.slow), 4])
def test_the_translator_runs_token_for_token_through_the_engine(gamma: int, tmp_path: Path) -> None:
    spec = models.find("nllb-moe-like")
    model: PreTrainedModel = AutoModelForSeq2SeqLM.from_pretrained(spec.folder(), dtype=torch.float32).eval()
    follow_router(model)
    tokenizer = AutoTokenizer.from_pretrained(spec.folder())
    encoded = tokenizer([p.text for p in prompt_sets.load(spec.prompts)[7:10]], return_tensors="pt", padding=True)
    expected = model.generate(**encoded, max_new_tokens=16, do_sample=False)
    with SpecMoE.from_pretrained(
        spec.folder(), dtype=torch.float32, store=tmp_path / "store", gamma=gamma, draft_experts=2, expert_budget="50%"
    ) as engine:
        output = engine.generate(encoded["input_ids"], encoded["attention_mask"], max_new_tokens=16)
    assert output.sequences is not None
    assert output.stats is not None
    assert output.sequences.tolist() == expected.tolist()
    assert (output.stats.acceptance_rate or 0) > 0 or gamma == 0


def test_widened_models_are_measured_on_their_base_models_prompts() -> None:
    base, wide = models.find("embedded"), models.find("embedded-x8")
    assert wide.prompts == base.prompts
    assert wide.on_use
    assert base.revision in wide.folder().name
    assert models.store_path("embedded-x8", "float32") != models.store_path("embedded", "float32")


def test_a_factor_that_would_not_be_exact_is_refused(cache: Path) -> None:
    with pytest.raises(ValueError, match="not a power of two"):
        models.path("embedded-x3")
    assert not list((cache / "models").glob("*"))


def test_a_model_built_by_command_is_never_built_unasked(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def builder(folder: Path, progress: models.Progress) -> None:
        progress("half way")
        folder.mkdir()
        (folder / "config.json").write_text("{}")

    heavy = ModelSpec("heavy", "takes an hour", "here", "MIT", constructed=True, revision="r1", builder=builder)
    monkeypatch.setattr(models, "catalogue", lambda: [heavy])
    with pytest.raises(ValueError, match="run 'specmoe-bench models build heavy' first"):
        models.path("heavy")
    with pytest.raises(ValueError, match="run 'specmoe-bench models build heavy' first"):
        models.path("heavy-x2")
    said: list[str] = []
    assert heavy.build(said.append) == cache / "models" / "heavy-r1" == models.path("heavy")
    assert heavy.build(said.append) == heavy.folder()
    assert said == ["half way"]


def test_a_hub_id_without_a_hub_names_cause_and_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "snapshot_download", _unreachable)
    assert not models.find("owner/name").is_built()
    with pytest.raises(ValueError, match=r"'owner/name' is not a local folder and cannot be fetched.*check the name"):
        models.path("owner/name")


def _unreachable(*args: object, local_files_only: bool = False, **kwargs: object) -> str:
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    raise LocalEntryNotFoundError("not cached") if local_files_only else OfflineModeIsEnabled("offline mode is enabled")


def test_a_hub_model_fetched_before_is_found_by_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(hub, "snapshot_download", lambda *args, **kwargs: str(tmp_path))
    assert models.path("owner/name") == tmp_path
    assert models.store_path("owner/name", "float32").name == "owner--name-float32"


def test_a_broken_card_is_named(tmp_path: Path) -> None:
    assert ModelCard.read(tmp_path) is None
    (tmp_path / "card.json").write_text('{"name": "x", "routing": []}')
    with pytest.raises(ValueError, match=r"card\.json is not a model card"):
        ModelCard.read(tmp_path)


def test_a_card_is_read_as_it_was_written(tmp_path: Path) -> None:
    card = models.find("embedded").card()
    assert card is not None
    changed = replace(card, shared_expert=True, cpu_s=12)
    changed.write(tmp_path)
    assert ModelCard.read(tmp_path) == changed


def test_models_are_listed_with_size_skew_and_state(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "models"]) == 0
    listed = capsys.readouterr().out
    row = next(line for line in listed.splitlines() if line.startswith("  embedded "))
    assert row.split() == ["embedded", "14.1", "M", "23.6", "MB", "64", "top-2", "0.61", "0.72", "0.19", "built"]
    assert "presets" not in listed.splitlines()
    assert cli.main(["list", "nothing"]) == 2
    assert "use systems, models, " in capsys.readouterr().err
