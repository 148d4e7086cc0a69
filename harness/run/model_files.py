"""A model on this machine: its checkpoint and expert store, and where files derived from both are kept."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from reports.results.record import Cell
from specmoe.files import cache_dir
from specmoe.model.convert import open_or_build
from specmoe.model.identity import checksum_of, content, identify
from specmoe.model.shards import checkpoint_files
from specmoe.model.stored_dtype import choose_for
from specmoe.offload.store import ExpertStore
from workloads import models, prompts


@dataclass(frozen=True)
class ModelFiles:
    """Folders of one model with its experts in ``stored_dtype``, computed in ``dtype``.

    ``default_prompts`` is the prompt set that the model is measured on.
    """

    checkpoint: Path
    store: Path
    default_prompts: str
    dtype: str
    stored_dtype: str

    @classmethod
    def of(cls, model: str, dtype: str, stored_dtype: str | None = None) -> ModelFiles:
        """Find a model by name, folder or hub id; it is built or fetched if it has to be.

        Args:
            model: the name, folder or id.
            dtype: computed in.
            stored_dtype: of the experts; default the checkpoint's own where widening it to ``dtype`` is exact.

        Raises:
            ValueError: no such model, or it cannot be built here, or experts stored so would change the result.
            UnsupportedModelError: a checkpoint that cannot be loaded.
        """
        path, asked = models.path(model), None if stored_dtype is None else getattr(torch, stored_dtype)
        stored = str(choose_for(path, getattr(torch, dtype), asked)).removeprefix("torch.")
        return cls(path, models.store_path(model, stored), models.find(model).prompts, dtype, stored)

    def open_store(self) -> ExpertStore:
        """The expert store, built if it is missing.

        Raises:
            StoreError: the store is damaged or cannot be written.
        """
        stored, dtype = getattr(torch, self.stored_dtype), getattr(torch, self.dtype)
        return open_or_build(self.checkpoint, self.store, stored, compute_dtype=dtype)

    def scratch(self, system: str) -> Path:
        """A system's own folder for this checkpoint and dtypes; other weights of the same name get another."""
        computed = "" if self.stored_dtype == self.dtype else f"-in-{self.dtype}"
        files = [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in checkpoint_files(self.checkpoint)]
        identity = hashlib.sha256(json.dumps([str(self.checkpoint.resolve()), *files]).encode()).hexdigest()[:8]
        return cache_dir() / "scratch" / f"{self.store.name}{computed}-{identity}-{system}"

    def folders(self, system: str) -> list[Path]:
        """Every folder that a system reads experts or its own files from."""
        return [self.checkpoint, self.store, self.scratch(system)]

    def prompts(self, name: str | None) -> str:
        """The named prompt set, or the model's default."""
        return name or self.default_prompts

    def reference(self, cell: Cell, folder: Path) -> Path:
        """The file in ``folder`` with a cell's reference, equal for equal weights, dtype, requests and decoding."""
        facts: list[Any] = [
            str(self.checkpoint.resolve()),
            self._identity(),
            cell.dtype,
            cell.asked,
            prompts.fingerprint(self.prompts(cell.prompts)),
        ]
        if cell.decoding is not None:
            facts.append(cell.decoding.model_dump())
        name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
        return folder / f"{name}.json"

    def _identity(self) -> dict[str, Any]:
        """The content of the checkpoint: weights, and every JSON file (config, generation config, tokenizer).

        Weights that the store already identified are not read again.
        """
        known = ExpertStore.open(self.store).source if self.store.exists() else None
        small = {file.name: checksum_of(file) for file in sorted(self.checkpoint.glob("*.json"))}
        return {**content(identify(self.checkpoint, known)), "json": small}
