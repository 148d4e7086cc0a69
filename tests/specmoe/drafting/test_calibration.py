"""A calibration counts real tokens, compares expert outputs, is found again, and is refused when damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from specmoe import ExpertStore, SpecMoE, StoreError
from specmoe.drafting import calibration as calibrate
from specmoe.drafting.emulation import Residents, hottest
from specmoe.drafting.substitution import Picks
from specmoe.errors import OptionError
from tests.conftest import prompts, reference


@pytest.mark.parametrize(
    "options",
    [
        {"selection": "hot-global"},
        {"substitution": "affinity-activation"},
        {"substitution": "merged", "merged_experts": 2},
    ],
    ids=str,
)
def test_options_that_need_a_calibration_are_refused_without_one(
    options: dict[str, Any], tiny: tuple[Path, PreTrainedModel]
) -> None:
    with pytest.raises(OptionError, match=r"needs a calibration of this model: run SpecMoE\.calibrate"):
        SpecMoE.from_pretrained(tiny[0], store=tiny[0] / "store", **options)


def test_a_calibration_counts_every_pick_of_real_tokens(tiny: tuple[Path, PreTrainedModel], tmp_path: Path) -> None:
    ids, mask = prompts(5, seed=1)
    with SpecMoE.from_pretrained(tiny[0], store=tmp_path / "store", gamma=0) as engine:
        result = engine.calibrate(ids, mask)
        again = engine.generate(ids, mask, max_new_tokens=4).sequences
    assert result.tokens == int(mask.sum())
    assert [float(c.sum()) for c in result.counts] == [2 * int(mask.sum())] * 3
    assert again.tolist() == reference(tiny[1], ids, mask, 4).tolist()


def test_a_calibration_is_found_again(tiny: tuple[Path, PreTrainedModel], tmp_path: Path) -> None:
    with SpecMoE.from_pretrained(tiny[0], store=tmp_path / "store", gamma=0) as engine:
        saved = engine.calibrate(*prompts(4))
        loaded = calibrate.load(engine.store)
    assert loaded is not None
    assert loaded.tokens == saved.tokens
    for one, other in zip(saved.counts + saved.distances, loaded.counts + loaded.distances, strict=True):
        assert torch.equal(one, other)
        assert one.dtype == other.dtype


def test_agreement_rises_with_the_share_of_residents_and_is_found_again(
    tiny: tuple[Path, PreTrainedModel], tmp_path: Path
) -> None:
    with SpecMoE.from_pretrained(tiny[0], store=tmp_path / "store", gamma=0) as engine:
        agreement = engine.calibrate(*prompts(8)).agreement
        loaded = calibrate.load(engine.store)
    assert agreement is not None
    assert sorted(agreement.by_share) == [0.125, 0.25, 0.5]
    assert all(0 <= share_right <= 1 for share_right in agreement.by_share.values())
    assert agreement.by_share[0.125] <= agreement.by_share[0.5]
    assert loaded is not None
    assert loaded.agreement == agreement


def test_where_all_experts_are_residents_none_is_replaced() -> None:
    everyone = Residents([list(range(8))] * 3, [1 - torch.eye(8)] * 3)
    index, weights = torch.tensor([[3, 5], [0, 7]]), torch.tensor([[0.6, 0.4], [0.9, 0.1]])
    found_index, found_weights = everyone.picks(1, Picks(index, weights))
    assert torch.equal(found_index, index)
    assert torch.equal(found_weights, weights)


def test_the_hottest_share_has_an_expert_of_every_layer() -> None:
    counts = [torch.tensor([9.0, 8, 7, 6]), torch.tensor([0.0, 1, 0, 0])]
    assert hottest(counts, 0.25) == [[0, 1], [1]]
    assert hottest(counts, 1.0) == [[0, 1, 2, 3], [0, 1, 2, 3]]


def test_a_calibration_of_an_earlier_release_has_no_agreement(
    tiny: tuple[Path, PreTrainedModel], tmp_path: Path
) -> None:
    with SpecMoE.from_pretrained(tiny[0], store=tmp_path / "store", gamma=0) as engine:
        engine.calibrate(*prompts(4))
        file = tmp_path / "store" / calibrate.FILE
        with np.load(file) as arrays:
            content = {name: array for name, array in arrays.items() if not name.startswith("agreement")}
        np.savez(file, **content)
        loaded = calibrate.load(engine.store)
    assert loaded is not None
    assert loaded.agreement is None


@pytest.mark.parametrize("damage", ["empty", "cut", "no archive", "other shape", "missing array", "half an agreement"])
def test_a_damaged_calibration_is_refused(damage: str, tiny: tuple[Path, PreTrainedModel], tmp_path: Path) -> None:
    with SpecMoE.from_pretrained(tiny[0], store=tmp_path / "store", gamma=0) as engine:
        engine.calibrate(*prompts(4))
    file = tmp_path / "store" / calibrate.FILE
    good = file.read_bytes()
    with np.load(file) as arrays:
        content = dict(arrays)
    if damage == "empty":
        file.write_bytes(b"")
    elif damage == "cut":
        file.write_bytes(good[: len(good) // 2])
    elif damage == "no archive":
        file.write_bytes(b"\x00" * 100)
    elif damage == "other shape":
        np.savez(file, **{**content, "counts_0": np.zeros(5, dtype=np.float32)})
    elif damage == "half an agreement":
        del content["agreement_by_bits"]
        np.savez(file, **content)
    else:
        del content["distances_1"]
        np.savez(file, **content)
    with pytest.raises(StoreError, match="calibrate again"):
        SpecMoE.from_pretrained(tiny[0], store=tmp_path / "store", gamma=0)


def test_activation_affinity_is_the_distance_between_expert_outputs(
    tiny: tuple[Path, PreTrainedModel], tmp_path: Path
) -> None:
    """On the same tokens, computed here by the reference experts from the hidden states that reach them."""
    ids, mask = prompts(4, seed=2, shortest=6, longest=6)  # 24 tokens, all of them sampled
    with SpecMoE.from_pretrained(tiny[0], store=tmp_path / "store", gamma=0) as engine:
        result = engine.calibrate(ids, mask)
    experts, seen = tiny[1].model.layers[1].mlp.experts, []
    hook = experts.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        tiny[1](ids, attention_mask=mask)
    hook.remove()
    outputs = []
    for expert in range(8):
        index = torch.full((len(seen[0]), 1), expert)
        with torch.inference_mode():
            outputs.append(experts(seen[0], index, torch.ones(len(seen[0]), 1)).flatten())
    distance = torch.cdist(torch.stack(outputs), torch.stack(outputs))
    assert result.distances[1].dtype == torch.float16
    torch.testing.assert_close(result.distances[1].float(), distance / distance.max(), atol=2e-3, rtol=2e-3)


class _Layer:
    """A layer whose experts give their number times the input; keeps how many tokens were asked for."""

    layer = 0
    asked = 0

    def outputs_of_all(self, hidden: torch.Tensor) -> torch.Tensor:
        self.asked = len(hidden)
        return torch.stack([hidden * (1 + expert) for expert in range(8)])


@pytest.mark.parametrize(("most_bytes", "tokens"), [(1 << 20, 64), (8 * 16 * 4 * 10, 10), (1, 1)])
def test_the_outputs_that_are_compared_stay_within_their_memory(
    most_bytes: int, tokens: int, store: ExpertStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "SAMPLED_BYTES", most_bytes)
    layer = _Layer()
    calibrate.Observer(store)(layer, torch.randn(200, 16).bfloat16(), torch.zeros(200, 2, dtype=torch.long))
    assert layer.asked == tokens
