"""Every system is what its card says: conformance for all, and what is special to some."""

from __future__ import annotations

import importlib.util
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from baselines import contract, fused, gguf_file, overlap, registry
from baselines.contract import NotSupported, Request, Setting
from harness.cli import main as cli
from harness.conformance.examine import CHECKS, Check
from harness.plan.experiment import validate
from harness.run import leaks
from harness.run.repetition import oracle_times
from harness.run.runner import Runner, scratch_path
from reports.results.record import Record
from specmoe.model.checkpoint import expert_modules
from specmoe.model.convert import open_or_build
from tests import ROOT
from tests.conftest import build

EXAMPLE = ROOT / "tests" / "example_system"
GPU_ONLY = ("vllm", "sglang", "ktransformers", "moe-infinity")


def _needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


def _system(name: str, *needs: str, **options: Any) -> Any:
    title = "-".join([name, *map(str, options.values())])
    return pytest.param(name, id=title, marks=[pytest.mark.conformance(name, **options), *map(_needs, needs)])


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


@pytest.fixture(scope="session", autouse=True)
def _session_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One cache for all conformance runs of the session: stores and compiled parts are made once."""
    os.environ.setdefault("SPECMOE_CACHE", str(tmp_path_factory.getbasetemp() / "adapters-cache"))


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_systems_keep_the_contract(system: str, conformance_check: Check) -> None:
    assert conformance_check.passed, f"{system}: {conformance_check.detail}"


def _records(out: Path, systems: list[dict[str, Any]], **changes: Any) -> dict[str, Record]:
    """One round of a small experiment, by label."""
    experiment = {
        "name": "adapters",
        "model": "embedded",
        "systems": systems,
        "batch_sizes": [2],
        "new_tokens": 6,
        "rounds": 1,
        "warmup_tokens": 2,
        "threads": 1,
    }
    runner = Runner(validate(experiment | changes, "test"), out, show=lambda line: None)
    runner.run()
    return {record.label: record for record in runner.results.read()}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    names = ("naive", "on-demand", "overlap", "hf-resident", *GPU_ONLY)
    return _records(tmp_path_factory.mktemp("together"), [{"system": name} for name in names])


@pytest.mark.slow
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
        assert bound.limit.why_not

    @pytest.mark.parametrize("name", GPU_ONLY)
    def test_a_system_that_cannot_run_here_reports_why(self, records: dict[str, Record], name: str) -> None:
        assert records[name].status == "not_supported"
        assert len(records[name].error) > 60


@pytest.mark.slow
@_needs("deepspeed")
def test_zero_reads_every_swapped_parameter_in_full_from_the_disk(tmp_path: Path) -> None:
    """In the cell's dtype: DeepSpeed would quietly swap float32 as bfloat16, half the bytes."""
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
    before = scratch_path(folder, tmp_path / "store", "mmap")
    assert before == scratch_path(folder, tmp_path / "store", "mmap")
    build("qwen3", folder)
    assert scratch_path(folder, tmp_path / "store", "mmap") != before


def test_a_budget_below_one_layer_is_refused_by_whole_layer_streaming(
    tiny: tuple[Path, PreTrainedModel], tmp_path: Path
) -> None:
    system = registry.create("naive", {})
    setting = Setting(tiny[0], tiny[0] / "store", tmp_path, torch.float32, 4096, 1)
    system.build(setting)
    with pytest.raises(NotSupported, match="raise expert_budget"):
        system.prepare(setting)
    system.close()


def test_what_needs_all_experts_in_memory_is_refused_under_a_limit_below_them(
    tiny: tuple[Path, PreTrainedModel], tmp_path: Path
) -> None:
    system = registry.create("accelerate-cpu", {})
    setting = Setting(tiny[0], tiny[0] / "store", tmp_path, torch.float32, None, 1, process_limit_bytes=1 << 20)
    system.build(setting)
    with pytest.raises(NotSupported, match="exceed the process limit of 1 MB"):
        system.prepare(setting)


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


@_needs("gguf")
@pytest.mark.parametrize(
    ("family", "why"), [("olmoe", "supports qwen3_moe"), ("qwen3-dense-between", "experts in every layer")]
)
def test_gguf_is_written_only_for_what_llama_cpp_computes_alike(family: str, why: str, tmp_path: Path) -> None:
    build(family, tmp_path)
    store = open_or_build(tmp_path, tmp_path / "store")
    with pytest.raises(NotSupported, match=why):
        gguf_file.write(tmp_path, store, tmp_path / "model.gguf")
    assert not list(tmp_path.glob("model.*.gguf"))


def test_a_missing_package_is_not_supported_and_names_the_command() -> None:
    with pytest.raises(NotSupported, match=r"pip install 'specmoe-bench\[llamacpp\]'"):
        contract.require("no_such_package", "llamacpp")


_SECONDS = st.floats(0, 1e6)


@given(_SECONDS, st.floats(0, 1), _SECONDS)
def test_hidden_transfers_cost_the_longer_of_compute_and_link(wall_s: float, waited: float, busy_s: float) -> None:
    wait_s = wall_s * waited
    compute_s = overlap.hidden_s(wall_s, wait_s, busy_s, "entirely")
    bounded_s = overlap.hidden_s(wall_s, wait_s, busy_s, "behind-compute")
    assert 0 <= compute_s <= wall_s
    assert bounded_s == max(compute_s, busy_s)


def test_computed_times_come_from_oracles_and_only_from_them() -> None:
    known = registry.systems()
    computed = contract.Counters(oracle_prefill_s=1.0, oracle_decode_s=2.0)
    assert oracle_times(known["overlap"].card, computed) == {"prefill_s": 1.0, "decode_s": 2.0}
    assert oracle_times(known["naive"].card, contract.Counters()) == {}
    for name, counters in (("overlap", contract.Counters()), ("naive", computed)):
        with pytest.raises(RuntimeError, match="computed times come from oracles"):
            oracle_times(known[name].card, counters)


@pytest.mark.parametrize(
    ("ids", "mask", "new_tokens", "message"),
    [
        ([[1, 2]], [[1]], 1, "must both be"),
        ([[1, 2]], [[1, 0]], 1, "padding on the left"),
        ([[1, 2], [3, 4]], [[1, 1], [0, 0]], 1, "needs a token"),
        ([[1, 2]], [[1, 1]], 0, "ask for 1 or more"),
    ],
)
def test_a_bad_request_cannot_be_made(ids: list, mask: list, new_tokens: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Request(torch.tensor(ids), torch.tensor(mask), new_tokens, lambda: None)


LONG, FLOAT = torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("new_ids", "held"),
    [
        ([[1, 2], [3, 4]], "a value of type list"),
        ([1, 2], "a value of type int"),
        (None, "a value of type NoneType"),
        ("ab", "a value of type str"),
        (LONG[0], r"a tensor \[3\] of int64"),
        (LONG[None], r"a tensor \[1, 2, 3\] of int64"),
        (FLOAT, r"a tensor \[3\] of float32"),
        ([LONG[0], FLOAT[0]], r"a tensor \[3\] of float32"),
        ([LONG[0], LONG[:1]], r"a tensor \[1, 3\] of int64"),
    ],
)
def test_a_generation_of_the_wrong_type_is_one_clear_error(new_ids: Any, held: str) -> None:
    with pytest.raises(TypeError, match=rf"^Generation.new_ids holds {held}: give a long tensor \[B, new_tokens\], or"):
        contract.Generation(new_ids).rows()


def test_a_generation_is_a_matrix_or_a_row_for_each_prompt() -> None:
    ids = torch.tensor([[1, 2], [3, 4]])
    assert contract.Generation(ids).rows() == [[1, 2], [3, 4]]
    assert contract.Generation([ids[0], ids[1, :1]]).rows() == [[1, 2], [3]]


def test_generate_before_prepare_is_an_error_that_says_so() -> None:
    request = Request(torch.ones(1, 2, dtype=torch.long), torch.ones(1, 2, dtype=torch.long), 1, lambda: None)
    for name in ("on-demand", "naive", "hf-resident", "mmap", "llama-cpp"):
        with pytest.raises(RuntimeError, match="call prepare first"):
            registry.create(name, {}).generate(request)


def test_a_card_refuses_what_it_does_not_name() -> None:
    card = contract.CapabilityCard("x", "x", "x", "experts", True, dtypes=("bfloat16",), max_batch=4)
    assert card.refusal("bfloat16", 4) is None
    assert "use bfloat16" in card.refusal("float32", 1)
    assert "at most 4" in card.refusal("bfloat16", 5)


def test_list_shows_the_systems_that_cannot_run_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    text = capsys.readouterr().out
    for name in (*GPU_ONLY, "llama-cpp", "deepspeed-zero"):
        assert name in text
    assert "specmoe-bench[llamacpp]" in text


class TestLeaks:
    @pytest.fixture
    def seen(self, tmp_path: Path) -> Callable[[], list[str]]:
        before = leaks.thread_names()
        return lambda: leaks.left_behind([tmp_path], before)

    def test_a_thread_is_seen_until_it_ends(self, seen: Callable[[], list[str]]) -> None:
        stop = threading.Event()
        thread = threading.Thread(target=stop.wait, name="stray")
        thread.start()
        assert seen() == ["thread stray"]
        stop.set()
        thread.join()
        assert seen() == []

    def test_a_child_process_is_seen_until_it_ends(self, seen: Callable[[], list[str]]) -> None:
        child = subprocess.Popen(["sleep", "60"])
        assert seen() == [f"child process {child.pid}"]
        child.kill()
        child.wait()
        assert seen() == []

    def test_open_and_mapped_files_are_seen(self, seen: Callable[[], list[str]], tmp_path: Path) -> None:
        file = tmp_path / "weights.bin"
        file.write_bytes(b"x" * 8192)
        with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0):
            assert f"open file {file}" in seen()
            assert f"mapped file {file}" in seen()
        assert seen() == []

    def test_a_marked_descendant_is_found(self) -> None:
        child = subprocess.Popen(["sleep", "60"], env=os.environ | {leaks.MARK: "test-mark"})
        try:
            assert leaks.marked_processes("test-mark") == [child.pid]
        finally:
            child.kill()
            child.wait()


# One line of the example changed at a time, with the check that must notice: (honest, lying).
LIES = {
    "equal-tokens-ragged-batch": (
        "mask, new, cache = request.attention_mask,",
        "mask, new, cache = torch.ones_like(request.attention_mask),",
    ),
    "ragged-output-lengths": ("Generation(request.cut(torch.cat(new, dim=1)), ", "Generation(torch.cat(new, dim=1), "),
    "budget-kept": ("parameter.data = torch.empty(0, dtype=parameter.dtype)", "parameter.data = parameter.data"),
    "bytes-agree-with-kernel": (
        "counters.peak_expert_bytes,",
        "counters.decode_link_bytes = 10**12\n        counters.peak_expert_bytes,",
    ),
    "bad-input-refused": ("if budget is not None and budget < wanted:", "if False:"),
    "clean-shutdown": (
        "def close(self) -> None:\n",
        "def close(self) -> None:\n        __import__('subprocess').Popen(['sleep', '20'])\n",
    ),
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Reference outputs, shared by the command line's conformance runs."""
    return str(tmp_path_factory.mktemp("work"))


def _run(*arguments: str, path: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": f"{path}{os.pathsep}{ROOT}"}
    return subprocess.run(
        [sys.executable, "-m", "harness.cli", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guide's example, installed by pip into a folder of its own."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for file in EXAMPLE.iterdir():
        if file.is_file():
            (source / file.name).write_bytes(file.read_bytes())
    flags = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *flags, str(source)], check=True, timeout=300)
    return target


@pytest.mark.slow
class TestAnExternalPackage:
    """The guide's example, installed as a user would and driven from outside."""

    def test_is_listed(self, installed: Path) -> None:
        assert "example-reload" in _run("list", path=installed).stdout

    def test_conforms(self, installed: Path, work: str) -> None:
        outcome = _run("conformance", "example-reload", "--work", work, path=installed)
        assert outcome.returncode == 0, outcome.stdout + outcome.stderr
        assert all(name in outcome.stdout for name in CHECKS)
        assert outcome.stdout.count("passed") >= len(CHECKS) - 1  # it counts no link bytes

    @pytest.mark.parametrize("check", LIES)
    def test_is_found_to_lie_when_it_does(self, installed: Path, work: str, tmp_path: Path, check: str) -> None:
        honest, lie = LIES[check]
        text = (installed / "example_system.py").read_text()
        assert honest in text
        for entry in installed.glob("*.dist-info"):
            (tmp_path / entry.name).symlink_to(entry)
        (tmp_path / "example_system.py").write_text(text.replace(honest, lie))
        outcome = _run("conformance", "example-reload", "--check", check, "--work", work, path=tmp_path)
        assert outcome.returncode == 1, outcome.stdout
        verdict = next(line for line in outcome.stdout.splitlines() if f" {check} " in line)
        assert verdict.startswith("failed"), outcome.stdout
