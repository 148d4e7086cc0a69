"""Converts a checkpoint's experts to an expert store: each file is read once, hashed and converted in one pass."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import PreTrainedModel

from specmoe.errors import StoreError, UnsupportedModelError
from specmoe.files import cache_dir, folder_appears, remove_partials
from specmoe.model.checkpoint import Checkpoint, build_shell, checkpoint_dtype
from specmoe.model.identity import checksum_of, content, identify
from specmoe.model.layer_file import LayerFile
from specmoe.model.layout import plan_layers
from specmoe.model.load_plan import target_dtype
from specmoe.model.progress import ShownProgress
from specmoe.model.shards import checkpoint_files
from specmoe.model.stream import ExpertStream
from specmoe.model.write_behind import WriteBehind
from specmoe.offload.page_memory import PageMemory
from specmoe.offload.store import ExpertStore, write_index

Progress = Callable[[int, int], None]


def build_store(
    checkpoint: str | Path, out: str | Path, dtype: torch.dtype | None = None, progress: Progress | None = None
) -> ExpertStore:
    """Convert the experts of a safetensors checkpoint into a new store at ``out``.

    Args:
        checkpoint: folder with ``config.json`` and safetensors files.
        out: folder to create; it appears only when complete.
        dtype: dtype of the stored experts; default is the checkpoint's own.
        progress: called with (experts done, all experts); by default it is shown on stderr after two seconds.

    Raises:
        UnsupportedModelError: the family or the key layout is not supported.
        StoreError: ``out`` exists, or the disk is full.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    plan = _plan(checkpoint, dtype)  # a checkpoint that is refused leaves nothing behind, not even a lock
    with _only_converter(out):
        if out.exists():
            raise StoreError(f"{out} already exists: open it with ExpertStore.open, or delete it first")
        return _convert(plan, out, progress)


def open_or_build(
    checkpoint: str | Path,
    out: str | Path,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
    compute_dtype: torch.dtype | None = None,
) -> ExpertStore:
    """The store at ``out``, built if it does not exist yet; a second process waits for the first one's conversion.

    ``compute_dtype`` is the one that the model is loaded in, where it is not that of the stored experts
    (``specmoe.model.stored_dtype``).

    A store of other weights, or of a release that did not identify them in full, is rebuilt if ``out`` is in the cache
    folder (``specmoe.files.cache_dir``) and refused elsewhere.

    Raises:
        UnsupportedModelError: the family or the key layout is not supported.
        StoreError: ``out`` holds a damaged store, or one of another checkpoint or dtype.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    if out.exists() and (store := _open_checked(checkpoint, out, dtype)) is not None:
        return store
    plan = _plan(checkpoint, dtype, compute_dtype)
    with _only_converter(out):
        if out.exists():
            if (store := _open_checked(checkpoint, out, dtype)) is not None:
                return store
            shutil.rmtree(out)
        return _convert(plan, out, progress)


def default_store(checkpoint: str | Path, dtype: torch.dtype) -> Path:
    """The folder in the cache for the store of a checkpoint folder in a dtype; other paths have other folders."""
    folder = Path(checkpoint).resolve()
    path_hash = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
    return cache_dir() / "stores" / f"{folder.name}-{path_hash}-{str(dtype).removeprefix('torch.')}"


@contextlib.contextmanager
def _only_converter(out: Path) -> Iterator[None]:
    """Wait until no other process converts to ``out``, and remove what killed ones left.

    Raises:
        StoreError: the folder of ``out`` cannot be written.
    """
    lock = FileLock(out.with_name(f".{out.name}.lock"))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise _not_writable(out, error) from error
    try:
        remove_partials(out)
        yield
    finally:
        lock.release()


def _open_checked(checkpoint: Path, out: Path, dtype: torch.dtype | None) -> ExpertStore | None:
    """The store at ``out`` if it is this checkpoint's; None if it is not and may be rebuilt.

    Raises:
        StoreError: damaged, of another dtype, or of another checkpoint outside the cache folder.
    """
    store = ExpertStore.open(out)
    if dtype is not None and store.dtype != dtype:
        raise StoreError(
            f"{out} holds {store.dtype}, not {dtype}: delete it, choose another folder, or ask for that stored_dtype"
        )
    found = identify(checkpoint, store.source)
    if content(found) == content(store.source):
        if not found.items() <= store.source.items():
            _keep_times(store, found)
        return store
    if out.resolve().is_relative_to(cache_dir().resolve()):
        return None
    raise StoreError(
        f"{out} was built from another checkpoint than {checkpoint}, or by an earlier release: "
        "delete it or choose another folder"
    )


def _keep_times(store: ExpertStore, found: dict[str, Any]) -> None:
    """Keep the new modification times of equal files, so that the next start does not read them."""
    store.source |= found
    with contextlib.suppress(OSError):  # a read-only store: the files are read again next time
        write_index(store.path, store.dtype, store.layers, store.source)


@dataclass(frozen=True)
class _Plan:
    """A checkpoint that has been checked, its shell and the dtype of the store."""

    reader: Checkpoint
    model: PreTrainedModel
    dtype: torch.dtype

    @property
    def total_bytes(self) -> int:
        """Bytes of all layer files."""
        return sum(spec.experts * spec.stride_bytes for spec in plan_layers(self.model, self.dtype).values())


def _plan(checkpoint: Path, dtype: torch.dtype | None, compute_dtype: torch.dtype | None = None) -> _Plan:
    """Check a checkpoint in full, as it is loaded in ``compute_dtype`` (default ``dtype``); nothing is written.

    Raises:
        UnsupportedModelError: it cannot be converted.
    """
    dtype = dtype or checkpoint_dtype(checkpoint)
    compute_dtype = compute_dtype or dtype
    model = build_shell(checkpoint, compute_dtype)
    reader = Checkpoint(checkpoint, model)
    _check_dtypes(reader, model, compute_dtype)
    return _Plan(reader, model, dtype)


def _convert(plan: _Plan, out: Path, progress: Progress | None) -> ExpertStore:
    free = shutil.disk_usage(out.parent).free
    if free < plan.total_bytes:
        raise StoreError(
            f"the expert store at {out} takes {plan.total_bytes / 1e9:.1f} GB, {free / 1e9:.1f} GB are free there: "
            f"free disk space or {_ELSEWHERE}"
        )
    try:
        with folder_appears(out) as partial:
            _write(plan, partial, progress or ShownProgress(out, plan.total_bytes))
    except OSError as error:
        raise _not_writable(out, error) from error
    return ExpertStore.open(out)


def _not_writable(out: Path, error: OSError) -> StoreError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    fix = "free disk space" if full else "make its folder writable"
    return StoreError(f"cannot write the expert store at {out} ({error.strerror}): {fix} or {_ELSEWHERE}")


_ELSEWHERE = "choose another folder (store=, or SPECMOE_CACHE for the cache folder)"


def _check_dtypes(reader: Checkpoint, model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Check that every expert tensor is computed in ``dtype``.

    Raises:
        UnsupportedModelError: ``from_pretrained`` keeps an expert tensor in another dtype.
    """
    for groups in reader.expert_groups().values():
        for group in groups:
            kept = target_dtype(model, group.target, dtype)
            if kept != dtype:
                raise UnsupportedModelError(
                    f"{type(model).__name__} keeps {group.target} in {kept} when loaded in {dtype}, an expert store "
                    f"has one dtype: load it in {kept}"
                )


_LEAST_MEMORY_BYTES = 16 << 20


def _write(plan: _Plan, folder: Path, progress: Progress) -> None:
    """Write all layer files, their affinity tables and the index, reading every file of the checkpoint once."""
    specs = plan_layers(plan.model, plan.dtype)
    largest = max(spec.experts * spec.stride_bytes for spec in specs.values())
    memory = PageMemory(max(_LEAST_MEMORY_BYTES, int(1.09 * largest)))
    groups = plan.reader.expert_groups()
    layers = {
        module: LayerFile(folder, plan.model, spec, groups[module], plan.dtype, memory)
        for module, spec in specs.items()
    }
    checkpoint = plan.reader.path
    config = checksum_of(checkpoint / "config.json")
    starts: dict[Path, dict[str, int]] = {}
    pieces = [piece for layer in layers.values() for piece in layer.pieces(starts)]
    waiting_bytes = min(map(_waiting_bytes, layers.values()))
    stream = ExpertStream(checkpoint_files(checkpoint), pieces, waiting_bytes, memory)
    done, total = 0, sum(layer.experts for layer in layers.values())
    with ExitStack() as opened, _one_thread_each(), WriteBehind(memory) as behind:
        for layer in layers.values():
            opened.callback(layer.close)
        for (module, expert), parts in stream:
            behind.add(layers[module], expert, parts)
            done += 1
            progress(done, total)
        behind.end()
    files = {file.relative_to(checkpoint).as_posix(): found for file, found in stream.identity.items()}
    facts = {"model_type": plan.model.config.model_type, "files": files, "config_xxh3": config}
    write_index(folder, plan.dtype, [layer.describe() for layer in layers.values()], facts)


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """torch computes in the calling thread alone, here and in threads that start here: teams would wait for others."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _waiting_bytes(layer: LayerFile) -> int:
    """Most bytes of incomplete experts: with those that are converted they stay below a layer."""
    return max(layer.nbytes // 2, layer.nbytes - 4 * layer.nbytes // layer.experts)
