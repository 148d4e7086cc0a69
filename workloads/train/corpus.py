"""Training text, and a source of it that every machine has: the running interpreter's standard library.

Its licence (PSF-2.0) permits this use, and Python source is regular enough for a 14 M-parameter model to learn in under
an hour on two cores.
"""

from __future__ import annotations

import hashlib
import platform
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

# Tables of numbers or code points, and deliberately broken sources, are useless for training.
SKIPPED_PARTS = frozenset({"site-packages", "encodings", "pydoc_data", "bad_coding.py", "__pycache__"})
MAX_FILE_BYTES = 400_000
HELD_OUT_ONE_IN = 40


@dataclass(frozen=True)
class Pair:
    """A held-out translation: prompt, reference translation, and their origin."""

    prompt: str
    reference: str
    package: str
    licence: str


@dataclass(frozen=True)
class Corpus:
    """Documents split into training and held-out text.

    Documents of parallel text have ``tags`` (one before the source, one before the target); ``pairs`` are the held-out
    ones as prompt and reference.
    """

    train: list[str]
    held_out: list[str]
    source: str
    licence: str
    sha256: str
    tags: tuple[str, ...] = ()
    pairs: list[Pair] = field(default_factory=list)


def standard_library() -> Corpus:
    """Read the standard library's ``.py`` files in sorted order.

    A file is held out when the SHA-1 of its relative path is divisible by ``HELD_OUT_ONE_IN``, so the
    split does not depend on which other files exist.  ``sha256`` covers every byte used.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    train: list[str] = []
    held_out: list[str] = []
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if SKIPPED_PARTS & set(relative.parts) or path.stat().st_size > MAX_FILE_BYTES:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if not text.strip():
            continue
        digest.update(relative.as_posix().encode() + b"\0" + text.encode() + b"\0")
        key = int.from_bytes(hashlib.sha1(relative.as_posix().encode()).digest()[:8], "big")
        (held_out if key % HELD_OUT_ONE_IN == 0 else train).append(text)
    return Corpus(
        train=train,
        held_out=held_out,
        source=f"standard library of CPython {platform.python_version()}",
        licence="PSF-2.0",
        sha256=digest.hexdigest(),
    )
