"""The model registry: trained and constructed models by name, a local folder, or a hub id."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from specmoe import hub
from specmoe.files import cache_dir
from workloads import inflate
from workloads.model_card import ModelCard
from workloads.smollm2 import recipe as smollm2_recipes
from workloads.smollm2.archives import SMOLLM2

Progress = Callable[[str], None]
"""Called with one line of text per step of a build."""

_HERE = Path(__file__).parent
_COMMITTED = {
    "embedded": (_HERE / "embedded", "Qwen3-MoE, 64 experts top-2 in every layer, trained on Python source"),
    "nllb-like": (
        _HERE / "geometries" / "nllb-like",
        "translator, 128 experts top-2 in every fourth layer, other layers dense, after NLLB-MoE",
    ),
    "scout-like": (
        _HERE / "geometries" / "scout-like",
        "16 experts top-1 beside a shared expert, trained on documentation, after Llama-4-Scout",
    ),
    "mixtral-like": (
        _HERE / "geometries" / "mixtral-like",
        "Mixtral, 8 experts top-2 in every layer, trained on Python source",
    ),
    "nllb-moe-like": (
        _HERE / "geometries" / "nllb-moe-like",
        "NLLB-MoE, an encoder-decoder that translates, 128 experts top-2 in every fourth layer",
    ),
    "llama4-like": (
        _HERE / "geometries" / "llama4-like",
        "Llama 4, 16 experts top-1 beside a shared expert, attention in chunks, trained on documentation",
    ),
}
SUPERSEDED = {"nllb-like": "nllb-moe-like", "scout-like": "llama4-like"}
"""Models of the paper's geometries in other classes, kept while committed records were measured on them."""
_INFLATED = re.compile(r"^(?P<base>[\w.-]+?)-x(?P<factor>\d+)$")


def silent(_: str) -> None:
    """Progress that is not shown."""


@dataclass(frozen=True)
class ModelSpec:
    """A model by name: what it is, where its folder is, and how the folder is built.

    ``constructed`` marks weights that were made by this project (trained from scratch, widened, upcycled), as opposed
    to a published model.  ``prompts`` names the prompt set in ``workloads/prompts`` on which it is measured unless an
    experiment names another.  ``at`` is a folder that needs no building; without it the folder is in the cache under
    the name and ``revision``, which must change whenever ``builder`` would make another model.
    ``builder(folder, progress)`` makes the folder, which must appear under its name only when complete.
    ``on_use``: ``path`` builds it without being asked, because that takes seconds.
    """

    name: str
    summary: str
    source: str
    licence: str
    constructed: bool
    prompts: str = "embedded"
    at: Path | None = None
    revision: str = ""
    builder: Callable[[Path, Progress], None] | None = None
    on_use: bool = False

    def folder(self) -> Path:
        """The folder of weights, config and tokenizer, which may not be built yet."""
        return self.at or cache_dir() / "models" / self.label

    @property
    def label(self) -> str:
        """Name and revision; models with different weights have different labels."""
        return f"{self.name}-{self.revision}" if self.revision else self.name

    def is_built(self) -> bool:
        """Whether the folder exists, complete."""
        return (self.folder() / "config.json").exists()

    def build(self, progress: Progress = silent) -> Path:
        """Build the folder unless it exists; returns it."""
        folder = self.folder()
        if not self.is_built():
            if self.builder is None:
                raise ValueError(f"model {self.name!r} has no {folder / 'config.json'}: install the package again")
            folder.parent.mkdir(parents=True, exist_ok=True)
            self.builder(folder, progress)
        return folder

    def card(self) -> ModelCard | None:
        """Size, training and routing as measured; None if there is no card beside the weights."""
        return ModelCard.read(self.folder())


def catalogue() -> list[ModelSpec]:
    """Every named model; each is also available widened as NAME-xF (see ``find``)."""
    return [
        *(_committed(name, folder, summary) for name, (folder, summary) in _COMMITTED.items()),
        *(_smollm2(name) for name in smollm2_recipes.RECIPES),
    ]


def find(name: str) -> ModelSpec:
    """The model of a name.

    A name of the catalogue; ``NAME-xF``, the same function with expert matrices F times wider (F a power of two, see
    ``workloads.inflate``); an existing folder; or a hub id such as ``Qwen/Qwen3-30B-A3B``.

    Raises:
        ValueError: no such model.
    """
    named = {spec.name: spec for spec in catalogue()}
    if name in named:
        return named[name]
    if (match := _INFLATED.match(name)) and match["base"] in named:
        return _widened(named[match["base"]], int(match["factor"]))
    folder = Path(name)
    if (folder / "config.json").exists():
        place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]  # folders of one name, one store each
        return ModelSpec(folder.name, "local folder", str(folder), "see the folder", False, at=folder, revision=place)
    if hub.is_id(name) and not folder.exists():
        return ModelSpec(name, "hub model", name, "see its hub page", False, at=hub.cached(name))
    raise ValueError(
        f"unknown model {name!r}: use {_listed(list(named))}, one of them as NAME-x32, "
        "a folder with config.json, or a hub id OWNER/NAME"
    )


def path(name: str) -> Path:
    """The folder of a model's weights, config and tokenizer; widened models are built, hub models fetched on first use.

    Raises:
        ValueError: the model does not exist, has to be built by command, or cannot be fetched from the hub.
    """
    spec = find(name)
    if not spec.is_built() and hub.is_id(name) and spec.builder is None:
        return hub.fetch(name)
    if not spec.is_built() and spec.builder is not None and not spec.on_use:
        raise ValueError(f"model {name!r} is not built yet: run 'specmoe-bench models build {name}' first")
    return spec.build()


def store_path(name: str, dtype: str) -> Path:
    """The folder of a model's expert store in a dtype (such as ``float32``), in the cache."""
    return cache_dir() / "stores" / f"{find(name).label.replace('/', '--')}-{dtype}"


def _committed(name: str, folder: Path, summary: str) -> ModelSpec:
    """A model whose weights are in this package, described by its card."""
    card = ModelCard.read(folder)
    if card is None:
        raise ValueError(f"{folder} has no card.json: install the package again")
    return ModelSpec(
        name,
        summary,
        source=card.data,
        licence=card.licence,
        constructed=True,
        prompts=name,
        at=folder,
        revision=card.weights_sha256[:8],
    )


def _smollm2(name: str) -> ModelSpec:
    """A model upcycled from SmolLM2, built by command."""

    def build(folder: Path, progress: Progress) -> None:
        from workloads.smollm2.build import build as build_smollm2

        build_smollm2(name, folder, progress)

    return ModelSpec(
        name,
        smollm2_recipes.summary(name),
        source=f"{SMOLLM2.package} {SMOLLM2.version} on PyPI",
        licence=SMOLLM2.licence,
        constructed=True,
        prompts="questions",
        revision=smollm2_recipes.revision(name),
        builder=build,
    )


def _widened(base: ModelSpec, factor: int) -> ModelSpec:
    def build(folder: Path, progress: Progress) -> None:
        progress(f"widening the experts of {base.name} {factor} times")
        inflate.inflated(path(base.name), folder, factor)

    return ModelSpec(
        f"{base.name}-x{factor}",
        f"{base.name} with experts {factor} times wider and the same function",
        base.source,
        base.licence,
        constructed=True,
        prompts=base.prompts,
        revision=f"{base.revision}-{inflate.VERSION}",
        builder=build,
        on_use=True,
    )


def _listed(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names)
