"""Models named by a hub id, downloaded by ``huggingface_hub`` into its cache."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
_WANTED = ["*.json", "*.safetensors", "tokenizer*", "*.model", "*.jinja", "*.txt"]
_OTHER_FORMATS = ["*/*", "consolidated*"]  # the same weights again, as other libraries read them
NOT_FETCHED = Path("not-fetched-from-the-hub")


def is_id(name: str) -> bool:
    """Whether ``name`` has the form OWNER/NAME."""
    return _ID.match(name) is not None


def cached(name: str) -> Path:
    """The folder of a model in the local cache, without network access; ``NOT_FETCHED`` if it is not cached."""
    try:
        return Path(
            snapshot_download(name, allow_patterns=_WANTED, ignore_patterns=_OTHER_FORMATS, local_files_only=True)
        )
    except LocalEntryNotFoundError:
        return NOT_FETCHED


def fetch(name: str) -> Path:
    """Download a model's weights, config and tokenizer; continues an interrupted download.

    Raises:
        ValueError: the hub is unreachable, or the model does not exist there or requires accepting an agreement.
    """
    try:
        return Path(snapshot_download(name, allow_patterns=_WANTED, ignore_patterns=_OTHER_FORMATS))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"model {name!r} is not a local folder and cannot be fetched from the hub ({_first_line(error)}): "
            "check the name and the network, or give a folder with config.json"
        ) from error


def resolve(name: str | Path) -> Path:
    """A local folder as it is; a hub id's folder in the local cache, downloaded if it is not there.

    Raises:
        ValueError: as ``fetch``.
    """
    folder = Path(name)
    return fetch(str(name)) if not folder.exists() and is_id(str(name)) else folder


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
