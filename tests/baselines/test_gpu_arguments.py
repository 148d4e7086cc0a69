"""Adapters ask for the right place on a GPU: what they pass to their libraries, tested without a GPU and with fakes."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from baselines import accelerate_disk, deepspeed_common, deepspeed_zero, llamacpp_engine, llamacpp_gpu, registry
from baselines.contract import NotSupported
from specmoe.model.convert import open_or_build
from tests.baselines.builders import setting_of


def test_accelerate_puts_experts_on_disk_and_the_rest_on_the_gpu(
    tiny: tuple[Path, PreTrainedModel], tmp_path: Path
) -> None:
    folder, model = tiny
    (tmp_path / "offload").mkdir()
    (tmp_path / "offload" / "model.layers.0.mlp.experts.down_proj.safetensors").touch()
    setting = setting_of(folder, tmp_path, device="cuda:1", dtype=torch.bfloat16)
    found = accelerate_disk.dispatch_arguments(model, setting)
    assert found["main_device"] == "cuda:1"
    assert set(found["device_map"].values()) == {"disk", "cuda:1"}
    assert all(("experts" in name) == (place == "disk") for name, place in found["device_map"].items())
    (entry,) = found["offload_index"].values()
    assert entry["dtype"] == "bfloat16"
    on_cpu = accelerate_disk.dispatch_arguments(model, setting_of(folder, tmp_path))
    assert set(on_cpu["device_map"].values()) == {"disk", "cpu"}


@pytest.mark.parametrize(
    ("device", "accelerator", "rank"), [("cpu", "cpu", "0"), ("cuda", "cuda", "0"), ("cuda:2", "cuda", "2")]
)
def test_deepspeed_is_told_which_device_to_use(device: str, accelerator: str, rank: str) -> None:
    found = deepspeed_common.process_environment(device)
    assert (found["DS_ACCELERATOR"], found["LOCAL_RANK"], found["WORLD_SIZE"]) == (accelerator, rank, "1")


@pytest.mark.parametrize(
    ("device", "slow_tier", "option", "place", "operators"),
    [
        ("cuda", "host", None, "cpu", []),
        ("cuda", "disk", None, "nvme", ["AsyncIOBuilder"]),
        ("cpu", "disk", None, "nvme", ["AsyncIOBuilder"]),
        ("cpu", "disk", "cpu", "cpu", []),
    ],
)
def test_zero_takes_experts_from_the_slow_tier_of_the_cell(
    device: str,
    slow_tier: str,
    option: str | None,
    place: str,
    operators: list[str],
    tiny: tuple[Path, PreTrainedModel],
    tmp_path: Path,
) -> None:
    folder, model = tiny
    system: Any = registry.create("deepspeed-zero", {"offload": option})
    setting = setting_of(folder, tmp_path, device=device, slow_tier=slow_tier)
    store = open_or_build(folder, folder / "store")
    chosen = deepspeed_zero.config(model, setting, store, system.options)
    offloaded = chosen["zero_optimization"]["offload_param"]
    assert (offloaded["device"], offloaded["pin_memory"]) == (place, device == "cuda")
    assert system.operators(setting) == operators
    rest = deepspeed_zero.resident(chosen, device)["zero_optimization"]
    assert rest.get("offload_param", {}).get("device") == (None if device == "cuda" else "cpu")
    assert chosen["zero_optimization"]["offload_param"] == offloaded, "the experts' configuration stays as it was"


@pytest.mark.parametrize(
    ("name", "options", "slow_tier", "right"),
    [
        ("accelerate-cpu", {}, "disk", "host"),
        ("deepspeed-zero", {"offload": "cpu"}, "disk", "host"),
        ("deepspeed-zero", {"offload": "nvme"}, "host", "disk"),
    ],
)
def test_experts_from_another_tier_than_the_cells_are_refused_on_a_gpu(
    name: str,
    options: dict[str, Any],
    slow_tier: str,
    right: str,
    tiny: tuple[Path, PreTrainedModel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", ModuleType("deepspeed"))
    open_or_build(tiny[0], tiny[0] / "store")
    with pytest.raises(NotSupported, match=f"takes experts to the GPU from .*: set slow_tier: {right}$"):
        registry.create(name, options).prepare(setting_of(tiny[0], tmp_path, device="cuda", slow_tier=slow_tier))


def _llama(**options: Any) -> Any:
    return registry.systems()["llama-cpp"].Options(**options)


def test_llama_cpp_keeps_layers_on_the_gpu_and_experts_in_host_memory() -> None:
    experts = llamacpp_gpu.EXPERTS
    assert llamacpp_gpu.load_arguments(_llama(), "cpu", "disk") == {}
    assert llamacpp_gpu.load_arguments(_llama(), "cuda:1", "host") == {
        "gpu_layers": 999,
        "gpu": 1,
        "in_host_memory": [experts],
        "mapped": False,
    }
    assert llamacpp_gpu.load_arguments(_llama(), "cuda", "disk")["mapped"]
    assert llamacpp_gpu.host_patterns(_llama(n_cpu_moe=2)) == [rf"blk\.0{experts}", rf"blk\.1{experts}"]
    assert llamacpp_gpu.host_patterns(_llama(override_tensor="up_exps=CPU,a=b=CPU")) == ["up_exps", "a=b"]
    with pytest.raises(NotSupported, match="set slow_tier: disk"):
        llamacpp_gpu.load_arguments(_llama(), "cpu", "host")


@pytest.mark.parametrize("text", ["", "exps", "exps=CUDA0", "=CPU", "a=CPU,"])
def test_an_override_that_names_no_tensor_or_no_host_memory_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"option override_tensor: .*give PATTERN=CPU"):
        registry.create("llama-cpp", {"override_tensor": text})


class _Llama(ModuleType):
    """A llama_cpp that keeps the parameters it was given; ``gpu`` says whether it was built for one."""

    LLAMA_LOAD_MODE_MMAP, LLAMA_LOAD_MODE_NONE, LLAMA_SPLIT_MODE_NONE = 1, 0, 7

    def __init__(self, gpu: bool) -> None:
        super().__init__("llama_cpp")
        self.given: Any = None
        self.llama_supports_gpu_offload = lambda: gpu
        self.llama_backend_init = lambda: None
        self.llama_model_default_params = SimpleNamespace
        self._ggml = SimpleNamespace(libggml=SimpleNamespace(ggml_backend_cpu_buffer_type=_HostBuffer()))

    def llama_model_load_from_file(self, path: bytes, params: Any) -> int:
        self.given = params
        return 1


class _HostBuffer:
    """The function of ggml that returns the type of host buffers."""

    restype: Any = None

    def __call__(self) -> int:
        return 4096


def test_the_engine_passes_layers_gpu_and_overrides_to_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    lib = _Llama(gpu=True)
    monkeypatch.setitem(sys.modules, "llama_cpp", lib)
    engine = llamacpp_engine.Engine()
    assert engine.load("m.gguf", **llamacpp_gpu.load_arguments(_llama(n_cpu_moe=2), "cuda:1", "host"))
    given = lib.given
    assert (given.n_gpu_layers, given.main_gpu, given.split_mode, given.load_mode) == (999, 1, 7, 0)
    listed = ctypes.cast(given.tensor_buft_overrides, ctypes.POINTER(llamacpp_engine._Override))
    patterns = [listed[i].pattern for i in range(3)]
    assert patterns == [pattern.encode() for pattern in llamacpp_gpu.host_patterns(_llama(n_cpu_moe=2))] + [None]
    assert [listed[i].buffer_type for i in range(3)] == [4096, 4096, None]


def test_on_a_cpu_the_engine_maps_the_file_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    lib = _Llama(gpu=False)
    monkeypatch.setitem(sys.modules, "llama_cpp", lib)
    assert llamacpp_engine.Engine().load("m.gguf", **llamacpp_gpu.load_arguments(_llama(), "cpu", "disk"))
    assert vars(lib.given) == {"load_mode": 1, "use_extra_bufts": False, "n_gpu_layers": 0}


def test_a_llama_cpp_built_for_the_cpu_is_not_supported_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", _Llama(gpu=False))
    with pytest.raises(NotImplementedError, match="GGML_CUDA=on"):
        llamacpp_engine.Engine().load("m.gguf", **llamacpp_gpu.load_arguments(_llama(), "cuda", "host"))


def test_cards_name_the_devices_that_a_system_was_run_on_and_those_it_was_only_written_for() -> None:
    cards = [system.card for system in registry.systems().values() if system.__module__.startswith("baselines.")]
    assert all(set(card.run_on) <= set(card.devices) for card in cards)
    written = {card.name for card in cards if card.only_written_for == ("cuda",)}
    ours = {"specmoe", "on-demand", "caching", "overlap"}
    others = {"naive", "accelerate-cpu", "accelerate-disk", "deepspeed-zero", "deepspeed-inference", "llama-cpp"}
    assert written == ours | others | {"hf-resident"}
