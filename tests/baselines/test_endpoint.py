"""A server's rows have the tokens and arrival times that it streamed; every fault of a server is one clear error."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines import registry
from baselines.contract import Generation, Request
from baselines.endpoint_client import EndpointError
from tests.baselines.builders import setting_of
from tests.baselines.openai_server import KEY, Behaviour, serving
from workloads import models, tokenizers

TEXT = "def main():\n    return [value for value in range(10)]\n" * 3


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tokenizers.load(models.path("embedded"))


def follow(tokenizer: Any, ids: list[int], count: int) -> list[int]:
    """The tokens of one text, from a place that depends on the prompt."""
    known = tokenizer(TEXT)["input_ids"]
    start = len(ids) % 5
    return known[start : start + count]


@pytest.fixture
def behaviour(tokenizer: Any) -> Behaviour:
    return Behaviour(tokenizer, lambda ids, count: follow(tokenizer, ids, count))


@pytest.fixture
def prompts(tokenizer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Three prompts of 3, 5 and 4 tokens, padded on the left."""
    rows = [tokenizer(text)["input_ids"][:n] for text, n in (("import os\n", 3), (TEXT, 5), ("class Example:\n", 4))]
    ids, mask = torch.zeros(3, 5, dtype=torch.long), torch.zeros(3, 5, dtype=torch.long)
    for row, tokens in enumerate(rows):
        ids[row, 5 - len(tokens) :], mask[row, 5 - len(tokens) :] = torch.tensor(tokens), 1
    assert mask.sum(1).tolist() == [3, 5, 4]
    return ids, mask


@pytest.fixture
def run(behaviour: Behaviour, prompts: tuple[torch.Tensor, torch.Tensor], tmp_path: Path) -> Iterator[Any]:
    """Asks the server for 6, 12 and 8 tokens; returns the generation and what was reported while it ran."""

    def call(url: str, **options: Any) -> tuple[Generation, list[tuple[int, int]], list[str]]:
        reported: list[tuple[int, int]] = []
        first: list[str] = []
        request = Request(
            *prompts, 12, lambda: first.append("first"), (6, 12, 8), lambda row, count: reported.append((row, count))
        )
        system = registry.create("endpoint", {"base_url": url, "timeout_s": 0.5} | options)
        try:
            system.prepare(setting_of(models.path("embedded"), tmp_path))
            return system.generate(request), reported, first
        finally:
            system.close()

    yield call
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("endpoint")]


def expected(tokenizer: Any, mask: torch.Tensor) -> list[list[int]]:
    return [follow(tokenizer, [0] * int(n), count) for n, count in zip(mask.sum(1).tolist(), (6, 12, 8), strict=True)]


@pytest.mark.parametrize("burst", [1, 5])
def test_rows_have_the_tokens_that_the_server_streamed(
    burst: int, behaviour: Behaviour, run: Any, prompts: Any, tokenizer: Any
) -> None:
    behaviour.burst = burst
    with serving(behaviour) as url:
        generation, reported, first = run(url)
    assert generation.rows() == expected(tokenizer, prompts[1])
    assert first == ["first"]
    for row, length in enumerate((6, 12, 8)):
        counts = [count for one, count in reported if one == row]
        assert sum(counts) == length
        assert counts == [burst] * (length // burst) + [length % burst] * bool(length % burst)
    facts = generation.counters.server
    assert facts == {
        "server": "stand-in 1.2.3",
        "model": "tiny",
        "prompts": "token ids",
        "compared": "token ids from the server",
    }
    rows = [body for body in behaviour.asked if body.get("stream")]
    assert sorted(body["max_tokens"] for body in rows) == [6, 8, 12]
    assert all(body["ignore_eos"] and body["temperature"] == 0 for body in rows)


@pytest.mark.parametrize("usage", [True, False])
def test_a_server_that_gives_text_alone_is_compared_by_its_text(
    usage: bool, behaviour: Behaviour, run: Any, prompts: Any, tokenizer: Any
) -> None:
    behaviour.takes_ids, behaviour.gives_ids, behaviour.gives_usage = False, False, usage
    with serving(behaviour) as url:
        generation, reported, first = run(url)
    assert generation.lengths() == [6, 12, 8]
    assert [tokenizer.decode(row) for row in generation.rows()] == [
        tokenizer.decode(row) for row in expected(tokenizer, prompts[1])
    ]
    assert first == ["first"]
    assert [sum(count for one, count in reported if one == row) for row in range(3)] == [6, 12, 8]
    assert generation.counters.server is not None
    assert generation.counters.server["prompts"] == "text"
    assert generation.counters.server["compared"] == "its text, encoded with the model's tokenizer"


def test_a_server_that_knows_no_further_fields_is_asked_without_them(behaviour: Behaviour, run: Any) -> None:
    behaviour.takes_extensions = False
    with serving(behaviour) as url:
        generation, _, _ = run(url, body={"logit_bias": {"2": -100}})
    assert generation.lengths() == [6, 12, 8]
    last = behaviour.asked[-1]
    assert "return_token_ids" not in last
    assert last["logit_bias"] == {"2": -100}


@pytest.mark.parametrize("gives_ids", [True, False])
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("stall", r"row 1, after 1 of 12 tokens: the server sent nothing new for 0.5 s: raise timeout_s"),
        ("cut", r"row 1, after 1 of 12 tokens: the server cut the stream"),
        ("error", r"row 1, after 1 of 12 tokens: the server reports 'out of memory'"),
        ("429", r"row 1, after 0 of 12 tokens: .* with 429 .*\(no slot is free\): .* use a smaller batch"),
        ("500", r"row 1, after 0 of 12 tokens: .* with 500 .*\(no slot is free\): read its log"),
        (
            "more",
            r"row 1, after 1\d of 12 tokens: the server sen(t|ds) .*more .*than asked: it does not follow max_tok",
        ),
        ("early", r"row 1, after 10 of 12 tokens: the server ended at 10 tokens \(stop\): .* ignore_eos"),
    ],
)
def test_a_fault_of_one_row_is_one_clear_error(
    fault: str, message: str, gives_ids: bool, behaviour: Behaviour, run: Any
) -> None:
    behaviour.fault, behaviour.faulty_tokens, behaviour.gives_ids = fault, 5, gives_ids
    with serving(behaviour) as url, pytest.raises(EndpointError, match=message):
        run(url)


def test_a_server_that_is_not_there_is_named(run: Any, behaviour: Behaviour) -> None:
    with serving(behaviour) as url:
        pass
    with pytest.raises(EndpointError, match=r"no answer from 127.0.0.1:\d+ \(Connection refused\): start the server"):
        run(url)


def test_an_address_without_the_interface_or_the_model_is_named(run: Any, behaviour: Behaviour) -> None:
    with serving(behaviour) as url:
        with pytest.raises(EndpointError, match=r"404 .*give base_url as far as /v1"):
            run(url.removesuffix("/v1"))
        with pytest.raises(EndpointError, match="does not list the model 'large' but tiny: name one of them"):
            run(url, model="large")


def test_a_key_is_sent_and_never_shown(run: Any, behaviour: Behaviour, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_KEY", KEY)
    behaviour.key = KEY
    with serving(behaviour) as url:
        assert run(url, api_key_env="STAND_IN_KEY")[0].lengths() == [6, 12, 8]
        behaviour.key = "another"
        with pytest.raises(EndpointError, match=r"401 .*Incorrect API key provided: \*\*\*\): name the environment"):
            run(url, api_key_env="STAND_IN_KEY")
        with pytest.raises(EndpointError, match="api_key_env names NOT_SET, which is not set"):
            run(url, api_key_env="NOT_SET")


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "http://user:word@host/v1", "http://host/v1?key=1", "ftp://host"])
def test_an_address_that_is_none_or_holds_a_key_is_refused(url: str) -> None:
    with pytest.raises(
        ValueError, match=r"option base_url: .*base_url (is not an address|stands in the record)"
    ) as error:
        registry.create("endpoint", {"base_url": url})
    assert "word" not in str(error.value)
