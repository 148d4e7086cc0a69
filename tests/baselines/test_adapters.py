"""Every system keeps the adapter contract and is what its card says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from baselines import fused, gguf_file, overlap, registry
from baselines.contract import NotSupported
from harness.cli import main as cli
from harness.conformance.examine import Check
from harness.plan.experiment import validate
from harness.run.model_files import ModelFiles
from harness.run.runner import Runner
from reports.results.record import Record
from specmoe.drafting import low_bit
from specmoe.model.checkpoint import expert_modules
from specmoe.model.convert import open_or_build
from specmoe.offload.store import ExpertStore
from tests.baselines.builders import needs, setting_of
from tests.conftest import build
from tests.specmoe.model.checkpoints import edit

GPU_ONLY = ("vllm", "sglang", "ktransformers", "moe-infinity")


def _system(name: str, *packages: str, **options: Any) -> Any:
    title = "-".join([name, *map(str, options.values())])
    marks = [pytest.mark.conformance(name, **options), *map(needs, packages)]
    return pytest.param(name, id=title, marks=marks)


SYSTEMS = [
    _system("hf-resident"),
    _system("naive"),
    _system("mmap"),
    _system("on-demand"),
    _system("overlap"),
    _system("caching"),
    _system("caching", placement="lru"),
    _system("accelerate-disk"),
    _system("accelerate-cpu"),
    _system("specmoe", gamma=3, draft_experts=4),
    _system("deepspeed-zero", "deepspeed", offload="nvme"),
    _system("deepspeed-zero", "deepspeed", offload="cpu"),
    _system("deepspeed-inference", "deepspeed"),
    _system("llama-cpp", "llama_cpp", "gguf"),
]


@pytest.mark.slow
@pytest.mark.systems
@pytest.mark.parametrize("system", SYSTEMS)
def test_systems_keep_the_contract(system: str, conformance_check: Check) -> None:
    assert conformance_check.passed, f"{system}: {conformance_check.detail}"


def _records(out: Path, systems: list[dict[str, Any]], **changes: Any) -> dict[str, Record]:
    """One round of a small experiment, by label."""
    experiment = {
        "name": "adapters",
        "model": "embedded",
        "stored_dtype": "float32",
        "systems": systems,
        "batch_sizes": [2],
        "new_tokens": 6,
        "rounds": 1,
        "warmup_tokens": 2,
        "threads": 1,
    }
    runner = Runner.open(validate(experiment | changes, "test"), out, show=lambda line: None)
    runner.run()
    return {record.label: record for record in runner.results.read()}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    names = ("naive", "on-demand", "overlap", "hf-resident", *GPU_ONLY)
    return _records(tmp_path_factory.mktemp("together"), [{"system": name} for name in names])


@pytest.mark.slow
@pytest.mark.systems
class TestTogether:
    def test_whole_layer_streaming_moves_every_expert_of_every_layer_at_every_pass(
        self, records: dict[str, Record]
    ) -> None:
        (repetition,) = records["naive"].repetitions
        assert repetition.prefill_link_bytes is not None
        assert repetition.decode_link_bytes == 5 * repetition.prefill_link_bytes
        on_demand = records["on-demand"].repetitions[0].decode_link_bytes
        assert on_demand is not None
        assert on_demand < repetition.decode_link_bytes / 3

    def test_records_of_the_engine_name_kernels_threads_and_how_they_wait(self, records: dict[str, Record]) -> None:
        (repetition,) = records["on-demand"].repetitions
        assert repetition.kernels is not None
        assert repetition.kernels.startswith("experts: ")
        assert "1 threads, GOMP_SPINCOUNT=1000)" in repetition.kernels
        assert records["naive"].repetitions[0].kernels is None

    def test_the_oracle_has_real_tokens_and_bytes_but_computed_time(self, records: dict[str, Record]) -> None:
        oracle, real = records["overlap"], records["on-demand"]
        assert (oracle.kind, real.kind) == ("oracle", "measured")
        assert oracle.metrics.fidelity == 1.0
        assert oracle.metrics.link_bytes == real.metrics.link_bytes
        (repetition,) = oracle.repetitions
        assert repetition.decode_link_busy_s <= repetition.decode_s

    def test_the_upper_bound_runs_without_the_limit_and_says_so(self, records: dict[str, Record]) -> None:
        bound = records["hf-resident"]
        assert bound.status == "ok"
        assert bound.cell.process_limit_bytes == records["naive"].cell.process_limit_bytes
        assert not bound.limit.enforced
        assert bound.limit.reason

    @pytest.mark.parametrize("name", GPU_ONLY)
    def test_a_system_that_cannot_run_here_reports_the_reason(self, records: dict[str, Record], name: str) -> None:
        assert records[name].status == "not_supported"
        assert len(records[name].error) > 60


@pytest.mark.slow
@pytest.mark.systems
def test_systems_compute_in_float32_with_experts_stored_in_bfloat16(tmp_path: Path) -> None:
    names = ("naive", "mmap", "accelerate-cpu", "accelerate-disk", "hf-resident", "on-demand", "caching", "specmoe")
    systems = [{"system": name} for name in names]
    narrow = _records(tmp_path / "narrow", systems, stored_dtype=None, expert_budget="60%")
    assert {record.cell.stored_dtype for record in narrow.values()} == {"bfloat16"}
    assert {name: (r.status, r.error) for name, r in narrow.items() if r.status != "ok"} == {}
    assert {name: record.metrics.fidelity for name, record in narrow.items()} == dict.fromkeys(names, 1.0)
    wide = _records(tmp_path / "wide", [{"system": "naive"}, {"system": "on-demand"}], expert_budget="60%")
    for name, record in wide.items():
        assert record.cell.expert_budget_bytes == 2 * narrow[name].cell.expert_budget_bytes
        assert record.metrics.link_bytes == 2 * narrow[name].metrics.link_bytes


@pytest.mark.slow
@needs("deepspeed")
def test_zero_reads_every_swapped_parameter_in_full_from_the_disk(tmp_path: Path) -> None:
    """In the cell's dtype: by default DeepSpeed swaps float32 as bfloat16, half the bytes."""
    systems = [{"system": "deepspeed-zero"}, {"system": "naive"}]
    records = _records(tmp_path, systems, model="embedded-x8")
    zero, naive = records["deepspeed-zero"], records["naive"]
    if zero.status == "not_supported":
        assert "libaio" in zero.error
        pytest.skip(zero.error)
    if not zero.metrics.kernel_read_bytes:
        pytest.skip("the kernel counts no reads here")
    assert zero.metrics.kernel_read_bytes == pytest.approx(naive.metrics.link_bytes, rel=0.02)


@pytest.mark.slow
def test_other_weights_under_the_same_name_get_another_scratch_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    build("qwen3", folder)
    files = ModelFiles(folder, tmp_path / "store", "embedded", "float32", "float32")
    before = files.scratch("mmap")
    assert before == files.scratch("mmap")
    build("qwen3", folder)
    assert files.scratch("mmap") != before


def test_a_budget_below_one_layer_is_refused_by_whole_layer_streaming(
    tiny: tuple[Path, PreTrainedModel], tmp_path: Path
) -> None:
    system = registry.create("naive", {})
    setting = setting_of(tiny[0], tmp_path, expert_budget_bytes=4096)
    system.build(setting)
    with pytest.raises(NotSupported, match="raise expert_budget"):
        system.prepare(setting)
    system.close()


def test_a_system_that_keeps_all_experts_in_memory_is_refused_under_a_smaller_limit(
    tiny: tuple[Path, PreTrainedModel], tmp_path: Path
) -> None:
    system = registry.create("accelerate-cpu", {})
    setting = setting_of(tiny[0], tmp_path, process_limit_bytes=1 << 20)
    system.build(setting)
    with pytest.raises(NotSupported, match="exceed the process limit of 1 MB"):
        system.prepare(setting)


def test_whole_layers_that_are_widened_need_the_budget_of_the_wider_dtype(tmp_path: Path) -> None:
    build("qwen3", tmp_path / "model")
    edit(tmp_path / "model", lambda t: {k: v.bfloat16() for k, v in t.items()}, dtype="bfloat16")
    store = open_or_build(tmp_path / "model", tmp_path / "model" / "store", torch.bfloat16, compute_dtype=torch.float32)
    system = registry.create("naive", {})
    budget = fused.layer_bytes(store)
    setting = setting_of(
        tmp_path / "model", tmp_path, stored_dtype=torch.bfloat16, expert_budget_bytes=budget, threads=1
    )
    with pytest.raises(NotSupported, match="one whole layer in float32 takes"):
        system.prepare(setting)
    system.close()


@needs("gguf")
def test_a_gguf_file_holds_weights_in_the_dtype_of_the_store(tmp_path: Path) -> None:
    from gguf import GGUFReader

    build("qwen3", tmp_path / "model")
    edit(tmp_path / "model", lambda t: {k: v.bfloat16() for k, v in t.items()}, dtype="bfloat16")
    for stored, name in ((torch.bfloat16, "BF16"), (torch.float32, "F32")):
        store = open_or_build(tmp_path / "model", tmp_path / str(stored), stored, compute_dtype=torch.float32)
        gguf_file.write(tmp_path / "model", store, tmp_path / f"{name}.gguf", torch.float32)
        types = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(tmp_path / f"{name}.gguf").tensors}
        assert types["blk.0.ffn_up_exps.weight"] == types["output.weight"] == name
        assert types["blk.0.ffn_gate_inp.weight"] == types["output_norm.weight"] == "F32"


def test_fused_tensors_of_the_store_are_the_models_own(tiny: tuple[Path, PreTrainedModel]) -> None:
    folder, model = tiny
    store = open_or_build(folder, folder / "store")
    modules = expert_modules(model)
    seen = 0
    for spec, tensors in fused.layers(store):
        for name, tensor in tensors.items():
            assert torch.equal(tensor, modules[spec.module].get_parameter(name))
            seen += 1
    assert seen == 2 * len(store.layers) == 6


@needs("gguf")
@pytest.mark.parametrize(
    ("family", "reason"), [("olmoe", "supports qwen3_moe"), ("qwen3-dense-between", "experts in every layer")]
)
def test_gguf_is_written_only_for_models_that_llama_cpp_implements(family: str, reason: str, tmp_path: Path) -> None:
    build(family, tmp_path)
    store = open_or_build(tmp_path, tmp_path / "store")
    with pytest.raises(NotSupported, match=reason):
        gguf_file.write(tmp_path, store, tmp_path / "model.gguf", torch.float32)
    assert not list(tmp_path.glob("model.*.gguf"))


_SECONDS = st.floats(0, 1e6)


@given(_SECONDS, st.floats(0, 1), _SECONDS)
def test_hidden_transfers_cost_the_longer_of_compute_and_link(wall_s: float, waited: float, busy_s: float) -> None:
    wait_s = wall_s * waited
    compute_s = overlap.hidden_s(wall_s, wait_s, busy_s, "entirely")
    bounded_s = overlap.hidden_s(wall_s, wait_s, busy_s, "behind-compute")
    assert 0 <= compute_s <= wall_s
    assert bounded_s == max(compute_s, busy_s)


def test_list_shows_the_systems_that_cannot_run_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    text = capsys.readouterr().out
    for name in (*GPU_ONLY, "llama-cpp", "deepspeed-zero"):
        assert name in text
    assert "specmoe-bench[llamacpp]" in text


@pytest.mark.parametrize(
    ("options", "copies"),
    [({"draft_pool": "low-bit", "draft_bits": 3}, [3]), ({}, [4, 8]), ({"gamma": 3}, [])],
    ids=str,
)
def test_low_bit_copies_are_made_before_the_limited_run(
    options: dict[str, Any], copies: list[int], tiny: tuple[Path, PreTrainedModel], tmp_path: Path
) -> None:
    system = registry.create("specmoe", options)
    setting = replace(setting_of(tiny[0], tmp_path), store_path=tmp_path / "store")
    system.build(setting)
    assert low_bit.made(ExpertStore.open(setting.store_path)) == copies
    system.prepare(setting)
    try:
        assert low_bit.made(ExpertStore.open(setting.store_path)) == copies
    finally:
        system.close()
