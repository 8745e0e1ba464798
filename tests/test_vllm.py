"""The real thing: a vLLM server on this machine's CPU, started here; run by `make test-vllm`."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from llmrank import Reranker, trec
from llmrank.api import Session, Settings
from llmrank.api.probing import probe
from llmrank.backends import connect
from llmrank.backends.gguf import converted_default
from llmrank.backends.local import LocalBackend
from llmrank.engine import run_sync
from llmrank.plan import Grade, Likelihood, Plan, ask_all
from llmrank.prompts import PromptSet
from llmrank.request import Reply
from llmrank.store import JOURNAL, Journal
from llmrank.types import Document, Query, Status

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[1]
NAME = "smollm2"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Base URL of a vLLM server with the default local model."""
    given = os.environ.get("LLMRANK_TEST_VLLM")
    if given:
        yield given
        return
    python = ROOT / ".venv-vllm" / "bin" / "python"
    if not python.exists():
        pytest.fail("there is no .venv-vllm; run make test-vllm")
    with socket.socket() as probe_socket:
        probe_socket.bind(("127.0.0.1", 0))
        port = probe_socket.getsockname()[1]
    log = tmp_path_factory.mktemp("vllm") / "log"
    command = [
        *(str(python), "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(converted_default()), "--served-model-name", NAME),
        *("--host", "127.0.0.1", "--port", str(port), "--max-model-len", "4096"),
        *("--enforce-eager", "--gpu-memory-utilization", "0.2"),
    ]
    settings = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env={**os.environ, **settings}, stdout=out, stderr=out, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(url, process, log)
        yield f"{url}/v1"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        if process.poll() is not None:
            pytest.fail(f"vLLM ended: {log.read_text()[-3000:]}")
        try:
            urllib.request.urlopen(f"{url}/health", timeout=2).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
        else:
            return
    pytest.fail(f"vLLM did not come up: {log.read_text()[-3000:]}")


def _answered(server: str) -> int:
    """Requests that the server has finished, by its own count."""
    with urllib.request.urlopen(server.removesuffix("/v1") + "/metrics", timeout=10) as page:
        text = page.read().decode()
    counts = re.findall(r"^vllm:request_success_total\{[^}]*\} ([0-9.e+]+)$", text, re.MULTILINE)
    return int(sum(map(float, counts)))


def _session(server: str) -> Session:
    return Session(Settings(model=f"openai:{NAME}", base_url=server))


def _pairs(collection: Path, count: int) -> list[tuple[Query, Document]]:
    documents = list(trec.read_corpus(collection))
    rng = random.Random(0)
    queries = list(trec.read_queries(collection))
    return [(rng.choice(queries), rng.choice(documents)) for _ in range(count)]


def test_the_probe_finds_what_vllm_can_do(server: str) -> None:
    found = json.loads(json.dumps(probe(f"openai:{NAME}", server), default=str))
    for capability in ("chat", "completions", "chat_logprobs", "echo", "prompt_logprobs"):
        assert found[capability]["works"], capability
    assert not found["embeddings"]["works"]


def test_scores_equal_those_of_the_model_in_process(server: str, collection: Path) -> None:
    """The server computes in bfloat16, so log-probabilities differ a little."""
    asked = [Likelihood(q, d) for q, d in _pairs(collection, 20)]
    graded = [Grade(q, d) for q, d in _pairs(collection, 20)]

    def plan() -> Plan[tuple[list[float], list[float], list[float]]]:
        likelihoods = yield from ask_all(asked)
        grades = yield from ask_all(graded)
        assert {a.status for a in likelihoods} == {a.status for a in grades} == {Status.OK}
        return (
            [a.value.mean for a in likelihoods if a.value],
            [a.value.probabilities[0] for a in grades if a.value],
            [a.value.mass for a in grades if a.value],
        )

    found = []
    for session in (_session(server), Session(Settings(), model=LocalBackend(dtype="float32"))):
        with session:
            session.run_sync([(0, plan())], lambda _, result, tally: found.append(result))
    (there, here) = found
    assert there[0] == pytest.approx(here[0], abs=0.1)
    assert there[1] == pytest.approx(here[1], abs=0.05)
    # The server reports its twenty likeliest tokens, the model here every label.
    assert all(a <= b + 0.05 for a, b in zip(there[2], here[2], strict=True))


def test_a_server_named_as_vllm_gives_every_label_exactly(server: str, collection: Path) -> None:
    """By token ids: the labels are those of the model in process, none lost below the likeliest."""
    prompts = PromptSet()
    requests = [prompts.render(Grade(q, d)) for q, d in _pairs(collection, 10)]

    async def asked() -> list[Reply]:
        backend = connect(f"vllm:{NAME}", base_url=server)
        try:
            return await backend.answer(requests)
        finally:
            await backend.close()

    here = run_sync(LocalBackend(dtype="float32").answer(requests))
    for there, known in zip(run_sync(asked()), here, strict=True):
        assert not there.error
        assert there.label_logprobs.keys() == known.label_logprobs.keys()
        for form, value in known.label_logprobs.items():
            assert there.label_logprobs[form] == pytest.approx(value, abs=0.5)


def test_likelihood_ranks_and_text_comes_with_an_outcome(server: str) -> None:
    passages = [
        "Glaciers grind rock into fine flour that turns mountain lakes turquoise.",
        "Yeast gives off carbon dioxide, which makes bread dough rise.",
        "A bicycle stays upright because its front wheel steers into a fall.",
    ]
    with Reranker(f"openai:{NAME}", base_url=server, method="likelihood") as ranker:
        best = ranker.rank("why does bread dough rise", passages)[0]
    assert best.document.id == "1"
    with Reranker(f"openai:{NAME}", base_url=server, method="sliding") as ranker:
        ranking = ranker.rank("why does bread dough rise", passages)
    assert sorted(hit.document.id for hit in ranking) == ["0", "1", "2"]
    assert ranking.tally.asks in (1, 2)


@pytest.mark.parametrize("method", ["sliding(window=4, stride=2)@10", "yesno@10"])
def test_killed_and_continued_sends_every_call_once(
    server: str, collection: Path, tmp_path: Path, method: str
) -> None:
    queries = [query.id for query in trec.read_queries(collection)][:5]
    documents = [document.id for document in trec.read_corpus(collection)]
    rng = random.Random(1)
    hits = [(q, [(d, 0.0) for d in rng.sample(documents, 10)]) for q in queries]
    trec.write_run(tmp_path / "first.trec", hits, tag="random")
    shared = [
        *("--run", str(tmp_path / "first.trec"), "--corpus", str(collection)),
        *("--queries", str(collection), "--model", f"openai:{NAME}", "--base-url", server),
        *("--method", method, "--in-flight", "4", "--max-failures", "1"),
    ]
    out = tmp_path / "killed"
    before = _answered(server)
    process = subprocess.Popen(
        [sys.executable, "-m", "llmrank.cli", "rerank", *shared, "--out", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while _answered(server) - before < 10 and process.poll() is None:
        time.sleep(0.05)
    process.kill()
    process.wait()
    resumed = _rerank([*shared, "--out", str(out)])
    again = _rerank([*shared, "--out", str(out)])
    assert resumed["reused"] > 0
    assert (again["requests"], again["reused"]) == (0, again["asks"])
    # Every answer is in the journal once; what was in flight when the process died was never
    # received, and the server may or may not have finished it.
    with closing(Journal(out / JOURNAL)) as journal:
        kept = len(journal)
    assert kept <= _answered(server) - before <= kept + 4
    assert kept == resumed["asks"]


def _rerank(arguments: list[str]) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-m", "llmrank.cli", "rerank", *arguments, "--json"],
        check=True,
        capture_output=True,
    )
    result: dict[str, int] = json.loads(done.stdout)
    return result


def test_a_prompt_that_does_not_fit_is_a_failed_answer(server: str) -> None:
    long = "word " * 6000
    with Session(Settings(model=f"openai:{NAME}", base_url=server, passage_words=6000)) as session:
        request = session.prompts.render(Grade(Query("q", "word"), Document("d", long)))
        (reply,) = run_sync(session.backend.answer([request]))
    assert reply.error
    assert not reply.transient
