"""Experts may rest in a narrower dtype than they are computed in: the tokens are those of the compute dtype."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from specmoe import SpecMoE
from specmoe.compute import table
from specmoe.compute.table import PAIRS, ROWS, Kernel, KernelTable, key
from specmoe.errors import OptionError, StoreError
from specmoe.model.checkpoint import checkpoint_dtype
from tests import families
from tests.conftest import build, prompts, reference
from tests.specmoe.model.checkpoints import Tensors, edit, to_block_fp8

NEW_TOKENS = 10
KERNELS: list[Kernel] = ["streaming", "onednn-widened", "torch"]


def _narrow(folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Round the weights of a saved model to ``dtype``."""

    def rounded(tensors: Tensors) -> Tensors:
        return {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}

    edit(folder, rounded, dtype=str(dtype).removeprefix("torch."))


def _use(kernel: Kernel) -> None:
    """Make ``kernel`` the measured choice of this machine for every product."""
    products = ("experts", "linear")
    kernels = {key(product, dtype, stored): [kernel] * len(ROWS) for product in products for stored, dtype in PAIRS}  # type: ignore[arg-type]
    table.save(KernelTable("test", kernels), "2026-01-01")


def _generate(
    folder: Path, store: Path, gamma: int, stored_dtype: torch.dtype | None = None
) -> tuple[torch.Tensor, int]:
    """Sequences in float32, and bytes of the store's experts."""
    ids, mask = prompts(3)
    with SpecMoE.from_pretrained(
        folder,
        store=store,
        dtype=torch.float32,
        stored_dtype=stored_dtype,
        gamma=gamma,
        draft_experts=2,
        expert_budget="60%",
    ) as engine:
        output = engine.generate(ids, mask, max_new_tokens=NEW_TOKENS, eos_token_id=None, pad_token_id=0)
        return output.sequences, engine.store.total_bytes


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3-MoE checkpoint in bfloat16."""
    folder = tmp_path_factory.mktemp("narrow")
    build("qwen3", folder)
    _narrow(folder)
    return folder


def _expected(folder: Path, family: str = "qwen3_moe") -> torch.Tensor:
    model: PreTrainedModel = families.auto_class(family).from_pretrained(folder, dtype=torch.float32).eval()
    return reference(model, *prompts(3), NEW_TOKENS)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_bfloat16_checkpoint_in_float32_gives_the_tokens_of_transformers_in_half_the_bytes(
    kernel: Kernel, narrow: Path, tmp_path: Path, cache: Path
) -> None:
    _use(kernel)
    found, nbytes = _generate(narrow, tmp_path / "store", gamma=3)
    wide, wide_bytes = _generate(narrow, tmp_path / "wide", gamma=3, stored_dtype=torch.float32)
    assert found.tolist() == wide.tolist() == _expected(narrow).tolist()
    assert 2 * nbytes == wide_bytes


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    "family", ["gpt_oss", "llama4_text", "aria", "dbrx", "nllb-moe", "switch_transformers", "jetmoe"]
)
def test_transposed_biased_and_input_scaling_families(
    family: str, kernel: Kernel, dtype: torch.dtype, tmp_path: Path, cache: Path
) -> None:
    families.build(family, tmp_path / "model")
    _narrow(tmp_path / "model", dtype)
    _use(kernel)
    for gamma in (0, 3):
        found, _ = _generate(tmp_path / "model", tmp_path / "store", gamma)
        assert found.tolist() == _expected(tmp_path / "model", family).tolist()


def test_by_default_experts_are_stored_in_the_checkpoints_own_dtype_where_widening_is_exact(
    narrow: Path, tmp_path: Path
) -> None:
    for dtype, stored in (
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
    ):
        with SpecMoE.from_pretrained(narrow, dtype=dtype, gamma=0, store=tmp_path / str(stored)) as engine:
            assert engine.store.dtype == stored
            assert {p.dtype for p in engine.model.parameters()} == {dtype}


def test_a_wide_checkpoint_loaded_in_a_narrow_dtype_is_stored_in_that(
    tiny: tuple[Path, PreTrainedModel], tmp_path: Path
) -> None:
    with SpecMoE.from_pretrained(tiny[0], dtype=torch.bfloat16, gamma=0, store=tmp_path / "store") as engine:
        assert engine.store.dtype == torch.bfloat16


def test_the_same_bytes_hold_twice_the_experts(narrow: Path, tmp_path: Path) -> None:
    slots = {}
    for stored in (torch.float32, torch.bfloat16):
        with SpecMoE.from_pretrained(
            narrow,
            dtype=torch.float32,
            stored_dtype=stored,
            store=tmp_path / str(stored),
            gamma=0,
            expert_budget=1 << 16,
        ) as engine:
            slots[stored] = engine.arena.slots
    assert slots[torch.bfloat16] == 2 * slots[torch.float32] > 0


@pytest.mark.parametrize(
    ("dtype", "stored", "usable"),
    [
        (torch.float32, torch.float16, "bfloat16 or float32"),  # another narrow dtype
        (torch.bfloat16, torch.float32, "bfloat16"),  # wider than what is computed in
    ],
)
def test_a_stored_dtype_that_would_change_the_result_is_refused_before_anything_is_written(
    dtype: torch.dtype, stored: torch.dtype, usable: str, narrow: Path, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=f"are in bfloat16: use stored_dtype={usable}, or another dtype"):
        SpecMoE.from_pretrained(narrow, dtype=dtype, stored_dtype=stored, store=tmp_path / "store")
    assert not list(tmp_path.iterdir())


def test_a_float32_checkpoint_is_never_rounded_for_the_store(
    tiny: tuple[Path, PreTrainedModel], tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match="are in float32: use stored_dtype=float32, or another dtype"):
        SpecMoE.from_pretrained(tiny[0], dtype=torch.float32, stored_dtype=torch.bfloat16, store=tmp_path / "store")
    assert not list(tmp_path.iterdir())


def test_experts_in_several_dtypes_and_quantised_ones_are_stored_in_the_compute_dtype(tmp_path: Path) -> None:
    build("qwen3", tmp_path / "mixed")
    edit(tmp_path / "mixed", lambda t: {k: v.half() if "experts.3" in k else v for k, v in t.items()})
    build("qwen3", tmp_path / "fp8")
    fp8 = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    edit(tmp_path / "fp8", to_block_fp8, quantization_config=fp8)
    for name in ("mixed", "fp8"):
        with SpecMoE.from_pretrained(
            tmp_path / name, dtype=torch.float32, gamma=0, store=tmp_path / "store" / name
        ) as engine:
            assert engine.store.dtype == torch.float32
        with pytest.raises(OptionError, match="are quantised or in several dtypes: use stored_dtype=float32"):
            SpecMoE.from_pretrained(tmp_path / name, dtype=torch.float32, stored_dtype=torch.bfloat16)


def test_an_existing_store_in_another_dtype_is_not_read_as_the_asked_one(narrow: Path, tmp_path: Path) -> None:
    _generate(narrow, tmp_path / "store", gamma=0, stored_dtype=torch.float32)
    with pytest.raises(StoreError, match=r"holds torch\.float32, not torch\.bfloat16: .* ask for that stored_dtype"):
        _generate(narrow, tmp_path / "store", gamma=0)


def test_merged_and_activation_drafts_work_on_a_narrower_store(narrow: Path, tmp_path: Path) -> None:
    assert checkpoint_dtype(narrow) == torch.bfloat16
    ids, mask = prompts(3)
    drafts = ({"substitution": "affinity-activation"}, {"substitution": "merged", "merged_experts": 2})
    for options in ({}, *drafts):
        with SpecMoE.from_pretrained(
            narrow, dtype=torch.float32, store=tmp_path / "store", gamma=3, draft_experts=2, **options
        ) as engine:
            if not options:
                engine.calibrate(ids, mask)
            output = engine.generate(ids, mask, max_new_tokens=NEW_TOKENS, eos_token_id=None, pad_token_id=0)
        assert output.sequences.tolist() == _expected(narrow).tolist()
