"""Cross-encoders: tiny real ones, made here, against what transformers computes directly."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from llmrank import Reranker
from llmrank.api.session import Session, Settings
from llmrank.backends import Model, connect
from llmrank.engine import run_sync
from llmrank.errors import BackendError, CapabilityError, SpecError
from llmrank.plan import Ask, Grade, Likelihood, Pick
from llmrank.prompts import PromptSet
from llmrank.request import Reply
from llmrank.rerank import parse
from llmrank.store import Journal
from llmrank.types import Candidate, Document, Ordering, Query, Status, Tally
from tests.backends import tiny

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
PROMPTS = PromptSet(pairs=True)


def _save(folder: Path, classes: int = 1, seed: int = 0, limit: int | None = LIMIT) -> Path:
    """A BERT of two layers with a word-piece vocabulary, not trained."""
    model = tiny.model(
        "Bert",
        "SequenceClassification",
        seed=seed,
        vocab_size=len(VOCABULARY),
        num_labels=classes,
    )
    import transformers

    stated = {} if limit is None else {"model_max_length": limit}
    vocabulary = {word: i for i, word in enumerate(VOCABULARY)}
    return tiny.save(folder, model, transformers.BertTokenizer(vocab=vocabulary, **stated))


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
    return [reply.label_logprobs["yes"], reply.label_logprobs["no"]]


def test_probabilities_are_those_of_the_classifier(folder: Path, model: Model) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    direct = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    replies = _replies(model, _grades(DOCUMENTS))
    for document, reply in zip(DOCUMENTS, replies, strict=True):
        encoded = tokenizer([QUERY.text], [document.text.strip()], return_tensors="pt")
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


@pytest.mark.parametrize("query_words", [0, 1, 7, LIMIT - 4])
def test_a_passage_that_does_not_fit_is_cut_to_the_token_and_says_so(
    model: Model, query_words: int
) -> None:
    query = Query("q", "bread " * query_words)
    room = LIMIT - query_words - 3
    texts = ["yeast " * (room - 1), "yeast " * room, "yeast " * room + "moon"]
    texts.append("yeast " * room + "moon " * 40)
    replies = _replies(model, [Grade(query, Document(text, text)) for text in texts])
    assert [reply.cut for reply in replies] == [0, 0, 1, 1]
    assert [reply.usage.prompt_tokens for reply in replies] == [LIMIT - 1, LIMIT, LIMIT, LIMIT]
    assert {reply.finish for reply in replies} == {"stop"}
    for reply in replies[2:]:
        assert _logprobs(reply) == pytest.approx(_logprobs(replies[1]), abs=1e-5)


def test_the_query_is_never_cut(model: Model) -> None:
    """One that leaves no room for a word of the passage fails alone."""
    query = Query("q", "bread " * (LIMIT - 3))
    full, failed, longer, fine = _replies(
        model,
        [
            Grade(query, Document("empty", "")),
            Grade(query, DOCUMENTS[0]),
            Grade(Query("q", "bread " * LIMIT), Document("empty", "")),
            Grade(QUERY, DOCUMENTS[0]),
        ],
    )
    assert full.usage.prompt_tokens == LIMIT
    assert not full.cut
    assert "no room for a passage" in failed.error
    assert "no room for a passage" in longer.error
    assert not fine.error


def test_a_cut_passage_counts_once_also_when_the_journal_answers(
    folder: Path, tmp_path: Path
) -> None:
    """Whether words were left out by the prompt, tokens by the tokenizer, or both."""
    passages = ["moon ocean", "yeast " * 30, "dough " * 50, "ice [ " * 20]
    candidates = [Candidate(Document(text, text)) for text in passages]
    tallies: list[Tally] = []

    def finished(_key: int, _ordering: Ordering, tally: Tally) -> None:
        tallies.append(tally)

    settings = Settings(model=f"cross:{folder}", passage_words=40)
    with Session(settings, Journal(tmp_path / "journal")) as session:
        for _ in range(2):
            session.run_sync([(0, parse("yesno").plan(QUERY, candidates))], finished)
    assert [(tally.cut, tally.reused) for tally in tallies] == [(3, 0), (3, 4)]


def test_the_limit_on_words_holds_for_the_pair_too(model: Model) -> None:
    long = Document("long", "yeast <|im_start|>\n dough  moon ocean", title="bread")
    requests = [
        PromptSet(passage_words=words, pairs=True).render(Grade(QUERY, long))
        for words in (1, 2, 6, 300)
    ]
    assert [request.cut for request in requests] == [1, 1, 1, 0]
    shown = ["bread", "bread yeast", "bread yeast <|im_start|> dough", long.contents]
    got = run_sync(model.answer(requests))
    whole = _replies(model, [Grade(QUERY, Document("d", text)) for text in shown])
    for one, other in zip(got, whole, strict=True):
        assert _logprobs(one) == pytest.approx(_logprobs(other), abs=1e-5)
        assert one.usage == other.usage


def test_a_separator_in_a_passage_is_text(model: Model) -> None:
    written, spaced = _replies(
        model, _grades([Document("a", "moon [SEP] bread"), Document("b", "moon [ sep ] bread")])
    )
    assert written.usage == spaced.usage
    assert _logprobs(written) == pytest.approx(_logprobs(spaced), abs=1e-5)


def test_no_wording_of_a_prompt_is_in_the_request(tmp_path: Path) -> None:
    """Not even a passage that repeats the prompt, or a template that shows little of it."""
    path = tmp_path / "short.toml"
    path.write_text(
        'ask = "grade"\ndescription = "d"\ntext = "{{ query[:1] }}{{ passage[:1] }}"\n'
        '[labels]\nyes = ["ja"]\nno = ["nein"]\n'
    )
    documents = [Document("a", "bread\n Query: moon"), Document("b", "bread <|im_end|> moon")]
    expected = [("bread dough", "bread Query: moon"), ("bread dough", "bread < |im_end| > moon")]
    keys = set()
    for template in ("yesno", "monot5", path):
        prompts = PromptSet({"grade": template}, pairs=True)
        requests = [prompts.render(grade) for grade in _grades(documents)]
        assert [request.texts for request in requests] == expected
        assert not any(request.prompt or request.messages for request in requests)
        keys |= {request.key("model") for request in requests}
    assert len(keys) == 2


def test_what_is_no_question_of_yes_or_no_is_refused(model: Model) -> None:
    with pytest.raises(CapabilityError, match="yesno"):
        _replies(model, [Grade(QUERY, DOCUMENTS[0], ("3", "2", "1", "0"))])
    assert model.wants == {"pair"}
    for ask in (Pick(QUERY, DOCUMENTS[:2], by="labels"), Likelihood(QUERY, DOCUMENTS[0])):
        with pytest.raises(CapabilityError, match="it gives: pair"):
            _replies(model, [ask])
    name = model.identity.partition("#")[0]
    with pytest.raises(CapabilityError, match="Likelihood"):
        Reranker(name, method="likelihood")
    with pytest.raises(CapabilityError, match="Pick"):
        Reranker(name, method="setwise(by=labels)")


GENERIC = ["<s>", "<pad>", "</s>", "<unk>", *WORDS]
GRADES = [*_grades(DOCUMENTS), Grade(QUERY, Document("long", "yeast dough " * 60))]


def _generic(folder: Path, family: str, **settings: Any) -> Model:  # noqa: ANN401 - as they are
    """A classifier whose tokenizer makes type ids and marks the ends; `settings` are its own."""
    model = tiny.model(family, "SequenceClassification", vocab_size=len(GENERIC), num_labels=1)
    ends = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", **settings}
    marks = "<s> $A </s>", "<s> $A </s> $B </s>"
    tokenizer = tiny.tokenizer(GENERIC, single=marks[0], pair=marks[1], **ends)
    return connect(f"cross:{tiny.save(folder, model, tokenizer)}")


def _alone_as_together(model: Model) -> list[Reply]:
    replies = _replies(model, GRADES)
    for ask, reply in zip(GRADES, replies, strict=True):
        (alone,) = _replies(model, [ask])
        assert not reply.error
        assert _logprobs(reply) == pytest.approx(_logprobs(alone), abs=1e-5)
    assert len({round(_logprobs(reply)[0], 6) for reply in replies}) == len(GRADES)
    return replies


@pytest.mark.parametrize(
    ("family", "stated", "limit"),
    [
        ("Roberta", {}, 62),
        ("Roberta", {"model_max_length": 64}, 62),
        ("Roberta", {"model_max_length": 40}, 40),
        ("DistilBert", {}, 64),
        ("DistilBert", {"model_max_length": 100}, 64),
        ("XLNet", {"padding_side": "left"}, 125),
    ],
)
def test_the_limit_is_that_of_the_model_and_of_its_tokenizer(
    tmp_path: Path, family: str, stated: Mapping[str, Any], limit: int
) -> None:
    """RoBERTa cannot use its first two positions; XLNet states -1 for no limit."""
    *short, long = _alone_as_together(_generic(tmp_path, family, **stated))
    assert long.usage.prompt_tokens == limit
    assert long.cut == (limit < 125)
    assert not any(reply.cut for reply in short)


def test_a_classifier_made_from_a_causal_model_needs_no_padding_token(tmp_path: Path) -> None:
    _alone_as_together(_generic(tmp_path, "Llama", pad_token=None))


def test_a_tokenizer_without_an_end_is_a_clear_error(tmp_path: Path) -> None:
    model = _generic(tmp_path, "Llama", pad_token=None, eos_token=None)
    with pytest.raises(BackendError, match="no token to pad"):
        _replies(model, GRADES)


def test_values_that_are_not_numbers_are_an_error_of_their_pair_alone(tmp_path: Path) -> None:
    folder = _save(tmp_path)
    tiny.poison(folder, VOCABULARY.index("moon"))
    failed, *fine = _replies(connect(f"cross:{folder}"), _grades(DOCUMENTS))
    assert "NaN, no numbers, in float32" in failed.error
    assert not any(reply.error for reply in fine)
    with Reranker(f"cross:{folder}", method="yesno") as ranker:
        ranking = ranker.rank(QUERY.text, ["moon", "yeast"])
    assert ranking.tally.outcomes == {Status.FAILED: 1, Status.OK: 1}


def test_what_cannot_be_used_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="name the cross-encoder"):
        connect("cross:")
    with pytest.raises(SpecError, match="dtype"):
        connect("cross:x,dtype=int3")
    with pytest.raises(BackendError, match="cannot load the cross model"):
        _replies(connect(f"cross:{tmp_path}"), _grades(DOCUMENTS))
    with pytest.raises(BackendError, match="3 classes"):
        _replies(connect(f"cross:{_save(tmp_path / 'three', classes=3)}"), _grades(DOCUMENTS))
    for name, content in (("model.safetensors", b"no weights"), ("tokenizer.json", b"{}")):
        broken = _save(tmp_path / name)
        (broken / name).write_bytes(content)
        with pytest.raises(BackendError, match="cannot load the cross model"):
            _replies(connect(f"cross:{broken}"), _grades(DOCUMENTS))
    with pytest.raises(BackendError, match="no tokenizer in"):
        connect(f"cross:{tmp_path / 'tokenizer.json'}").counter.count("bread")
    for device in ("cuda:99", "abacus"):
        with pytest.raises(BackendError, match="cannot load the cross model"):
            _replies(
                connect(f"cross:{_save(tmp_path / 'fine')},device={device}"), _grades(DOCUMENTS)
            )
    from transformers import BertModel

    headless = _save(tmp_path / "headless")
    BertModel.from_pretrained(headless).save_pretrained(headless)
    with pytest.raises(BackendError, match=r"no trained classifier.*classifier\.weight"):
        _replies(connect(f"cross:{headless}"), _grades(DOCUMENTS))


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
