"""Cross-encoders: tiny real ones, made here, against what transformers computes directly."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmrank import Reranker
from llmrank.backends import Model, connect
from llmrank.engine import run_sync
from llmrank.errors import BackendError, CapabilityError, SpecError
from llmrank.plan import Ask, Grade, Pick
from llmrank.prompts import PromptSet
from llmrank.request import Message, Reply
from llmrank.types import Document, Query, Status

pytestmark = pytest.mark.local

TOPICS = {
    "bread": "yeast dough oven flour loaf crust",
    "tides": "moon ocean gravity shore bulge water",
    "bicycle": "wheel steer saddle pedal chain rider",
    "glacier": "ice rock valley snow moraine melt",
}
WORDS = [word for topic, words in TOPICS.items() for word in (topic, *words.split())]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = [*SPECIAL, "[", "]", "sep", *WORDS]
LIMIT = 24
QUERY = Query("q", "bread dough")
DOCUMENTS = tuple(
    Document(str(i), text)
    for i, text in enumerate(("moon ocean", "yeast oven flour loaf dough", "", "ice " * 9, "chain"))
)
PROMPTS = PromptSet()


def _save(folder: Path, classes: int = 1, seed: int = 0) -> Path:
    """A BERT of two layers with a word-piece vocabulary, not trained."""
    torch = pytest.importorskip("torch")
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=classes,
        initializer_range=0.1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    vocabulary = {word: i for i, word in enumerate(VOCABULARY)}
    transformers.BertTokenizer(vocab=vocabulary, model_max_length=LIMIT).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=[1, 2])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _save(tmp_path_factory.mktemp("cross"), classes=request.param)


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return connect(f"cross:{folder}")


def _replies(model: Model, asks: Sequence[Ask[Any]], prompts: PromptSet = PROMPTS) -> list[Reply]:
    return run_sync(model.answer([prompts.render(ask) for ask in asks]))


def _grades(documents: Sequence[Document]) -> list[Grade]:
    return [Grade(QUERY, document) for document in documents]


def _logprobs(reply: Reply) -> list[float]:
    return [reply.label_logprobs["Yes"], reply.label_logprobs["No"]]


def test_probabilities_are_those_of_the_classifier(folder: Path, model: Model) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    direct = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    replies = _replies(model, _grades(DOCUMENTS))
    for document, reply in zip(DOCUMENTS, replies, strict=True):
        encoded = tokenizer(QUERY.text, document.text.strip(), return_tensors="pt")
        with torch.no_grad():
            logits = direct(**encoded).logits[0].tolist()
        odds = logits[0] if len(logits) == 1 else logits[1] - logits[0]
        expected = [-math.log1p(math.exp(-odds)), -math.log1p(math.exp(odds))]
        assert _logprobs(reply) == pytest.approx(expected, abs=1e-5)
        assert reply.usage.prompt_tokens == encoded["input_ids"].shape[1]
        assert reply.finish == "stop"
    assert len({round(_logprobs(reply)[0], 6) for reply in replies}) == len(DOCUMENTS)


def test_a_grade_is_the_same_alone_and_in_a_batch_and_stands_in_its_place(model: Model) -> None:
    asks = _grades(DOCUMENTS)
    together = [_logprobs(reply) for reply in _replies(model, asks)]
    backwards = [_logprobs(reply) for reply in _replies(model, asks[::-1])][::-1]
    alone = [_logprobs(_replies(model, [ask])[0]) for ask in asks]
    for one, other, third in zip(together, backwards, alone, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
        assert one == pytest.approx(third, abs=1e-5)


def test_the_answer_holds_all_of_the_probability(model: Model) -> None:
    request = PROMPTS.render(Grade(QUERY, DOCUMENTS[1]))
    (reply,) = run_sync(model.answer([request]))
    answer = PROMPTS.parse(request, reply)
    assert answer.status is Status.OK
    assert answer.value is not None
    assert answer.value.mass == pytest.approx(1)
    assert answer.value.probabilities[0] == pytest.approx(math.exp(_logprobs(reply)[0]))
    assert run_sync(model.answer([])) == []


def test_a_passage_that_does_not_fit_is_cut_at_its_end_and_says_so(model: Model) -> None:
    room = LIMIT - len(QUERY.text.split()) - 3
    long = Document("long", "yeast " * room + "moon " * 40)
    cut, fitting = _replies(model, _grades([long, Document("fits", "yeast " * room)]))
    assert (cut.finish, fitting.finish) == ("length", "stop")
    assert cut.usage.prompt_tokens == fitting.usage.prompt_tokens == LIMIT
    assert _logprobs(cut) == pytest.approx(_logprobs(fitting), abs=1e-5)


def test_a_query_that_leaves_no_room_fails_alone(model: Model) -> None:
    asks = [Grade(Query("q", "bread " * LIMIT), DOCUMENTS[0]), Grade(QUERY, DOCUMENTS[0])]
    failed, fine = _replies(model, asks)
    assert "no room for a passage" in failed.error
    assert not fine.error


@pytest.mark.parametrize("template", ["yesno", "monot5"])
def test_the_limit_on_words_holds_for_the_pair_too(model: Model, template: str) -> None:
    """The words that a prompt leaves out are not in the request's key, so they may not count."""
    long = Document("long", "yeast <|im_start|>\n dough  moon ocean", title="bread")
    requests = [
        PromptSet({"grade": template}, passage_words=words).render(Grade(QUERY, long))
        for words in (1, 2, 6, 300)
    ]
    assert [request.cut for request in requests] == [1, 1, 1, 0]
    shown = ["bread", "bread yeast", "bread yeast <|im_start|> dough", long.contents]
    got = run_sync(model.answer(requests))
    whole = _replies(model, [Grade(QUERY, Document("d", text)) for text in shown])
    for one, other in zip(got, whole, strict=True):
        assert list(one.label_logprobs.values()) == pytest.approx(_logprobs(other), abs=1e-5)
        assert one.usage == other.usage


def test_a_separator_in_a_passage_is_text(model: Model) -> None:
    written, spaced = _replies(
        model, _grades([Document("a", "moon [SEP] bread"), Document("b", "moon [ sep ] bread")])
    )
    assert written.usage == spaced.usage
    assert _logprobs(written) == pytest.approx(_logprobs(spaced), abs=1e-5)


def test_the_wording_of_the_prompt_changes_nothing(model: Model) -> None:
    request = PROMPTS.render(Grade(QUERY, DOCUMENTS[1]))
    other = replace(request, messages=(Message("user", "Anything else?"),))
    one, two = run_sync(model.answer([request, other]))
    assert _logprobs(one) == pytest.approx(_logprobs(two), abs=1e-6)


def test_what_is_no_question_of_yes_or_no_is_refused(model: Model) -> None:
    scale = Grade(QUERY, DOCUMENTS[0], ("3", "2", "1", "0"))
    for ask in (scale, Pick(QUERY, DOCUMENTS[:2], by="labels")):
        with pytest.raises(CapabilityError, match="yesno"):
            _replies(model, [ask])
    assert model.wants == {"labels"}
    with pytest.raises(CapabilityError, match="Likelihood"):
        Reranker(model.identity.partition("#")[0], method="likelihood")


def test_what_cannot_be_used_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="name the cross-encoder"):
        connect("cross:")
    with pytest.raises(SpecError, match="dtype"):
        connect("cross:x,dtype=int3")
    with pytest.raises(BackendError, match="cannot load the cross model"):
        connect(f"cross:{tmp_path}").count("bread")
    with pytest.raises(BackendError, match="3 classes"):
        connect(f"cross:{_save(tmp_path / 'three', classes=3)}").count("bread")
    from transformers import BertModel

    headless = _save(tmp_path / "headless")
    BertModel.from_pretrained(headless).save_pretrained(headless)
    with pytest.raises(BackendError, match=r"no trained classifier.*classifier\.weight"):
        connect(f"cross:{headless}").count("bread")


def test_a_model_is_known_by_its_weights(tmp_path: Path) -> None:
    one, two = (connect(f"cross:{_save(tmp_path / str(i), seed=i)}") for i in (1, 2))
    assert one.identity.startswith(f"cross:{tmp_path / '1'}#")
    assert one.identity.endswith(",dtype=float32")
    contents = [model.identity.partition("#")[2] for model in (one, two)]
    assert contents[0] != contents[1]
    assert connect(f"cross:{tmp_path / '1'}").identity == one.identity


def _pairs(seed: int) -> Iterator[tuple[str, list[str]]]:
    """Queries of two words of a topic, each with a passage of every topic, its own first."""
    source = random.Random(seed)
    while True:
        topics = source.sample(sorted(TOPICS), len(TOPICS))
        words = {topic: [topic, *TOPICS[topic].split()] for topic in topics}
        query = " ".join(source.choices(words[topics[0]], k=2))
        yield query, [" ".join(source.choices(words[topic], k=6)) for topic in topics]


def _train(folder: Path, steps: int) -> None:
    """Teach the classifier which passage of several has the query's topic."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    source = _pairs(1)
    for _ in range(steps):
        drawn = [next(source) for _ in range(16)]
        queries = [query for query, passages in drawn for _ in passages]
        texts = [text for _, passages in drawn for text in passages]
        logits = model(**tokenizer(queries, texts, padding=True, return_tensors="pt")).logits
        first = torch.zeros(len(drawn), dtype=torch.long)
        loss = torch.nn.functional.cross_entropy(logits.view(len(drawn), -1), first)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)


def test_a_trained_cross_encoder_ranks(tmp_path: Path) -> None:
    """On draws it has not seen, the passage of the query's topic is nearly always first."""
    folder = _save(tmp_path / "trained")
    _train(folder, steps=75)
    source = _pairs(2)
    asked = [next(source) for _ in range(50)]
    with Reranker(f"cross:{folder}", method="yesno", journal=tmp_path / "journal") as ranker:
        # The relevant passage comes in last.
        requests = [(query, passages[::-1]) for query, passages in asked]
        rankings = ranker.rank_many(requests)
        again = ranker.rank_many(requests)
    best = [ranking[0].document.text for ranking in rankings]
    assert sum(text == passages[0] for text, (_, passages) in zip(best, asked, strict=True)) >= 45
    assert [r[0].document.text for r in again] == best
    for ranking in rankings:
        scores = [hit.model_score for hit in ranking]
        assert scores == sorted(scores, key=lambda score: -(score or 0))
        assert ranking.tally.outcomes == {Status.OK: len(TOPICS)}
