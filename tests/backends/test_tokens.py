"""Tokenizers: which one is taken, what a server's says, and that none waits for the network."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import util
from pathlib import Path
from typing import Any, get_args

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from llmrank.backends import tokens
from llmrank.errors import BackendError
from llmrank.prompts.passages import Limits, Truncation, shorten
from llmrank.request import Message, Tokenizer
from tests.servers import Behaviour, Body, Server, breaks_off, refuses, sends, sends_html, serve

O200K = "fb374d419588a4632f3f557e76b4b70aebbca790"
PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A proxy that refuses every connection, so that downloads fail at once."""
    through(monkeypatch, "http://127.0.0.1:9")
    tokens._download.cache_clear()
    yield
    tokens._download.cache_clear()


def through(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    for name in PROXIES:
        monkeypatch.setenv(name, proxy)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1,localhost")


@pytest.mark.parametrize(("text", "count"), [("", 0), ("a", 1), ("abcd", 1), ("abcde", 2)])
def test_the_estimate_rounds_up(text: str, count: int) -> None:
    assert tokens.estimate(text) == count


@given(st.text(max_size=40))
def test_the_ends_of_an_estimate_are_where_the_next_token_begins(text: str) -> None:
    ends = tokens.Estimate().ends(text)
    assert len(ends) == tokens.estimate(text)
    for count, end in enumerate(ends, start=1):
        assert tokens.estimate(text[:end]) == count
        assert end == len(text) or tokens.estimate(text[: end + 1]) == count + 1


@pytest.mark.parametrize("model", ["Qwen/Qwen3-4B", "gpt-4.1-mini", "openai/gpt-4", "gpt2"])
def test_without_a_cache_everything_is_an_estimate(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("", str(tmp_path), str(tmp_path / "absent")):
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", folder)
        found = tokens.choose(model)
        assert (found.count("12345678"), found.counting) == (2, "estimate: 4 characters a token")


def test_a_damaged_file_is_neither_used_nor_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    (tmp_path / O200K).write_bytes(b"IQ== 0\n")
    assert tokens.choose("gpt-4.1").counting.startswith("estimate")
    assert (tmp_path / O200K).read_bytes() == b"IQ== 0\n"


def test_a_download_that_hangs_is_waited_for_once_and_not_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        through(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.perf_counter()
        assert not tokens._obtained("o200k_base", 0.3)
        first = time.perf_counter()
        assert not tokens._obtained("o200k_base", 0.3)
        assert 0.3 <= first - started < 3
        assert time.perf_counter() - first < 0.1
        silent.settimeout(10)
        silent.accept()[0].close()  # it was asked


def test_a_hanging_download_does_not_keep_the_program_alive() -> None:
    code = (
        "import os, socket, tempfile\n"
        "silent = socket.create_server(('127.0.0.1', 0))\n"
        "for name in ('HTTPS_PROXY', 'https_proxy'):\n"
        "    os.environ[name] = 'http://127.0.0.1:%d' % silent.getsockname()[1]\n"
        "os.environ['TIKTOKEN_CACHE_DIR'] = tempfile.gettempdir() + '/absent/folder'\n"
        "from llmrank.backends import tokens\n"
        "assert not tokens._obtained('o200k_base', 0.2)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert done.returncode == 0


def test_tiktoken_where_its_file_is_cached() -> None:
    found = tokens.choose("gpt-4.1-mini")
    if found.counting.startswith("estimate"):
        pytest.skip("tiktoken has no cached encoding here")
    assert found.counting == "tiktoken o200k_base"
    assert found.count("hello world") == 2
    assert found.count("<|endoftext|>") > 1


def test_the_table_agrees_with_tiktoken() -> None:
    found = util.find_spec("tiktoken_ext.openai_public")
    assert found is not None
    assert found.origin is not None
    source = Path(found.origin).read_text(encoding="utf-8")
    for name, (_, sha256) in tokens._CACHED.items():
        assert sha256 in source
        assert tokens._source(name) in source


def test_importing_the_backends_loads_no_client() -> None:
    code = (
        "import sys, llmrank.backends.openai, llmrank.backends.probe, llmrank.backends.tokens\n"
        "sys.exit(bool({'openai', 'tiktoken', 'aiohttp', 'httpx'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def answering(answer: Callable[[Body], object]) -> Behaviour:
    async def behave(_request: web.Request, body: Body) -> web.StreamResponse:
        return web.json_response(answer(body))

    return behave


def ids(text: str) -> list[int]:
    """A token for every byte, so that characters are cut in two."""
    return list(text.encode())


def said(body: Body) -> str:
    return bytes(body["tokens"]).decode(errors="replace")


def vllm(body: Body) -> dict[str, Any]:
    if "messages" in body:
        found = [0, *(token for turn in body["messages"] for token in ids(turn["content"])), 0]
    else:
        assert body["add_special_tokens"] is False
        found = ids(body["prompt"])
    return {"count": len(found), "max_model_len": 2048, "tokens": found, "token_strs": None}


def llama_cpp(body: Body) -> dict[str, Any]:
    return {"tokens": ids(body.get("content", ""))}


def templated(body: Body) -> dict[str, Any]:
    return {"prompt": "".join(f"[{turn['content']}]" for turn in body["messages"])}


def speak(server: Server, dialect: str) -> None:
    """Tokenizer routes as vLLM, llama.cpp and SGLang document them; all stand beside /v1."""
    if dialect == "vllm":
        server.script("//tokenize", answering(vllm))
        server.script("//detokenize", answering(lambda body: {"prompt": said(body)}))
    elif dialect == "llama.cpp":
        server.script("//tokenize", answering(llama_cpp))
        server.script("//detokenize", answering(lambda body: {"content": said(body)}))
        server.script("//apply-template", answering(templated))
    else:

        async def behave(_request: web.Request, body: Body) -> web.StreamResponse:
            if "prompt" not in body:
                return web.json_response({"detail": "Field required"}, status=422)
            found = ids(body["prompt"])
            return web.json_response({"tokens": found, "count": len(found), "max_model_len": 4096})

        server.script("//tokenize", behave)
        server.script("//detokenize", answering(lambda body: {"text": said(body)}))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve() as running:
        yield running


CHAT = (Message("system", "ab"), Message("user", "cde"))


@pytest.mark.parametrize(
    ("dialect", "context", "chat"),
    [("vllm", 2048, 7), ("llama.cpp", None, 9), ("sglang", 4096, 5 + 2 * 4 + 3)],
)
def test_a_servers_tokenizer_in_its_dialect(
    server: Server, dialect: str, context: int | None, chat: int
) -> None:
    speak(server, dialect)
    tokenizer = tokens.Served(server.url, "m")
    assert tokenizer.count("aé") == 3
    assert tokenizer.context == context
    assert tokens.Served(server.url, "m", context=100).context == 100
    assert [tokenizer.chat(CHAT), tokenizer.chat(CHAT)] == [chat, chat]
    for how in get_args(Truncation):
        check(tokenizer, how)


def check(tokenizer: Tokenizer, how: Truncation) -> None:
    text = "aé漢🙂 ends é🙂漢b"
    for limit in (1, 2, 3, 5, 8, 9, 10, 13, 21, 40):
        shown, cut = shorten(text, Limits(None, limit, how), tokenizer)
        assert len(shown.encode()) <= limit
        assert cut == (len(text.encode()) > limit)
        if how == "head":
            assert text.startswith(shown)
            assert len(shown.encode()) > limit - 5 or not cut


def test_a_server_is_asked_once_for_a_text(server: Server) -> None:
    speak(server, "vllm")
    tokenizer = tokens.Served(server.url, "m", key="secret")
    server.received.clear()
    assert [tokenizer.count("twice") for _ in range(3)] == [5, 5, 5]
    (received,) = server.received
    assert received.body["model"] == "m"
    assert received.headers["Authorization"] == "Bearer secret"
    assert "secret" not in tokenizer.counting


@pytest.mark.parametrize(
    "broken",
    [
        refuses(404, "Not Found"),
        refuses(401, "who are you"),
        sends_html(),
        sends([1, 2]),
        sends({"count": 3}),
        sends({"tokens": []}),
        sends({"tokens": None}),
    ],
)
def test_a_server_that_does_not_tell_is_an_error(server: Server, broken: Behaviour) -> None:
    server.script("//tokenize", broken)
    with pytest.raises(BackendError, match=r"tokenizer of http://127\.0\.0\.1"):
        tokens.Served(server.url, "m").count("text")
    with pytest.raises(BackendError):
        tokens.Served(server.url, "m").chat(CHAT)


NOW = {"retry-after-ms": "1"}


def test_a_server_that_is_away_for_a_moment_is_asked_again(server: Server) -> None:
    speak(server, "vllm")
    away = [refuses(503, "loading", headers=NOW), refuses(502, "no upstream", headers=NOW)]
    server.script("//tokenize", *away, answering(vllm))
    assert tokens.Served(server.url, "m").count("text") == 4
    # Counting a chat otherwise from then on would cut other passages than before.
    tokenizer = tokens.Served(server.url, "m")
    server.script("//tokenize", *away * 2, answering(vllm))
    with pytest.raises(BackendError, match=r"cannot be asked: .*no upstream"):
        tokenizer.chat(CHAT)
    assert tokenizer.chat(CHAT) == 7


def test_a_connection_that_is_lost_is_made_again(server: Server) -> None:
    speak(server, "vllm")
    server.script("//tokenize", breaks_off(), breaks_off(), answering(vllm))
    assert tokens.Served(server.url, "m").count("text") == 4


def test_another_server_is_asked_where_one_is_away(server: Server) -> None:
    speak(server, "vllm")
    with serve() as gone:
        spare = tokens.Served(server.url, "m")
        tokenizer = tokens.Served(gone.url, "m").backed_by([spare])
        gone.script("//tokenize", refuses(503, "gone", headers=NOW))
        assert [tokenizer.count(text) for text in ("one", "three")] == [3, 5]
        assert tokenizer.chat(CHAT) == 7
        # It is not waited for again.
        assert len(gone.received) == 1 + tokens.RETRIES
        server.script("//tokenize", refuses(503, "gone too", headers=NOW))
        with pytest.raises(BackendError, match="gone"):
            tokenizer.count("four")


def test_a_server_without_a_tokenizer_is_not_one_that_is_away(server: Server) -> None:
    server.script("//tokenize", refuses(404, "no route"))
    with serve() as other:
        speak(other, "vllm")
        tokenizer = tokens.Served(server.url, "m").backed_by([tokens.Served(other.url, "m")])
        with pytest.raises(BackendError, match="no route"):
            tokenizer.count("text")
        assert other.received == []


def test_no_tokens_are_no_text(server: Server) -> None:
    speak(server, "vllm")
    tokenizer = tokens.Served(server.url, "m")
    assert (tokenizer.head("a text", 0), tokenizer.tail("a text", 0)) == ("", "")


def test_what_is_not_asked_counts_within_the_same_context() -> None:
    found = tokens.Served("http://127.0.0.1:9/v1", "m", context=300).unasked
    assert (found.context, found.remote, found.count("12345678")) == (300, False, 2)


def test_tokens_that_a_server_does_not_explain_are_an_error(server: Server) -> None:
    speak(server, "vllm")
    server.script("//detokenize", sends({"error": "no"}))
    with pytest.raises(BackendError, match="what tokens mean"):
        tokens.Served(server.url, "m").head("text", 2)


def test_a_text_that_a_server_says_otherwise_is_cut_at_the_same_length(server: Server) -> None:
    """A tokenizer may write in small letters, or lose a space at the start."""
    speak(server, "vllm")
    server.script("//detokenize", answering(lambda body: {"prompt": said(body).lower()}))
    tokenizer = tokens.Served(server.url, "m")
    assert tokenizer.head("Bread Rises", 7) == "Bread R"
    assert tokenizer.tail("Bread RISES", 5) == "RISES"


def test_what_is_named_comes_first(server: Server, tmp_path: Path) -> None:
    speak(server, "vllm")
    named = tokens.choose("m", served=server.url, folder=str(tmp_path), context=7)
    assert (type(named), named.context) == (tokens.Pretrained, 7)
    assert type(tokens.choose("m", served=server.url)) is tokens.Served
    nothing = tokens.choose("m")
    assert (type(nothing), nothing.context, nothing.remote) == (tokens.Estimate, None, False)


@pytest.mark.parametrize(
    ("config", "context"),
    [
        ('{"max_position_embeddings": 512}', 512),
        ('{"text_config": {"max_position_embeddings": 4096}}', 4096),
        ('{"max_position_embeddings": -1}', None),
        ("{}", None),
        ("", None),
    ],
)
def test_a_folder_says_how_much_its_model_takes(
    config: str, context: int | None, tmp_path: Path
) -> None:
    if config:
        (tmp_path / "config.json").write_text(config)
    assert tokens.Pretrained(str(tmp_path)).context == context


@pytest.mark.local
def test_a_folder_without_a_tokenizer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="no tokenizer in"):
        tokens.Pretrained(str(tmp_path)).count("text")


LONE = "a\ud800b"


def test_lone_surrogates_are_counted(server: Server) -> None:
    speak(server, "vllm")
    for tokenizer in (tokens.Estimate(), tokens.Served(server.url, "m")):
        assert tokenizer.count(LONE) > 1
        assert tokenizer.head(LONE, 1) == "a"
        assert tokenizer.chat((Message("user", LONE),))
