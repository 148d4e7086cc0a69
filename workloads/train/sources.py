"""The texts that a recipe can name, and whether a text is the one the committed weights were trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from workloads.train import catalogues, corpus, documentation
from workloads.train.corpus import Corpus
from workloads.train.recipe import Recipe

SOURCES: dict[str, Callable[[Path], Corpus]] = {
    "standard-library": lambda _: corpus.standard_library(),
    "python-documentation": documentation.python_documentation,
    "french-catalogues": catalogues.french_catalogues,
}


def load(recipe: Recipe, packages: Path) -> Corpus:
    """The recipe's text; Debian packages are kept in ``packages``.

    Raises:
        ValueError: the source is unknown, or a package is not available.
    """
    if recipe.data not in SOURCES:
        raise ValueError(f"recipe {recipe.name!r} names unknown data {recipe.data!r}: use {', '.join(SOURCES)}")
    return SOURCES[recipe.data](packages)


def difference(recipe: Recipe, text: Corpus) -> str | None:
    """A note if the text is not the one that the committed weights were trained on, or None."""
    if text.sha256 == recipe.data_sha256:
        return None
    return (
        f"the data differ from those of the committed {recipe.name}: SHA-256 {text.sha256}, pinned "
        f"{recipe.data_sha256 or 'none'}. Training gives a different, equally valid model ({text.source})."
    )
