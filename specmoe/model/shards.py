"""The safetensors files of a checkpoint folder: which they are, and what their headers say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from specmoe.errors import UnsupportedModelError
from specmoe.model.load_plan import Stored


def headers(path: Path) -> Iterator[Stored]:
    """Every tensor of a checkpoint folder.

    Raises:
        UnsupportedModelError: as ``checkpoint_files`` and ``open_shard``.
    """
    for file in checkpoint_files(path):
        opened = open_shard(file)
        for key in opened.keys():  # noqa: SIM118 (safe_open is no mapping)
            tensor = opened.get_slice(key)
            yield Stored(file, key, tensor.get_dtype(), tuple(tensor.get_shape()))


def open_shard(file: Path) -> Any:
    """An opened safetensors file; tensors are read on access.

    Raises:
        UnsupportedModelError: it cannot be read, is truncated or not safetensors.
    """
    try:
        with file.open("rb"):  # safetensors says of a file without permission that it is not there
            return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise UnsupportedModelError(f"{file} cannot be read ({error}): download it again") from error
    except OSError as error:
        cause = error.strerror or error
        raise UnsupportedModelError(
            f"{file} cannot be read ({cause}): check its disk and permissions, or download it again"
        ) from error


def checkpoint_files(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder, in index order; as in transformers, a single file comes first.

    Raises:
        UnsupportedModelError: no safetensors there, a malformed index, or a listed shard is missing.
    """
    index = path / "model.safetensors.index.json"
    if (path / "model.safetensors").exists():
        names = ["model.safetensors"]
    elif index.exists():
        names = _listed_shards(index)
    else:
        raise UnsupportedModelError(f"{path} holds no safetensors weights: {_what_instead(path)}")
    missing = [name for name in names if not (path / name).exists()]
    if missing:
        raise UnsupportedModelError(f"{path} lacks the shard {missing[0]}: download it again")
    return [path / name for name in names]


# Files of weights that are not read -> what to do about them, the first that is there
_INSTEAD = {
    "*.safetensors": "{name} is there without model.safetensors.index.json, download that too; a single file must be "
    "named model.safetensors",
    "*.bin": "convert {name} with transformers' from_pretrained and save_pretrained",
    "*.gguf": "{name} is of llama.cpp, use the safetensors that it was made from",
    "*.pt*": "convert {name} with the script of its authors",
}


def _what_instead(path: Path) -> str:
    """What a folder without safetensors holds instead, and what to do."""
    if (path / "model.safetensors").is_symlink():
        return "model.safetensors is a link to a file that is not there, download it again"
    names = [file.name for file in path.iterdir()] if path.is_dir() else []
    for pattern, advice in _INSTEAD.items():
        found = sorted(name for name in names if fnmatch(name.lower(), pattern))
        if found:
            return advice.format(name=found[0])
    return "save the model as safetensors"


def _listed_shards(index: Path) -> list[str]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if not names or not all(isinstance(name, str) and name for name in names):
            raise ValueError("no shards are listed")
        if any(Path(name).is_absolute() or ".." in Path(name).parts for name in names):
            raise ValueError("a shard is outside the folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UnsupportedModelError(
            f"{index} is not an index of safetensors files ({type(error).__name__}: {error}): download it again"
        ) from error
    return names
