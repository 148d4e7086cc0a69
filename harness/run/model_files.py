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
from specmoe.model.checkpoint import checkpoint_files
from specmoe.model.convert import open_or_build
from specmoe.model.identity import checksum_of, content, identify
from specmoe.offload.store import ExpertStore
from workloads import models, prompts


@dataclass(frozen=True)
class ModelFiles:
    """Folders of one model in one dtype; ``default_prompts`` is the prompt set that the model is measured on."""

    checkpoint: Path
    store: Path
    default_prompts: str

    @classmethod
    def of(cls, model: str, dtype: str) -> ModelFiles:
        """Find a model by name, folder or hub id; it is built or fetched if it has to be.

        Raises:
            ValueError: no such model, or it cannot be built here.
        """
        return cls(models.path(model), models.store_path(model, dtype), models.find(model).prompts)

    def open_store(self, dtype: str) -> ExpertStore:
        """The expert store, built if it is missing.

        Raises:
            StoreError: the store is damaged or cannot be written.
        """
        return open_or_build(self.checkpoint, self.store, getattr(torch, dtype))

    def scratch(self, system: str) -> Path:
        """A system's own folder for this checkpoint and dtype; other weights of the same name get another."""
        files = [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in checkpoint_files(self.checkpoint)]
        identity = hashlib.sha256(json.dumps([str(self.checkpoint.resolve()), *files]).encode()).hexdigest()[:8]
        return cache_dir() / "scratch" / f"{self.store.name}-{identity}-{system}"

    def folders(self, system: str) -> list[Path]:
        """Every folder that a system reads experts or its own files from."""
        return [self.checkpoint, self.store, self.scratch(system)]

    def prompts(self, name: str | None) -> str:
        """The named prompt set, or the model's default."""
        return name or self.default_prompts

    def reference(self, cell: Cell, folder: Path) -> Path:
        """The file in ``folder`` with the reference tokens of a cell, equal for equal weights, dtype and requests."""
        facts = [
            str(self.checkpoint.resolve()),
            self._identity(),
            cell.dtype,
            cell.requests,
            prompts.fingerprint(self.prompts(cell.prompts)),
        ]
        name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
        return folder / f"{name}.json"

    def _identity(self) -> dict[str, Any]:
        """The content of the checkpoint: weights, and every JSON file (config, generation config, tokenizer).

        Weights that the store already identified are not read again.
        """
        known = ExpertStore.open(self.store).source if self.store.exists() else None
        small = {file.name: checksum_of(file) for file in sorted(self.checkpoint.glob("*.json"))}
        return {**content(identify(self.checkpoint, known)), "json": small}
