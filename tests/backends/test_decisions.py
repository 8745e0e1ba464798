from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, TypeVar

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from llmrank.backends import connect
from llmrank.backends.decisions import PATH, DecisionsBackend, _shares
from llmrank.engine import Engine
from llmrank.errors import BackendError, CapabilityError, SpecError
from llmrank.plan import Answer, Grade, Grades
from llmrank.prompts import PromptSet
from llmrank.request import Reply, Request
from llmrank.rerank import Method
from llmrank.types import Candidate, Document, Ordering, Query, Status, Tally, Usage
from tests.servers import Behaviour, Body, Server, refuses, sends, serve, waits

T = TypeVar("T")
MODEL = "gpt-6-luna"
SCALE = ("3", "2", "1", "0")
PROMPTS = PromptSet(pairs=True)


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with serve() as server:
        yield server


@pytest.fixture
def server(running: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    running.forget()
    return running


def grade(query: str, passage: str, labels: tuple[str, ...] = ("yes", "no")) -> Request:
    return PROMPTS.render(Grade(Query(query, query), Document(passage, passage), labels))


def relevance(passage: str) -> float:
    """What the fake models think of a passage: its number, in tenths."""
    return int(passage.rpartition(" ")[2]) % 10 / 10


def passage_of(text: str) -> str:
    return text.partition("Passage: ")[2]


def spread(best: float, count: int) -> list[float]:
    """Probabilities of so many levels from the worst to the best."""
    return [best if i == count - 1 else (1 - best) / (count - 1) for i in range(count)]


def _invalid(body: Mapping[str, Any], allowed: set[str]) -> str:
    extra = body.keys() - allowed
    return f"extra inputs are not permitted: {sorted(extra)}" if extra else ""


def openai_answer(question: Body) -> dict[str, Any]:
    """An answer in the form of the types of openai 3.52 and of vLLM 0.33's protocol."""
    passage = passage_of(question["instructions"])
    if "declined" in passage:
        return {"type": "refusal", "name": None}
    value = relevance(passage)
    if question["type"] == "predicate":
        return {"type": "predicate", "name": None, "probability": value}
    if question["type"] == "score":
        labels = [level["label"] for level in question["levels"]]
        values = spread(value, len(labels))
        rows: list[dict[str, Any]] = [
            {"value": i, "label": label, "probability": p}
            for i, (label, p) in enumerate(zip(labels, values, strict=True))
        ]
        score = sum(i * p for i, p in enumerate(values))
        return {
            "type": "score",
            "name": None,
            "score": score,
            "probabilities": rows,
            "confidence": 1,
        }
    labels = [choice["value"] for choice in question["choices"]]
    rows = [
        {"value": label, "probability": p}
        for label, p in zip(labels, spread(value, len(labels)), strict=True)
    ]
    best = labels[-1]
    return {"type": "choice", "name": None, "choice": best, "probabilities": rows, "confidence": 1}


FIELDS = {
    "predicate": {"type", "instructions", "name"},
    "score": {"type", "instructions", "name", "levels"},
    "choice": {"type", "instructions", "name", "choices"},
}


def speaks_openai(most: int = 400, refused: str = "") -> Behaviour:
    """`POST /v1/decisions` of OpenAI, and of vLLM with `most` as 64; a passage may be refused."""

    async def behave(_: web.Request, body: Body) -> web.StreamResponse:
        questions = body["questions"]
        wrong = _invalid(body, {"model", "input", "questions", "safety_identifier"})
        for question in questions:
            wrong = wrong or _invalid(question, FIELDS[question["type"]])
            if len(question.get("levels", ())) > 10:
                wrong = "levels: list should have at most 10 items"
            if refused and refused in question["instructions"]:
                wrong = "the prompt is longer than the maximum context length"
        if not 1 <= len(questions) <= most:
            wrong = f"at most {most} questions"
        if wrong:
            return web.json_response({"error": {"message": wrong}}, status=400)
        usage = {
            "input_tokens": 100 * len(questions) + 7,
            "input_tokens_details": {"cached_tokens": 30, "cache_write_tokens": 0},
            "output_tokens": 0,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 100 * len(questions) + 7,
        }
        answers = [openai_answer(question) for question in questions]
        return web.json_response({"model": "served", "answers": answers, "usage": usage})

    return behave


def speaks_sglang(mass: float = 0.9) -> Behaviour:
    """`POST /v1/decisions` of SGLang 0.5.23, whose pydantic models forbid other fields."""
    fields = {
        "yes_no": {"id", "type", "question", "yes", "no"},
        "score": {"id", "type", "question", "levels"},
        "choice": {"id", "type", "question", "options"},
    }

    async def behave(_: web.Request, body: Body) -> web.StreamResponse:
        wrong = _invalid(body, {"model", "input", "questions", "temperature"})
        answers = {}
        for question in body["questions"]:
            wrong = wrong or _invalid(question, fields[question["type"]])
            assert question["id"].strip()
            assert question["id"] not in answers
            value, kind = relevance(passage_of(question["question"])), question["type"]
            if kind == "yes_no":
                found = {"yes": value, "no": 1 - value}
            elif kind == "score":
                names = [str(i) for i in range(len(question["levels"]))]
                found = dict(zip(names, spread(value, len(names)), strict=True))
            else:
                names = [option["name"] for option in question["options"]]
                found = dict(zip(names, spread(value, len(names)), strict=True))
            answers[question["id"]] = {"type": kind, "probabilities": found, "label_mass": mass}
        if wrong:
            return web.json_response({"message": wrong, "code": 400}, status=400)
        told = {"object": "decisions", "model": "served", "prompt_format_version": 1}
        usage = {"prompt_tokens": 50, "total_tokens": 50, "completion_tokens": 0}
        return web.json_response({**told, "answers": answers, "usage": usage})

    return behave


def using(server: Server, use: Callable[[DecisionsBackend], Awaitable[T]], **options: Any) -> T:  # noqa: ANN401
    async def work() -> T:
        backend = DecisionsBackend(MODEL, base_url=server.url, timeout=5, **options)
        try:
            return await use(backend)
        finally:
            await backend.close()

    return asyncio.run(work())


def answers(server: Server, *requests: Request, **options: Any) -> list[Reply]:  # noqa: ANN401
    return using(server, lambda backend: backend.answer(requests), **options)


def outcomes(server: Server, *requests: Request, **options: Any) -> list[Answer[Any]]:  # noqa: ANN401
    replies = answers(server, *requests, **options)
    return [PROMPTS.parse(*pair) for pair in zip(requests, replies, strict=True)]


def served(server: Server, behaviour: Behaviour, owner: str = "") -> None:
    server.script(PATH, behaviour)
    if owner:
        server.script("/models", sends({"data": [{"id": MODEL, "owned_by": owner}]}))


def test_what_is_sent_and_read_as_a_predicate(server: Server) -> None:
    served(server, speaks_openai())
    first, second = answers(
        server, grade("a fox", "it is 3"), grade("a fox", "it is 0"), dialect="openai"
    )
    assert first.label_logprobs == {"yes": pytest.approx(math.log(0.3)), "no": math.log(0.7)}
    assert second.label_logprobs == {"no": 0.0}
    assert (first.model, first.usage, second.usage) == (
        "served",
        Usage(103, 0, 15),
        Usage(104, 0, 15),
    )
    # Another wording is another question: raise WORDING together with this.
    assert server.bodies(PATH) == [
        {
            "model": MODEL,
            "input": "Query: a fox",
            "questions": [
                {
                    "type": "predicate",
                    "instructions": "The passage below answers the query.\n\nPassage: it is 3",
                },
                {
                    "type": "predicate",
                    "instructions": "The passage below answers the query.\n\nPassage: it is 0",
                },
            ],
        }
    ]


def test_the_wording_is_part_of_the_identity(server: Server) -> None:
    backend = DecisionsBackend(MODEL, base_url=server.url)
    assert backend.identity == f"decisions:{MODEL}@{server.url}#wording=1"


@pytest.mark.parametrize(
    ("behaviour", "owner"),
    [(speaks_openai(), ""), (speaks_openai(64), "vllm"), (speaks_sglang(), "sglang")],
)
@pytest.mark.parametrize(
    "labels",
    [("yes", "no"), ("no", "yes"), SCALE, ("good", "bad"), tuple("abcdefghijklmnop")],
)
def test_every_dialect_gives_the_probability_of_every_label(
    server: Server, behaviour: Behaviour, owner: str, labels: tuple[str, ...]
) -> None:
    served(server, behaviour, owner)
    (outcome,) = outcomes(server, grade("q", "p 7", labels))
    assert outcome.status is Status.OK
    grades = outcome.value
    assert isinstance(grades, Grades)
    best = "yes" if "yes" in labels else labels[0]
    found = dict(zip(labels, grades.probabilities, strict=True))
    assert found[best] == pytest.approx(0.7)
    assert sum(found.values()) == pytest.approx(1)
    rest = [found[label] for label in labels if label != best]
    assert rest == pytest.approx([0.3 / len(rest)] * len(rest))
    assert grades.mass == pytest.approx(0.9 if owner == "sglang" else 1)


def test_levels_go_from_the_worst_to_the_best(server: Server) -> None:
    served(server, speaks_openai())
    answers(server, grade("q", "p 7", SCALE))
    ((question,),) = (body["questions"] for body in server.bodies(PATH))
    assert (question["type"], [level["label"] for level in question["levels"]]) == (
        "score",
        ["0", "1", "2", "3"],
    )


def test_more_labels_than_a_score_has_levels_are_a_choice(server: Server) -> None:
    served(server, speaks_openai())
    answers(server, grade("q", "p 7", tuple("abcdefghijk")))
    ((question,),) = (body["questions"] for body in server.bodies(PATH))
    assert (question["type"], len(question["choices"])) == ("choice", 11)


def test_labels_that_hold_little_are_reported_as_such(server: Server) -> None:
    served(server, speaks_sglang(mass=1e-5), "sglang")
    (outcome,) = outcomes(server, grade("q", "p 7"))
    assert outcome.status is Status.MALFORMED
    assert "wrong prompt or chat template" in outcome.problem


def test_a_question_declined_is_one_refusal(server: Server) -> None:
    served(server, speaks_openai())
    found = outcomes(server, grade("q", "p 1"), grade("q", "declined 2"), grade("q", "p 3"))
    assert [outcome.status for outcome in found] == [Status.OK, Status.REFUSED, Status.OK]


def test_a_call_holds_the_passages_of_one_query(server: Server) -> None:
    served(server, speaks_openai(64), "vllm")
    requests = [grade(f"q{i % 3}", f"p {i}") for i in range(300)]
    replies = answers(server, *requests)
    for i, reply in enumerate(replies):
        assert math.exp(reply.label_logprobs.get("yes", -math.inf)) == pytest.approx(i % 10 / 10)
    bodies = server.bodies(PATH)
    assert sorted(len(body["questions"]) for body in bodies) == [36] * 3 + [64] * 3
    assert {body["input"] for body in bodies} == {"Query: q0", "Query: q1", "Query: q2"}


def test_one_passage_that_is_too_long_costs_no_other_one(server: Server) -> None:
    served(server, speaks_openai(refused="long"))
    requests = [grade("q", f"{'long' if i == 11 else 'p'} {i}") for i in range(40)]
    replies = answers(server, *requests)
    assert [i for i, reply in enumerate(replies) if reply.error] == [11]
    assert "context length" in replies[11].error
    assert len(server.bodies(PATH)) < 15


def test_a_smaller_number_of_questions_is_learnt(server: Server) -> None:
    served(server, speaks_openai(most=10))
    requests = [grade("q", f"p {i}") for i in range(64)]

    async def twice(backend: DecisionsBackend) -> tuple[int, int]:
        assert not any(reply.error for reply in await backend.answer(requests))
        first = len(server.bodies(PATH))
        assert not any(reply.error for reply in await backend.answer(requests))
        return first, len(server.bodies(PATH)) - first

    assert using(server, twice) == (15, 8)


def test_passing_failures_are_asked_again(server: Server) -> None:
    busy = refuses(429, "slow down", headers={"retry-after": "0"})
    server.script(PATH, busy, busy, speaks_openai())
    assert outcomes(server, grade("q", "p 5"))[0].status is Status.OK
    assert len(server.bodies(PATH)) == 3


def test_a_server_that_answers_nothing_ends_the_run(server: Server) -> None:
    server.script(PATH, refuses(503, "no", headers={"retry-after": "0"}))
    with pytest.raises(BackendError, match="fails; last: HTTP 503"):
        answers(server, grade("q", "p 5"))


def test_no_endpoint_is_a_clear_error(server: Server) -> None:
    with pytest.raises(CapabilityError, match="has no decisions endpoint for gpt-6-luna"):
        answers(server, grade("q", "p 5"))


def test_a_wrong_key_is_a_clear_error(server: Server) -> None:
    server.script(PATH, refuses(401, "bad key"))
    with pytest.raises(BackendError, match="check OPENAI_API_KEY"):
        answers(server, grade("q", "p 5"), grade("r", "p 5"), dialect="openai")


@pytest.mark.parametrize(
    "probability", [-0.1, 1.1, math.nan, "high", None, True and [0.5]], ids=repr
)
def test_what_is_no_probability_is_an_error(server: Server, probability: object) -> None:
    answer = {"type": "predicate", "name": None, "probability": probability}
    good = {"type": "predicate", "name": None, "probability": 1 + 1e-9}
    server.script(PATH, sends({"model": "m", "answers": [answer, good]}))
    bad, fine = answers(server, grade("q", "p 1"), grade("q", "p 2"))
    assert bad.error
    assert bool(fine.error) == (not isinstance(probability, float))


@pytest.mark.parametrize(
    "data",
    [{}, {"answers": None}, {"answers": []}, {"answers": [{"type": "score"}]}, {"answers": [3]}],
)
def test_an_answer_in_another_form_is_an_error(server: Server, data: Body) -> None:
    server.script(PATH, sends(data))
    (reply,) = answers(server, grade("q", "p 1"))
    assert "not in the form" in reply.error
    assert not reply.transient


def test_the_method_grades_lists_in_few_calls(server: Server) -> None:
    served(server, waits(0.01, speaks_openai()))
    queries = [Query(f"q{i}", f"query {i}") for i in range(5)]
    documents = [Candidate(Document(f"d{i}", f"text {i}"), 1.0 - i / 10) for i in range(10)]
    found: dict[str, Ordering] = {}

    def finished(key: str, result: Ordering, tally: Tally) -> None:
        found[key] = result
        assert tally.outcomes == {Status.OK: 10}

    async def run(backend: DecisionsBackend) -> None:
        plans = [(query.id, Method("yesno").plan(query, documents)) for query in queries]
        await Engine(backend, PROMPTS).run(plans, finished)

    using(server, run, dialect="openai")
    assert {ordering.order for ordering in found.values()} == {tuple(reversed(range(10)))}
    assert len(server.bodies(PATH)) == len(found) == 5


def test_calls_at_once_are_limited(server: Server) -> None:
    under_way = most = 0

    async def behave(request: web.Request, body: Body) -> web.StreamResponse:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.02)
        under_way -= 1
        return await speaks_openai()(request, body)

    served(server, behave)
    answers(server, *(grade(f"q{i}", "p 1") for i in range(9)), calls=3)
    assert most == 3
    with pytest.raises(SpecError, match="calls must be at least 1"):
        DecisionsBackend(MODEL, base_url=server.url, calls=0)


@given(st.integers(0, 10**6), st.integers(1, 400))
def test_no_token_is_lost_in_the_shares(tokens: int, count: int) -> None:
    shares = _shares({"usage": {"input_tokens": tokens}}, count)
    sizes = [share.prompt_tokens for share in shares]
    assert sum(sizes) == tokens
    assert max(sizes) - min(sizes) <= 1


def test_it_is_named_as_a_model(server: Server) -> None:
    named = connect(f"decisions:{MODEL},calls=3", base_url=server.url)
    assert isinstance(named, DecisionsBackend)
    assert named.wants == {"pair"}
    assert named.counter.count("a b") > 0
    assert named.counter.counting


def test_a_server_that_does_not_say_what_it_is_at_first(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    row = {"id": MODEL, "owned_by": "sglang"}
    server.script("/models", refuses(503, "loading"), sends({"data": [row]}))
    server.script(PATH, speaks_sglang())
    (reply,) = using(server, lambda backend: backend.answer([grade("a fox", "it is 3")]))
    assert reply.error == ""
    assert not caplog.records


def test_a_server_that_never_says_what_it_is(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.script("/models", refuses(503, "loading"))
    server.script(PATH, speaks_openai())
    replies = using(server, lambda backend: backend.answer([grade("a fox", "it is 3")]))
    assert replies[0].error == ""
    (record,) = caplog.records
    assert "as in decisions:MODEL,dialect=sglang" in record.getMessage()
