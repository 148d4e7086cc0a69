"""The dense model and the token sequences from which both models are built, prepared once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM

from specmoe.files import replacing
from workloads.smollm2 import source, text
from workloads.smollm2.recipe import Recipe


@dataclass
class Material:
    """The dense model (bfloat16) and token ids, long [S, L]: ``train``, held-out ``documents`` and ``chats``."""

    model: LlamaForCausalLM
    train: Tensor
    documents: Tensor
    chats: Tensor

    @property
    def tokens(self) -> Tensor:
        """All sequences, training first."""
        return torch.cat([self.train, self.documents, self.chats])


def load_dense(folder: Path) -> LlamaForCausalLM:
    """The dense model of a folder, in bfloat16, without gradients."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    return model.requires_grad_(False)


def material(recipe: Recipe, folder: Path) -> Material:
    """Fetch, read and sample what is missing in ``folder``; concurrent builds wait for each other here.

    Raises:
        SourceError: see ``workloads.smollm2.source``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        return _material(recipe, folder)


def _material(recipe: Recipe, folder: Path) -> Material:
    dense = source.dense(folder)
    model = load_dense(dense)
    kept = (
        folder / f"tokens-{recipe.train_tokens}-{recipe.held_out_tokens}-{recipe.chat_share}-{recipe.seed}.safetensors"
    )
    if not kept.exists():
        with replacing(kept) as partial:
            save_file(_sequences(recipe, folder, dense, model), partial)
    return Material(model, **load_file(kept))


def _sequences(recipe: Recipe, folder: Path, dense: Path, model: LlamaForCausalLM) -> dict[str, Tensor]:
    tokenizer = AutoTokenizer.from_pretrained(dense)
    documents, chats = recipe.sequences(recipe.train_tokens)
    held_documents, held_chats = recipe.sequences(recipe.held_out_tokens)
    train_texts, held_out_texts = text.documents(folder)
    order = torch.randperm(len(train_texts), generator=torch.Generator().manual_seed(recipe.seed)).tolist()
    length = recipe.sequence_length
    prose = text.document_sequences([train_texts[i] for i in order], tokenizer, documents, length)
    held_prose = text.document_sequences(held_out_texts, tokenizer, held_documents, length)
    talk, held_talk = text.chat_sequences(model, tokenizer, recipe, chats, held_chats)
    return {"train": torch.cat([prose, talk]), "documents": held_prose, "chats": held_talk}
