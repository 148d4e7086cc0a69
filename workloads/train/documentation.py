"""English prose about programming: the reStructuredText sources of Python's documentation."""

from __future__ import annotations

import hashlib
from pathlib import Path

from workloads.train import packages
from workloads.train.corpus import HELD_OUT_ONE_IN, Corpus
from workloads.train.packages import Package

PACKAGE = Package("python3.11-doc", "3.11.2-6+deb12u9", "PSF-2.0")
MAX_FILE_BYTES = 400_000


def python_documentation(folder: Path) -> Corpus:
    """The ``.rst`` sources in Debian's ``python3.11-doc``, kept in ``folder``; held out by file name."""
    deb = packages.fetch(PACKAGE, folder)
    train: list[str] = []
    held_out: list[str] = []
    digest = hashlib.sha256()
    for path, content in packages.members(deb, ".rst.txt"):
        if len(content) > MAX_FILE_BYTES or "/whatsnew/changelog" in path:
            continue
        digest.update(path.encode() + b"\0" + content + b"\0")
        key = int.from_bytes(hashlib.sha1(path.encode()).digest()[:8], "big")
        (held_out if key % HELD_OUT_ONE_IN == 0 else train).append(content.decode("utf-8"))
    return Corpus(
        train=train,
        held_out=held_out,
        source=f"reStructuredText sources in Debian's {PACKAGE.name} {packages.version_of(deb)}",
        licence=PACKAGE.licence,
        sha256=digest.hexdigest(),
    )
