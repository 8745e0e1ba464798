from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrank.api import Session, Settings
from llmrank.backends._answers import scored
from llmrank.backends.dialects import CHAT, COMPLETIONS, EMBEDDINGS
from llmrank.backends.openai import OpenAIBackend
from llmrank.backends.wrappers import Limited, Meter, Metered, Retrying
from llmrank.errors import BackendError, CapabilityError, InputError
from llmrank.plan import Write
from llmrank.request import Backend, Message, Params, Reply, Request
from llmrank.types import Usage
from tests.servers import (
    Behaviour,
    Server,
    breaks_off,
    chat,
    completion,
    echoes,
    refuses,
    sends,
    sends_html,
    serve,
    waits,
)

T = TypeVar("T")
KEY = "sk-very-secret-1234"
ASK = Write("test", ())
TURNS = (Message("system", "You judge."), Message("user", "Is it relevant?"))
FORMS = {"yes": ("Yes", "yes", " yes"), "no": ("No", "no", " no")}
CHAT_TEXT = Request(ask=ASK, want="text", messages=TURNS, params=Params(max_tokens=9))
PLAIN_TEXT = Request(ask=ASK, want="text", prompt="Once", params=Params(max_tokens=9))
CHAT_LABELS = Request(ask=ASK, want="labels", messages=TURNS, labels=FORMS)
PLAIN_LABELS = Request(ask=ASK, want="labels", prompt="Relevant?", labels=FORMS)
LIKELIHOOD = Request(ask=ASK, want="likelihood", prompt="Passage. Query:", target=" red fox")
VECTORS = Request(ask=ASK, want="vectors", texts=("a", "b", "c"))


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with serve() as server:
        yield server


@pytest.fixture
def server(running: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for path in (CHAT, COMPLETIONS, EMBEDDINGS):
        running.script(path)
    running.received.clear()
    return running


def using(url: str, use: Callable[[OpenAIBackend], Awaitable[T]], *, timeout: float = 5.0) -> T:
    async def work() -> T:
        backend = OpenAIBackend("m", base_url=url, api_key=KEY, timeout=timeout)
        try:
            return await use(backend)
        finally:
            await backend.close()

    return asyncio.run(work())


def answers(server: Server, *requests: Request, timeout: float = 5.0) -> list[Reply]:
    return using(server.url, lambda backend: backend.answer(requests), timeout=timeout)


def answer(server: Server, request: Request, *behaviours: Behaviour, timeout: float = 5.0) -> Reply:
    paths = {"likelihood": COMPLETIONS, "vectors": EMBEDDINGS}
    server.script(paths.get(request.want, CHAT if request.messages else COMPLETIONS), *behaviours)
    (reply,) = answers(server, request, timeout=timeout)
    return reply


def no_server() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/v1"


def test_chat_text(server: Server) -> None:
    reply = answer(server, CHAT_TEXT, sends(chat("[2] > [1]", reasoning_content="hm")))
    assert (reply.text, reply.finish, reply.reasoning) == ("[2] > [1]", "stop", "hm")
    assert (reply.usage, reply.model) == (Usage(30, 2, 16, 1), "served")
    assert not reply.error
    assert reply.seconds > 0
    (request,) = server.received
    assert request.body == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "You judge."},
            {"role": "user", "content": "Is it relevant?"},
        ],
        "max_tokens": 9,
        "temperature": 0.0,
    }
    assert request.headers["Authorization"] == f"Bearer {KEY}"


def test_plain_text_and_every_parameter(server: Server) -> None:
    params = Params(max_tokens=7, temperature=0.5, top_p=0.9, stop=("\n", "#"), seed=3)
    request = Request(ask=ASK, want="text", prompt="Once", params=params)
    reply = answer(server, request, sends(completion(" upon", finish="length")))
    assert (reply.text, reply.finish) == (" upon", "length")
    assert server.bodies(COMPLETIONS) == [
        {
            "model": "m",
            "prompt": "Once",
            "max_tokens": 7,
            "temperature": 0.5,
            "top_p": 0.9,
            "stop": ["\n", "#"],
            "seed": 3,
        }
    ]


def test_reasoning_under_its_newer_name(server: Server) -> None:
    assert answer(server, CHAT_TEXT, sends(chat(reasoning="so"))).reasoning == "so"


def test_replies_stand_in_the_order_of_the_requests(server: Server) -> None:
    server.script(COMPLETIONS, waits(0.1, sends(completion("slow"))), sends(completion("quick")))
    server.script(CHAT, sends(chat("chat")))
    replies = answers(server, PLAIN_TEXT, CHAT_TEXT)
    assert [reply.text for reply in replies] == ["slow", "chat"]
    assert replies[0].seconds >= 0.1
    assert answers(server) == []


def test_openai_itself_is_sent_its_own_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    backend = OpenAIBackend("gpt", api_key=KEY)
    assert backend.identity == "openai:gpt@https://api.openai.com/v1"
    many = Request(ask=ASK, want="text", prompt="x", params=Params(stop=tuple("abcde")))
    with pytest.raises(CapabilityError, match="at most 4"):
        asyncio.run(backend.answer([many]))
    assert backend._body(CHAT_TEXT, 9)["max_completion_tokens"] == 9
    assert backend._body(PLAIN_TEXT, 9)["max_tokens"] == 9


def test_identity_and_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(BackendError, match="OPENAI_API_KEY"):
        asyncio.run(OpenAIBackend("m").answer([CHAT_TEXT]))
    with pytest.raises(BackendError, match="OPENAI_API_KEY"):
        Session(Settings("openai:m"))
    with pytest.raises(InputError, match="http://"):
        OpenAIBackend("m", base_url="localhost:8000/v1")
    backend = OpenAIBackend("m", base_url="http://user:word@host:8000/v1/", api_key=KEY)
    assert backend.identity == "openai:m@http://host:8000/v1"
    assert KEY not in repr(backend)
    assert "word" not in repr(backend)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://other/v1")
    assert OpenAIBackend("m").identity == "openai:m@http://other/v1"


def test_a_server_of_ones_own_needs_no_key(server: Server) -> None:
    server.script(CHAT, sends(chat()))

    async def work() -> None:
        backend = OpenAIBackend("m", base_url=server.url)
        await backend.answer([CHAT_TEXT])
        await backend.close()
        await backend.close()

    asyncio.run(work())
    assert server.received[0].headers["Authorization"] == "Bearer EMPTY"


@pytest.mark.parametrize(
    ("sent", "finish"),
    [
        (chat(None, refusal="I cannot help."), "refusal"),
        (chat(None, finish="content_filter"), "content_filter"),
        (chat("so far", finish="length"), "length"),
        (chat(None, finish="length", reasoning="still thinking"), "length"),
    ],
)
def test_endings_that_are_no_errors(server: Server, sent: object, finish: str) -> None:
    reply = answer(server, CHAT_TEXT, sends(sent))
    assert (reply.finish, reply.error) == (finish, "")
    assert answer(server, CHAT_LABELS, sends(chat(refusal="No."))).finish == "refusal"


@pytest.mark.parametrize(
    ("behaviour", "transient", "said"),
    [
        (sends({"error": {"message": "engine died"}}), True, "engine died"),
        (sends({"error": "boom"}), True, "boom"),
        (sends_html(), True, "not JSON"),
        (sends_html(""), True, "not JSON"),
        (sends([1]), True, "error"),
        (sends(chat() | {"choices": None}), False, "no choices"),
        (sends(chat() | {"choices": []}), False, "no choices"),
        (sends(chat() | {"choices": [3]}), False, "form of the OpenAI API"),
        (sends(chat(None)), False, "no text"),
        (sends(chat("x", finish="abort")), True, "broke off"),
        (sends({"choices": [{"message": {"content": ["parts"]}}]}), False, "not a string"),
        (refuses(400, "bad temperature"), False, "bad temperature"),
        (refuses(422, "extra field"), False, "extra field"),
        (refuses(413, "too large"), False, "too large"),
        (refuses(408, "late"), True, "late"),
        (refuses(409, "busy"), True, "busy"),
        (refuses(429, "slow down"), True, "slow down"),
        (refuses(500, "oops"), True, "oops"),
        (refuses(503, "loading"), True, "loading"),
        (sends({"message": "of an older vLLM"}, status=400), False, "of an older vLLM"),
        (breaks_off(), True, "no answer"),
    ],
)
def test_errors_are_replies(
    server: Server, behaviour: Behaviour, transient: bool, said: str
) -> None:
    reply = answer(server, CHAT_TEXT, behaviour)
    assert said in reply.error
    assert (reply.transient, reply.text, len(server.received)) == (transient, "", 1)


def test_an_empty_answer_still_counts_its_tokens(server: Server) -> None:
    assert answer(server, CHAT_TEXT, sends(chat(None))).usage.prompt_tokens == 30


def test_nobody_listens() -> None:
    (reply,) = using(no_server(), lambda backend: backend.answer([CHAT_TEXT]))
    assert "Connect call failed" in reply.error
    assert reply.transient


def test_slower_than_the_timeout(server: Server) -> None:
    reply = answer(server, CHAT_TEXT, waits(0.3, sends(chat())), timeout=0.05)
    assert "within 0.05 s" in reply.error
    assert reply.transient


def test_context_overflow_is_named(server: Server) -> None:
    message = "This model's maximum context length is 2048 tokens. However, you requested 3000"
    for code in (None, "context_length_exceeded"):
        reply = answer(server, CHAT_TEXT, refuses(400, message, code=code))
        assert "does not fit the model's context length" in reply.error
        assert "--passage-words" in reply.error
        assert not reply.transient


def test_lone_surrogates_are_an_error_of_one_request(server: Server) -> None:
    server.script(COMPLETIONS, sends(completion("fine")))
    bad = Request(ask=ASK, want="text", prompt="\ud800")
    replies = answers(server, bad, PLAIN_TEXT)
    assert "surrogates" in replies[0].error
    assert replies[1].text == "fine"


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        (refuses(401, f"Incorrect API key provided: {KEY}"), "OPENAI_API_KEY"),
        (refuses(403, "no access"), "no access"),
        (refuses(402, "pay first"), "no credit"),
        (refuses(429, "quota", code="insufficient_quota"), "no credit"),
        (refuses(404, "The model `m` does not exist.", code="model_not_found"), "--model"),
        (refuses(404, "Not Found"), "/v1"),
    ],
)
def test_what_no_request_can_mend_is_raised(
    server: Server, behaviour: Behaviour, said: str
) -> None:
    with pytest.raises(BackendError, match=said) as raised:
        answer(server, CHAT_TEXT, behaviour)
    assert KEY not in str(raised.value)
    assert len(server.received) == 1


def date_in(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    ("headers", "least", "most"),
    [
        ({"retry-after": "7"}, 7, 7),
        ({"retry-after": "0.25"}, 0.25, 0.25),
        ({"retry-after-ms": "150", "retry-after": "9"}, 0.15, 0.15),
        ({"retry-after": date_in(3600)}, 3000, 3600),
        ({"retry-after": date_in(-30)}, 0, 0),
    ],
)
def test_retry_after(server: Server, headers: dict[str, str], least: float, most: float) -> None:
    reply = answer(server, CHAT_TEXT, refuses(429, "wait", headers=headers))
    assert reply.retry_after is not None
    assert least <= reply.retry_after <= most


@pytest.mark.parametrize("header", ["soon", "", "1.2.3", "nan"])
def test_an_unreadable_retry_after_is_none(server: Server, header: str) -> None:
    reply = answer(server, CHAT_TEXT, refuses(503, "wait", headers={"retry-after": header}))
    assert (reply.retry_after, reply.transient) == (None, True)


def test_chat_labels(server: Server) -> None:
    top = {"Yes": -0.5, "ĠNo": -9.0, "▁yes": -1.5, " yes": -2.0, "no": -9999.0, "the": -3.0}
    reply = answer(server, CHAT_LABELS, sends(chat(top=top)))
    expected = {"Yes": -0.5, " yes": math.log(math.exp(-1.5) + math.exp(-2.0))}
    assert reply.label_logprobs == pytest.approx(expected)
    (body,) = server.bodies(CHAT)
    assert (body["logprobs"], body["top_logprobs"], body["max_tokens"]) == (True, 20, 1)


def test_plain_labels(server: Server) -> None:
    found = {"tokens": [" no"], "top_logprobs": [{" no": -0.2, " yes": -1.9, "\n": -4.0}]}
    reply = answer(server, PLAIN_LABELS, sends(completion(" no", logprobs=found)))
    assert reply.label_logprobs == {" no": -0.2, " yes": -1.9}
    assert server.bodies(COMPLETIONS)[0]["logprobs"] == 20


def test_nan_is_left_for_the_reader(server: Server) -> None:
    reply = answer(server, CHAT_LABELS, sends(chat(top={"Yes": math.nan, "No": -1.0})))
    assert math.isnan(reply.label_logprobs["Yes"])


@pytest.mark.parametrize("request_", [CHAT_LABELS, PLAIN_LABELS])
def test_a_server_that_gives_five_is_asked_for_five(server: Server, request_: Request) -> None:
    found = {"top_logprobs": [{"Yes": -0.5}]}
    given_ = chat(top={"Yes": -0.5}) if request_.messages else completion(logprobs=found)
    path, name = (CHAT, "top_logprobs") if request_.messages else (COMPLETIONS, "logprobs")
    refusal = refuses(400, "Requested sample logprobs of 20, which is greater than max allowed: 5")
    server.script(path, refusal, sends(given_))

    async def twice(backend: OpenAIBackend) -> list[Reply]:
        return await backend.answer([request_]) + await backend.answer([request_])

    replies = using(server.url, twice)
    assert [reply.label_logprobs for reply in replies] == [{"Yes": -0.5}] * 2
    assert [body[name] for body in server.bodies(path)] == [20, 5, 5]


@pytest.mark.parametrize(
    "behaviour",
    [
        sends(chat("Yes")),
        sends(chat("Yes", top={})),
        refuses(400, "You are not allowed to request logprobs from this model"),
    ],
)
def test_no_log_probabilities_is_a_missing_capability(server: Server, behaviour: Behaviour) -> None:
    with pytest.raises(CapabilityError, match=r"no log-probabilities .*listwise"):
        answer(server, CHAT_LABELS, behaviour)


def test_another_refusal_of_labels_is_a_reply(server: Server) -> None:
    assert "bad role" in answer(server, CHAT_LABELS, refuses(400, "bad role")).error


WORDS = ["Passage", ".", " Query", ":", " red", " fox"]
VALUES = [None, -1.0, -2.0, -3.0, -0.5, -0.25]


def test_likelihood_by_echo(server: Server) -> None:
    reply = answer(server, LIKELIHOOD, echoes(WORDS, VALUES))
    assert (reply.logprob, reply.tokens, reply.model) == (-0.75, 2, "served")
    (body,) = server.bodies(COMPLETIONS)
    assert body["prompt"] == "Passage. Query: red fox"
    assert (body["echo"], body["logprobs"], body["max_tokens"]) == (True, 0, 0)


@pytest.mark.parametrize(
    ("tokens", "logprobs", "offsets", "expected"),
    [
        # A token across the boundary counts.
        (["Passage", ". Query", ": r", "ed fox"], [None, -1.0, -2.0, -4.0], None, (-6.0, 2)),
        # A begin-of-text token shifts all offsets.
        (["<|begin_of_text|>", *WORDS], [None, -7.0, *VALUES[1:]], None, (-0.75, 2)),
        # A character in two tokens reads as two.
        (
            ["Passage", "\ufffd", "\ufffd", " Query:", " red fox"],
            [None, -1, -1, -1, -2],
            None,
            (-2, 1),
        ),
        # SGLang knows no offsets.
        (WORDS, VALUES, [-1] * 6, (-0.75, 2)),
    ],
)
def test_where_the_target_starts(
    server: Server,
    tokens: list[str],
    logprobs: list[float | None],
    offsets: list[int] | None,
    expected: tuple[float, int],
) -> None:
    reply = answer(server, LIKELIHOOD, echoes(tokens, logprobs, offsets=offsets))
    assert (reply.logprob, reply.tokens) == expected


@given(st.lists(st.text(min_size=1, max_size=4), min_size=2, max_size=12), st.data())
def test_any_split_into_tokens_scores_the_target_alone(
    pieces: list[str], data: st.DataObject
) -> None:
    cut = data.draw(st.integers(1, len(pieces) - 1))
    request = Request(
        ask=ASK, want="likelihood", prompt="".join(pieces[:cut]), target="".join(pieces[cut:])
    )
    starts = [sum(map(len, pieces[:i])) for i in range(len(pieces))]
    values = [None, *(-float(2**i) for i in range(1, len(pieces)))]
    found = {"tokens": pieces, "token_logprobs": values, "text_offset": starts}
    reply = scored(completion("".join(pieces), logprobs=found), request)
    assert reply is not None
    assert reply.logprob == -float(sum(2**i for i in range(cut, len(pieces))))


PROMPT_LOGPROBS = [
    None,
    *(
        {str(i): {"logprob": value, "rank": 3, "decoded_token": word}}
        for i, (word, value) in enumerate(zip(WORDS[1:], VALUES[1:], strict=True))
    ),
]


@pytest.mark.parametrize(
    "first",
    [
        sends(completion("the next words", logprobs={"content": []})),
        sends(completion("")),
        refuses(400, "echo is not supported"),
    ],
)
def test_a_server_without_echo_is_asked_for_prompt_logprobs(
    server: Server, first: Behaviour
) -> None:
    server.script(
        COMPLETIONS, first, first, sends(completion("x", prompt_logprobs=PROMPT_LOGPROBS))
    )

    async def twice(backend: OpenAIBackend) -> list[Reply]:
        return await backend.answer([LIKELIHOOD]) + await backend.answer([LIKELIHOOD])

    replies = using(server.url, twice)
    assert [(reply.logprob, reply.tokens) for reply in replies] == [(-0.75, 2)] * 2
    ways = [body.get("prompt_logprobs") for body in server.bodies(COMPLETIONS)]
    assert ways == [None, None, 0, 0]


def test_a_server_that_wants_one_logprob_gets_it(server: Server) -> None:
    reply = answer(server, LIKELIHOOD, refuses(400, "logprobs >= 1"), echoes(WORDS, VALUES))
    assert reply.logprob == -0.75
    assert [body["logprobs"] for body in server.bodies(COMPLETIONS)] == [0, 1]


@pytest.mark.parametrize(
    "behaviour",
    [
        sends(completion("the next words")),
        refuses(400, "no"),
        refuses(404, "This is a chat model and not supported in the v1/completions endpoint"),
    ],
)
def test_a_server_that_scores_no_given_text(server: Server, behaviour: Behaviour) -> None:
    with pytest.raises(CapabilityError, match=r"cannot score a given text.*local"):
        answer(server, LIKELIHOOD, behaviour)


def test_likelihood_needs_a_plain_prompt_and_a_model(server: Server) -> None:
    with pytest.raises(CapabilityError, match="plain-text prompt"):
        answers(server, Request(ask=ASK, want="likelihood", messages=TURNS, target="x"))
    with pytest.raises(BackendError, match="unknown model"):
        answer(server, LIKELIHOOD, refuses(404, "The model `m` does not exist."))


def test_overflow_and_bad_scores_do_not_change_the_way(server: Server) -> None:
    long = answer(server, LIKELIHOOD, refuses(400, "maximum context length is 5"))
    assert "does not fit" in long.error
    missing = answer(server, LIKELIHOOD, echoes(WORDS, [*VALUES[:-1], None]))
    assert "no log-probability" in missing.error
    assert len(server.received) == 2


def test_vectors_stand_in_the_order_of_the_texts(server: Server) -> None:
    rows = [{"index": i, "embedding": [float(i), 0.5]} for i in (2, 0, 1)]
    usage = {"prompt_tokens": 3, "total_tokens": 3}
    reply = answer(server, VECTORS, sends({"model": "e", "data": rows, "usage": usage}))
    assert reply.vectors is not None
    assert reply.vectors.dtype == np.float32
    assert reply.vectors.tolist() == [[0, 0.5], [1, 0.5], [2, 0.5]]
    assert (reply.usage, reply.model) == (Usage(3), "e")
    (body,) = server.bodies(EMBEDDINGS)
    assert body == {"model": "m", "input": ["a", "b", "c"], "encoding_format": "float"}


def test_vectors_that_do_not_fit(server: Server) -> None:
    rows = [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [1.0, 2.0]}]
    assert "form of the OpenAI API" in answer(server, VECTORS, sends({"data": rows})).error
    assert "too many" in answer(server, VECTORS, refuses(400, "too many inputs")).error
    for behaviour in (refuses(404, "Not Found"), refuses(501, "no"), refuses(400, "not supported")):
        with pytest.raises(CapabilityError, match="embedding model"):
            answer(server, VECTORS, behaviour)


def wrapped(
    server: Server, requests: list[Request], *, attempts: int = 6, patience: int = 4
) -> tuple[list[Reply], Meter]:
    meter = Meter()

    async def use(backend: OpenAIBackend) -> list[Reply]:
        inner: Backend = Limited(Metered(backend, meter), 4)
        retrying = Retrying(inner, attempts=attempts, patience=patience, first_wait=0.001)
        return await retrying.answer(requests)

    return using(server.url, use), meter


def test_six_attempts_are_six_requests(server: Server) -> None:
    server.script(CHAT, refuses(500, "oops"))
    (reply,), meter = wrapped(server, [CHAT_TEXT])
    assert "oops" in reply.error
    assert len(server.received) == meter.requests == meter.errors == 6


def test_success_after_trouble(server: Server) -> None:
    server.script(CHAT, sends_html(), breaks_off(), refuses(429, "wait"), sends(chat("well")))
    (reply,), meter = wrapped(server, [CHAT_TEXT])
    assert (reply.text, meter.requests, meter.errors) == ("well", 4, 3)
    assert meter.models == {"served"}


def test_retry_after_is_waited_for(server: Server) -> None:
    server.script(CHAT, refuses(429, "wait", headers={"retry-after-ms": "120"}), sends(chat()))

    async def timed(backend: OpenAIBackend) -> float:
        loop = asyncio.get_running_loop()
        await backend.answer([PLAIN_LABELS])
        started = loop.time()
        await Retrying(backend, first_wait=0.001).answer([CHAT_TEXT])
        return loop.time() - started

    server.script(COMPLETIONS, sends(completion(logprobs={"top_logprobs": [{"a": -1.0}]})))
    assert 0.12 <= using(server.url, timed) < 5.0


@pytest.mark.parametrize("refusal", [refuses(401, "bad key"), refuses(404, "model not found")])
def test_what_cannot_succeed_is_asked_once(server: Server, refusal: Behaviour) -> None:
    server.script(CHAT, refusal)
    with pytest.raises(BackendError):
        wrapped(server, [CHAT_TEXT])
    assert len(server.received) == 1


def test_patience_ends(server: Server) -> None:
    server.script(CHAT, refuses(500, "down"))
    with pytest.raises(BackendError, match=r"2 requests in a row.*down"):
        wrapped(server, [CHAT_TEXT] * 2, attempts=3, patience=2)
    assert len(server.received) == 6


def test_an_error_that_is_raised_ends_the_requests_beside_it(server: Server) -> None:
    server.script(CHAT, refuses(401, "bad key"))
    server.script(COMPLETIONS, waits(0.2, sends(completion())))
    with pytest.raises(BackendError, match="bad key"):
        answers(server, PLAIN_TEXT, CHAT_TEXT, PLAIN_TEXT)


def test_a_cancelled_request_leaves_the_backend_usable(server: Server) -> None:
    server.script(CHAT, waits(0.5, sends(chat())), sends(chat("next")))

    async def use(backend: OpenAIBackend) -> str:
        first = asyncio.create_task(backend.answer([CHAT_TEXT]))
        while not server.received:
            await asyncio.sleep(0.005)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        (reply,) = await backend.answer([CHAT_TEXT])
        return reply.text

    assert using(server.url, use) == "next"
