"""What this machine could run on a GPU, and why not the rest."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from baselines import registry
from baselines.contract import CapabilityCard
from harness.machine.check import Check

_DRIVER = Path("/proc/driver/nvidia/version")
_MODULES = {"deepspeed": "deepspeed", "llamacpp": "llama_cpp"}
"""What the extras of systems install."""
_CUDA_LLAMA = "CMAKE_ARGS=-DGGML_CUDA=on pip install --force-reinstall --no-cache-dir llama-cpp-python"


@dataclass(frozen=True)
class Facts:
    """What decides whether systems run on a GPU here.

    ``driver`` is the version of NVIDIA's kernel module, None without one; ``built_for`` the CUDA version that torch was
    built for; ``gpus`` those that torch sees, as text.  ``missing`` holds, by pip extra, why its package cannot be used
    on a GPU.
    """

    driver: str | None
    torch: str
    built_for: str | None
    gpus: tuple[str, ...]
    missing: Mapping[str, str]

    @classmethod
    def here(cls) -> Self:
        """The facts of this machine."""
        reasons = {extra: reason for extra in _MODULES if (reason := _why_not(extra)) is not None}
        return cls(_driver(), torch.__version__, torch.version.cuda, _gpus(), reasons)

    @property
    def reason(self) -> str | None:
        """Why torch cannot use a GPU here; None if it can."""
        if self.gpus:
            return None
        if self.driver is None:
            return "no NVIDIA driver (no /proc/driver/nvidia)"
        if self.built_for is None:
            return f"torch {self.torch} is built for the CPU"
        return f"torch sees no GPU, although driver {self.driver} is loaded"


def examine(facts: Facts) -> Iterator[Check]:
    """A check of the GPU, one of the systems that need nothing else, and one for each pip extra."""
    driver = "" if facts.driver is None else f", driver {facts.driver}"
    yield Check("GPU", facts.reason is None, facts.reason or "; ".join(facts.gpus) + driver, _fix(facts))
    need_gpu = "needs the GPU; emulated without one by a paced link: `specmoe-bench run paper-ratio`"
    for extra, systems in _by_extra().items():
        reasons = [reason for reason in (facts.reason, facts.missing.get(extra or "")) if reason is not None]
        name = f"GPU: {extra or 'systems'}"
        fix = "; ".join(filter(None, [need_gpu if facts.reason else "", _extra_fix(extra, facts)]))
        yield Check(name, not reasons, ", ".join(systems) + (f": {'; '.join(reasons)}" if reasons else ""), fix)


def _by_extra() -> dict[str | None, list[str]]:
    """Names of the systems that compute on a GPU, by the pip extra they need; those without one first."""
    cards: list[CapabilityCard] = [system.card for system in registry.systems().values()]
    able = [card for card in cards if "cuda" in card.devices and card.run_on and not card.external]
    extras = sorted({card.extra for card in able}, key=lambda extra: extra or "")
    return {extra: [card.name for card in able if card.extra == extra] for extra in extras}


def _fix(facts: Facts) -> str:
    if facts.driver is None:
        return "needs an NVIDIA GPU and its driver; everything but the paper's own tier runs without"
    if facts.built_for is None:
        return "pip uninstall torch, then pip install torch: on Linux its default build is for CUDA"
    return f"see whether CUDA_VISIBLE_DEVICES hides the GPU, and whether the driver runs CUDA {facts.built_for}"


def _extra_fix(extra: str | None, facts: Facts) -> str:
    if extra is None or extra not in facts.missing:
        return ""
    built = extra == "llamacpp" and "built" in facts.missing[extra]
    return _CUDA_LLAMA if built else f"pip install 'specmoe-bench[{extra}]'"


def _driver() -> str | None:
    try:
        found = re.search(r"Kernel Module.*?(\d+[.\d]+)", _DRIVER.read_text())
    except OSError:
        return None
    return found[1] if found else "of unknown version"


def _gpus() -> tuple[str, ...]:
    if not torch.cuda.is_available():
        return ()
    properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return tuple(f"{found.name}, {found.total_memory / 1e9:.0f} GB" for found in properties)


def _why_not(extra: str) -> str | None:
    module = _MODULES[extra]
    if importlib.util.find_spec(module) is None:
        return f"{module} is not installed"
    if extra != "llamacpp":
        return None
    try:
        offloads = importlib.import_module(module).llama_supports_gpu_offload()
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return f"{module} cannot be imported ({error})"
    return None if offloads else f"{module} is built for the CPU"
