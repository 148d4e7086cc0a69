"""Sessions: ``tests``, ``adapters``, ``cluster``, ``bench``, ``lint``, ``reproduce``, each from nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import nox

nox.options.sessions = ["tests"]
nox.options.default_venv_backend = "venv"


def _install(session: nox.Session, *extras: str) -> None:
    """Install the project, with the tested torch where there is no GPU to choose a build for."""
    target = f".[{','.join(extras)}]" if extras else "."
    has_gpu = shutil.which("nvidia-smi") is not None or Path("/dev/nvidia0").exists()
    constraints = () if has_gpu else ("--constraint", "constraints-cpu.txt")
    session.install("--editable", target, *constraints)


@nox.session
def tests(session: nox.Session) -> None:
    """All tests, the slow ones included; arguments go to pytest (``nox -s tests -- -m "not slow"``)."""
    _install(session, "test")
    session.run("pytest", *session.posargs)


@nox.session
def adapters(session: nox.Session) -> None:
    """The optional systems, DeepSpeed and llama.cpp, compiled from source and held to the contract.

    About five CPU minutes for llama.cpp and three for DeepSpeed's C++ parts; needs a C++ compiler, CMake and libaio
    with its headers (without libaio the NVMe variant is skipped, with the reason).
    """
    _install(session, "test", "deepspeed", "llamacpp")
    session.run("pytest", "tests/test_adapters.py", *(session.posargs or ["-k", "deepspeed or llama or gguf"]))


@nox.session
def cluster(session: nox.Session) -> None:
    """The Ray executor on a local cluster of two nodes."""
    _install(session, "test", "ray")
    session.run("pytest", "tests/test_ray.py", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Benchmarks of the instrument itself, on a quiet machine; they rewrite ``docs/records``."""
    _install(session, "test")
    session.run("pytest", "-m", "benchmark", "tests/benchmarks", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Formatting, lint rules and types."""
    _install(session, "test", "lint")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run("mypy")


@nox.session
def reproduce(session: nox.Session) -> None:
    """Run an experiment (default ``quick``) and write its report: ``nox -s reproduce -- NAME_OR_YAML``."""
    _install(session)
    experiment, *rest = session.posargs or ["quick"]
    session.run("specmoe-bench", "run", experiment, "--report", *rest)
