"""Where models come from: embedded in the package, constructed from it, or a folder of the user's own."""

from __future__ import annotations

import os
import re
from pathlib import Path

import xxhash

from workloads import inflate

_INFLATED = re.compile(r"^embedded-x(?P<factor>\d+)$")


def cache_dir() -> Path:
    """Folder for constructed models and expert stores: ``SPECMOE_CACHE`` or ``~/.cache/specmoe-bench``."""
    named = os.environ.get("SPECMOE_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "specmoe-bench"


def path(name: str) -> Path:
    """The folder (weights, config, tokenizer) of a model, constructing it when needed.

    ``embedded`` is the trained model in this package; ``embedded-x32`` the same function with expert
    matrices 32 times wider (see ``workloads.inflate``), made in the cache folder on first use; anything else
    must be an existing folder.

    Raises:
        ValueError: no such model.
    """
    embedded = Path(__file__).parent / "embedded"
    if name == "embedded":
        return embedded
    if match := _INFLATED.match(name):
        return inflate.inflated(embedded, cache_dir() / "models" / f"{name}-{_tag(embedded)}", int(match["factor"]))
    folder = Path(name)
    if not (folder / "config.json").exists():
        raise ValueError(f"unknown model {name!r}: use 'embedded', 'embedded-x32', or a folder with config.json")
    return folder


def store_path(name: str, dtype: str) -> Path:
    """Where the expert store of a model in a dtype (``float32``) is kept: in the cache, by folder name."""
    tag = _tag(Path(__file__).parent / "embedded")
    own = f"{name}-{tag}" if name == "embedded" or _INFLATED.match(name) else Path(name).name
    return cache_dir() / "stores" / f"{own}-{dtype}"


def _tag(folder: Path) -> str:
    """Eight digits that change with the weights, so that nothing built from others is taken for theirs."""
    return xxhash.xxh3_64_hexdigest((folder / "model.safetensors").read_bytes())[:8]
