"""vLLM in this process, with a real model; run by `make test-vllm` in vLLM's own environment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from llmrank.api.session import Session, Settings
from llmrank.backends.local import LocalBackend
from llmrank.backends.vllm import VllmBackend
from llmrank.engine import run_sync
from llmrank.errors import CapabilityError, MissingExtra, SpecError
from llmrank.plan import Ask, Grade, Grades, Likelihood, Order, Pick
from llmrank.prompts import PromptSet
from llmrank.request import Params, Reply, Request
from llmrank.rerank import parse
from llmrank.types import Candidate, Document, Ordering, Query, Status, Tally

# What vLLM and torch warn of while they are loaded is theirs.
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("default"),
]
CONTEXT = 512
PROMPTS = PromptSet()
PASSAGES = (
    "Yeast gives off carbon dioxide, which makes bread dough rise.",
    "Glaciers grind rock into fine flour that turns mountain lakes turquoise.",
    "A bicycle stays upright because its front wheel steers into a fall.",
    "Two tides a day come from the pull of the moon on the ocean. " * 6,
)
QUERIES = (Query("1", "why does bread dough rise"), Query("2", "what causes tides?"))
DOCUMENTS = tuple(Document(str(i), text) for i, text in enumerate(PASSAGES))
LIKELIHOOD_APART, PROBABILITY_APART = 0.001, 0.001
"""How far two programs may be apart in float32: a likelihood of about 8 tokens, and p(yes)."""


@pytest.fixture(scope="module")
def model() -> Iterator[VllmBackend]:
    pytest.importorskip("vllm")
    backend = VllmBackend(context=CONTEXT, dtype="float32")
    yield backend
    run_sync(backend.close())


def _replies(model: VllmBackend | LocalBackend, requests: Sequence[Request]) -> list[Reply]:
    return run_sync(model.answer(requests))


def _rendered(asks: Sequence[Ask[Any]]) -> list[Request]:
    return [PROMPTS.render(ask) for ask in asks]


def _grade(request: Request, reply: Reply) -> Grades:
    answer = PROMPTS.parse(request, reply)
    assert isinstance(answer.value, Grades), answer.problem
    return answer.value


def _grades() -> list[Request]:
    return _rendered([Grade(query, document) for query in QUERIES for document in DOCUMENTS])


def _likelihoods() -> list[Request]:
    return _rendered([Likelihood(query, document) for query in QUERIES for document in DOCUMENTS])


def _write(prompt: str, **params: Any) -> Request:  # noqa: ANN401 - those of Params
    (request,) = _rendered([Likelihood(QUERIES[0], DOCUMENTS[0])])
    return replace(request, want="text", prompt=prompt, target="", params=Params(**params))


def test_scores_are_those_of_transformers(model: VllmBackend) -> None:
    """Likelihoods and label probabilities of the same requests, mixed and in any order."""
    requests = [*_likelihoods(), *_grades()][::-1]
    there, here = (_replies(m, requests) for m in (model, LocalBackend()))
    for request, a, b in zip(requests, there, here, strict=True):
        assert not a.error
        assert a.usage.prompt_tokens == b.usage.prompt_tokens
        assert a.tokens == b.tokens
        if request.want == "likelihood":
            assert a.logprob == pytest.approx(b.logprob, abs=LIKELIHOOD_APART)
            continue
        assert a.label_logprobs.keys() == b.label_logprobs.keys()
        one, other = (_grade(request, reply) for reply in (a, b))
        assert one.probabilities == pytest.approx(other.probabilities, abs=PROBABILITY_APART)
        assert one.mass == pytest.approx(other.mass, abs=PROBABILITY_APART)


def test_what_prompts_share_is_computed_once_and_reported(model: VllmBackend) -> None:
    """Requests come in any order; those that begin alike meet in the cache."""
    shared = " ".join(f"word{i}" for i in range(40))
    texts = [f"{kind} {shared} {i}" for i in range(3) for kind in ("red", "green", "blue")]
    replies = _replies(model, [_write(text, max_tokens=1) for text in texts])
    cached = [reply.usage.cached_tokens for reply in replies]
    prompt = replies[0].usage.prompt_tokens
    assert sum(count == 0 for count in cached) <= 3
    assert sum(count > prompt / 2 for count in cached) >= 6
    assert all(count < prompt for count in cached)
    again = _replies(model, [_write(text, max_tokens=1) for text in texts])
    assert [reply.text for reply in again] == [reply.text for reply in replies]


def test_a_likelihood_does_not_depend_on_what_is_in_the_cache(model: VllmBackend) -> None:
    first, again = (_replies(model, _likelihoods()) for _ in range(2))
    shown = _rendered([Likelihood(QUERIES[0], DOCUMENTS[3]), Likelihood(QUERIES[1], DOCUMENTS[3])])
    for a, b in zip(first, again, strict=True):
        assert a.logprob == pytest.approx(b.logprob, abs=LIKELIHOOD_APART)
    _replies(model, [_write(item.prompt + item.target + " and", max_tokens=1) for item in shown])
    after = _replies(model, shown)
    for a, b in zip((first[3], first[7]), after, strict=True):
        assert a.logprob == pytest.approx(b.logprob, abs=LIKELIHOOD_APART)


def test_a_prompt_that_does_not_fit_fails_alone(model: VllmBackend) -> None:
    tokens = model.counter.count("word " * 600)
    long = replace(_grades()[0], messages=(), prompt="word " * 600)
    scored = replace(_likelihoods()[0], prompt="word " * 600)
    graded, likely, written, fine, empty = _replies(
        model,
        [
            long,
            scored,
            _write("word " * 600, max_tokens=4),
            _grades()[0],
            _write("", max_tokens=1),
        ],
    )
    for reply in (graded, likely, written):
        assert f"which takes {CONTEXT}" in reply.error
        assert not reply.transient
    assert str(tokens + 1) in graded.error
    assert not fine.error
    assert "empty" in empty.error


@pytest.mark.parametrize("want", ["labels", "likelihood", "text"])
def test_the_longest_prompt_that_fits_is_answered(model: VllmBackend, want: str) -> None:
    base = {"labels": _grades()[0], "likelihood": _likelihoods()[0], "text": _write("x")}[want]
    target = model.counter.count(base.target) if base.target else 0
    for length, fits in ((CONTEXT - target - 1, True), (CONTEXT - target, False)):
        prompt = ("word" + " word" * (length - 1)) if length else ""
        assert model.counter.count(prompt) == length
        (reply,) = _replies(model, [replace(base, messages=(), prompt=prompt)])
        assert bool(reply.error) is not fits, reply.error


def test_text_follows_its_own_parameters(model: VllmBackend) -> None:
    prompt = "One, two, three, four, five,"
    greedy, same, short, stopped, *samples = _replies(
        model,
        [
            _write(prompt, max_tokens=12),
            _write(prompt, max_tokens=12),
            _write(prompt, max_tokens=2),
            _write(prompt, max_tokens=12, stop=(" eight", ",")),
            _write(prompt, max_tokens=12, temperature=1.5, seed=1),
            _write(prompt, max_tokens=12, temperature=1.5, seed=2),
        ],
    )
    assert greedy.text == same.text
    assert greedy.text.startswith(short.text)
    assert short.finish == "length"
    assert short.usage.completion_tokens == 2
    assert stopped.finish == "stop"
    assert "," not in stopped.text
    assert samples[0].text != samples[1].text
    (again,) = _replies(model, [_write(prompt, max_tokens=12, temperature=1.5, seed=2)])
    assert again.text == samples[1].text


def test_every_kind_of_ask_is_an_outcome(model: VllmBackend) -> None:
    asks: list[Ask[Any]] = [
        Order(QUERIES[0], DOCUMENTS[:3]),
        Pick(QUERIES[0], DOCUMENTS[:3], by="labels"),
        Grade(QUERIES[0], DOCUMENTS[0]),
    ]
    requests = _rendered(asks)
    order, pick, grade = (
        PROMPTS.parse(request, reply)
        for request, reply in zip(requests, _replies(model, requests), strict=True)
    )
    assert order.status in Status
    assert {pick.status, grade.status} <= {Status.OK, Status.MALFORMED}
    with pytest.raises(CapabilityError, match="attention"):
        _replies(model, [replace(requests[0], want="attention")])


def test_full_batches_come_from_the_driver_and_rank(model: VllmBackend) -> None:
    found: dict[str, tuple[Ordering, Tally]] = {}
    candidates = [Candidate(document) for document in DOCUMENTS[::-1]]
    with Session(Settings(), model=model) as session:
        method = parse("likelihood")
        session.run_sync(
            [(query.id, method.plan(query, candidates)) for query in QUERIES],
            lambda key, ordering, tally: found.update({key: (ordering, tally)}),
        )
    assert [found[key][0].order[0] for key in ("1", "2")] == [3, 0]
    assert {tally.asks for _, tally in found.values()} == {len(DOCUMENTS)}


def test_the_identity_tells_the_weights_and_the_number_type() -> None:
    pytest.importorskip("vllm")
    plain, other = VllmBackend(), VllmBackend(dtype="float32")
    assert plain.identity != other.identity
    assert plain.identity.startswith("vllm-offline:")
    assert plain.identity.partition("#")[2].partition(",")[0]
    with pytest.raises(SpecError):
        VllmBackend(memory=2.0)


def test_without_vllm_it_is_said_what_to_install() -> None:
    try:
        import vllm  # noqa: F401
    except ImportError:
        with pytest.raises(MissingExtra, match="vllm"):
            VllmBackend()
