"""What both DeepSpeed adapters need: the package, its compiled parts, and a process group of one."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from baselines.contract import NotSupported, Setting, require

EXTRA = "deepspeed"
_MEND = "install a C++ compiler, ninja, and libaio with its headers (apt-get install g++ libaio-dev)"


def use_ops_folder(setting: Setting, clear_locks: bool = False) -> None:
    """Have torch keep DeepSpeed's compiled parts beside the scratch folders, one set for all models.

    A compilation that was killed leaves a lock that the next one would wait for without end; ``clear_locks``
    (for ``build``, which the harness runs one at a time) removes it.
    """
    folder = setting.scratch.parent / "deepspeed-ops"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)
    if clear_locks:
        for lock in folder.rglob("lock"):
            lock.unlink()


def compile_ops(setting: Setting, names: Sequence[str]) -> None:
    """Compile the C++ parts that the named builders stand for, and those every CPU process group loads.

    Raises:
        NotSupported: DeepSpeed is missing, or a part cannot be compiled here.
    """
    accelerator = require("deepspeed.accelerator", EXTRA).get_accelerator()
    use_ops_folder(setting, clear_locks=True)
    common = [] if accelerator.device_name() == "cuda" else ["ShareMemCommBuilder"]
    for name in [*common, *names]:
        builder = accelerator.create_op_builder(name)
        try:
            if not builder.is_compatible():
                raise NotSupported(f"DeepSpeed's {builder.name} cannot be compiled here: {_MEND}")
            builder.load(verbose=False)
        except (OSError, RuntimeError, ImportError) as error:
            raise NotSupported(f"DeepSpeed's {builder.name} did not compile ({error}): {_MEND}") from error


class SingleProcessGroup:
    """A torch process group of this process alone, met through a file: no port, no launcher."""

    def __init__(self, setting: Setting) -> None:
        use_ops_folder(setting)
        for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
            os.environ.setdefault(name, value)
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
