"""Rerankers behind /score and /rerank: every dialect on a loopback server."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.vllm_serving import NAME
from benchmarks.vllm_serving import serving as vllm_serving
from llmrank.api.session import Session, Settings
from llmrank.backends import connect
from llmrank.backends.gguf import converted_default
from llmrank.backends.local import LocalBackend
from llmrank.backends.score import LEAST, ScoreBackend
from llmrank.engine import run_sync
from llmrank.errors import BackendError, CapabilityError, SpecError
from llmrank.plan import Grade, Likelihood
from llmrank.prompts import PromptSet
from llmrank.request import Reply, Request
from llmrank.rerank import parse
from llmrank.types import Candidate, Document, Ordering, Query, Status, Tally
from tests.servers import (
    MODEL,
    Behaviour,
    Server,
    breaks_off,
    refuses,
    sends,
    sends_html,
    serve,
    waits,
)

QUERY = Query("q", "why does bread dough rise")
PROMPTS = PromptSet(pairs=True)
REQUEST = PROMPTS.render(Grade(QUERY, Document("d", "Yeast gives off a gas.")))
USAGE = {"prompt_tokens": 9, "total_tokens": 9, "completion_tokens": 0}


@pytest.fixture(scope="module")
def serving() -> Iterator[Server]:
    with serve() as server:
        yield server


@pytest.fixture
def server(serving: Server) -> Server:
    serving.forget()
    return serving


def _ask(backend: ScoreBackend, *requests: Request) -> list[Reply]:
    async def once() -> list[Reply]:
        try:
            return await backend.answer(requests)
        finally:
            await backend.close()

    return run_sync(once())


def _one(server: Server, **options: Any) -> Reply:  # noqa: ANN401 - those of the backend
    (reply,) = _ask(ScoreBackend(MODEL, base_url=server.url, **options), REQUEST)
    return reply


def _scored(score: object) -> Behaviour:
    rows = [{"index": 0, "object": "score", "score": score}]
    return sends({"object": "list", "model": "served", "data": rows, "usage": USAGE})


DIALECTS: Mapping[str, tuple[str, Behaviour, Mapping[str, object], int]] = {
    "vllm": (
        "//score",
        _scored(0.75),
        {"text_1": QUERY.text, "text_2": ["Yeast gives off a gas."]},
        9,
    ),
    "jina": (
        "/rerank",
        sends(
            {
                "model": "served",
                "usage": {"total_tokens": 12},
                "results": [{"index": 0, "relevance_score": 0.75, "document": {"text": "Yeast"}}],
            }
        ),
        {"query": QUERY.text, "documents": ["Yeast gives off a gas."]},
        12,
    ),
    "cohere": (
        "/rerank",
        sends(
            {
                "id": "r",
                "results": [{"index": 0, "relevance_score": 0.75}],
                "meta": {"billed_units": {"search_units": 1}},
            }
        ),
        {"query": QUERY.text, "documents": ["Yeast gives off a gas."]},
        0,
    ),
    "sglang": (
        "/rerank",
        sends([{"score": 0.75, "document": "Yeast", "index": 0, "meta_info": {}}]),
        {"query": QUERY.text, "documents": ["Yeast gives off a gas."]},
        0,
    ),
}


@pytest.mark.parametrize("name", DIALECTS)
def test_every_dialect_gives_the_probability_of_yes(server: Server, name: str) -> None:
    path, behaviour, body, used = DIALECTS[name]
    server.script(path, behaviour)
    reply = _one(server)
    assert reply.label_logprobs == pytest.approx({"yes": math.log(0.75), "no": math.log(0.25)})
    assert reply.usage.prompt_tokens == used
    whole = path[1:] if path.startswith("//") else f"/v1{path}"
    (sent,) = [request for request in server.received if request.path == whole]
    assert sent.body == {"model": MODEL, **body}


def test_the_dialect_of_text_embeddings_inference(server: Server) -> None:
    """It has the same route, but wants `texts`, and refuses a body without them."""

    async def behave(request: Any, body: Mapping[str, Any]) -> Any:  # noqa: ANN401 - aiohttp's
        if "texts" not in body:
            return await refuses(422, "missing field `texts`")(request, body)
        return await sends([{"index": 0, "score": 0.75}])(request, body)

    server.script("/rerank", behave)
    assert _one(server).label_logprobs["yes"] == pytest.approx(math.log(0.75))


def test_a_route_that_works_is_kept_and_the_others_are_not_asked_again(server: Server) -> None:
    server.script("/rerank", DIALECTS["jina"][1])
    backend = ScoreBackend(MODEL, base_url=server.url)
    replies = _ask(backend, REQUEST, REQUEST, REQUEST)
    assert backend.route == "rerank"
    assert not any(reply.error for reply in replies)
    assert [request.path for request in server.received] == ["/score", *["/v1/rerank"] * 3]


def test_logits_are_turned_into_probabilities_where_told_and_never_guessed(server: Server) -> None:
    server.script("//score", _scored(3.0))
    with pytest.raises(BackendError, match="scale=logit"):
        _one(server)
    yes, no = _one(server, scale="logit").label_logprobs.values()
    assert math.exp(yes) == pytest.approx(1 / (1 + math.exp(-3.0)))
    assert math.exp(yes) + math.exp(no) == pytest.approx(1)
    with pytest.raises(SpecError, match="scale"):
        ScoreBackend(MODEL, base_url=server.url, scale="percent")
    plain, told = (
        ScoreBackend(MODEL, base_url=server.url, scale=s) for s in ("probability", "logit")
    )
    assert plain.identity != told.identity


@pytest.mark.parametrize("score", [0, 1, 0.0, 1.0, 1e-300])
def test_a_certain_score_is_an_answer(server: Server, score: float) -> None:
    server.script("//score", _scored(score))
    reply = _one(server)
    assert all(math.log(LEAST) <= value <= 0 for value in reply.label_logprobs.values())
    answer = PROMPTS.parse(REQUEST, reply)
    assert answer.status is Status.OK
    assert answer.value is not None
    assert answer.value.probabilities[0] == pytest.approx(score)
    assert answer.value.mass == pytest.approx(1)


@pytest.mark.parametrize(
    "behaviour",
    [
        _scored(None),
        _scored("0.5"),
        _scored(math.nan),
        _scored(True),
        sends({"data": []}),
        sends({"data": [{"score": 0.1}, {"score": 0.2}]}),
        sends({}),
        sends([]),
        sends([1]),
        sends(7),
    ],
)
def test_what_is_no_score_is_an_error_of_the_request(server: Server, behaviour: Behaviour) -> None:
    server.script("//score", behaviour)
    reply = _one(server)
    assert "not in the form" in reply.error
    assert not reply.transient


@pytest.mark.parametrize(
    ("behaviour", "told", "transient"),
    [
        (refuses(503, "overloaded"), "overloaded", True),
        (refuses(429, "slow down", headers={"retry-after": "2"}), "slow down", True),
        (sends_html(), "not JSON", True),
        (breaks_off(), "no answer", True),
        (waits(5, _scored(0.5)), "within 0.3 s", True),
        (refuses(400, "the maximum context length is 512 tokens"), "context", False),
        (refuses(500, "boom"), "boom", True),
    ],
)
def test_faults_are_outcomes(
    server: Server, behaviour: Behaviour, told: str, transient: bool
) -> None:
    server.script("//score", behaviour)
    reply = _one(server, timeout=0.3)
    assert told in reply.error
    assert reply.transient is transient


def test_a_refusal_that_no_route_explains_is_the_error(server: Server) -> None:
    """A bad pair is no reason to say that the server cannot score."""
    server.script("//score", refuses(400, "text_2 must not be empty"), _scored(0.5))
    backend = ScoreBackend(MODEL, base_url=server.url)
    bad, good = _ask(backend, REQUEST, REQUEST)
    assert "must not be empty" in bad.error
    assert good.label_logprobs["yes"] == pytest.approx(math.log(0.5))


def test_what_the_server_or_the_model_cannot_do_is_a_clear_error(server: Server) -> None:
    with pytest.raises(CapabilityError, match="runner pooling"):
        _one(server)
    server.script("//score", refuses(401, "wrong key"))
    with pytest.raises(BackendError, match="not allowed"):
        _one(server)
    backend = ScoreBackend(MODEL, base_url=server.url)
    for ask in (
        Likelihood(QUERY, Document("d", "x")),
        Grade(QUERY, Document("d", "x"), ("1", "0")),
    ):
        with pytest.raises(CapabilityError, match="yesno"):
            _ask(backend, PROMPTS.render(ask))


def test_yesno_ranks_by_the_scores_of_the_server(server: Server) -> None:
    async def behave(request: Any, body: Mapping[str, Any]) -> Any:  # noqa: ANN401 - aiohttp's
        return await _scored(len(body["text_2"][0]) / 100)(request, body)

    server.script("//score", behave)
    server.script("/models", sends({"data": [{"id": MODEL}]}))
    candidates = [Candidate(Document(str(n), "x" * n)) for n in (10, 40, 20, 30)]
    found: list[tuple[Ordering, Tally]] = []
    with Session(Settings(model="score", base_url=server.url)) as session:
        session.run_sync(
            [(0, parse("yesno").plan(QUERY, candidates))],
            lambda _, ordering, tally: found.append((ordering, tally)),
        )
    ((ordering, tally),) = found
    assert list(ordering.order) == [1, 3, 2, 0]
    assert tally.asks == 4
    assert connect(f"score:{MODEL}", base_url=server.url).identity == (
        f"score:{MODEL}@{server.url},scale=probability"
    )


@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_a_causal_model_served_as_a_classifier_grades_as_it_does_itself(tmp_path: Path) -> None:
    """A real vLLM server: /score and /rerank give p(Yes) against p(No) after the same prompt."""
    from transformers import AutoTokenizer

    folder = converted_default()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [
        "Yeast gives off carbon dioxide, which makes bread dough rise.",
        "Glaciers grind rock into fine flour that turns mountain lakes turquoise.",
        "Two tides a day come from the pull of the moon on the ocean.",
    ]
    grades = [Grade(QUERY, Document(text, text)) for text in texts]
    shown = PromptSet().render(Grade(Query("q", "{QUERY}"), Document("d", "{PASSAGE}")))
    chat = [{"role": turn.role, "content": turn.content} for turn in shown.messages]
    written = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    parts = {"{QUERY}": "query", "{PASSAGE}": "document"}
    for mark, role in parts.items():
        chosen = f"{{{{ (messages | selectattr('role', 'equalto', '{role}') | first).content }}}}"
        written = written.replace(mark, chosen)
    template = tmp_path / "score.jinja"
    # Jinja drops a line break at a template's end, and the model reads one there.
    template.write_text(written.removesuffix("\n") + "{{ '\\n' }}")
    classifier = {
        "architectures": ["LlamaForSequenceClassification"],
        "classifier_from_token": ["No", "Yes"],
        "method": "from_2_way_softmax",
    }
    options = ["--runner", "pooling", "--hf-overrides", json.dumps(classifier)]
    found: dict[str, list[float]] = {}
    with vllm_serving(folder, *options, "--chat-template", str(template)) as url:
        for route in ("score", "rerank"):
            backend = ScoreBackend(NAME, base_url=url)
            backend.route = route
            replies = _ask(backend, *map(PROMPTS.render, grades))
            assert not any(reply.error for reply in replies)
            assert all(reply.usage.prompt_tokens > 20 for reply in replies)
            found[route] = [math.exp(reply.label_logprobs["yes"]) for reply in replies]
        long = PROMPTS.render(Grade(QUERY, Document("long", "dough " * 290)))
        (failed,) = _ask(
            ScoreBackend(NAME, base_url=url), replace(long, texts=(QUERY.text, "dough " * 3000))
        )
        with Session(Settings(model="score", base_url=url)) as session:
            ranked: list[Ordering] = []
            candidates = [Candidate(grade.doc) for grade in grades]
            session.run_sync(
                [(0, parse("yesno").plan(QUERY, candidates))],
                lambda _, ordering, tally: ranked.append(ordering),
            )
    assert "does not fit" in failed.error
    assert not failed.transient
    labels = {"yes": ("Yes",), "no": ("No",)}
    requests = [replace(PromptSet().render(grade), labels=labels) for grade in grades]
    local = run_sync(LocalBackend().answer(requests))
    odds = [reply.label_logprobs["Yes"] - reply.label_logprobs["No"] for reply in local]
    expected = [1 / (1 + math.exp(-value)) for value in odds]
    assert found["score"] == pytest.approx(expected, abs=0.03)
    assert found["rerank"] == pytest.approx(found["score"], abs=0.01)
    best = sorted(range(3), key=lambda i: -found["score"][i])
    assert list(ranked[0].order) == best
