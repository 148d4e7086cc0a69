"""Models named by a hub id: fetched by ``huggingface_hub`` into its own cache, where a hub is reachable."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
_WANTED = ["*.json", "*.safetensors", "tokenizer*", "*.model", "*.jinja", "*.txt"]
NOT_FETCHED = Path("not-fetched-from-the-hub")


def is_id(name: str) -> bool:
    """Whether ``name`` has the form OWNER/NAME."""
    return _ID.match(name) is not None


def cached(name: str) -> Path:
    """The folder of a model fetched before, without asking the network; ``NOT_FETCHED`` where there is none."""
    try:
        return Path(snapshot_download(name, allow_patterns=_WANTED, local_files_only=True))
    except LocalEntryNotFoundError:
        return NOT_FETCHED


def fetch(name: str) -> Path:
    """Download a model's weights, config and tokenizer; continues an interrupted download.

    Raises:
        ValueError: the hub cannot be reached, or it has no such model or keeps it behind an agreement.
    """
    try:
        return Path(snapshot_download(name, allow_patterns=_WANTED))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"model {name!r} is no folder here and cannot be fetched from the hub ({_first_line(error)}): "
            "check the name and the network, or give a folder with config.json"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
