"""The training text of the experts: Django's documentation, and chats with answers sampled from the dense model."""

from __future__ import annotations

import hashlib
import itertools
import random
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from workloads.smollm2 import archives
from workloads.smollm2.recipe import Recipe

DOCUMENTS_HELD_OUT_ONE_IN = 20
TOPICS = [
    "the water cycle",
    "photosynthesis",
    "volcanoes",
    "the Moon",
    "black holes",
    "electricity",
    "magnets",
    "vaccines",
    "sleep",
    "memory",
    "bread baking",
    "coffee",
    "tomatoes",
    "chess",
    "football",
    "swimming",
    "violins",
    "opera",
    "photography",
    "poetry",
    "the Roman Empire",
    "the Silk Road",
    "the printing press",
    "railways",
    "bridges",
    "sailing ships",
    "aeroplanes",
    "bicycles",
    "maps",
    "calendars",
    "prime numbers",
    "fractions",
    "probability",
    "triangles",
    "statistics",
    "algorithms",
    "databases",
    "encryption",
    "the Internet",
    "open-source software",
    "bees",
    "whales",
    "horses",
    "forests",
    "deserts",
    "rivers",
    "glaciers",
    "rainbows",
    "earthquakes",
    "recycling",
    "saving money",
    "taxes",
    "elections",
    "libraries",
    "museums",
    "teachers",
    "doctors",
    "farmers",
    "job interviews",
    "friendship",
]
QUESTIONS = (
    "Explain {} to a child.",
    "What should everyone know about {}?",
    "Write a short paragraph about {}.",
    "Give me five facts about {}.",
    "Why are people interested in {}?",
    "Write a short story that has to do with {}.",
    "How did our understanding of {} change over time?",
    "Ask me three questions about {} and answer them.",
)
CHAT_BATCH = 32
CHAT_NEW_TOKENS = 128
CHAT_TEMPERATURE = 0.8


def documents(folder: Path) -> tuple[list[str], list[str]]:
    """Train and held-out files of Django's documentation (reStructuredText); held out by SHA-1 of the path."""
    archive = archives.fetch(archives.DJANGO, folder)
    train: list[str] = []
    held_out: list[str] = []
    for path, text in archives.text_members(archive, "docs", ".txt"):
        key = int.from_bytes(hashlib.sha1(path.encode()).digest()[:8], "big")
        (held_out if key % DOCUMENTS_HELD_OUT_ONE_IN == 0 else train).append(text)
    return train, held_out


def document_sequences(texts: list[str], tokenizer: PreTrainedTokenizerBase, count: int, length: int) -> Tensor:
    """Token ids [count, length], cut from the concatenated texts.

    Raises:
        SourceError: the texts have too few tokens.
    """
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    ids: list[int] = []
    for text in texts:
        ids += [end, *tokenizer(text)["input_ids"]]
        if len(ids) >= count * length:
            return torch.tensor(ids[: count * length]).view(count, length)
    raise archives.SourceError(
        f"the text has {len(ids)} tokens, the recipe needs {count * length}: lower its train_tokens"
    )


def questions(seed: int) -> list[str]:
    """All questions on all topics, in a seeded order."""
    asked = [question.format(topic) for question, topic in itertools.product(QUESTIONS, TOPICS)]
    random.Random(seed).shuffle(asked)
    return asked


@torch.no_grad()
def chats(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, asked: list[str], seed: int) -> list[list[int]]:
    """One conversation per question as token ids: the chat template, then an answer sampled from the dense model."""
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
        )
        for question in asked
    ]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        out = model.generate(
            **batch, max_new_tokens=CHAT_NEW_TOKENS, do_sample=True, temperature=CHAT_TEMPERATURE, top_k=50
        )
    conversations = []
    for row, mask in zip(out, batch["attention_mask"], strict=True):
        answer = row[len(mask) :].tolist()
        answer = answer[: answer.index(end) + 1] if end in answer else answer
        conversations.append([*row[: len(mask)][mask.bool()].tolist(), *answer])
    return conversations


def chat_sequences(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, count: int, held_out: int
) -> tuple[Tensor, Tensor]:
    """``count`` training and ``held_out`` sequences of packed conversations; no question is in both.

    The held-out questions are taken first, so that they do not depend on the number of training tokens.

    Raises:
        SourceError: the questions give too few tokens.
    """
    length = recipe.sequence_length
    asked = questions(recipe.seed)
    packed: list[Tensor] = []
    for wanted in (held_out, count):
        ids: list[int] = []
        while len(ids) < wanted * length:
            if not asked:
                raise archives.SourceError(
                    f"{len(QUESTIONS) * len(TOPICS)} questions do not give {wanted * length} tokens: lower chat_share"
                )
            batch, asked = asked[:CHAT_BATCH], asked[CHAT_BATCH:]
            ids += itertools.chain.from_iterable(chats(model, tokenizer, batch, recipe.seed + len(asked)))
        packed.append(torch.tensor(ids[: wanted * length]).view(wanted, length))
    return packed[1], packed[0]
