"""Encoder-decoder models give the tokens of transformers' own ``generate``, or refuse what they cannot follow.

The encoder runs once and its experts move like all others; the decoder speculates and drafts move nothing; start
tokens, forced first tokens, stop tokens, positions and expert capacity are those of transformers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

from specmoe import OptionError, SpecMoE, UnsupportedModelError
from specmoe.model.checkpoint import build_shell
from specmoe.model.families import nllb_moe
from specmoe.stats import GenerationStats
from tests import families
from tests.conftest import VOCAB
from tests.families.shapes import OVERRIDES
from tests.specmoe.model.checkpoints import differences, edit

NLLB, SWITCH = "nllb-moe", "switch_transformers"
FAMILIES = (NLLB, SWITCH)
ROUTED = "nllb-moe, routed"
NEW = 12


def make(family: str, folder: Path, **config: Any) -> PreTrainedModel:
    """A family's tiny model with changes to its config.json, as transformers loads it.

    ``ROUTED`` is an NLLB-MoE whose config asks for the experts of the router.
    """
    name = NLLB if family == ROUTED else family
    families.build(name, folder)
    path = folder / "config.json"
    routed = {"experts_follow_router": True} if family == ROUTED else {}
    path.write_text(json.dumps(json.loads(path.read_text()) | routed | config))
    model: PreTrainedModel = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
    if family == ROUTED:
        nllb_moe.follow_router(model)
    return model


def sources(rows: int = 3, longest: int = 9, side: str = "right", pad: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Source texts of different lengths, padded on one side."""
    lengths = longest - 2 * torch.arange(rows)
    places = torch.arange(longest)
    mask = (places < lengths[:, None] if side == "right" else places >= longest - lengths[:, None]).long()
    ids = torch.randint(2, VOCAB, (rows, longest), generator=torch.Generator().manual_seed(1))
    return torch.where(mask.bool(), ids, pad), mask


def engine(folder: Path, **options: Any) -> SpecMoE:
    options = {"gamma": 4, "draft_experts": 2, "expert_budget": "60%"} | options
    return SpecMoE.from_pretrained(
        folder, store=folder.with_name(f"{folder.name}-store"), dtype=torch.float32, **options
    )


def check(folder: Path, model: PreTrainedModel, options: dict[str, Any] | None = None, **settings: Any) -> Any:
    """Compare the sequences of a call with transformers'; returns the call's output."""
    ids, mask = settings.pop("batch", None) or sources()
    settings = {"max_new_tokens": NEW, "eos_token_id": None, "pad_token_id": 0} | settings
    expected = model.generate(ids, attention_mask=mask, do_sample=False, **settings)
    with engine(folder, **options or {}) as loaded:
        output = loaded.generate(ids, mask, **settings)
    assert output.sequences is not None
    assert output.sequences.tolist() == expected.tolist()
    return output


@pytest.mark.parametrize("family", [pytest.param(NLLB, marks=pytest.mark.slow), SWITCH, ROUTED])
def test_greedy_tokens_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    model = make(family, tmp_path / "model")
    for gamma in (0, 4):
        output = check(tmp_path / "model", model, {"gamma": gamma})
        assert len(output.sequences[:, 1:].unique()) > 6
        assert not output.stats.cycles[0].early_bytes


@pytest.mark.slow
@pytest.mark.parametrize("family", [SWITCH, ROUTED])
def test_rows_accept_different_numbers_of_drafts(family: str, tmp_path: Path) -> None:
    output = check(tmp_path / "model", make(family, tmp_path / "model"))
    assert 0 < output.stats.acceptance_rate < 1


@pytest.mark.slow
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_sources_may_be_padded_on_either_side(family: str, side: str, tmp_path: Path) -> None:
    check(tmp_path / "model", make(family, tmp_path / "model"), batch=sources(side=side))


@pytest.mark.parametrize("family", [pytest.param(NLLB, marks=pytest.mark.slow), SWITCH])
def test_without_a_mask_padding_is_read_as_in_transformers(family: str, tmp_path: Path) -> None:
    model, (ids, mask) = make(family, tmp_path / "model"), sources()
    expected = model.generate(ids, max_new_tokens=NEW, do_sample=False)
    masked = model.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False)
    assert expected.tolist() != masked.tolist(), "padding changes nothing, which proves nothing"
    with engine(tmp_path / "model") as loaded:
        assert loaded.generate(ids, max_new_tokens=NEW).sequences.tolist() == expected.tolist()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "key"),
    [
        (NLLB, "model.encoder.embed_positions.weights"),
        (SWITCH, "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"),
    ],
)
def test_keys_of_older_checkpoints_that_have_no_place_are_ignored(family: str, key: str, tmp_path: Path) -> None:
    model = make(family, tmp_path / "model")
    edit(tmp_path / "model", lambda tensors: tensors | {key: torch.ones(4, 4)})
    check(tmp_path / "model", model)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "config"),
    [
        (ROUTED, {"encoder_sparse_step": 0}),
        (ROUTED, {"decoder_sparse_step": 0}),
        (ROUTED, {"encoder_sparse_step": 1, "decoder_sparse_step": 1}),
        (ROUTED, {"decoder_layers": 4, "router_bias": True, "scale_embedding": False}),
        (SWITCH, {"num_sparse_encoder_layers": 2, "num_sparse_decoder_layers": 2, "router_bias": True}),
    ],
)
def test_experts_in_other_layers(
    family: str, config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = NLLB if family == ROUTED else family
    monkeypatch.setitem(OVERRIDES, name, OVERRIDES[name] | config)
    check(tmp_path / "model", make(family, tmp_path / "model"))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_tied_embeddings(family: str, tmp_path: Path) -> None:
    model = make(family, tmp_path / "model", tie_word_embeddings=True)
    check(tmp_path / "model", model)


def test_the_encoder_runs_once_and_its_experts_are_counted(tmp_path: Path) -> None:
    model = make(SWITCH, tmp_path / "model")
    ids, mask = sources()
    picked: dict[str, set[int]] = {}

    def note(name: str) -> Any:
        def hook(router: Any, inputs: Any, output: Any) -> None:
            tokens = output[0][mask.bool()] if name.startswith("encoder") else output[0]
            picked.setdefault(name, set()).update(tokens.argmax(dim=-1).flatten().tolist())

        return hook

    for name, module in model.named_modules():
        if name.endswith("mlp.router"):
            module.register_forward_hook(note(name))
    model.generate(ids, attention_mask=mask, max_new_tokens=1, do_sample=False)
    with engine(tmp_path / "model") as loaded:
        output = loaded.generate(ids, mask, max_new_tokens=NEW, eos_token_id=None)
        encoders = [i for i, spec in enumerate(loaded.store.layers) if spec.module.startswith("encoder")]
        drafting = [set(loaded._state.drafting(layer)) for layer in range(len(loaded.store.layers))]
        stride = loaded.store.slot_bytes
    assert output.stats.prefill.link.moved_bytes == stride * sum(map(len, picked.values()))
    assert encoders
    for layer, pinned in enumerate(drafting):
        assert bool(pinned) == (layer not in encoders)
    _check_drafts_move_nothing(output.stats)


def _check_drafts_move_nothing(stats: GenerationStats) -> None:
    assert stats.cycles
    assert all(cycle.early_bytes == 0 for cycle in stats.cycles)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_forced_first_token(family: str, tmp_path: Path) -> None:
    model = make(family, tmp_path / "model")
    output = check(tmp_path / "model", model, forced_bos_token_id=17)
    assert (output.sequences[:, 1] == 17).all()


def test_settings_of_the_generation_config_are_followed(tmp_path: Path) -> None:
    model = make(SWITCH, tmp_path / "model")
    sequences = check(tmp_path / "model", model).sequences
    stop = int(sequences[0, 4])
    path = tmp_path / "model" / "generation_config.json"
    settings = {"forced_bos_token_id": 11, "decoder_start_token_id": 5, "max_length": 9, "eos_token_id": [stop, 3]}
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    ids, mask = sources()
    expected = model.generate(ids, attention_mask=mask)
    with engine(tmp_path / "model") as loaded:
        assert loaded.generate(ids, mask).sequences.tolist() == expected.tolist()
        with pytest.raises(OptionError, match="decoder_start_token_id"):
            loaded.generate(ids, mask, decoder_start_token_id=[1, 2, 3])


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_stop_are_padded(family: str, tmp_path: Path) -> None:
    model = make(family, tmp_path / "model")
    stop = int(check(tmp_path / "model", model).sequences[0, 3])
    output = check(tmp_path / "model", model, eos_token_id=stop, pad_token_id=1)
    assert (output.sequences == 1).any()


@pytest.mark.slow
def test_a_generated_pad_token_has_the_position_of_one(tmp_path: Path) -> None:
    """NLLB-MoE counts positions from the tokens: a pad token has none, and those after it count it."""
    sequences = check(tmp_path / "model", make(ROUTED, tmp_path / "model")).sequences
    pad = int(sequences[:, 1:].flatten().mode().values)
    model = make(ROUTED, tmp_path / "padding", pad_token_id=pad)
    generation = tmp_path / "padding" / "generation_config.json"
    generation.unlink()
    output = check(tmp_path / "padding", model, pad_token_id=pad, batch=sources(pad=pad))
    assert (output.sequences[:, 1:-1] == pad).any()


@pytest.mark.slow
@pytest.mark.parametrize("capacity", [1, 2])
def test_switch_drops_tokens_of_a_source_beyond_capacity(capacity: int, tmp_path: Path) -> None:
    model = make(SWITCH, tmp_path / "model", expert_capacity=capacity)
    batch = sources(longest=24, side="left")
    dropped = check(tmp_path / "model", model, batch=batch).sequences
    for module in model.modules():
        if hasattr(module, "expert_capacity"):
            module.expert_capacity = 64
    kept = model.generate(batch[0], attention_mask=batch[1], max_new_tokens=NEW, eos_token_id=None, do_sample=False)
    assert dropped.tolist() != kept.tolist(), "capacity changes nothing, which proves nothing"


@pytest.mark.slow
@pytest.mark.parametrize("ignores_padding", [False, True])
@pytest.mark.parametrize("prioritized", [False, True])
@pytest.mark.parametrize("normalized", [False, True])
def test_nllb_drops_tokens_of_a_source_beyond_capacity(
    ignores_padding: bool, prioritized: bool, normalized: bool, tmp_path: Path
) -> None:
    model = make(
        ROUTED,
        tmp_path / "model",
        moe_eval_capacity_token_fraction=0.1,
        router_ignore_padding_tokens=ignores_padding,
        batch_prioritized_routing=prioritized,
        normalize_router_prob_before_dropping=normalized,
    )
    check(tmp_path / "model", model, batch=sources(rows=1, longest=24))
    left = sources(rows=2, longest=12, side="left")
    check(tmp_path / "model", model, batch=(left[0][1:], left[1][1:]))


def test_nllb_refuses_a_batch_whose_rows_share_capacity(tmp_path: Path) -> None:
    make(NLLB, tmp_path / "model", moe_eval_capacity_token_fraction=0.5)
    with (
        engine(tmp_path / "model") as loaded,
        pytest.raises(UnsupportedModelError, match=r"an expert takes 2 of 3 rows.*generate one row at a time"),
    ):
        loaded.generate(*sources(), max_new_tokens=2)


@pytest.mark.slow
def test_a_fixed_capacity_that_holds_the_batch(tmp_path: Path) -> None:
    model = make(ROUTED, tmp_path / "model", moe_eval_capacity_token_fraction=-1.0, expert_capacity=3)
    check(tmp_path / "model", model)


@pytest.mark.parametrize(
    ("family", "config", "reason"),
    [
        (NLLB, {"second_expert_policy": "random"}, "at random"),
        (NLLB, {"second_expert_policy": "sampling"}, "at random"),
        (SWITCH, {"expert_capacity": 0}, "no token reach an expert"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused_early(
    family: str, config: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    make(family, tmp_path / "model", **config)
    with pytest.raises(UnsupportedModelError, match=reason):
        engine(tmp_path / "model")
    assert not (tmp_path / "model-store").exists()


@pytest.mark.slow
@pytest.mark.parametrize("family", [SWITCH, ROUTED])
@pytest.mark.parametrize(
    "options",
    [
        {"drafter": "ngram"},
        {"draft_pool": "resident"},
        {"prefetch": "draft"},
        {"controller": "auto"},
        {"substitution": "best-gate"},
        {"substitution": "random", "selection": "random"},
        {"counted": "accepted", "initial": "prefill-tail"},
        {"expert_budget": "40%", "gamma": 2},
    ],
    ids=str,
)
def test_options_are_lossless(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    check(tmp_path / "model", make(family, tmp_path / "model"), options)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_calibrated_options(family: str, tmp_path: Path) -> None:
    model = make(family, tmp_path / "model")
    with engine(tmp_path / "model") as loaded:
        calibration = loaded.calibrate(*sources())
    assert all(counts.sum() > 0 for counts in calibration.counts)
    check(tmp_path / "model", model, {"selection": "hot-global", "substitution": "affinity-activation"})
    check(tmp_path / "model", model, {"substitution": "merged", "merged_experts": 2})


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_everything_loaded_equals_transformers(family: str, tmp_path: Path) -> None:
    families.build(family, tmp_path / "model")
    assert differences(tmp_path / "model", torch.bfloat16, tmp_path) == []


def test_a_warning_says_that_only_two_experts_are_used(tmp_path: Path) -> None:
    make(NLLB, tmp_path / "model")
    with pytest.warns(UserWarning, match="experts 0 and 1 only"):
        build_shell(tmp_path / "model")


def test_transformers_computes_experts_1_and_0_whatever_its_router_picks() -> None:
    """When this fails, transformers has fixed it: remove ``experts_follow_router`` and ``follow_router``."""
    assert not nllb_moe.transformers_follows_router()
