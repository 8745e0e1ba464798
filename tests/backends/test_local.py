"""The real local models: their scores, samples and vectors do not depend on their company."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmrank import Reranker, trec
from llmrank.backends.encoder import SentenceEncoder
from llmrank.backends.local import LocalBackend
from llmrank.engine import Engine, run_sync
from llmrank.errors import CapabilityError, LlmrankError, SpecError
from llmrank.plan import Ask, Embed, Grade, Likelihood, Order, Write
from llmrank.prompts import PromptSet
from llmrank.request import Message, Params, Reply, Request, Want
from llmrank.rerank import parse
from llmrank.types import Candidate, Document, Ordering, Query, Status, Tally
from tests.backends import tiny

pytestmark = pytest.mark.local
QUERY = Query("q", "why does bread rise")
PASSAGES = (
    "Glaciers grind rock into a fine flour that turns mountain lakes turquoise in summer.",
    "Yeast gives off carbon dioxide, and the gas makes the dough of a loaf swell.",
    "A bicycle stays upright because its front wheel steers into every fall, " * 8,
    "Tides rise and fall with the moon.",
)
DOCUMENTS = tuple(Document(str(i), text) for i, text in enumerate(PASSAGES))
PROMPTS = PromptSet()


@pytest.fixture(scope="module")
def model() -> LocalBackend:
    pytest.importorskip("torch")
    return LocalBackend()


def _replies(model: LocalBackend | SentenceEncoder, asks: Sequence[Ask[Any]]) -> list[Reply]:
    return run_sync(model.answer([PROMPTS.render(ask) for ask in asks]))


def test_a_likelihood_is_the_same_alone_and_in_a_batch(model: LocalBackend) -> None:
    asks = [Likelihood(QUERY, document) for document in DOCUMENTS]
    together = [reply.logprob for reply in _replies(model, asks)]
    alone = [_replies(model, [ask])[0].logprob for ask in asks]
    assert together == pytest.approx(alone, abs=1e-3)
    tokens = model.counter.count(" " + QUERY.text)
    assert {reply.tokens for reply in _replies(model, asks)} == {tokens}


def test_a_likelihood_is_the_sum_of_next_token_probabilities(model: LocalBackend) -> None:
    """The probability of a one-token target equals that of the same token as a label."""
    request = PROMPTS.render(Likelihood(Query("q", "bread"), DOCUMENTS[1]))
    assert model.counter.count(request.target) == 1
    labelled = PROMPTS.render(Grade(QUERY, DOCUMENTS[1]))
    as_label = type(request)(
        ask=labelled.ask, want="labels", prompt=request.prompt, labels={"x": (request.target,)}
    )
    scored, seen = run_sync(model.answer([request, as_label]))
    assert scored.logprob == pytest.approx(seen.label_logprobs[request.target], abs=1e-4)


def test_label_probabilities_are_the_same_alone_and_in_a_batch(model: LocalBackend) -> None:
    asks = [Grade(QUERY, document) for document in DOCUMENTS]
    for ask, reply in zip(asks, _replies(model, asks), strict=True):
        (alone,) = _replies(model, [ask])
        assert reply.label_logprobs == pytest.approx(alone.label_logprobs, abs=1e-3)
        assert 0 < math.fsum(map(math.exp, reply.label_logprobs.values())) <= 1


def test_a_sample_depends_on_its_seed_alone(model: LocalBackend) -> None:
    asks = [Write("hyde", (("query", QUERY.text),), sample=i) for i in range(3)]
    requests = [
        replace(request, params=replace(request.params, max_tokens=12))
        for request in map(PROMPTS.render, asks)
    ]
    together = [reply.text for reply in run_sync(model.answer(requests))]
    alone = [run_sync(model.answer([request]))[0].text for request in reversed(requests)]
    assert together == alone[::-1]
    assert len(set(together)) == 3


def test_a_prompt_that_does_not_fit_fails_alone(model: LocalBackend) -> None:
    prompts = PromptSet(passage_words=20_000)
    asks = [Grade(QUERY, Document("long", "word " * 9000)), Grade(QUERY, DOCUMENTS[1])]
    requests = [prompts.render(ask) for ask in asks]
    outcomes = [
        prompts.parse(request, reply)
        for request, reply in zip(requests, run_sync(model.answer(requests)), strict=True)
    ]
    assert [outcome.status for outcome in outcomes] == [Status.FAILED, Status.OK]
    assert "do not fit" in outcomes[0].problem


WORDS = ["<unk>", "<s>", "</s>", "yes", "no", ":", "bread", "yeast", "dough", "moon", "ocean"]


def _tiny(folder: Path, poisoned: str = "", **settings: Any) -> LocalBackend:  # noqa: ANN401
    model = tiny.model("Llama", "CausalLM", vocab_size=len(WORDS))
    tokenizer = tiny.tokenizer(WORDS, single="$A", eos_token="</s>", **settings)
    tiny.save(folder, model, tokenizer)
    if poisoned:
        tiny.poison(folder, WORDS.index(poisoned))
    return LocalBackend(str(folder))


def _plain(want: Want, prompt: str, target: str = "bread") -> Request:
    labels = {"yes": ("yes",), "no": ("no",)} if want == "labels" else {}
    return Request(
        ask=Likelihood(QUERY, DOCUMENTS[0]),
        want=want,
        prompt=prompt,
        target=target if want == "likelihood" else "",
        labels=labels,
        params=Params(max_tokens=4),
    )


TEXTS = ("yeast", "dough bread yeast dough : bread", "moon ocean " * 20)


def test_padding_changes_no_score(tmp_path: Path) -> None:
    model = _tiny(tmp_path)
    requests = [_plain("labels", text) for text in TEXTS]
    requests += [_plain("likelihood", text, t) for text in TEXTS for t in ("bread", "moon : dough")]
    for request, reply in zip(requests, run_sync(model.answer(requests)), strict=True):
        (alone,) = run_sync(model.answer([request]))
        assert not reply.error
        assert reply.label_logprobs == pytest.approx(alone.label_logprobs, abs=1e-5)
        assert reply.logprob == pytest.approx(alone.logprob, abs=1e-5)


def test_empty_texts_are_outcomes_of_their_own_requests(tmp_path: Path) -> None:
    """Nothing comes before the first token of an empty prompt; no target has no probability."""
    model = _tiny(tmp_path)
    requests = [
        *(_plain(want, "") for want in ("likelihood", "labels", "text")),
        _plain("likelihood", "yeast", ""),
        _plain("likelihood", "yeast", "bread"),
    ]
    for asked in (requests, requests[:1], requests[3:4]):
        replies = run_sync(model.answer(asked))
        for request, reply in zip(asked, replies, strict=True):
            assert (reply.error == "the prompt is empty") == (not request.prompt)
            status = PROMPTS.parse(request, reply).status
            if request.prompt:
                assert status is (Status.OK if request.target else Status.MALFORMED)


def test_values_that_are_not_numbers_are_an_error_of_their_request_alone(tmp_path: Path) -> None:
    model = _tiny(tmp_path, poisoned="moon")
    wants: tuple[Want, ...] = ("likelihood", "labels", "text")
    requests = [_plain(want, text) for want in wants for text in TEXTS[1:]]
    errors = [reply.error for reply in run_sync(model.answer(requests))]
    assert not any(errors[::2])
    assert all("NaN, no numbers, in float32" in error for error in errors[1::2])


def test_what_a_model_cannot_give_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CapabilityError, match="cannot give vectors"):
        run_sync(_tiny(tmp_path).answer([_plain("vectors", "yeast")]))


def test_both_drivers_agree(model: LocalBackend) -> None:
    candidates = [Candidate(document) for document in DOCUMENTS]
    found: list[Ordering] = []

    def finished(_key: int, ordering: Ordering, _tally: Tally) -> None:
        found.append(ordering)

    engine = Engine(model, PROMPTS, in_flight=2)
    for driver in (engine.run_lock_step, engine.run_concurrently):
        plans = [(0, parse("likelihood").plan(QUERY, candidates))]
        run_sync(driver(plans, finished))
    assert found[0].order == found[1].order
    assert found[0].scores == pytest.approx(found[1].scores, abs=1e-3)


def test_likelihood_ranks(collection: Path) -> None:
    """Of ten random passages and a relevant one, the relevant one is nearly always first."""
    corpus = {document.id: document for document in trec.read_corpus(collection)}
    qrels = trec.read_qrels(collection)
    queries = list(trec.read_queries(collection))[:8]
    others = list(corpus.values())[::23]
    first = 0
    with Reranker("local", method="likelihood") as ranker:
        for query in queries:
            best = max(qrels[query.id], key=lambda doc: qrels[query.id][doc])
            wrong = [d for d in others if d.id not in qrels[query.id]]
            first += ranker.rank(query, [*wrong, corpus[best]])[0].document.id == best
    assert first >= 6


def test_a_listwise_reply_of_a_tiny_model_is_an_outcome_and_loses_nobody(
    model: LocalBackend,
) -> None:
    request = PROMPTS.render(Order(QUERY, DOCUMENTS))
    (reply,) = run_sync(model.answer([request]))
    answer = PROMPTS.parse(request, reply)
    assert answer.status is not Status.FAILED
    if answer.value is not None:
        assert sorted(answer.value.order) == [0, 1, 2, 3]


def test_vectors_are_close_where_texts_are(model: LocalBackend) -> None:
    encoder = SentenceEncoder()
    (one,) = _replies(encoder, [Embed(("what makes bread rise", *PASSAGES))])
    assert one.vectors is not None
    assert one.vectors.shape == (5, 384)
    assert one.vectors.dtype == np.float32
    similar = one.vectors[1:] @ one.vectors[0]
    assert int(similar.argmax()) == 1
    split = _replies(encoder, [Embed((text,), role="document") for text in PASSAGES])
    again = np.concatenate([reply.vectors for reply in split if reply.vectors is not None])
    assert np.abs(again - one.vectors[1:]).max() < 1e-4


def test_what_cannot_be_loaded_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="dtype"):
        LocalBackend(dtype="int3")
    with pytest.raises(LlmrankError, match="cannot load the local model"):
        _replies(LocalBackend(str(tmp_path)), [Likelihood(QUERY, DOCUMENTS[0])])


def test_a_model_is_known_by_its_content_and_not_by_its_name(tmp_path: Path) -> None:
    one, two = tmp_path / "a" / "m.gguf", tmp_path / "b" / "m.gguf"
    for path, content in ((one, b"one"), (two, b"two")):
        path.parent.mkdir()
        path.write_bytes(content)
    names = [LocalBackend(str(path)).identity for path in (one, two)]
    two.write_bytes(b"one")
    assert names[0].partition("#")[2] != names[1].partition("#")[2]
    assert LocalBackend(str(two)).identity.partition("#")[2] == names[0].partition("#")[2]
    with pytest.raises(LlmrankError, match="no model at"):
        LocalBackend(str(tmp_path / "nowhere"))


def test_a_cap_in_time_stops_the_computation_between_batches(model: LocalBackend) -> None:
    asks = [Likelihood(QUERY, Document(str(i), f"{i} " + PASSAGES[2])) for i in range(64)]
    requests = [PROMPTS.render(ask) for ask in asks]
    started = time.monotonic()
    run_sync(model.answer(requests[:8]))
    part = time.monotonic() - started

    async def interrupted() -> None:
        async with asyncio.timeout(part / 8):
            await model.answer(requests)

    started = time.monotonic()
    with pytest.raises(TimeoutError):
        run_sync(interrupted())
    assert time.monotonic() - started < 6 * part


def test_a_thought_that_the_template_begins_is_part_of_the_reply(tmp_path: Path) -> None:
    words = [*WORDS, "<think>"]
    template = "{{ messages[0]['content'] }}{{ ' <think>' if enable_thinking }}"
    tokenizer = tiny.tokenizer(words, single="$A", eos_token="</s>", chat_template=template)
    tokenizer.add_tokens(["<think>"])
    tiny.save(tmp_path, tiny.model("Llama", "CausalLM", vocab_size=len(words)), tokenizer)
    ask = Write("hyde", (("query", "bread"),))
    chat = (Message("user", "moon bread"),)
    requests = [
        Request(ask=ask, want="text", messages=chat, params=Params(max_tokens=3, thinking=n))
        for n in (0, 2)
    ]
    at_once, thinking = run_sync(LocalBackend(str(tmp_path)).answer(requests))
    assert not at_once.text.startswith("<think>")
    assert thinking.text.startswith("<think>")
    assert PROMPTS.parse(requests[1], thinking).status in (Status.THINKING, Status.MALFORMED)
