"""Small models shared by the tests; every one is a real transformers class.

The process that hands tests to two workers loads this file too, but no model: torch and transformers are imported where
they are used.
"""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from reports import ReportPaths

settings.register_profile("all", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
settings.register_profile("fast", settings.get_profile("all"), max_examples=15)
VOCAB = 97


def pytest_configure(config: pytest.Config) -> None:
    """Without the slow tests, Hypothesis tries fewer examples; tests use an empty cache folder, not the user's."""
    settings.load_profile("fast" if config.option.markexpr == "not slow" else "all")
    if not hasattr(config, "workerinput"):  # workers inherit the folder of the process that starts them
        folder = tempfile.TemporaryDirectory(prefix="specmoe-bench-tests-")
        config.add_cleanup(folder.cleanup)
        os.environ["SPECMOE_CACHE"] = folder.name


def examples(number: int) -> int:
    """``max_examples`` of a test that needs ``number`` of them; fewer where slow tests are left out."""
    return min(number, settings().max_examples)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """No garbage collection goes through the million objects of what the tests import."""
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests go first, so that two workers end at about the same time; torch has one thread."""
    import torch

    torch.set_num_threads(1)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def _model(architecture: str, **values: Any) -> PreTrainedModel:
    """A random model of a transformers architecture, three layers unless ``values`` say otherwise."""
    import transformers

    shape = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": None,
        "pad_token_id": 0,
        "initializer_range": 0.3,
    }
    config = getattr(transformers, f"{architecture}Config")(**shape | values)
    model: PreTrainedModel = getattr(transformers, f"{architecture}ForCausalLM")(config)
    return model


_QWEN3 = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
_QWEN2 = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_DEEPSEEK = {
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
_QWEN3_NEXT = _QWEN3 | {
    "shared_expert_intermediate_size": 24,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "qwen3": partial(_model, "Qwen3Moe", **_QWEN3, norm_topk_prob=True),
    "qwen3-dense-between": partial(_model, "Qwen3Moe", **_QWEN3, num_hidden_layers=4, decoder_sparse_step=2),
    "qwen2-shared-expert": partial(_model, "Qwen2Moe", **_QWEN2, shared_expert_intermediate_size=24),
    "mixtral-sliding-window": partial(_model, "Mixtral", num_local_experts=4, num_experts_per_tok=2, sliding_window=8),
    "olmoe": partial(_model, "Olmoe", num_experts=8, num_experts_per_tok=2),
    "deepseek-v3": partial(_model, "DeepseekV3", **_DEEPSEEK),
    "qwen3-next": partial(_model, "Qwen3Next", **_QWEN3_NEXT),
}


def build(family: str, folder: Path) -> PreTrainedModel:
    """A random model of a family in float32, saved to ``folder``."""
    import torch

    torch.manual_seed(sum(family.encode()))
    model = FAMILIES[family]().float().eval()
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    """A random Qwen3-MoE: (folder, reference model)."""
    folder = tmp_path_factory.mktemp("tiny")
    return folder, build("qwen3", folder)


@pytest.fixture(scope="session")
def sample_report(tmp_path_factory: pytest.TempPathFactory) -> ReportPaths:
    """A report of synthetic records."""
    from tests.reports import sample_report

    return sample_report.make(tmp_path_factory.mktemp("sample-report"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder in force for the test."""
    monkeypatch.setenv("SPECMOE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def prompts(rows: int, seed: int = 0, shortest: int = 3, longest: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded random prompts of different lengths: (input_ids, attention_mask), long [B, S]."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest + 1, (rows,), generator=generator)
    width = int(lengths.max())
    mask = (torch.arange(width) >= width - lengths[:, None]).long()
    ids = torch.randint(2, VOCAB, (rows, width), generator=generator) * mask
    return ids, mask


def reference(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, new_tokens: int) -> torch.Tensor:
    """transformers' own greedy sequences, never stopping early."""
    output: torch.Tensor = model.generate(
        ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    return output


def system_package(folder: Path, name: str, target: str) -> Path:
    """A folder for ``PYTHONPATH`` with which a worker finds the system ``target`` as if its package were installed."""
    path = folder / "plugin"
    info = path / f"{name}-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[specmoe_bench.systems]\n{name} = {target}\n")
    return path
