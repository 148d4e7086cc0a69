"""On a pretended GPU the engine is exact and mixes no devices: what can be tested of the CUDA path without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from specmoe import SpecMoE
from specmoe.model.checkpoint import Checkpoint
from tests.conftest import prompts, reference
from tests.specmoe.pretend_gpu import GPU, OnGpu, PretendedCuda, PretendedGpu, to_gpu


def test_the_pretended_gpu_refuses_to_mix_devices() -> None:
    with PretendedCuda():
        on_gpu = torch.arange(3, device=GPU)
        assert isinstance(on_gpu, OnGpu)
        assert on_gpu.device == GPU
        assert (on_gpu + 1).tolist() == [1, 2, 3]
        assert on_gpu.cpu().numpy().tolist() == [0, 1, 2]
        with pytest.raises(RuntimeError, match="same device"):
            on_gpu + torch.arange(3)
        with pytest.raises(TypeError, match="numpy"):
            on_gpu.numpy()


OPTIONS = [
    {"gamma": 0, "placement": "on-demand"},
    {"gamma": 3, "draft_experts": 2},
    {"gamma": 3, "draft_experts": 2, "draft_pool": "resident", "prefetch": "draft", "controller": "auto"},
    {"gamma": 3, "draft_pool": "low-bit"},
    {"gamma": 3, "draft_experts": 2, "drafter": "ngram+pinned", "counted": "accepted", "substitution": "best-gate"},
    {"gamma": 3, "draft_experts": 2, "substitution": "drop", "initial": "prefill-tail", "collision": "once"},
    {"gamma": 3, "draft_experts": 2, "substitution": "random"},
]


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_no_step_of_the_engine_mixes_devices(
    options: dict[str, Any], do_sample: bool, tiny: tuple[Path, PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = PretendedGpu(delay_s=1e-4)
    real = Checkpoint.load_non_experts

    def load(self: Checkpoint, on: torch.device) -> None:
        assert on == GPU
        real(self, torch.device("cpu"))
        to_gpu(self._model)

    monkeypatch.setattr("specmoe.engine.open_device", lambda name: device)
    monkeypatch.setattr(Checkpoint, "load_non_experts", load)
    if do_sample:  # a generator of a GPU needs one
        monkeypatch.setattr("specmoe.sampling.torch.Generator", lambda where="cpu": torch._C.Generator("cpu"))
    folder, model = tiny
    ids, mask = prompts(3)
    with (
        PretendedCuda(),
        SpecMoE.from_pretrained(
            folder, store=folder / "store", expert_budget="40%", device="cuda", slow_tier="host", **options
        ) as engine,
    ):
        output = engine.generate(ids, mask, max_new_tokens=8, do_sample=do_sample)
    assert output.stats.decode.link.moved_bytes > 0
    if not do_sample:
        assert torch.equal(output.sequences, reference(model, ids, mask, 8))
