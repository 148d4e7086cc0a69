"""Training recipes build the stated architectures from texts that are split without overlap."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from workloads.train import catalogues, documentation, packages, prompts, sources, tokens
from workloads.train.architectures import build_model
from workloads.train.catalogues import Message
from workloads.train.corpus import Corpus, Pair
from workloads.train.packages import Package
from workloads.train.recipe import RECIPES

ENGLISH_AND_FRENCH = [
    ("_Open file", "_Ouvrir le fichier"),
    ("Save &As...", "Enregistrer &sous…"),
    ("Not translated", ""),
    ("OK", "OK"),
    ("Use <b>bold</b> text", "Utiliser du texte <b>gras</b>"),
    ("Are you sure?", "Êtes-vous sûr\xa0?"),
    ("a_name stays", "a_name reste"),
]


@pytest.fixture(scope="module")
def catalogue() -> bytes:
    """A compiled catalogue of the messages above, with one plural."""
    polib = pytest.importorskip("polib", reason="reading gettext catalogues needs the train extra")
    po = polib.POFile()
    po.metadata = {"Content-Type": "text/plain; charset=utf-8"}
    po.extend(polib.POEntry(msgid=english, msgstr=french) for english, french in ENGLISH_AND_FRENCH)
    po.append(
        polib.POEntry(msgid="%d file", msgid_plural="%d files", msgstr_plural={0: "%d fichier", 1: "%d fichiers"})
    )
    compiled: bytes = po.to_binary()
    return compiled


def _package(folder: Path, name: str, files: dict[str, bytes]) -> Path:
    if shutil.which("dpkg-deb") is None:
        pytest.skip("building a Debian package needs dpkg-deb")
    root = folder / f"{name}-root"
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    (root / "DEBIAN").mkdir()
    (root / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: 1:2.0-1\nArchitecture: all\nMaintainer: A <a@example.org>\nDescription: x\n"
    )
    deb = folder / f"{name}_1%3a2.0-1_all.deb"
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", root, deb], check=True, capture_output=True)
    return deb


def test_a_catalogue_gives_clean_translated_messages_only(catalogue: bytes) -> None:
    assert set(catalogues.messages(catalogue)) == {
        Message("Open file", "Ouvrir le fichier"),
        Message("Save As...", "Enregistrer sous..."),
        Message("Are you sure?", "Êtes-vous sûr ?"),
        Message("%d file", "%d fichier"),
        Message("aname stays", "aname reste"),  # a mnemonic inside a word cannot be distinguished from an underscore
    }


def test_what_is_no_catalogue_is_refused(catalogue: bytes) -> None:
    with pytest.raises(ValueError, match="not a gettext catalogue"):
        list(catalogues.messages(catalogue[:40]))


def test_variants_of_a_message_fall_on_one_side_of_the_split() -> None:
    messages = [f"Open {word} file" for word in ("the", "a", "another", "this", "that")]
    for text in messages:
        assert len({catalogues.is_held_out(t) for t in (text, text.upper(), text + "...", f"_{text}:")}) == 1


def test_french_catalogues_are_read_from_packages_once_per_message(
    catalogue: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    french = "usr/share/locale/fr/LC_MESSAGES/x.mo"
    _package(tmp_path, "one", {french: catalogue, "usr/share/locale/de/LC_MESSAGES/x.mo": catalogue})
    _package(tmp_path, "two", {french: catalogue})
    named = (Package("one", "1:2.0-1", "MIT"), Package("two", "1:2.0-1", "GPL-2+"))
    monkeypatch.setattr(catalogues, "PACKAGES", named)
    text = catalogues.french_catalogues(tmp_path)
    assert len(text.train) + len(text.held_out) == 5
    assert "one 1:2.0-1 (MIT)" in text.source
    assert all(document.startswith("<en> ") and " <fr> " in document for document in text.train)
    assert catalogues.french_catalogues(tmp_path) == text


def test_documentation_is_read_from_its_package(tmp_path: Path) -> None:
    root = "usr/share/doc/python3.11/html/_sources"
    files = {f"{root}/{n}.rst.txt": f"text {n}".encode() for n in range(5)} | {f"{root}/x.html": b"<html>"}
    _package(tmp_path, documentation.PACKAGE.name, files)
    text = documentation.python_documentation(tmp_path)
    assert sorted(text.train + text.held_out) == [f"text {n}" for n in range(5)]
    assert text.source.endswith("python3.11-doc 1:2.0-1")


def test_an_unavailable_package_is_named_with_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="apt-get is not installed: put the Debian package p 1 into"):
        packages.fetch(Package("p", "1", "MIT"), tmp_path)
    (tmp_path / "apt-get").write_text("#!/bin/sh\necho 'E: Unable to locate package p' >&2; exit 100\n")
    (tmp_path / "apt-get").chmod(0o755)
    with pytest.raises(
        ValueError, match=r"p cannot be downloaded \(E: Unable to locate package p\).*put the \.deb into"
    ):
        packages.fetch(Package("p", "1", "MIT"), tmp_path)


def test_a_file_that_is_no_package_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken_1_all.deb"
    broken.write_bytes(b"no package")
    with pytest.raises(ValueError, match=r"broken_1_all\.deb cannot be read"):
        list(packages.members(broken, ".mo"))


def test_the_pinned_version_is_preferred_to_another_at_hand(tmp_path: Path) -> None:
    for version in ("1", "2", "3"):
        (tmp_path / f"p_{version}_all.deb").touch()
    assert packages.fetch(Package("p", "2", "MIT"), tmp_path).name == "p_2_all.deb"
    assert packages.fetch(Package("p", "9", "MIT"), tmp_path).name == "p_1_all.deb"


def test_data_other_than_the_pinned_are_noted() -> None:
    recipe = RECIPES["scout-like"]
    text = Corpus(["a"], ["b"], "somewhere", "MIT", sha256="0" * 64)
    note = sources.difference(recipe, text)
    assert note is not None
    assert recipe.data_sha256 in note
    assert "0" * 64 in note
    assert sources.difference(recipe, replace(text, sha256=recipe.data_sha256)) is None


@pytest.fixture(scope="module")
def translator() -> PreTrainedTokenizerFast:
    documents = [f"<en> word {n} <fr> mot {n}" for n in range(50)]
    return tokens.train_tokenizer(documents, 400, ("<en>", "<fr>"))


def test_tags_are_single_tokens(translator: PreTrainedTokenizerFast) -> None:
    ids = translator("<en> word <fr> mot")["input_ids"]
    assert ids.count(translator.convert_tokens_to_ids("<en>")) == ids.count(1) == 1
    assert ids.count(translator.convert_tokens_to_ids("<fr>")) == ids.count(2) == 1
    assert translator.decode(ids) == "<en> word <fr> mot"


def test_the_loss_counts_the_translation_and_its_end_fully(translator: PreTrainedTokenizerFast) -> None:
    stream = tokens.stream(["<en> word 1 <fr> mot 1", "<en> word 2 <fr> mot 2"], translator, ("<en>", "<fr>"), 0.25)
    fully = [int(i) for i, weight in zip(stream.ids, stream.weights, strict=True) if weight == 1]
    assert translator.decode(fully) == " mot 1<|endoftext|><en> mot 2"  # no tag stands before the stream's first
    assert set(stream.weights.tolist()) == {0.25, 1.0}


def test_plain_text_counts_everywhere(translator: PreTrainedTokenizerFast) -> None:
    assert np.all(tokens.stream(["word 1", "word 2"], translator).weights == 1)


def test_translation_prompts_are_held_out_messages_with_reference_and_licence(
    translator: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    pairs = [Pair(f"<en> {'word ' * n}<fr>", "mot " * n, "p", "MIT") for n in range(1, 120)]
    text = Corpus([], [], "", "", "", ("<en>", "<fr>"), pairs)
    count = prompts.write_prompts(text, translator, tmp_path / "p.jsonl", seed=1)
    rows = (tmp_path / "p.jsonl").read_text().splitlines()
    assert count == len(rows) > 20
    assert '"reference": "mot' in rows[0]
    assert '"licence": "MIT"' in rows[0]


PAPER_CLASSES = ("llama4-like", "nllb-moe-like")


def test_a_translators_prompts_can_be_the_messages_alone(translator: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    pairs = [Pair(f"<en> {'word ' * n}{n} <fr>", "mot", "p", "MIT") for n in range(10, 30)]
    text = Corpus([], [], "", "", "", ("<en>", "<fr>"), pairs)
    prompts.write_prompts(text, translator, tmp_path / "p.jsonl", seed=1, tagged=False)
    for line in (tmp_path / "p.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert row["text"].startswith("word ")
        assert "<fr>" not in row["text"]
        assert row["tokens"] == len(translator(row["text"])["input_ids"])


@pytest.mark.parametrize("name", sorted(set(RECIPES) - set(PAPER_CLASSES)))
def test_every_recipe_builds_the_model_it_states(name: str) -> None:
    recipe = RECIPES[name]
    model = build_model(recipe)
    blocks = [layer.mlp for layer in model.model.layers]
    sparse = [index for index, block in enumerate(blocks) if hasattr(block, "experts")]
    assert sparse == list(range(recipe.sparse_step - 1, recipe.layers, recipe.sparse_step))
    assert blocks[sparse[0]].experts.down_proj.shape == (
        recipe.experts,
        recipe.hidden_size,
        recipe.expert_intermediate_size,
    )
    assert hasattr(blocks[sparse[0]], "shared_expert") == bool(recipe.shared_expert_intermediate_size)
    assert recipe.data in sources.SOURCES
    assert len(recipe.data_sha256) == 64


def test_the_translators_recipe_builds_an_encoder_decoder_with_experts_in_every_fourth_layer() -> None:
    recipe = RECIPES["nllb-moe-like"]
    config = build_model(recipe).config
    assert config.model_type == "nllb-moe"
    assert (config.num_experts, config.encoder_sparse_step, config.decoder_sparse_step) == (128, 4, 4)
    assert config.encoder_layers + config.decoder_layers == recipe.layers
    assert config.encoder_layers % 4 == config.decoder_layers % 4 == 0
    assert config.encoder_ffn_dim == config.decoder_ffn_dim == recipe.expert_intermediate_size
    assert config.moe_token_dropout == config.dropout == config.decoder_layerdrop == 0
    assert recipe.data_sha256 == RECIPES["nllb-like"].data_sha256


def test_the_llama4_recipe_builds_chunked_attention_and_layers_without_rotary_positions() -> None:
    recipe = RECIPES["llama4-like"]
    config = build_model(recipe).config
    assert config.model_type == "llama4_text"
    assert (config.num_local_experts, config.num_experts_per_tok) == (16, 1)
    assert config.moe_layers == list(range(recipe.layers))
    assert config.no_rope_layers == [1, 1, 1, 0] * (recipe.layers // 4)
    assert config.attention_chunk_size == 64 < recipe.max_position_embeddings
    assert recipe.data_sha256 == RECIPES["scout-like"].data_sha256


def test_a_field_the_architecture_cannot_have_is_refused() -> None:
    with pytest.raises(ValueError, match="'mixtral-like': mixtral cannot have sparse_step=2"):
        build_model(replace(RECIPES["mixtral-like"], sparse_step=2))
    with pytest.raises(ValueError, match="'nllb-moe-like': nllb_moe cannot have experts_per_token=1"):
        build_model(replace(RECIPES["nllb-moe-like"], experts_per_token=1))
    with pytest.raises(ValueError, match="'llama4-like': llama4 cannot have shared_expert_intermediate_size=96"):
        build_model(replace(RECIPES["llama4-like"], shared_expert_intermediate_size=96))
    with pytest.raises(ValueError, match="names unknown data 'nowhere': use standard-library"):
        sources.load(replace(RECIPES["embedded"], data="nowhere"), Path())
