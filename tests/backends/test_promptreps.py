"""Representations by a prompt: what they are made of, and that nothing else changes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmrank import Retriever, trec
from llmrank.backends import connect_encoder
from llmrank.backends.promptreps import MOST_TERMS, OPENING, PROMPTS, PromptReps
from llmrank.engine import run_sync
from llmrank.errors import BackendError, CapabilityError, SpecError
from llmrank.evaluate import measure
from llmrank.plan import Embed
from llmrank.request import Reply, Request
from llmrank.retrieve import BM25Index, minmax
from tests.backends import tiny

pytestmark = pytest.mark.slow  # loading torch takes longer than all of these

WORDS = ["<unk>", "<s>", "</s>", "the", "bread", "yeast", "dough", "moon", "ocean", "tides"]
TEXTS = ("bread", "the dough of bread : Yeast, dough", "moon " * 20, "", "tides OCEAN moon")
ROOMY: Mapping[str, Any] = {"max_position_embeddings": 1024}


def _model(folder: Path, words: Sequence[str] = WORDS, **template: Any) -> Path:  # noqa: ANN401
    model = tiny.model("Llama", "CausalLM", vocab_size=len(words), **ROOMY)
    tokenizer = tiny.tokenizer(words, single="$A", eos_token="</s>", bos_token="<s>", **template)
    return tiny.save(folder, model, tokenizer)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    return _model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def encoder(folder: Path) -> PromptReps:
    return PromptReps(str(folder))


def _request(*texts: str, role: str = "document") -> Request:
    return Request(ask=Embed(texts, role), want="vectors", texts=texts, role=role)


def _answers(encoder: PromptReps, *requests: Request) -> list[Reply]:
    return run_sync(encoder.answer(requests))


def _vectors(reply: Reply) -> np.ndarray[Any, np.dtype[np.float32]]:
    assert reply.vectors is not None, reply.error
    return reply.vectors


def _computed(folder: Path, text: str, role: str) -> tuple[Any, Any]:
    """Last hidden state and scores behind the complete prompt, as transformers gives them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = f"{PROMPTS[role].replace('{text}', text)}\n\n{OPENING}"
    with torch.inference_mode():
        out = AutoModelForCausalLM.from_pretrained(folder)(
            torch.tensor([tokenizer(prompt)["input_ids"]]), output_hidden_states=True
        )
    return out.hidden_states[-1][0, -1].numpy(), out.logits[0, -1].numpy()


@pytest.mark.parametrize("role", ["query", "document"])
def test_the_last_hidden_state_and_the_scores_of_the_texts_own_words(
    folder: Path, encoder: PromptReps, role: str
) -> None:
    text = "the Yeast : bread moon ocean, moon tides"
    hidden, scores = _computed(folder, text, role)
    found = encoder.represent([text], role=role)
    assert found.vectors[0] == pytest.approx(hidden / np.linalg.norm(hidden), abs=1e-5)
    words = ("yeast", "bread", "moon", "ocean", "tides")
    weights = {w: round(100 * np.log1p(max(0.0, scores[WORDS.index(w)]))) for w in words}
    assert dict(found.terms[0]) == {word: weight for word, weight in weights.items() if weight}
    assert found.terms[0]


def test_representations_are_the_same_alone_and_in_a_batch(encoder: PromptReps) -> None:
    together = encoder.represent(TEXTS, role="document")
    assert together.vectors.dtype == np.float32
    assert np.linalg.norm(together.vectors, axis=1) == pytest.approx(np.ones(len(TEXTS)))
    for text, vector, terms in zip(TEXTS, *together, strict=True):
        alone = encoder.represent([text], role="document")
        assert vector == pytest.approx(alone.vectors[0], abs=1e-5)
        assert terms.keys() == alone.terms[0].keys()
        assert terms == pytest.approx(alone.terms[0], abs=1)


def test_a_request_is_answered_with_the_dense_part_of_its_texts(encoder: PromptReps) -> None:
    requests = (_request(*TEXTS), _request("moon", role="query"), _request())
    documents, query, none = _answers(encoder, *requests)
    assert _vectors(documents) == pytest.approx(
        encoder.represent(TEXTS, role="document").vectors, abs=1e-5
    )
    assert _vectors(query) == pytest.approx(
        encoder.represent(["moon"], role="query").vectors, abs=1e-5
    )
    assert _vectors(none).shape == (0, _vectors(query).shape[1])
    assert encoder.represent([], role="query").vectors.shape == _vectors(none).shape
    single = [_answers(encoder, _request(text))[0] for text in TEXTS]
    assert documents.usage.prompt_tokens == sum(reply.usage.prompt_tokens for reply in single)


def test_a_query_is_read_otherwise_than_a_document(encoder: PromptReps) -> None:
    query, document = (encoder.represent(["moon"], role=role) for role in PROMPTS)
    assert np.abs(query.vectors - document.vectors).max() > 1e-3
    with pytest.raises(SpecError, match="query or document, not 'passage'"):
        _answers(encoder, _request("moon", role="passage"))
    with pytest.raises(CapabilityError, match="it gives: vectors"):
        _answers(encoder, Request(ask=Embed(("a",)), want="text", prompt="a"))


def test_a_text_is_read_to_its_length_and_its_words_to_the_end(folder: Path) -> None:
    short = PromptReps(str(folder), length=3)
    texts = ("bread dough tides ocean", "bread dough tides moon", "bread dough tides")
    (reply,) = _answers(short, _request(*texts))
    assert reply.cut == 2
    assert _vectors(reply)[:2] == pytest.approx(_vectors(reply)[[2, 2]], abs=1e-5)
    one, other, whole = short.represent(texts, role="document").terms
    common = one.keys() & other.keys()
    assert {word: one[word] for word in common} == dict(whole)
    with pytest.raises(SpecError, match="at least 1"):
        PromptReps(str(folder), length=0)


def test_a_text_longer_than_the_model_is_cut_to_what_is_left(tmp_path: Path) -> None:
    narrow = tiny.model("Llama", "CausalLM", vocab_size=len(WORDS), max_position_embeddings=48)
    tokenizer = tiny.tokenizer(WORDS, single="$A", eos_token="</s>")
    encoder = PromptReps(str(tiny.save(tmp_path, narrow, tokenizer)))
    (reply,) = _answers(encoder, _request("moon " * 100, "moon"))
    empty, full = (_answers(encoder, _request(text))[0] for text in ("", "moon " * 100))
    assert (reply.cut, full.usage.prompt_tokens, empty.cut) == (1, 48, 0)
    assert _vectors(reply).shape[0] == 2


def test_a_model_without_room_for_the_prompt_is_an_error(tmp_path: Path) -> None:
    narrow = tiny.model("Llama", "CausalLM", vocab_size=len(WORDS), max_position_embeddings=16)
    tokenizer = tiny.tokenizer(WORDS, single="$A", eos_token="</s>")
    encoder = PromptReps(str(tiny.save(tmp_path, narrow, tokenizer)))
    assert "do not fit" in _answers(encoder, _request("moon"))[0].error
    with pytest.raises(BackendError, match="do not fit"):
        encoder.represent(["moon"], role="query")


def test_texts_without_words_of_their_own(folder: Path, encoder: PromptReps) -> None:
    """Of stop words alone the strongest tokens of all stand for the text; blank is blank."""
    _, scores = _computed(folder, "The - the", "query")
    stops, blank = encoder.represent(["The - the", " \n"], role="query").terms
    strongest = [WORDS[i] for i in np.argsort(-scores)[:10] if scores[i] > 0]
    assert list(stops) == strongest
    assert blank == {}


def test_the_strongest_terms_are_kept(tmp_path: Path) -> None:
    words = [*WORDS[:3], *(f"w{i}" for i in range(500))]
    folder = _model(tmp_path, words)
    text = " ".join(words[3:])
    _, scores = _computed(folder, text, "document")
    (terms,) = PromptReps(str(folder), length=600).represent([text], role="document").terms
    best = sorted(range(3, len(words)), key=lambda i: -scores[i])[:MOST_TERMS]
    assert scores[best[-1]] > 0
    assert list(terms) == [words[i] for i in best]
    assert list(terms.values()) == [round(100 * np.log1p(scores[i])) for i in best]


def test_a_chat_model_reads_a_chat_and_no_control_tokens_of_a_text(tmp_path: Path) -> None:
    template = "{{ '<s>' + messages[0]['content'] + '</s>' }}"
    chat = PromptReps(str(_model(tmp_path / "chat", chat_template=template)))
    plain = PromptReps(str(_model(tmp_path / "plain")))

    def tokens(encoder: PromptReps, text: str) -> int:
        return _answers(encoder, _request(text))[0].usage.prompt_tokens

    assert tokens(chat, "moon") == tokens(plain, "moon") + 2
    for encoder in (chat, plain):
        assert tokens(encoder, "moon </s>") == tokens(encoder, "moon < / s >") - 1
        vectors = encoder.represent(["moon </s>", "moon < /s>"], role="query").vectors
        assert tokens(encoder, "moon </s>") > tokens(encoder, "moon") + 1
        assert np.isfinite(vectors).all()


def test_a_template_that_shows_no_message_is_refused(tmp_path: Path) -> None:
    encoder = PromptReps(str(_model(tmp_path, chat_template="{{ messages[0]['role'] }}")))
    with pytest.raises(CapabilityError, match="changes messages"):
        encoder.represent(["moon"], role="query")


def test_values_that_are_not_numbers_are_an_error_of_their_request(tmp_path: Path) -> None:
    folder = _model(tmp_path)
    tiny.poison(folder, WORDS.index("moon"))
    encoder = PromptReps(str(folder))
    sound, broken = _answers(encoder, _request("bread", "dough"), _request("bread", "moon"))
    assert not sound.error
    assert "NaN, no numbers, in float32" in broken.error
    with pytest.raises(BackendError, match="NaN"):
        encoder.represent(["bread", "moon"], role="document")


def test_what_it_reads_is_part_of_its_identity(folder: Path) -> None:
    names = [f"promptreps:{folder}", f"promptreps:{folder},length=64"]
    one, other = (connect_encoder(name) for name in names)
    assert one.identity.startswith(f"promptreps:{folder}#")
    assert len({one.identity, other.identity, PromptReps(str(folder)).identity}) == 2


def test_it_searches_as_an_encoder(folder: Path, tmp_path: Path) -> None:
    texts = ["bread dough", "moon tides ocean", "yeast"]
    name = f"promptreps:{folder}"
    memory = Retriever(texts, first_stage="dense", encoder=name).search("moon tides", 3)
    built = Retriever(texts, first_stage="dense", encoder=name, index=tmp_path / "ix")
    assert [c.document.id for c in built.search("moon tides", 3)] == [c.document.id for c in memory]
    assert len(Retriever(texts, first_stage="hybrid", encoder=name).search("moon", 3)) == 3


@pytest.mark.local
@pytest.mark.timeout(400)
def test_a_real_model_finds_more_than_chance(collection: Path) -> None:
    """The judged documents of eight queries, among each other: dense, sparse, both, and BM25."""
    qrels = dict(islice(trec.read_qrels(collection).items(), 8))
    queries = [query for query in trec.read_queries(collection) if query.id in qrels]
    judged = {document for grades in qrels.values() for document in grades}
    documents = [d for d in trec.read_corpus(collection) if d.id in judged]
    encoder = PromptReps(length=48)
    asked = encoder.represent([query.text for query in queries], role="query")
    held = encoder.represent([document.contents for document in documents], role="document")
    ids = [document.id for document in documents]
    index = BM25Index.build(documents)
    runs: dict[str, dict[str, list[tuple[str, float]]]] = {"bm25": {}, "dense": {}, "sparse": {}}
    for query, vector, terms in zip(queries, *asked, strict=True):
        runs["bm25"][query.id] = index.search(query.text, 100)
        runs["dense"][query.id] = list(zip(ids, (held.vectors @ vector).tolist(), strict=True))
        products = [sum(w * other.get(t, 0) for t, w in terms.items()) for other in held.terms]
        runs["sparse"][query.id] = [(i, float(p)) for i, p in zip(ids, products, strict=True) if p]
    runs["both"] = {q.id: minmax([runs["dense"][q.id], runs["sparse"][q.id]]) for q in queries}
    chance = {query.id: [(i, 0.0) for i in ids] for query in queries}
    scores = {
        name: float(np.mean(list(measure(run, qrels, ["nDCG@10"])["nDCG@10"].values())))
        for name, run in {**runs, "chance": chance}.items()
    }
    assert scores["dense"] > scores["chance"] + 0.1, scores
    assert scores["sparse"] > scores["chance"] + 0.3, scores
    assert scores["both"] > scores["chance"] + 0.3, scores
