"""A server is measured like any system: one record per round, its facts in it, and its faults lose nothing."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from baselines import gguf_file
from baselines.contract import NotSupported
from harness.plan.experiment import validate
from harness.run import worker
from harness.run.job import Job, Paths
from harness.run.runner import Runner
from reports.results.record import Cell, Record
from specmoe.model.convert import open_or_build
from tests.baselines.openai_server import KEY, Behaviour, serving
from workloads import models, tokenizers

pytestmark = pytest.mark.slow

EXPERIMENT: dict[str, Any] = {
    "name": "servers",
    "model": "embedded",
    "batch_sizes": [2],
    "new_tokens": 6,
    "rounds": 1,
    "threads": 1,
    "warmup_tokens": 0,
}


@pytest.fixture(scope="module")
def behaviour() -> Behaviour:
    """A server of the embedded model."""
    model = AutoModelForCausalLM.from_pretrained(models.path("embedded"), dtype=torch.float32).eval()
    lock = threading.Lock()

    def follow(ids: list[int], count: int) -> list[int]:
        with lock, torch.inference_mode():
            output = model.generate(
                torch.tensor([ids]), max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0
            )
        return output[0, len(ids) :].tolist()

    return Behaviour(tokenizers.load(models.path("embedded")), follow, key=KEY)


def run(url: str, out: Path, *options: dict[str, Any], **changes: Any) -> list[Record]:
    """The records of the server with each of ``options``, and of on-demand loading."""
    common = {"base_url": url, "timeout_s": 20}
    servers = [{"system": "endpoint", "label": f"server {i}", "options": common | o} for i, o in enumerate(options)]
    payload = EXPERIMENT | {"systems": [{"system": "on-demand"}, *servers]} | changes
    runner = Runner.open(validate(payload, "test"), out, show=lambda line: None)
    runner.run()
    return sorted(runner.results.read(), key=lambda record: record.label)


def test_a_server_stands_beside_other_systems(
    behaviour: Behaviour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_KEY", KEY)
    behaviour.fault, behaviour.gives_ids = None, True
    with serving(behaviour) as url:
        _, record = run(url, tmp_path, {"api_key_env": "STAND_IN_KEY"})
    assert record.status == "ok", record.error
    assert record.metrics is not None
    assert record.metrics.fidelity == 1.0
    assert (record.limit.enforced, record.limit.limit_bytes) == (False, None)
    assert "started by its user" in str(record.limit.reason)
    assert record.repetitions[0].server == {
        "server": "stand-in 1.2.3",
        "model": "tiny",
        "prompts": "token ids",
        "compared": "token ids from the server",
    }
    assert (record.usage, record.metrics.peak_rss_bytes, record.metrics.kernel_read_bytes) == (None, None, None)
    assert all(KEY not in file.read_text() for file in tmp_path.rglob("*") if file.is_file())


def test_text_alone_is_compared_with_the_text_of_the_reference(
    behaviour: Behaviour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_KEY", KEY)
    behaviour.fault, behaviour.gives_ids = None, False
    with serving(behaviour) as url:
        _, record = run(url, tmp_path, {"api_key_env": "STAND_IN_KEY"})
    assert record.status == "ok", record.error
    assert record.metrics is not None
    assert record.metrics.fidelity == 1.0
    assert record.repetitions[0].new_tokens == 12


def test_a_server_that_fails_loses_no_other_result(
    behaviour: Behaviour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_KEY", KEY)
    behaviour.fault, behaviour.gives_ids = "500", True
    with serving(behaviour) as url:
        loading, failed, refused = run(url, tmp_path, {"api_key_env": "STAND_IN_KEY"}, {"model": "large"})
    assert loading.status == "ok"
    assert (failed.status, refused.status) == ("failed", "failed")
    assert "after 0 of 6 tokens: the server answers /v1/completions with 500 Internal Server Error" in str(failed.error)
    assert "does not list the model 'large' but tiny" in str(refused.error)


def test_a_disk_throttle_that_cannot_reach_the_server_is_refused(tmp_path: Path) -> None:
    cell = Cell(
        system="endpoint",
        options={"base_url": "http://127.0.0.1:1/v1"},
        model="embedded",
        batch_size=1,
        new_tokens=2,
        disk_read_limit_bytes_s=400_000_000,
    )
    paths = Paths(model=tmp_path, store=tmp_path, scratch=tmp_path, reference=tmp_path, result=tmp_path)
    with pytest.raises(NotSupported, match="cannot throttle its disk: remove disk_read_limit"):
        worker.run(Job(action="measure", cell=cell, paths=paths))


@contextmanager
def llama_server(model: Path) -> Iterator[str]:
    """llama-cpp-python's own server on the loopback; gives ``base_url``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(model), "--port", str(port), "--n_ctx", "1024"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}/v1"
    try:
        for _ in range(300):
            with suppress(OSError), urllib.request.urlopen(f"{url}/models", timeout=1):
                break
            assert process.poll() is None, "the server ended"
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait()


@pytest.mark.systems
def test_the_server_of_llama_cpp_python_gives_the_reference_text(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp.server.app", exc_type=ImportError)
    path = models.path("embedded")
    store = open_or_build(path, tmp_path / "store", torch.float32)
    gguf_file.write(path, store, tmp_path / "model.gguf", torch.float32)
    with llama_server(tmp_path / "model.gguf") as url:
        _, record = run(url, tmp_path / "out", {"timeout_s": 120}, batch_sizes=[1])
    assert record.status == "ok", record.error
    assert record.metrics is not None
    assert record.metrics.fidelity == 1.0
    assert record.repetitions[0].server is not None
    assert record.repetitions[0].server["prompts"] == "text"
