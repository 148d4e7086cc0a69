"""Shared by both DeepSpeed adapters: compiling its C++ operators, and a process group of one."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from baselines.contract import NotSupported, Setting, require
from baselines.hf import TransformersSystem

EXTRA = "deepspeed"
_FIX = "install a C++ compiler, ninja, and libaio with its headers (apt-get install g++ libaio-dev)"


def process_environment(device: str) -> dict[str, str]:
    """Environment of a process group of this process alone on ``cpu``, ``cuda`` or ``cuda:1``.

    DeepSpeed otherwise chooses a GPU wherever torch sees one, and the GPU of this process's number among several.
    """
    kind, _, index = device.partition(":")
    return {"DS_ACCELERATOR": kind, "RANK": "0", "LOCAL_RANK": index or "0", "WORLD_SIZE": "1"}


def use_ops_folder(setting: Setting, clear_locks: bool = False) -> None:
    """Let torch keep DeepSpeed's compiled operators beside the scratch folders, one set for all models.

    A killed compilation leaves a lock that the next one would wait for forever; ``clear_locks`` (for ``build``, which
    the harness runs one at a time) removes it.
    """
    folder = setting.scratch.parent / "deepspeed-ops"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)
    if clear_locks:
        for lock in folder.rglob("lock"):
            lock.unlink()


def compile_ops(setting: Setting, names: Sequence[str]) -> None:
    """Compile the C++ operators of the named builders, and those that every CPU process group loads.

    Raises:
        NotSupported: DeepSpeed is missing, or an operator cannot be compiled here.
    """
    os.environ |= process_environment(setting.device)
    accelerator = require("deepspeed.accelerator", EXTRA).get_accelerator()
    use_ops_folder(setting, clear_locks=True)
    common = [] if accelerator.device_name() == "cuda" else ["ShareMemCommBuilder"]
    for name in [*common, *names]:
        builder = accelerator.create_op_builder(name)
        try:
            if not builder.is_compatible():
                raise NotSupported(f"DeepSpeed's {builder.name} cannot be compiled here: {_FIX}")
            builder.load(verbose=False)
        except (OSError, RuntimeError, ImportError) as error:
            raise NotSupported(f"DeepSpeed's {builder.name} did not compile ({error}): {_FIX}") from error


class SingleProcessGroup:
    """A torch process group of this process alone, initialised through a file: no port, no launcher."""

    def __init__(self, setting: Setting) -> None:
        use_ops_folder(setting)
        os.environ |= process_environment(setting.device)
        if setting.device != "cpu":
            torch.cuda.set_device(setting.device)
        self._deepspeed: Any = require("deepspeed", EXTRA)
        handle, self._file = tempfile.mkstemp(prefix="specmoe-bench-deepspeed-")
        os.close(handle)
        self._deepspeed.init_distributed(
            auto_mpi_discovery=False, init_method=f"file://{self._file}", rank=0, world_size=1, verbose=False
        )

    def close(self) -> None:
        self._deepspeed.comm.destroy_process_group()
        with contextlib.suppress(FileNotFoundError):
            Path(self._file).unlink()


class DeepSpeedSystem(TransformersSystem):
    """Base of both adapters: compiled operators in ``build``, a process group in ``prepare``, closed in ``close``."""

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._group: SingleProcessGroup | None = None

    def operators(self, setting: Setting) -> Sequence[str]:
        """Names of the operator builders that it needs besides the common ones."""
        return ()

    def build(self, setting: Setting) -> None:
        compile_ops(setting, self.operators(setting))
        super().build(setting)

    def open_group(self, setting: Setting) -> None:
        """Start the process group, which ``close`` ends."""
        self._group = SingleProcessGroup(setting)

    def close(self) -> None:
        super().close()
        if self._group is not None:
            self._group.close()
            self._group = None
