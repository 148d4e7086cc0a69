"""Doctor says what this machine could run on a GPU, why not the rest, and what to do about it."""

from __future__ import annotations

import pytest

from harness.machine import doctor, gpu_checks
from harness.machine.gpu_checks import Facts

READY = Facts("580.65", "2.13.0+cu130", "13.0", ("NVIDIA H100, 96 GB",), {})
NEEDED = {"deepspeed": "deepspeed is not installed", "llamacpp": "llama_cpp is built for the CPU"}


def test_a_machine_with_everything_can_run_every_system_of_the_paper() -> None:
    checks = list(gpu_checks.examine(READY))
    assert all(check.ok for check in checks)
    assert checks[0].detail == "NVIDIA H100, 96 GB, driver 580.65"
    named = " ".join(check.detail for check in checks)
    for name in ("specmoe", "on-demand", "naive", "accelerate-cpu", "hf-resident", "deepspeed-zero", "llama-cpp"):
        assert name in named
    assert "vllm" not in named
    assert "endpoint" not in named


@pytest.mark.parametrize(
    ("facts", "reason", "fix"),
    [
        (Facts(None, "2.13.0+cpu", None, (), {}), "no NVIDIA driver", "needs an NVIDIA GPU and its driver"),
        (Facts("580.65", "2.13.0+cpu", None, (), {}), "is built for the CPU", "default build is for CUDA"),
        (Facts("580.65", "2.13.0", "13.0", (), {}), "torch sees no GPU", "CUDA_VISIBLE_DEVICES"),
    ],
)
def test_without_a_gpu_every_line_says_why_and_what_to_do(facts: Facts, reason: str, fix: str) -> None:
    gpu, *systems = gpu_checks.examine(facts)
    assert not gpu.ok
    assert reason in gpu.detail
    assert fix in gpu.fix
    assert all(not check.ok and reason in check.detail and "paper-ratio" in check.fix for check in systems)


def test_a_missing_package_is_named_with_the_command_that_installs_it() -> None:
    facts = Facts(READY.driver, READY.torch, READY.built_for, READY.gpus, NEEDED)
    found = {check.name: check for check in gpu_checks.examine(facts)}
    assert found["GPU: systems"].ok
    assert "deepspeed is not installed" in found["GPU: deepspeed"].detail
    assert found["GPU: deepspeed"].fix == "pip install 'specmoe-bench[deepspeed]'"
    assert "GGML_CUDA=on" in found["GPU: llamacpp"].fix


def test_doctor_shows_them() -> None:
    names = {check.name for check in doctor.examine()}
    assert {"GPU", "GPU: systems", "GPU: deepspeed", "GPU: llamacpp"} <= names
