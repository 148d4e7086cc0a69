"""A recipe's text as its model reads it: the tokenizer trained on it, and training and held-out batches."""

from __future__ import annotations

import random

from transformers import PreTrainedTokenizerFast

from workloads.train import pairs, tokens
from workloads.train.batches import Pairs, TrainingData, Windows
from workloads.train.corpus import Corpus
from workloads.train.recipe import Recipe


def prepare(recipe: Recipe, corpus: Corpus) -> tuple[PreTrainedTokenizerFast, TrainingData]:
    """Train the tokenizer and encode the text: as one stream, or as pairs for an encoder-decoder."""
    return _pairs(recipe, corpus) if recipe.encoder_layers else _stream(recipe, corpus)


def _pairs(recipe: Recipe, corpus: Corpus) -> tuple[PreTrainedTokenizerFast, TrainingData]:
    both_sides = [text for document in corpus.train for text in pairs.split(document, corpus.tags)]
    tokenizer = pairs.train_tokenizer(both_sides, recipe.vocab_size)
    train, test = (
        pairs.EncodedPairs.encode(part, corpus.tags, tokenizer, recipe.sequence_length)
        for part in (corpus.train, corpus.held_out)
    )
    return tokenizer, Pairs(recipe, train, test)


def _stream(recipe: Recipe, corpus: Corpus) -> tuple[PreTrainedTokenizerFast, TrainingData]:
    tokenizer = tokens.train_tokenizer(corpus.train, recipe.vocab_size, corpus.tags)
    documents = list(corpus.train)
    if corpus.tags:  # a window should not be filled with short documents of one program
        random.Random(recipe.seed).shuffle(documents)
    train, test = (
        tokens.stream(part, tokenizer, corpus.tags, recipe.source_loss_weight) for part in (documents, corpus.held_out)
    )
    return tokenizer, Windows(recipe, train, test)
