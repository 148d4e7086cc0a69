"""Committed prompt sets are complete, loaders name what is wrong, and an unreachable hub is an error at once."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from harness.cli import main as cli
from workloads import prompt_hub, prompt_hub_export, prompts
from workloads.prompt import Message, Prompt
from workloads.rendering import render

SPEC_BENCH = {"conversation", "translation", "summarisation", "question answering", "mathematics", "retrieval"}
QUESTIONS = [name for name, s in prompts.catalogue().items() if s.source == prompts.QUESTIONS_SOURCE and not s.parts]
LONG_WORDS = 150


@pytest.mark.parametrize("name", prompts.catalogue())
def test_every_committed_prompt_has_an_id_a_category_and_something_to_answer(name: str) -> None:
    described, loaded = prompts.catalogue()[name], prompts.load(name)
    assert described.title
    assert described.source
    assert described.licence
    assert described.language
    assert len({p.id for p in loaded}) == len(loaded)
    asked = {p.text or p.messages[-1].content for p in loaded}
    assert len(asked) == len(loaded), "a prompt occurs twice"
    assert all(p.category != "general" for p in loaded)


def test_the_questions_cover_the_categories_of_spec_bench_with_at_least_twelve_each() -> None:
    counts = dict.fromkeys(SPEC_BENCH, 0)
    for prompt in prompts.load("questions"):
        counts[prompt.category] += 1
        assert prompt.messages[-1].role == "user"
        assert [m.role for m in prompt.messages] == ["user", "assistant"] * (len(prompt.messages) // 2) + ["user"]
    assert min(counts.values()) >= 12
    assert any(len(p.messages) > 1 for p in prompts.load("conversation"))


@pytest.mark.parametrize("name", ["summarisation", "retrieval"])
def test_questions_about_passages_contain_them(name: str) -> None:
    assert min(len(p.messages[-1].content.split()) for p in prompts.load(name)) > LONG_WORDS


@pytest.mark.parametrize("name", ["mathematics", "question-answering", "translation", "retrieval"])
def test_questions_with_an_answer_have_a_reference(name: str) -> None:
    assert all(p.reference for p in prompts.load(name))


def test_the_mixed_set_interleaves_all_categories() -> None:
    mixed = prompts.load("questions")
    assert {p.category for p in mixed[: len(SPEC_BENCH)]} == SPEC_BENCH
    assert sorted(p.id for p in mixed) == sorted(p.id for name in QUESTIONS for p in prompts.load(name))


@pytest.mark.parametrize("name", ["embedded", "mathematics"])
def test_calibration_prompts_are_never_measured(name: str) -> None:
    loaded = prompts.load(name)
    measured = {p.id for p in prompts.select(len(loaded) + 5, name_or_path=name)}
    profiled = prompts.calibration(loaded)
    assert len(profiled) == prompts.CALIBRATION
    assert not measured & {p.id for p in profiled}


def test_list_shows_every_set_with_size_and_licence(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "workloads"]) == 0
    text = capsys.readouterr().out
    for name, described in prompts.catalogue().items():
        assert any(line.split()[:2] == [name, str(len(prompts.load(name)))] for line in text.splitlines())
        assert described.licence in text


def _written(folder: Path, *rows: object) -> Path:
    file = folder / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_a_file_may_mix_texts_and_messages(tmp_path: Path) -> None:
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    file = _written(
        tmp_path,
        {"id": 1, "text": "import os", "tokens": 2},
        {"id": "b", "messages": said, "category": "odd", "reference": "Because."},
    )
    assert prompts.load(file) == [
        Prompt("1", "import os"),
        Prompt("b", "", (Message("system", "Be brief."), Message("user", "Why?")), "odd", "Because."),
    ]


def test_spec_bench_questions_give_their_first_turn(tmp_path: Path) -> None:
    file = _written(
        tmp_path,
        {"question_id": 81, "category": "writing", "turns": ["Write a post.", "Now shorter."]},
        {"question_id": 82, "category": "math", "turns": ["2 + 2?"], "reference": ["4"]},
    )
    assert prompts.load(file) == [
        Prompt("81", "", (Message("user", "Write a post."),), "writing"),
        Prompt("82", "", (Message("user", "2 + 2?"),), "math", "4"),
    ]


@pytest.mark.parametrize(
    "row",
    [
        {"text": "no id"},
        {"id": "a"},
        {"id": "a", "text": "x", "messages": [{"role": "user", "content": "y"}]},
        {"id": "a", "text": "  "},
        {"id": "a", "text": 3},
        {"id": "a", "messages": []},
        {"id": "a", "messages": [{"role": "poet", "content": "x"}]},
        {"id": "a", "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
        {"question_id": 1, "turns": []},
        ["a", "b"],
        "text",
    ],
)
def test_a_line_that_is_not_a_prompt_is_named_with_the_fix(tmp_path: Path, row: object) -> None:
    file = _written(tmp_path, {"id": "ok", "text": "x"}, row)
    with pytest.raises(ValueError, match=r"mine\.jsonl:2 is not a prompt .*each line needs"):
        prompts.load(file)


def test_two_lines_of_one_id_and_an_empty_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r":2 has the id 'a' of an earlier line"):
        prompts.load(_written(tmp_path, {"id": "a", "text": "x"}, {"id": "a", "text": "y"}))
    with pytest.raises(ValueError, match="contains no prompts"):
        prompts.load(_written(tmp_path))


def test_an_unknown_set_lists_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match=r"unknown prompts 'chat': use one of conversation, .*questions, an existing JSONL"
    ):
        prompts.load("chat")


CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TALK = Prompt("t", "", (Message("user", "Hello."), Message("assistant", "Hi."), Message("user", "And? ")))


def test_messages_go_through_the_tokenizers_own_template(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = CHATML
    try:
        rendered = render(TALK, tokenizer)
    finally:
        tokenizer.chat_template = None
    assert rendered.body == "<|user|>Hello.<|end|><|assistant|>Hi.<|end|><|user|>And?"
    assert rendered.end == "<|end|><|assistant|>"
    assert not rendered.special_tokens, "the template has written them"


def test_without_a_template_messages_are_rendered_in_plain_form(tokenizer: PreTrainedTokenizerFast) -> None:
    rendered = render(TALK, tokenizer)
    assert rendered.body + rendered.end == "User: Hello.\n\nAssistant: Hi.\n\nUser: And? \n\nAssistant:"
    assert rendered.special_tokens


def test_a_text_is_unchanged_even_with_a_template(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = CHATML
    try:
        rendered = render(Prompt("a", "import os"), tokenizer)
    finally:
        tokenizer.chat_template = None
    assert (rendered.body, rendered.end) == ("import os", "")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hf:wmt14", prompt_hub.KNOWN["wmt14"]),
        ("hf:owner/name:train:text", prompt_hub.Source("owner/name", None, "train", "text")),
        ("hf:name:config:test:a.b", prompt_hub.Source("name", "config", "test", "a.b")),
        ("hf:wmt14:de-en:train:translation.en", prompt_hub.Source("wmt/wmt14", "de-en", "train", "translation.en")),
    ],
)
def test_names_of_data_sets_are_taken_apart(name: str, expected: prompt_hub.Source) -> None:
    assert prompt_hub.parse(name) == expected


@pytest.mark.parametrize("name", ["hf:", "hf:unheard-of", "hf:a:b", "hf:a:b:c:d:e", "hf:a::text"])
def test_a_name_that_leaves_split_or_field_open_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"write hf:NAME:SPLIT:FIELD"):
        prompts.load(name)


def test_without_the_library_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(prompt_hub.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'specmoe-bench\[datasets\]'"):
        prompts.load("hf:wmt14")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of two splits on disk, as ``save_to_disk`` leaves it."""
    datasets = pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("saved") / "set"
    talk = [{"role": "user", "content": "Why?"}]
    columns = {
        "article": ["First.", "  ", "Third."],
        "translation": [{"en": "one", "fr": "un"}] * 3,
        "talk": [talk] * 3,
        "number": [1, 2, 3],
    }
    rows = datasets.Dataset.from_dict(columns)
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(folder)
    return folder


def test_a_saved_data_set_is_exported_once_and_read_as_prompts(
    saved: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = prompts.load(f"hf:{saved}:test:article")
    assert [(p.id, p.text) for p in texts] == [("test-00000", "First."), ("test-00002", "Third.")], "empty rows are out"
    monkeypatch.setattr(prompt_hub, "_export", lambda *args, **kwargs: pytest.fail("exported again"))
    assert prompts.load(f"hf:{saved}:test:article") == texts


def _export(folder: Path, split: str, field: str, out: Path, instruction: str = "") -> int:
    return prompt_hub_export.main([str(folder), "", split, field, "kind", instruction, "2", str(out)])


@pytest.mark.parametrize(
    ("field", "instruction", "expected"),
    [
        ("translation.en", "", Prompt("test-00000", "one", category="kind")),
        ("talk", "", Prompt("test-00000", "", (Message("user", "Why?"),), "kind")),
        ("article", "Sum up: {text}", Prompt("test-00000", "", (Message("user", "Sum up: First."),), "kind")),
    ],
)
def test_fields_become_texts_or_messages(
    saved: Path, tmp_path: Path, field: str, instruction: str, expected: Prompt
) -> None:
    out = tmp_path / "out.jsonl"
    assert _export(saved, "test", field, out, instruction) == 0
    assert prompts.load(out)[0] == expected
    assert len(prompts.load(out)) <= 2, "no more rows than asked for"


@pytest.mark.parametrize(
    ("split", "field", "message"),
    [
        ("dev", "article", "no split 'dev': use one of train, test"),
        ("test", "body", "no field 'body': the rows have article, translation, talk, number"),
        ("test", "translation.de", "no field 'translation.de'"),
        ("test", "number", "field 'number' holds int: name a field of text or messages"),
    ],
)
def test_an_unusable_split_or_field_is_named(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], split: str, field: str, message: str
) -> None:
    assert _export(saved, split, field, tmp_path / "out.jsonl") == prompt_hub.NO_SUCH
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


@pytest.fixture
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that refuses connections, and an empty cache."""
    pytest.importorskip("datasets")
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")


def test_an_unreachable_hub_is_one_error_with_a_fix_and_no_long_wait(no_hub: None, cache: Path) -> None:
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"not in the local cache and the hub does not answer .*save_to_disk"):
        prompts.load("hf:wmt14")
    assert time.monotonic() - started < 60
    assert not list(cache.glob("**/*.jsonl"))


def test_the_hub_is_not_asked_when_offline_mode_is_set(
    no_hub: None, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set: unset HF_HUB_OFFLINE"):
        prompts.load("hf:wmt14")
    assert os.environ["HF_HUB_OFFLINE"] == "1"
