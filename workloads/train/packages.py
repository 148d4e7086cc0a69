"""Debian packages as a source of text: downloaded by ``apt-get``, read without being installed."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """A package in the version of the recipe, and the licence of the text read from it."""

    name: str
    version: str
    licence: str


def fetch(package: Package, folder: Path) -> Path:
    """The package's ``.deb`` in ``folder``: the pinned version if it is available, else the one apt offers.

    Raises:
        ValueError: it does not exist and apt cannot download it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if found := _present(package, folder):
        return found
    if shutil.which("apt-get") is None:
        raise ValueError(
            f"apt-get is not installed: put the Debian package {package.name} {package.version} into {folder}"
        )
    errors = ""
    for asked in (f"{package.name}={package.version}", package.name):
        done = subprocess.run(["apt-get", "download", "-qq", asked], cwd=folder, capture_output=True, text=True)
        if done.returncode == 0 and (found := _present(package, folder)):
            return found
        errors = done.stderr.strip()
    raise ValueError(
        f"Debian package {package.name} cannot be downloaded ({errors.splitlines()[-1] if errors else 'no message'}): "
        f"run apt-get update on Debian bookworm, or put the .deb into {folder}"
    )


def _present(package: Package, folder: Path) -> Path | None:
    """The pinned version if it exists, else any other of the package."""
    exact = f"{package.name}_{package.version.replace(':', '%3a')}_"
    files = sorted(folder.glob(f"{package.name}_*.deb"))
    return next((file for file in files if file.name.startswith(exact)), files[0] if files else None)


def version_of(deb: Path) -> str:
    """The version a package file states."""
    return subprocess.run(
        ["dpkg-deb", "--field", deb, "Version"], check=True, capture_output=True, text=True
    ).stdout.strip()


def members(deb: Path, suffix: str) -> Iterator[tuple[str, bytes]]:
    """Path and content of every file of the package whose path ends with ``suffix``, in path order.

    Raises:
        ValueError: the file is not a Debian package.
    """
    chosen: list[tuple[str, bytes]] = []
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as unpacked:
        try:
            with tarfile.open(fileobj=unpacked.stdout, mode="r|") as archive:
                for member in archive:
                    path = member.name.removeprefix("./")
                    if member.isfile() and path.endswith(suffix):
                        content = archive.extractfile(member)
                        if content is not None:
                            chosen.append((path, content.read()))
        except tarfile.TarError as error:
            raise ValueError(f"{deb} cannot be read as a Debian package ({error}): download it again") from error
    yield from sorted(chosen)
