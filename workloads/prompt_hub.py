"""Prompts from any ``datasets`` name: ``hf:NAME[:CONFIG]:SPLIT:FIELD``, exported once to JSON lines.

``FIELD`` may name a nested value (``translation.en``); a list of messages becomes messages.  ``hf:NAME`` is enough for
the data sets in ``KNOWN``.  ``NAME`` may be a folder made by ``save_to_disk``.

The export runs in a separate process (``workloads.prompt_hub_export``), so that a measured process never loads the
library.  The local cache is used first, without network access; the hub is asked only if the data is not cached,
``HF_HUB_OFFLINE`` does not forbid it, and the hub answers.  Exports are kept in the cache folder; delete one to export
it again.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from workloads.prompt import HUB

ROWS = 1024
"""Maximum number of exported rows: four times the largest batch."""
NOT_CACHED, UNREACHABLE, NO_SUCH = 3, 4, 5
"""Exit codes of ``workloads.prompt_hub_export``."""
_FORM = "write hf:NAME:SPLIT:FIELD or hf:NAME:CONFIG:SPLIT:FIELD, such as hf:cnn_dailymail:3.0.0:test:article"


@dataclass(frozen=True)
class Source:
    """A field of the rows of a split; ``instruction`` is a template with ``{text}``, None uses the text unchanged."""

    name: str
    config: str | None
    split: str
    field: str
    category: str = "general"
    instruction: str | None = None


_CNN = Source(
    "abisee/cnn_dailymail",
    "3.0.0",
    "test",
    "article",
    "summarisation",
    "Summarise this article in a few sentences.\n\n{text}",
)
_WMT = Source(
    "wmt/wmt14", "fr-en", "test", "translation.en", "translation", "Translate this sentence into French.\n\n{text}"
)
KNOWN = {"cnn_dailymail": _CNN, _CNN.name: _CNN, "wmt14": _WMT, _WMT.name: _WMT}
"""Data sets of the paper, for which the name is enough; their texts get an instruction."""


def parse(name: str) -> Source:
    """Parse ``hf:...``.

    Raises:
        ValueError: too few or too many parts, or only a name that is not in ``KNOWN``.
    """
    parts = name.removeprefix(HUB).split(":")
    if not all(parts) or len(parts) not in (1, 3, 4):
        raise ValueError(f"{name!r} is not a prompt set: {_FORM}")
    if len(parts) == 1:
        if parts[0] not in KNOWN:
            raise ValueError(f"{name!r} names no split and field: {_FORM}")
        return KNOWN[parts[0]]
    repository = KNOWN[parts[0]].name if parts[0] in KNOWN else parts[0]
    return Source(repository, parts[1] if len(parts) == 4 else None, parts[-2], parts[-1])


def exported(name: str) -> Path:
    """The JSON lines file of a ``hf:`` name, exported on first use.

    Raises:
        ValueError: the library is missing, the data is not available, or the split or field does not exist.
    """
    from specmoe.files import cache_dir

    source = parse(name)
    saved = [(file.name, file.stat().st_mtime_ns) for file in sorted(Path(source.name).glob("**/*"))]
    digest = hashlib.sha256(repr((source, ROWS, saved)).encode()).hexdigest()[:12]
    out = cache_dir() / "prompts" / f"{source.name.strip('/').replace('/', '--')[-60:]}-{digest}.jsonl"
    if out.exists():
        return out
    if importlib.util.find_spec("datasets") is None:
        raise ValueError(f"{name} needs the datasets library: pip install 'specmoe-bench[datasets]'")
    code, message = _export(source, out, offline=True)
    if code == NOT_CACHED and _offline_variable() is None:
        code, message = _export(source, out, offline=False)
    if code:
        raise ValueError(_reason(name, code, message))
    return out


def _export(source: Source, out: Path, offline: bool) -> tuple[int, str]:
    """Run the export; returns its exit code and the last line of its standard error."""
    out.parent.mkdir(parents=True, exist_ok=True)
    arguments = [source.name, source.config or "", source.split, source.field, source.category]
    command = [
        sys.executable,
        "-m",
        "workloads.prompt_hub_export",
        *arguments,
        source.instruction or "",
        str(ROWS),
        str(out),
    ]
    given = {"HF_HUB_OFFLINE": "1" if offline else "0", "HF_DATASETS_OFFLINE": "1" if offline else "0"}
    package = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, **given, "PYTHONPATH": path, "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = done.stderr.strip().splitlines()
    return done.returncode, lines[-1] if lines else "no message"


def _offline_variable() -> str | None:
    """The environment variable that forbids network access, if one is set."""
    return next((name for name in _OFFLINE if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")), None)


_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")


def _reason(name: str, code: int, message: str) -> str:
    if code == NOT_CACHED:
        variable = _offline_variable()
        return f"{name} is not in the local cache and {variable} is set: unset {variable}, or fetch it beforehand"
    if code == UNREACHABLE:
        return (
            f"{name} is not in the local cache and the hub does not answer ({message}): connect this machine, copy the "
            "Hugging Face cache of another, or name a folder made by save_to_disk (hf:FOLDER:SPLIT:FIELD)"
        )
    return f"{name}: {message}" if code == NO_SUCH else f"{name} cannot be loaded: {message}"
