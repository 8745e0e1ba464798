"""Everything that may go wrong between a server and an answer, each on a server that does it."""

from __future__ import annotations

import asyncio
import math
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web

from llmrank.backends.dialects import CHAT, COMPLETIONS
from llmrank.backends.openai import OpenAIBackend
from llmrank.backends.wrappers import Limited, Meter, Metered, Retrying
from llmrank.engine import Engine
from llmrank.errors import BackendError, CapabilityError, SpecError
from llmrank.plan import Ask, Grade, Likelihood, Order
from llmrank.prompts import PromptSet
from llmrank.prompts.replies import read
from llmrank.request import Message, Params, Reply, Request
from llmrank.rerank import parse
from llmrank.types import Candidate, Document, Ordering, Query, Status, Tally
from tests.servers import (
    SPEAKERS,
    Behaviour,
    Body,
    Server,
    breaks_off,
    chat,
    completion,
    drips,
    echoes,
    refuses,
    sends,
    sends_html,
    sends_text,
    serve,
    speak,
    waits,
)

QUERY = Query("q", "red fox")
DOCS = (Document("a", "foxes"), Document("b", "dough"))
ORDER, GRADE, LIKELIHOOD = Order(QUERY, DOCS), Grade(QUERY, DOCS[0]), Likelihood(QUERY, DOCS[0])


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with serve() as server:
        yield server


@pytest.fixture
def server(running: Server) -> Server:
    running.forget()
    return running


def asked(
    server: Server,
    ask: Ask[Any],
    *behaviours: Behaviour,
    timeout: float = 5.0,
    attempts: int = 1,
) -> tuple[Status, str, Reply]:
    """The outcome of an ask that a server answers so, its problem, and the reply."""
    request = PromptSet().render(ask)
    server.script(CHAT if request.messages else COMPLETIONS, *behaviours)

    async def work() -> Reply:
        backend = OpenAIBackend("m", base_url=server.url, timeout=timeout)
        try:
            retrying = Retrying(backend, attempts=attempts, first_wait=0.001)
            (reply,) = await retrying.answer([request])
            return reply
        finally:
            await backend.close()

    reply = asyncio.run(work())
    answer = read(request, reply)
    return answer.status, answer.problem, reply


OVERFLOW = "This model's maximum context length is 2048 tokens. However, you requested 3000"
FILTERED = {
    "error": {
        "message": "The response was filtered due to the prompt triggering a policy.",
        "code": "content_filter",
        "innererror": {"code": "ResponsibleAIPolicyViolation"},
    }
}


@pytest.mark.parametrize(
    ("behaviour", "transient", "said"),
    [
        (drips(0.01), True, "did not answer within 0.2 s"),
        (waits(0.5, sends(chat("[1] > [2]"))), True, "did not answer within 0.2 s"),
        (breaks_off(), True, "no answer"),
        (sends_text('{"choices": [{"message": {"content": "[1] >'), True, "not JSON"),
        (sends_html(), True, "not JSON"),
        (sends({"error": {"message": "engine died"}}), True, "engine died"),
        (sends({"error": {"message": "busy", "code": 503}}), True, "HTTP 503"),
        (sends({"error": {"message": "bad field", "code": 400}}), False, "bad field"),
        (sends(chat() | {"choices": []}), False, "no choices"),
        (sends(chat(None)), False, "no text"),
        (refuses(429, "slow down"), True, "slow down"),
        (refuses(500, "oops"), True, "oops"),
        (refuses(503, "loading"), True, "loading"),
        (refuses(400, "bad field"), False, "bad field"),
    ],
)
def test_a_failed_answer(server: Server, behaviour: Behaviour, transient: bool, said: str) -> None:
    status, problem, reply = asked(server, ORDER, behaviour, timeout=0.2)
    assert (status, reply.transient) == (Status.FAILED, transient)
    assert said in problem


def test_a_body_that_drips_ends_by_the_timeout(server: Server) -> None:
    started = time.perf_counter()
    _, _, reply = asked(server, ORDER, drips(0.01), sends(chat("[1] > [2]")), timeout=0.2)
    assert 0.2 <= time.perf_counter() - started < 1.5
    assert reply.error
    status, _, reply = asked(
        server, ORDER, drips(0.01), sends(chat("[1] > [2]")), timeout=0.2, attempts=2
    )
    assert (status, reply.text) == (Status.OK, "[1] > [2]")


@pytest.mark.parametrize(
    "behaviour",
    [
        refuses(400, OVERFLOW),
        refuses(400, OVERFLOW, code="context_length_exceeded"),
        refuses(400, "the request exceeds the available context size. try increasing it"),
        refuses(422, "Input validation error: `inputs` must have less than 1024 tokens. Given: 2"),
        refuses(500, "the input (9 tokens) is longer than the model's context length (5 tokens)"),
        sends({"error": {"message": OVERFLOW, "code": 400}}),
        sends({"error": OVERFLOW}),
    ],
)
def test_a_prompt_that_does_not_fit_is_never_asked_again(
    server: Server, behaviour: Behaviour
) -> None:
    status, problem, reply = asked(server, ORDER, behaviour, attempts=6)
    assert (status, reply.transient, len(server.received)) == (Status.FAILED, False, 1)
    assert "does not fit the model's context length" in problem
    assert "--passage-words" in problem


@pytest.mark.parametrize(
    "behaviour",
    [
        sends(chat(None, finish="content_filter")),
        sends(chat(None, refusal="I cannot help.")),
        sends(FILTERED, status=400),
        sends(FILTERED, status=403),
        sends({"error": {"message": "blocked by the content management policy", "code": 400}}),
    ],
)
@pytest.mark.parametrize("ask", [ORDER, GRADE])
def test_what_a_filter_stops_is_refused(
    server: Server, behaviour: Behaviour, ask: Ask[Any]
) -> None:
    status, problem, reply = asked(server, ask, behaviour, attempts=6)
    assert (status, reply.error, len(server.received)) == (Status.REFUSED, "", 1)
    assert "declined" in problem


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        (refuses(401, "bad key"), "OPENAI_API_KEY"),
        (refuses(403, "not yours"), "OPENAI_API_KEY"),
        (refuses(404, "The model `m` does not exist."), "unknown model"),
        (refuses(429, "You exceeded your quota", code="insufficient_quota"), "no credit"),
        (refuses(402, "Insufficient credits"), "no credit"),
        (sends({"error": {"message": "No auth credentials found", "code": 401}}), "OPENAI_API_KEY"),
    ],
)
def test_what_cannot_succeed_fails_at_once(server: Server, behaviour: Behaviour, said: str) -> None:
    with pytest.raises(BackendError, match=said):
        asked(server, ORDER, behaviour, attempts=6)
    assert len(server.received) == 1


@pytest.mark.parametrize(
    ("top", "status"),
    [
        ({"Yes": math.nan, "No": -1.0}, Status.MALFORMED),
        ({"Yes": 3.0, "No": -1.0}, Status.MALFORMED),
        ({"Yes": math.inf, "No": -1.0}, Status.MALFORMED),
        ({"the": -0.1, "a": -3.0}, Status.MALFORMED),
        ({"Yes": None, "No": None}, Status.MALFORMED),
        ({"Yes": "high", "No": -1.0}, Status.FAILED),
        ({"Yes": -0.1}, Status.OK),
    ],
)
def test_label_probabilities_that_are_none(
    server: Server, top: dict[str, float | None], status: Status
) -> None:
    assert asked(server, GRADE, sends(chat("Yes", top=top)))[0] is status


@pytest.mark.parametrize(
    ("last", "status"),
    [
        (math.nan, Status.MALFORMED),
        (2.0, Status.MALFORMED),
        (None, Status.FAILED),
        ("low", Status.FAILED),
        (-2.0, Status.OK),
    ],
)
def test_likelihoods_that_are_none(server: Server, last: float | None, status: Status) -> None:
    request = PromptSet().render(LIKELIHOOD)
    found = echoes([request.prompt, request.target], [None, last])
    assert asked(server, LIKELIHOOD, found)[0] is status


FORMS = {"yes": ("Yes", " Yes", "yes", " yes"), "no": ("No", " No", "no", " no")}
TURN = (Message("user", "Relevant?"),)
CHAT_LABELS = Request(ask=GRADE, want="labels", messages=TURN, labels=FORMS)
PLAIN_LABELS = Request(ask=GRADE, want="labels", prompt="Relevant?", labels=FORMS)
TEXT = Request(ask=ORDER, want="text", messages=TURN, params=Params(max_tokens=9))


def told(url: str, *requests: Request, dialect: str) -> list[Reply]:
    """Replies one after another of one backend that knows its dialect and nothing more."""

    async def work() -> list[Reply]:
        backend = OpenAIBackend("m", base_url=url, dialect=dialect)
        try:
            return [(await backend.answer([request]))[0] for request in requests]
        finally:
            await backend.close()

    return asyncio.run(work())


@pytest.mark.parametrize("request_", [CHAT_LABELS, PLAIN_LABELS])
def test_exact_ids_hold_every_form_that_is_one_token(server: Server, request_: Request) -> None:
    url = speak(server, SPEAKERS["vllm"])
    first, second = told(url, request_, request_, dialect="vllm")
    assert first.label_logprobs == second.label_logprobs
    assert first.label_logprobs.keys() == {"Yes", " Yes", "yes", "No", " No", "no"}
    path = CHAT if request_.messages else COMPLETIONS
    assert [body["logprob_token_ids"] for body in server.bodies(path)] == [[5, 6, 7, 8, 9, 10]] * 2
    texts = [r.body["prompt"] for r in server.received if r.path == "/tokenize"]
    assert len(texts) == 8 * 3


def test_ids_that_do_not_come_back_are_asked_for_once(server: Server) -> None:
    url = speak(server, replace(SPEAKERS["vllm"], ids=False))
    server.script(CHAT, sends(chat("Yes", top={"Yes": -0.4})))
    told(url, CHAT_LABELS, CHAT_LABELS, dialect="vllm")
    assert ["logprob_token_ids" in body for body in server.bodies(CHAT)] == [True, False, False]


def test_a_server_without_its_tokenizer_gives_the_likeliest(server: Server) -> None:
    url = speak(server, SPEAKERS["vllm"])
    server.script("//tokenize")
    replies = told(url, CHAT_LABELS, CHAT_LABELS, dialect="vllm")
    assert [reply.label_logprobs["Yes"] for reply in replies] == [-0.4, -0.4]
    assert [body.get("top_logprobs") for body in server.bodies(CHAT)] == [20, 20]
    assert [r.path for r in server.received].count("/tokenize") == 1


def test_labels_of_several_tokens_do_not_spoil_the_way_for_others(server: Server) -> None:
    url = speak(server, SPEAKERS["vllm"])
    odd = Request(ask=GRADE, want="labels", messages=TURN, labels={"x": ("not at all",)})
    _, reply = told(url, odd, CHAT_LABELS, dialect="vllm")
    assert reply.label_logprobs["no"] == -9.0


def test_a_word_has_two_ids_where_the_tokenizer_puts_a_space_before_a_text(server: Server) -> None:
    url = speak(server, SPEAKERS["vllm"])
    tokenized = [sends({"tokens": ids}) for ids in ([100], [29871, 13], [29871, 13, 200])]
    server.script("//tokenize", *tokenized)
    top = {"token_id:100": math.log(0.25), "token_id:200": math.log(0.5), "token_id:3": -0.1}
    server.script(CHAT, sends(chat("Yes", top=top)))
    one = Request(ask=GRADE, want="labels", messages=TURN, labels={"yes": ("Yes",)})
    (reply,) = told(url, one, dialect="vllm")
    assert reply.label_logprobs == pytest.approx({"Yes": math.log(0.75)})
    assert server.bodies(CHAT)[0]["logprob_token_ids"] == [100, 200]


def test_more_ids_than_the_server_takes(server: Server) -> None:
    url = speak(server, SPEAKERS["vllm"])
    numbers = [sends({"tokens": [1]}) if i % 3 == 1 else sends({"tokens": [i]}) for i in range(390)]
    server.script("//tokenize", *numbers)
    many = Request(
        ask=GRADE, want="labels", messages=TURN, labels={str(i): (str(i),) for i in range(130)}
    )
    told(url, many, dialect="vllm")
    assert server.bodies(CHAT)[0]["top_logprobs"] == 20


def test_one_answer_without_log_probabilities_fails_alone(server: Server) -> None:
    server.script(CHAT, sends(chat(top={"Yes": -0.1})), sends(chat("")), sends(chat("")))
    first, second = told(server.url, CHAT_LABELS, CHAT_LABELS, dialect="unknown")
    assert first.label_logprobs == {"Yes": -0.1}
    assert "no log-probabilities" in second.error
    assert not second.transient


def test_llama_cpp_sends_completions_in_the_form_of_chats(server: Server) -> None:
    found = chat(top={"Yes": -0.2, "No": -2.0})["choices"][0]["logprobs"]
    server.script(COMPLETIONS, sends(completion("Yes", logprobs=found)))
    (reply,) = told(server.url, PLAIN_LABELS, dialect="llama.cpp")
    assert reply.label_logprobs == {"Yes": -0.2, "No": -2.0}


@pytest.mark.parametrize(
    ("refusal", "dropped"),
    [
        ("Unsupported parameter: 'max_tokens' is not supported with this model.", "max_tokens"),
        ("Unsupported value: 'temperature' does not support 0 with this model.", "temperature"),
    ],
)
def test_a_parameter_that_is_refused_is_not_sent_again(
    server: Server, refusal: str, dropped: str
) -> None:
    server.script(CHAT, refuses(400, refusal), sends(chat("[1]")))
    replies = told(server.url, TEXT, TEXT, dialect="unknown")
    assert [reply.text for reply in replies] == ["[1]", "[1]"]
    assert [dropped in body for body in server.bodies(CHAT)] == [True, False, False]
    if dropped == "max_tokens":
        assert server.bodies(CHAT)[-1]["max_completion_tokens"] == 9


def test_a_parameter_that_is_always_refused_is_a_failure(server: Server) -> None:
    server.script(CHAT, refuses(400, "max_tokens and max_completion_tokens are not supported"))
    (reply,) = told(server.url, TEXT, dialect="unknown")
    assert "not supported" in reply.error
    assert len(server.received) == 2


def test_what_a_kind_of_server_lacks_is_said_before_it_is_asked(server: Server) -> None:
    request = Request(ask=LIKELIHOOD, want="likelihood", prompt="a", target=" b")
    with pytest.raises(CapabilityError, match="ollama has no route"):
        told(server.url, request, dialect="ollama")
    assert not server.received
    with pytest.raises(SpecError, match="no dialect 'dutch'"):
        OpenAIBackend("m", base_url=server.url, dialect="dutch")


def orders(body: Body) -> dict[str, Any]:
    """A perfect answer to a listwise prompt: by the weights that the passages state."""
    shown = "\n".join(turn["content"] for turn in body["messages"])
    weights = {int(i): int(w) for i, w in re.findall(r"\[(\d+)\] weighs (\d+)", shown)}
    best = sorted(weights, key=lambda i: -weights[i])
    return chat(" > ".join(f"[{i}]" for i in best))


def troubled(share: float) -> tuple[Behaviour, Counter[str]]:
    """A judge that does something else instead for a share of the requests, and what it did."""
    soon = {"retry-after-ms": "2"}
    faults: list[tuple[str, Behaviour]] = [
        ("HTTP 500", refuses(500, "oops")),
        ("HTTP 429", refuses(429, "wait", headers=soon)),
        ("HTTP 503", refuses(503, "busy", headers=soon)),
        ("no answer", breaks_off()),
        ("no answer in time", waits(3.0, sends(chat()))),
        ("unusable answer", sends_html()),
        ("unusable answer", sends_text('{"choices": [{"mess')),
        ("unusable answer", sends({"error": {"message": "overloaded"}})),
    ]
    chance, done = random.Random(3), Counter[str]()

    async def behave(request: web.Request, body: Body) -> web.StreamResponse:
        if chance.random() >= share:
            return await sends(orders(body))(request, body)
        kind, fault = chance.choice(faults)
        done[kind] += 1
        return await fault(request, body)

    return behave, done


def test_thirty_percent_of_mixed_faults_change_no_ranking(server: Server) -> None:
    chance = random.Random(1)
    candidates = [
        [Candidate(Document(f"{q}-{i}", f"weighs {chance.randrange(1000)}")) for i in range(12)]
        for q in range(12)
    ]
    method = parse("sliding(window=4, stride=2)")

    def ranked(share: float) -> tuple[dict[int, tuple[int, ...]], Tally, Meter, Counter[str]]:
        behaviour, done = troubled(share)
        server.script(CHAT, behaviour)
        found, total, meter = {}, [Tally()], Meter()

        def finished(q: int, ordering: Ordering, tally: Tally) -> None:
            found[q] = ordering.order
            total[0] += tally

        async def work() -> None:
            backend = OpenAIBackend("m", base_url=server.url, timeout=0.4)
            patient = Retrying(Limited(Metered(backend, meter), 8), attempts=12, first_wait=0.001)
            plans = [(q, method.plan(QUERY, group)) for q, group in enumerate(candidates)]
            await Engine(patient, PromptSet(), in_flight=8).run(plans, finished)
            await backend.close()

        asyncio.run(work())
        return found, total[0], meter, done

    calm, tally, meter, _ = ranked(0.0)
    assert (tally.outcomes, meter.faults) == ({Status.OK: 60}, {})
    found, tally, meter, done = ranked(0.3)
    assert found == calm
    assert tally.outcomes == {Status.OK: 60}
    assert len(done) == 6
    assert meter.faults == done
    assert meter.requests == 60 + done.total()
