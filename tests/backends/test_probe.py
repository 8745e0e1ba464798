from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llmrank.backends.dialects import (
    CHAT,
    COMPLETIONS,
    DIALECTS,
    EMBEDDINGS,
    LIKELIHOOD,
    STRUCTURED,
    THINKING_OFF,
    by_models,
    by_url,
)
from llmrank.backends.openai import Learnt, OpenAIBackend
from llmrank.backends.probe import (
    FILE,
    FORMAT,
    Greeter,
    Probe,
    alike,
    greet,
    keep,
    paced,
    probe,
    recall,
)
from llmrank.backends.wrappers import Minute
from llmrank.errors import BackendError
from llmrank.plan import Write
from llmrank.request import Message, Params, Reply, Request
from tests.backends.test_openai import no_server
from tests.servers import (
    MODEL,
    SPEAKERS,
    TOP,
    Behaviour,
    Server,
    Speaker,
    breaks_off,
    chat,
    refuses,
    sends,
    sends_html,
    serve,
    speak,
    waits,
)

FORMS = {"yes": ("Yes", " Yes", "yes", " yes"), "no": ("No", " No", "no", " no")}
ASK = Write("test", ())
GRADE = Request(ask=ASK, want="labels", messages=(Message("user", "Relevant?"),), labels=FORMS)
LISTED = Request(
    ask=ASK, want="text", messages=(Message("user", "Rank."),), params=Params(max_tokens=4)
)
LIKELY = Request(ask=ASK, want="likelihood", prompt="A passage. Query:", target=" red fox")


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with serve() as server:
        yield server


@pytest.fixture
def server(running: Server) -> Server:
    running.forget()
    return running


def probed(url: str, *requests: Request, dialect: str = "") -> tuple[Probe, list[Reply]]:
    async def work() -> tuple[Probe, list[Reply]]:
        backend = OpenAIBackend(MODEL, base_url=url, api_key="sk-test-key", dialect=dialect)
        try:
            return await probe(backend, wait=0.001), await backend.answer(requests)
        finally:
            await backend.close()

    return asyncio.run(work())


def test_the_table_names_only_what_exists() -> None:
    for dialect in DIALECTS.values():
        assert set(dialect.likelihood) <= set(LIKELIHOOD)
        assert set(dialect.thinking_off) <= set(THINKING_OFF)
        assert set(dialect.structured) <= set(STRUCTURED)
        assert dialect.limits
        assert dialect.labels
    assert set(SPEAKERS) == set(DIALECTS)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://api.openai.com/v1", "openai"),
        ("https://eu.api.openai.com/v1", "openai"),
        ("https://api.openai.com.evil.example/v1", "unknown"),
        ("https://notapi.openai.com/v1", "unknown"),
        ("https://mine.openai.azure.com/openai/v1", "azure"),
        ("http://127.0.0.1:1/openai/deployments/gpt", "azure"),
        ("https://openrouter.ai/api/v1", "openrouter"),
        ("http://127.0.0.1:8000/v1", "unknown"),
    ],
)
def test_addresses(url: str, name: str) -> None:
    assert by_url(url) == name


def test_models_tell_by_their_owner_and_never_by_their_name() -> None:
    assert by_models([{"id": "x", "owned_by": "vllm"}]) == "vllm"
    assert by_models([{"id": "vllm-llamacpp-gpt-5", "owned_by": "openai"}, {"id": "y"}]) == (
        "unknown"
    )


TOLD = {
    # limit, label way, likelihood, thinking, structured, version
    "openai": ("max_completion_tokens", "top-20", "", "reasoning_effort=minimal", ""),
    "azure": ("max_completion_tokens", "top-20", "", "reasoning_effort=minimal", ""),
    "openrouter": ("max_tokens", "top-20", "", "reasoning.enabled=false", ""),
    "vllm": ("max_tokens", "ids", "echo", "enable_thinking=false", "0.32.0"),
    "sglang": ("max_tokens", "top-20", "echo, 1 logprob", "", "0.5.23"),
    "llama.cpp": ("max_tokens", "top-100", "", "", "b1"),
    "ollama": ("max_tokens", "top-20", "", "reasoning_effort=none", "0.30.0"),
    "tgi": ("max_tokens", "top-5", "decoder_input_details", "", "3.3.6"),
    "unknown": ("max_tokens", "top-20", "", "", ""),
}
EXACT = {"Yes": -0.4, " Yes": -4.0, "yes": -6.0, "No": -1.8, " No": -7.0, "no": -9.0}


@pytest.mark.parametrize("name", SPEAKERS)
def test_every_dialect_is_recognised_and_spoken(server: Server, name: str) -> None:
    limit, way, likelihood, thinking, version = TOLD[name]
    url = speak(server, SPEAKERS[name])
    url += "?api-version=2024-10-21" if name == "azure" else ""
    found, (graded, listed) = probed(url, GRADE, LISTED, dialect=name if name == "openai" else "")
    assert (found.server, found.version, found.settled) == (name, version, True)
    assert found.can["token_limit"].note == limit
    assert (found.learnt.likelihood, found.learnt.thinking) == (likelihood, thinking)
    assert found.learnt.labels[CHAT] == way
    assert found.models == (MODEL,)
    for capability in ("chat", "system_role", "stop", "chat_logprobs"):
        assert found.can[capability], capability
    assert bool(found.can["structured_output"]) is (name != "unknown")
    assert bool(found.can["reasoning"]) is bool(thinking)
    assert bool(found.can["tokenizer"]) is bool(SPEAKERS[name].tokenizer)
    expected = EXACT if way == "ids" else dict(list(TOP.items())[: int(way[4:])])
    assert graded.label_logprobs == {k: v for k, v in expected.items() if k in EXACT}
    assert (listed.text, listed.finish) == ("one two three four", "length")
    last = next(r for r in server.received if r.body and r.body.get(limit) == 4)
    assert ("Authorization" in last.headers) is (name != "azure")
    if thinking:
        assert THINKING_OFF[thinking].items() <= last.body.items()


@pytest.mark.parametrize("name", [n for n, told in TOLD.items() if told[2]])
def test_likelihood_by_the_servers_own_way(server: Server, name: str) -> None:
    found, (reply,) = probed(speak(server, SPEAKERS[name]), LIKELY)
    assert (reply.logprob, reply.tokens) == (-2.0, 2)
    assert found.uses["likelihood"] == found.learnt.likelihood.split(",")[0]


def test_a_probe_in_words(server: Server) -> None:
    found, _ = probed(speak(server, SPEAKERS["vllm"]))
    assert found.context == 4096
    assert found.uses == {
        "pointwise labels": "chat, exact token ids",
        "likelihood": "echo",
        "listwise text": "chat text",
        "listwise labels": "chat, exact token ids",
        "attention": "not available: no server shows its attention; use --model local",
        "dense": "not available: HTTP 404: Not Found",
    }
    assert found.can["label_ids"].note == "6 of 8 forms are one token"
    yes = math.exp(-0.4) + math.exp(-4.0) + math.exp(-6.0)
    assert found.sample["Yes"] == pytest.approx(yes)
    assert found.seconds is not None
    assert found.seconds > 0
    assert "sk-test-key" not in repr(found)


def test_azures_key_and_version_go_with_every_request(server: Server) -> None:
    url = speak(server, SPEAKERS["azure"])
    found, _ = probed(f"{url}?api-version=2024-10-21")
    assert found.url == url
    assert {r.headers.get("api-key") for r in server.received} == {"sk-test-key"}
    assert {r.query for r in server.received} == {"api-version=2024-10-21"}


def test_openrouter_must_not_drop_what_labels_need(server: Server) -> None:
    probed(speak(server, SPEAKERS["openrouter"]))
    asked = [body for body in server.bodies(CHAT) if body.get("top_logprobs")]
    assert asked
    assert all(body["provider"] == {"require_parameters": True} for body in asked)


@pytest.mark.parametrize(
    ("speaker", "missing"),
    [
        (replace(SPEAKERS["vllm"], limits=("other",), quiet=None), "token_limit"),
        (replace(SPEAKERS["vllm"], ids=False), "label_ids"),
        (replace(SPEAKERS["vllm"], schema=("nowhere",)), "structured_output"),
        (replace(SPEAKERS["vllm"], echo=("prompt_logprobs",)), "echo"),
        (replace(SPEAKERS["vllm"], echo=("echo",)), "prompt_logprobs"),
        (replace(SPEAKERS["vllm"], top=20, ids=False, tokenizer=""), "tokenizer"),
    ],
)
def test_an_accepted_field_that_changes_nothing_does_not_count(
    server: Server, speaker: Speaker, missing: str
) -> None:
    url = speak(server, speaker)
    found, (graded,) = probed(url, GRADE)
    assert not found.can[missing]
    assert found.can["chat_logprobs"]
    assert graded.label_logprobs["Yes"] == -0.4


def test_a_model_that_cannot_be_kept_from_thinking(server: Server) -> None:
    stubborn = replace(SPEAKERS["vllm"], quiet={"no": "way"})
    found, _ = probed(speak(server, stubborn))
    assert found.can["reasoning"].note == "it thinks, and nothing known keeps it from that"
    assert found.learnt.thinking == ""


def test_a_model_that_may_think_is_not_kept_from_it(server: Server) -> None:
    url = speak(server, SPEAKERS["vllm"])

    async def work() -> tuple[str, str, list[str]]:
        backend = OpenAIBackend(MODEL, base_url=url)
        before = backend.identity
        await probe(backend)
        may_think = replace(LISTED, params=replace(LISTED.params, thinking=8))
        assert may_think.key("m") != LISTED.key("m")
        replies = await backend.answer([LISTED, may_think])
        await backend.close()
        return before, backend.identity, [reply.reasoning for reply in replies]

    before, after, thoughts = asyncio.run(work())
    assert after == f"{before}#thinking=off"
    assert not thoughts[0]
    assert thoughts[1]


def test_a_server_that_chats_and_nothing_else(server: Server) -> None:
    server.script(CHAT, sends(chat()))
    found, _ = probed(server.url)
    assert (found.server, found.models, found.version, found.context) == ("unknown", (), "", None)
    uses = found.uses
    assert uses["listwise text"] == "chat text"
    assert "returns no log-probabilities" in uses["pointwise labels"]
    assert uses["likelihood"] == uses["dense"] == "not available: HTTP 404: Not Found"
    assert found.sample == {}


def test_an_embedding_server(server: Server) -> None:
    server.script(EMBEDDINGS, sends({"data": [{"index": i, "embedding": [1]} for i in (0, 1)]}))
    found, _ = probed(server.url)
    assert not found.can["chat"]
    assert (found.seconds, found.uses["dense"]) == (None, "embeddings")


def test_scoring_routes_count_where_they_tell_passages_apart(server: Server) -> None:
    speak(server, SPEAKERS["vllm"])
    server.script("//score", sends({"data": [{"index": 0, "score": 0.9}, {"score": 0.1}]}))
    server.script("/rerank", sends([{"score": 0.5, "index": 0}, {"score": 0.5, "index": 1}]))
    answers = [{"type": "predicate", "probability": p} for p in (0.9, 0.2)]
    server.script("/decisions", sends({"answers": answers}))
    found, _ = probed(server.url)
    assert found.can["score"]
    assert found.can["decisions"]
    assert "same number" in found.can["rerank"].note


def test_a_moment_of_trouble_leaves_nothing_open(server: Server) -> None:
    url = speak(server, SPEAKERS["vllm"])
    server.script(EMBEDDINGS, refuses(503, "busy"), refuses(429, "wait"), sends({"data": []}))
    found, _ = probed(url)
    assert found.settled
    assert found.can["embeddings"].note == "no vectors"
    server.script(EMBEDDINGS, refuses(503, "busy"))
    found, _ = probed(url)
    assert not found.settled


def test_a_key_for_some_routes_only(server: Server) -> None:
    server.script("/models", refuses(403, "missing scope"))
    server.script(EMBEDDINGS, refuses(403, "missing scope"))
    server.script(CHAT, sends(chat(top={"Yes": -0.1})))
    found, _ = probed(server.url)
    assert found.can["chat"]
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


def paid(server: Server) -> list[str]:
    """What was asked and may cost something."""
    return [request.path for request in server.received if request.body]


def settled(url: str, folder: Path, model: str = MODEL) -> Learnt:
    async def work() -> Learnt:
        backend = OpenAIBackend(model, base_url=url)
        try:
            await keep([backend], [folder], [None])
            return backend.learnt
        finally:
            await backend.close()

    return asyncio.run(work())


def test_a_server_is_probed_once(server: Server, tmp_path: Path) -> None:
    url = speak(server, SPEAKERS["vllm"])
    folder = tmp_path / "run"
    first = settled(url, folder)
    sent = len(paid(server))
    assert settled(url, folder) == first
    assert len(paid(server)) == sent
    loaded = Probe.load(folder, url, MODEL)
    assert loaded is not None
    assert loaded.learnt == first
    assert Probe.load(folder, url, "other") is Probe.load(tmp_path, url, MODEL) is None
    settled(url, folder, "other")
    assert Probe.load(folder, url, MODEL) == loaded
    assert [path.name for path in folder.iterdir()] == [FILE]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[:100],
        lambda text: "[]",
        lambda text: text.replace(f'"format": {FORMAT}', '"format": 0'),
        lambda text: text.replace('"enable_thinking=false"', '"of another version"'),
        lambda text: text.replace('"works"', '"worked"'),
        lambda text: text.replace('"dialect": "vllm"', '"dialect": "dutch"'),
        lambda text: text.replace('"chat_logprobs"', '"chat_log"'),
    ],
)
def test_a_broken_file_is_probed_again(
    server: Server, tmp_path: Path, spoil: Callable[[str], str]
) -> None:
    url = speak(server, SPEAKERS["vllm"])
    first = settled(url, tmp_path)
    file = tmp_path / FILE
    whole = file.read_text()
    assert spoil(whole) != whole
    file.write_text(spoil(whole))
    assert Probe.load(tmp_path, url, MODEL) is None
    assert settled(url, tmp_path) == first
    assert Probe.load(tmp_path, url, MODEL) is not None
    assert json.loads(file.read_text())["format"] == FORMAT


def kept(folder: Path, url: str) -> Probe:
    found = Probe.load(folder, url, MODEL)
    assert found is not None
    return found


def test_only_what_trouble_left_open_is_tried_again(server: Server, tmp_path: Path) -> None:
    url = speak(server, SPEAKERS["vllm"])
    server.script(EMBEDDINGS, refuses(401, "not with this key"))
    first = settled(url, tmp_path)
    assert not kept(tmp_path, url).settled
    before = len(server.received)
    server.script(EMBEDDINGS, sends({"data": [{"index": i, "embedding": [1]} for i in (0, 1)]}))
    assert settled(url, tmp_path) == first
    assert [r.path for r in server.received[before:] if r.body] == [f"/v1{EMBEDDINGS}"]
    found = kept(tmp_path, url)
    assert found.settled
    assert found.can["embeddings"]
    assert found.sample["Yes"] > 0.6
    assert found.seconds is not None


def test_what_needs_a_route_in_trouble_is_open_too(server: Server, tmp_path: Path) -> None:
    url = speak(server, SPEAKERS["vllm"])
    server.script(CHAT, refuses(503, "loading", headers={"Retry-After": "0"}))
    settled(url, tmp_path)
    found = kept(tmp_path, url)
    left = {name for name, one in found.can.items() if not one.settled}
    assert left == {
        *("chat", "token_limit", "reasoning", "system_role", "stop"),
        *("structured_output", "chat_logprobs"),
    }
    speak(server, SPEAKERS["vllm"])
    learnt = settled(url, tmp_path)
    assert kept(tmp_path, url).settled
    assert learnt.thinking == "enable_thinking=false"
    assert all(kept(tmp_path, url).can[name] for name in left)


@pytest.mark.parametrize("status", [403, 404])
def test_a_refusal_by_a_side_route_is_an_answer(
    server: Server, tmp_path: Path, status: int
) -> None:
    url = speak(server, SPEAKERS["vllm"])
    server.script(EMBEDDINGS, refuses(status, "the model `m` does not exist here"))
    settled(url, tmp_path)
    found = kept(tmp_path, url)
    assert found.settled
    told = f"refused: HTTP {status}: the model `m` does not exist here"
    assert found.can["embeddings"].note == told


def test_a_side_route_that_hangs_is_left_open(server: Server) -> None:
    url = speak(server, SPEAKERS["vllm"])
    for path in ("/rerank", EMBEDDINGS, "//version"):
        server.script(path, waits(60, sends({})))

    async def work() -> tuple[Probe, float]:
        backend = OpenAIBackend(MODEL, base_url=url)
        started = time.perf_counter()
        try:
            return await probe(backend, seconds=0.3), time.perf_counter() - started
        finally:
            await backend.close()

    found, took = asyncio.run(work())
    assert took < 5
    assert {name for name, one in found.can.items() if not one.settled} == {"rerank", "embeddings"}
    assert "did not answer within 0.3 s" in found.can["rerank"].note
    assert found.can["chat_logprobs"].note == "exact token ids"
    assert sum(r.path == "/v1/rerank" for r in server.received) == 1


@pytest.mark.parametrize(
    ("speaker", "told"),
    [
        (SPEAKERS["llama.cpp"], "llama.cpp instead of vllm"),
        (
            replace(SPEAKERS["vllm"], routes={"//version": {"version": "0.33.0"}}),
            "0.33.0 instead of 0.32.0",
        ),
        (
            replace(SPEAKERS["vllm"], row={"owned_by": "vllm", "max_model_len": 512}),
            "512 instead of 4096",
        ),
    ],
)
def test_a_server_that_has_changed_is_probed_anew(
    server: Server, tmp_path: Path, speaker: Speaker, told: str
) -> None:
    url = speak(server, SPEAKERS["vllm"])
    first = settled(url, tmp_path)
    speak(server, speaker)
    changed, learnt = greeted(url, first)
    assert told in changed
    assert (learnt.labels, learnt.likelihood, learnt.limit) == ({}, "", "")
    assert (learnt.thinking, learnt.context) == (first.thinking, first.context)
    second = settled(url, tmp_path)
    assert second != first
    assert kept(tmp_path, url).learnt == second
    assert greeted(url, second)[0] == ""


def greeted(url: str, known: Learnt | None = None, *, dialect: str = "") -> tuple[str, Learnt]:
    async def work() -> tuple[str, Learnt]:
        backend = OpenAIBackend(MODEL, base_url=url, dialect=dialect)
        backend.adopt(known or backend.learnt)
        try:
            return (await greet(backend, seconds=0.2)).changed, backend.learnt
        finally:
            await backend.close()

    return asyncio.run(work())


@pytest.mark.parametrize("name", [name for name, told in TOLD.items() if told[4]])
def test_a_greeting_tells_kind_and_version_for_nothing(server: Server, name: str) -> None:
    url = speak(server, SPEAKERS[name])
    assert greeted(url) == ("", Learnt(dialect=name, version=TOLD[name][4]))
    assert not paid(server)
    assert len(server.received) <= 6


def test_a_greeting_goes_by_the_models_own_row(server: Server) -> None:
    server.script("/models", sends({"data": [{"id": "x", "owned_by": "vllm"}, {"id": MODEL}]}))
    assert greeted(server.url)[1].dialect == "unknown"


def test_a_greeting_believes_the_user(server: Server) -> None:
    url = speak(server, SPEAKERS["llama.cpp"])
    assert greeted(url, dialect="sglang")[1].dialect == "sglang"


@pytest.mark.parametrize(
    "trouble",
    [
        refuses(401, "who are you"),
        refuses(403, "missing scope"),
        refuses(404, "no such thing"),
        refuses(500, "broken"),
        sends_html(),
        breaks_off(),
        sends([1, 2]),
        sends({"data": ["x", {"owned_by": ["vllm"]}]}),
        waits(60, sends({})),
    ],
)
def test_a_greeting_never_fails(server: Server, trouble: Behaviour) -> None:
    for path in ("/models", "//version", "//props", "//info", "//api/version", "//get_model_info"):
        server.script(path, trouble)
    known = Learnt(dialect="vllm", version="0.32.0", labels={CHAT: "ids"}, context=4096)
    started = time.perf_counter()
    assert greeted(server.url)[1].dialect == "unknown"
    assert greeted(server.url, known) == ("", known)
    assert time.perf_counter() - started < 3


def test_a_greeting_of_nobody_is_quick() -> None:
    started = time.perf_counter()
    assert greeted(no_server()) == ("", Learnt())
    assert kinds_met(no_server(), 1) == ["unknown"]
    assert time.perf_counter() - started < 1


def models_asked(server: Server) -> int:
    return sum(request.path.endswith("/models") for request in server.received)


def test_a_greeting_leaves_other_calls_their_time(server: Server) -> None:
    server.script("/models", waits(1, sends({})))
    server.script(EMBEDDINGS, waits(0.4, sends({"data": [{"index": 0, "embedding": [1]}]})))

    async def work() -> Reply:
        backend = OpenAIBackend(MODEL, base_url=server.url)
        try:
            asked = Request(ask=ASK, want="vectors", texts=("a",))
            _, (reply,) = await asyncio.gather(greet(backend, seconds=0.2), backend.answer([asked]))
            return reply
        finally:
            await backend.close()

    assert asyncio.run(work()).error == ""


ROW = {"id": MODEL, "owned_by": "vllm"}


def kinds_met(url: str, times: int, folder: Path | None = None) -> list[str]:
    """The kind that a server is known to be of at each of so many batches, after a greeting."""

    async def work() -> list[str]:
        backend = OpenAIBackend(MODEL, base_url=url)
        greeter = Greeter(backend, folder, limits=(0.3, 0.6, 0.9))
        found = []
        try:
            for _ in range(times):
                await greeter.greeted()
                found.append(backend.learnt.dialect)
            return found
        finally:
            await backend.close()

    return asyncio.run(work())


def test_a_slow_server_is_greeted_again_for_longer_before_anything_is_sent(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    url = speak(server, SPEAKERS["vllm"])
    server.script("/models", waits(0.45, sends({"data": [ROW]})))
    assert kinds_met(url, 2) == ["vllm", "vllm"]
    assert models_asked(server) == 2
    assert not caplog.records


def test_a_server_in_trouble_is_of_no_known_kind_to_the_end(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    url = speak(server, SPEAKERS["vllm"])
    trouble = [waits(60, sends({})), refuses(503, "loading"), breaks_off()]
    server.script("/models", *trouble, sends({"data": [ROW]}))
    for path in ("//version", "//props"):
        server.script(path, refuses(404, "hidden"))
    assert kinds_met(url, 3) == ["unknown"] * 3
    assert models_asked(server) == 3
    (record,) = caplog.records
    told = record.getMessage()
    assert url in told
    assert "no answer from" in told
    assert "likeliest tokens" in told
    assert "dialect=" in told
    assert record.name.startswith("llmrank")


@pytest.mark.parametrize(
    ("trouble", "greetings", "warnings"),
    [
        (refuses(503, "loading"), 3, 1),
        (breaks_off(), 3, 1),
        (refuses(404, "no such thing"), 1, 0),
        (refuses(401, "who are you"), 1, 0),
        (sends_html(), 1, 0),
        (sends({"data": [{"id": MODEL}]}), 1, 0),
    ],
)
def test_how_often_a_server_is_greeted(
    server: Server,
    caplog: pytest.LogCaptureFixture,
    trouble: Behaviour,
    greetings: int,
    warnings: int,
) -> None:
    server.script("/models", trouble)
    assert kinds_met(server.url, 5) == ["unknown"] * 5
    assert (models_asked(server), len(caplog.records)) == (greetings, warnings)


def test_all_that_is_sent_waits_for_one_greeting(server: Server) -> None:
    url = speak(server, SPEAKERS["vllm"])
    server.script(
        "/models", refuses(503, "loading"), waits(0.2, sends({"data": [ROW]})), breaks_off()
    )

    async def work() -> list[str]:
        backend = OpenAIBackend(MODEL, base_url=url)
        greeter = Greeter(backend)

        async def one() -> str:
            await greeter.greeted()
            return backend.learnt.dialect

        try:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await one()
            server.script("/models", refuses(503, "loading"), sends({"data": [ROW]}), breaks_off())
            return list(await asyncio.gather(*(one() for _ in range(4))))
        finally:
            await backend.close()

    assert asyncio.run(work()) == ["vllm"] * 4
    assert models_asked(server) == 4


def test_a_server_of_which_the_kind_alone_was_known_is_of_another(server: Server) -> None:
    url = speak(server, SPEAKERS["vllm"])
    changed, learnt = greeted(url, Learnt(dialect="tgi"))
    assert changed == "vllm instead of tgi"
    assert learnt == Learnt(dialect="vllm", version="0.32.0")


def test_what_a_greeting_learnt_is_kept_and_is_no_probe(server: Server, tmp_path: Path) -> None:
    url = speak(server, SPEAKERS["vllm"])
    assert kinds_met(url, 1, tmp_path) == ["vllm"]
    again, named = (OpenAIBackend(MODEL, base_url=url, dialect=name) for name in ("", "sglang"))
    for backend in (again, named):
        assert recall(backend, [tmp_path / "none", tmp_path]) is None
    assert again.learnt == Learnt(dialect="vllm", version="0.32.0")
    assert named.learnt == Learnt(dialect="sglang")
    assert not paid(server)
    first = settled(url, tmp_path)
    assert paid(server)
    assert first.labels[CHAT] == "ids"
    # Either is kept beside the other.
    kinds_met(url, 1, tmp_path)
    assert kept(tmp_path, url).learnt == first
    other = OpenAIBackend("other", base_url=url)
    recall(other, [tmp_path])
    assert other.learnt == Learnt()


def test_a_pool_with_a_member_of_no_known_kind(caplog: pytest.LogCaptureFixture) -> None:
    kinds: dict[str, str] = {}

    async def meet(url: str) -> None:
        backend = OpenAIBackend(MODEL, base_url=url)
        try:
            await Greeter(backend, kinds=kinds).greeted()
        finally:
            await backend.close()

    with serve() as silent, serve() as other, serve() as vllm:
        for url in (speak(silent, Speaker()), speak(other, Speaker())):
            asyncio.run(meet(url))
        assert not caplog.records
        asyncio.run(meet(speak(vllm, SPEAKERS["vllm"])))
        first, second = [record.getMessage() for record in caplog.records]
        assert (silent.url in first, other.url in second) == (True, True)
        assert "dialect=" in first


def test_members_of_a_pool_that_answer_alike(caplog: pytest.LogCaptureFixture) -> None:
    large, small, silent = (
        OpenAIBackend(MODEL, base_url=f"http://127.0.0.1:{port}/v1") for port in (1, 2, 3)
    )
    large.adopt(Learnt(dialect="vllm", context=4096, tokenizes=True))
    small.adopt(Learnt(dialect="vllm", context=512, tokenizes=True))
    assert alike([silent, large, small]) == [small, large, silent]
    assert not caplog.records
    large.adopt(Learnt(dialect="vllm", thinking="enable_thinking=false"))
    assert alike([silent, large]) == [large]
    assert "127.0.0.1:3/v1 is left out of the pool" in caplog.text


def test_a_probe_waits_for_room_in_the_minute(server: Server, tmp_path: Path) -> None:
    url = speak(server, SPEAKERS["vllm"])
    minute = Minute(rpm=5)

    async def work() -> None:
        backend = OpenAIBackend(MODEL, base_url=url)
        try:
            async with asyncio.timeout(1.0):
                await keep([backend], [tmp_path], [paced(minute)])
        finally:
            await backend.close()

    with pytest.raises(TimeoutError):
        asyncio.run(work())
    assert len(server.received) == 5


def test_what_is_kept_serves_where_nobody_answers_what_is_open(tmp_path: Path) -> None:
    with serve() as server:
        url = speak(server, SPEAKERS["vllm"])
        server.script(EMBEDDINGS, refuses(401, "not with this key"))
        first = settled(url, tmp_path)
    assert not kept(tmp_path, url).settled
    assert settled(url, tmp_path) == first


def test_an_estimate_of_tokens_gets_no_context_from_the_server(server: Server) -> None:
    found, _ = probed(speak(server, SPEAKERS["tgi"]))
    assert (found.context, found.learnt.context) == (4096, None)
