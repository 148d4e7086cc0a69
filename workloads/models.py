"""The model registry: trained models in this package, constructed ones, a folder of the user's, or a hub id."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from workloads import hub, inflate
from workloads.cache import cache_dir
from workloads.model_card import ModelCard
from workloads.smollm2 import recipe as smollm2_recipes
from workloads.smollm2.archives import SMOLLM2

Progress = Callable[[str], None]
"""Called with one line of text whenever a build has something to tell."""

_HERE = Path(__file__).parent
_COMMITTED = {
    "embedded": (_HERE / "embedded", "Qwen3-MoE, 64 experts top-2 in every layer, trained on Python source"),
    "nllb-like": (
        _HERE / "geometries" / "nllb-like",
        "translator, 128 experts top-2 in every fourth layer and dense layers between, after NLLB-MoE",
    ),
    "scout-like": (
        _HERE / "geometries" / "scout-like",
        "16 experts top-1 beside a shared expert, trained on documentation, after Llama-4-Scout",
    ),
    "mixtral-like": (
        _HERE / "geometries" / "mixtral-like",
        "Mixtral, 8 experts top-2 in every layer, trained on Python source",
    ),
}
_INFLATED = re.compile(r"^(?P<base>[\w.-]+?)-x(?P<factor>\d+)$")


def silent(_: str) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True)
class ModelSpec:
    """A model by name: what it is, where its folder is, and how the folder comes to be.

    ``constructed`` says that its weights were made here (trained from scratch, widened, upcycled), so that nobody
    takes it for a published model.  ``prompts`` names the prompt set in ``workloads/prompts`` it is measured on
    unless an experiment says otherwise.  ``at`` is a folder that needs no building; without it the folder lies in
    the cache under the name and ``revision``, which must change whenever ``builder`` would make another model.
    ``builder(folder, progress)`` makes the folder; it must appear under its name only when complete.
    ``on_use`` says that ``path`` may build it unasked, because that takes seconds.
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
        """Where weights, config and tokenizer are, or will be once built."""
        return self.at or cache_dir() / "models" / self.label

    @property
    def label(self) -> str:
        """Name and revision: no two models that differ in weights share it."""
        return f"{self.name}-{self.revision}" if self.revision else self.name

    def is_built(self) -> bool:
        """Whether the folder is there and complete."""
        return (self.folder() / "config.json").exists()

    def build(self, progress: Progress = silent) -> Path:
        """Make the folder unless it is there; returns it."""
        folder = self.folder()
        if not self.is_built():
            if self.builder is None:
                raise ValueError(f"model {self.name!r} lacks {folder / 'config.json'}: install the package again")
            folder.parent.mkdir(parents=True, exist_ok=True)
            self.builder(folder, progress)
        return folder

    def card(self) -> ModelCard | None:
        """Size, training and routing as measured; None where no card stands beside the weights."""
        return ModelCard.read(self.folder())


def catalogue() -> list[ModelSpec]:
    """Every model that has a name of its own; each also exists as NAME-xF (see ``find``)."""
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
        return ModelSpec(folder.name, "a folder of the user's", str(folder), "the user's", constructed=False, at=folder)
    if hub.is_id(name) and not folder.exists():
        return ModelSpec(name, "a model of the hub", name, "see its hub page", False, at=hub.cached(name))
    raise ValueError(
        f"unknown model {name!r}: use {_listed(list(named))}, one of them as NAME-x32, "
        "a folder with config.json, or a hub id OWNER/NAME"
    )


def path(name: str) -> Path:
    """The folder (weights, config, tokenizer) of a model, made or fetched first where that is quick or unavoidable.

    Raises:
        ValueError: no such model, or one that has to be built by command, or a hub id without a hub.
    """
    spec = find(name)
    if not spec.is_built() and hub.is_id(name) and spec.builder is None:
        return hub.fetch(name)
    if not spec.is_built() and spec.builder is not None and not spec.on_use:
        raise ValueError(f"model {name!r} is not built yet: run 'specmoe-bench models build {name}' first")
    return spec.build()


def store_path(name: str, dtype: str) -> Path:
    """Where the expert store of a model in a dtype (``float32``) is kept: in the cache, by label."""
    return cache_dir() / "stores" / f"{find(name).label.replace('/', '--')}-{dtype}"


def _committed(name: str, folder: Path, summary: str) -> ModelSpec:
    """A model whose weights are in this package; its card says the rest."""
    card = ModelCard.read(folder)
    if card is None:
        raise ValueError(f"{folder} lacks its card.json: install the package again")
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
        f"{base.name} with experts {factor} times wider, the same function",
        base.source,
        base.licence,
        constructed=True,
        prompts=base.prompts,
        revision=base.revision,
        builder=build,
        on_use=True,
    )


def _listed(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names)
