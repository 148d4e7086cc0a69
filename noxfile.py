"""Sessions: tests, adapters, cluster, bench, cuda, lint, docs and reproduce, each in an environment of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import nox

nox.options.sessions = ["tests"]
nox.options.default_venv_backend = "venv"

# Two files of tests at once; those of one file share what was made for the first of them.
SIDE_BY_SIDE = ("--numprocesses=2", "--dist=loadfile", "--no-loadscope-reorder")


def _has_gpu() -> bool:
    return shutil.which("nvidia-smi") is not None or Path("/dev/nvidia0").exists()


def _install(session: nox.Session, *extras: str) -> None:
    """Install the project, with the tested torch where there is no GPU to choose a build for."""
    target = f".[{','.join(extras)}]" if extras else "."
    constraints = () if _has_gpu() else ("--constraint", "constraints-cpu.txt")
    session.install("--editable", target, *constraints)


@nox.session
def tests(session: nox.Session) -> None:
    """Tests, slow ones too, but those of ``adapters``; arguments go to pytest (``nox -s tests -- -m "not slow"``)."""
    _install(session, "test")
    session.run("pytest", *SIDE_BY_SIDE, *session.posargs)


@nox.session
def wheels(session: nox.Session) -> None:
    """Compile what ``adapters`` needs into a folder: ``nox -s wheels -- FOLDER``, then ``PIP_FIND_LINKS=FOLDER``."""
    (folder,) = session.posargs
    extras = nox.project.load_toml("pyproject.toml")["project"]["optional-dependencies"]
    session.run("pip", "wheel", "--no-deps", "--wheel-dir", folder, *extras["llamacpp"], *extras["deepspeed"])


@nox.session
def adapters(session: nox.Session) -> None:
    """Every system held to the contract, DeepSpeed and llama.cpp, compiled from source, included.

    About five CPU minutes for llama.cpp and three for DeepSpeed's C++ parts; needs a C++ compiler, CMake and libaio
    with its headers (without libaio the NVMe variant is skipped, with the reason).
    """
    _install(session, "test", "deepspeed", "llamacpp")
    session.run("pytest", *SIDE_BY_SIDE, "-m", "systems", "tests/baselines", *session.posargs)
    session.run("pytest", "tests/baselines", "-k", "deepspeed or llama or gguf")


@nox.session
def cluster(session: nox.Session) -> None:
    """The Ray executor on a local cluster of two nodes."""
    _install(session, "test", "ray")
    session.run("pytest", "tests/harness/run/test_ray.py", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Benchmarks of the instrument itself, on a quiet machine; they rewrite ``docs/records``."""
    _install(session, "test")
    session.run("pytest", "-m", "benchmark", "tests/benchmarks", *session.posargs)


@nox.session
def cuda(session: nox.Session) -> None:
    """The tests that need an NVIDIA GPU, then the suite ``gpu``, whose records and page go to ``results/gpu``."""
    if not _has_gpu():
        session.skip("no NVIDIA GPU here (neither nvidia-smi nor /dev/nvidia0): nothing was run")
    _install(session, "test")
    session.run("pytest", "-m", "cuda", "tests")
    session.run("specmoe-bench", "run", "gpu", "--report", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Formatting, lint rules and types."""
    _install(session, "test", "lint")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run("mypy")
    session.run("lint-imports")


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation as a site in ``site/``, to be read from disk; a broken link is an error."""
    extras = nox.project.load_toml("pyproject.toml")["project"]["optional-dependencies"]
    session.install(*extras["docs"])
    session.run("mkdocs", "build", "--strict", *session.posargs, env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session
def reproduce(session: nox.Session) -> None:
    """Run an experiment (default ``quick``) and write its report: ``nox -s reproduce -- NAME_OR_YAML --batch 1``."""
    _install(session)
    given = list(session.posargs)
    experiment = given.pop(0) if given and not given[0].startswith("-") else "quick"
    session.run("specmoe-bench", "run", experiment, "--report", *given)
