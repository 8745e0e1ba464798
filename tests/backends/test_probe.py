from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from llmrank.backends.openai import CHAT, COMPLETIONS, EMBEDDINGS, OpenAIBackend
from llmrank.backends.probe import QUESTION, Probe, probe
from llmrank.errors import BackendError
from tests.backends.test_openai import no_server
from tests.servers import Server, chat, completion, echoes, refuses, sends, serve

TARGET = " Yes, it is."
ECHOED = [QUESTION, " Yes", ", it is."]


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with serve() as server:
        yield server


@pytest.fixture
def server(running: Server) -> Server:
    for path in (CHAT, COMPLETIONS, EMBEDDINGS, "/models", "//version"):
        running.script(path)
    running.received.clear()
    return running


def probed(url: str) -> Probe:
    async def work() -> Probe:
        backend = OpenAIBackend("m", base_url=url, api_key="sk-test-key")
        try:
            return await probe(backend)
        finally:
            await backend.close()

    return asyncio.run(work())


def test_a_server_that_can_do_everything(server: Server) -> None:
    server.script("/models", sends({"data": [{"id": "m"}, {"id": "n"}]}))
    server.script("//version", sends({"version": "0.32.0"}))
    server.script(CHAT, sends(chat(top={"Yes": -0.1, "No": -2.4, "It": -4.0})))
    plain = completion(logprobs={"top_logprobs": [{" yes": -0.1, " no": -2.0}]})
    steps = [None, *({"1": {"logprob": -1.0, "decoded_token": text}} for text in ECHOED)]
    server.script(
        COMPLETIONS,
        sends(plain),
        sends(plain),
        echoes(ECHOED, [None, -1.0, -2.0]),
        sends(completion("x", prompt_logprobs=steps)),
    )
    server.script(EMBEDDINGS, sends({"data": [{"index": i, "embedding": [1, 2]} for i in (0, 1)]}))
    found = probed(server.url)
    assert (found.models, found.version) == (("m", "n"), "0.32.0")
    assert found.chat
    assert found.completions
    assert found.chat_logprobs.note == "top-3"
    assert found.completion_logprobs.note == "top-2"
    assert found.echo.note == found.prompt_logprobs.note == "2 tokens scored"
    assert found.embeddings.note == "2 dimensions"
    assert found.seconds is not None
    assert found.seconds > 0
    assert found.uses == {
        "listwise": "chat text",
        "yes/no": "label probabilities from top-3",
        "likelihood": "echo",
        "dense": "embeddings",
    }
    assert "sk-test-key" not in repr(found)


def test_a_server_that_chats_and_nothing_else(server: Server) -> None:
    server.script(CHAT, sends(chat()))
    found = probed(server.url)
    assert (found.models, found.version, found.echo.works) == ((), "", False)
    uses = found.uses
    assert uses["listwise"] == "chat text"
    assert uses["yes/no"] == "not available: the server returns no log-probabilities"
    assert uses["likelihood"].startswith("not available: no /completions")
    assert uses["dense"].startswith("not available:")


def test_completions_that_ignore_echo(server: Server) -> None:
    server.script(COMPLETIONS, sends(completion(logprobs={"top_logprobs": [{" yes": -0.1}]})))
    found = probed(server.url)
    assert found.uses["listwise"] == "completions text"
    assert found.uses["yes/no"] == "label probabilities from top-1 of completions"
    assert found.uses["likelihood"] == "not available: the server ignores echo"
    assert found.seconds is not None


def test_an_embedding_server(server: Server) -> None:
    server.script(EMBEDDINGS, sends({"data": [{"index": i, "embedding": [1]} for i in (0, 1)]}))
    found = probed(server.url)
    assert (found.chat.works, found.seconds, found.uses["dense"]) == (False, None, "embeddings")


def test_a_key_for_some_routes_only(server: Server) -> None:
    server.script("/models", refuses(403, "missing scope"))
    server.script(EMBEDDINGS, refuses(403, "missing scope"))
    server.script(CHAT, sends(chat(top={"Yes": -0.1})))
    found = probed(server.url)
    assert found.chat
    assert "missing scope" in found.uses["dense"]


def test_nobody_listens() -> None:
    with pytest.raises(BackendError, match="no answer"):
        probed(no_server())


@pytest.mark.parametrize("path", ["/models", CHAT])
def test_a_wrong_key(server: Server, path: str) -> None:
    server.script(path, refuses(401, "bad key sk-test-key"))
    with pytest.raises(BackendError, match="OPENAI_API_KEY") as raised:
        probed(server.url)
    assert "sk-test-key" not in str(raised.value)


@pytest.mark.parametrize(
    ("status", "said"),
    [(404, "The model `m` does not exist."), (503, "still loading"), (403, "not yours")],
)
def test_a_server_that_answers_nothing(server: Server, status: int, said: str) -> None:
    for path in (CHAT, COMPLETIONS, EMBEDDINGS):
        server.script(path, refuses(status, said))
    with pytest.raises(BackendError, match=said):
        probed(server.url)
