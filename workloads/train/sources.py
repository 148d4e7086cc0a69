"""The texts a recipe can name, and whether they are the very texts it was run with."""

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
    """The recipe's text; Debian packages are looked for, and kept, in ``packages``.

    Raises:
        ValueError: the recipe names no known source, or a package cannot be had.
    """
    if recipe.data not in SOURCES:
        raise ValueError(f"recipe {recipe.name!r} wants data {recipe.data!r}: use {', '.join(SOURCES)}")
    return SOURCES[recipe.data](packages)


def difference(recipe: Recipe, text: Corpus) -> str | None:
    """What to tell when the text at hand is not the one the committed weights were trained on; None when it is."""
    if text.sha256 == recipe.data_sha256:
        return None
    return (
        f"the data differ from those of the committed {recipe.name}: SHA-256 {text.sha256}, pinned "
        f"{recipe.data_sha256 or 'none'}. The weights will be another, equally valid model ({text.source})."
    )
