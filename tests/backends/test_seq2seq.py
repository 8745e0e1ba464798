"""Encoder-decoder models: tiny ones, made here, against what transformers computes directly."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmrank import Reranker
from llmrank.backends import Model, connect
from llmrank.engine import run_sync
from llmrank.errors import BackendError, CapabilityError, SpecError
from llmrank.plan import Ask, Grade, Likelihood
from llmrank.prompts import PromptSet
from llmrank.request import Message, Params, Reply, Request
from llmrank.types import Document, Query, Status
from tests.backends import tiny

pytestmark = pytest.mark.local

SPECIAL = ["<pad>", "</s>", "<unk>", "<s>"]
WORDS = (
    "true false True FALSE Query Document Relevant : bread yeast dough moon ocean why does rise the"
)
VOCABULARY = {word: i for i, word in enumerate([*SPECIAL, *WORDS.split()])}
POSITIONS = 32
QUERY = Query("q", "why does bread rise")
DOCUMENTS = tuple(
    Document(str(i), text)
    for i, text in enumerate(("moon ocean", "the yeast " * 6, "dough", "the moon the bread"))
)
PROMPTS = PromptSet({"grade": "monot5"})


def _save(folder: Path, kind: str) -> Path:
    settings = {} if kind == "T5" else {"max_position_embeddings": POSITIONS}
    # A seed with which the first token of a text is not its end.
    model = tiny.model(
        kind, "ConditionalGeneration", seed=19, vocab_size=len(VOCABULARY), **settings
    )
    if kind == "Bart":
        # What BART's own checkpoints have: a first token that nobody chooses, and beams.
        model.generation_config.forced_bos_token_id = 3
        model.generation_config.num_beams = 4
    ends = {"pad_token": "<pad>", "eos_token": "</s>"}
    return tiny.save(folder, model, tiny.tokenizer(list(VOCABULARY), single="$A </s>", **ends))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return {kind: _save(tmp_path_factory.mktemp(kind), kind) for kind in ("T5", "Bart")}


@pytest.fixture(scope="module", params=["T5", "Bart"])
def folder(request: pytest.FixtureRequest, folders: Mapping[str, Path]) -> Path:
    return folders[request.param]


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return connect(f"seq2seq:{folder}")


def _logits(folder: Path, prompt: str, target: Sequence[int]) -> Any:  # noqa: ANN401 - no types
    """What the decoder says before each token of a target, by the model's own way to train."""
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    direct = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    forced = direct.generation_config.forced_bos_token_id
    first = [] if forced is None else [forced]
    with torch.no_grad():
        encoded = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        out = direct(**encoded, labels=torch.tensor([[*first, *target]]))
    return out.logits[0, len(first) :].log_softmax(-1)


def _replies(model: Model, asks: Sequence[Ask[Any]]) -> list[Reply]:
    return run_sync(model.answer([PROMPTS.render(ask) for ask in asks]))


def _write(prompt: str, **params: Any) -> Request:  # noqa: ANN401 - as `Params` takes them
    item = Grade(QUERY, DOCUMENTS[0])
    return Request(ask=item, want="text", prompt=prompt, params=Params(**params))


def test_labels_are_what_the_decoder_says_first(folder: Path, model: Model) -> None:
    for document, reply in zip(
        DOCUMENTS, _replies(model, [Grade(QUERY, d) for d in DOCUMENTS]), strict=True
    ):
        prompt = f"Query: {QUERY.text} Document: {document.text.strip()} Relevant:"
        (first,) = _logits(folder, prompt, [VOCABULARY["true"]]).tolist()
        # " true" is the same token and is not counted twice; "True" is another and not counted.
        expected = {word: first[VOCABULARY[word]] for word in ("true", "false")}
        assert reply.label_logprobs == pytest.approx(expected, abs=1e-5)
        assert reply.usage.prompt_tokens == model.counter.count(prompt) + 1


def test_monot5_is_the_softmax_of_the_logits_of_true_and_false(
    folders: Mapping[str, Path],
) -> None:
    """Of these two tokens alone, as published; the prompt is read whole, however long."""
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folders["T5"])
    direct = AutoModelForSeq2SeqLM.from_pretrained(folders["T5"]).eval()
    model = connect(f"seq2seq:{folders['T5']}")
    documents = [*DOCUMENTS, Document("long", "the yeast dough moon " * 60)]
    requests = [PROMPTS.render(Grade(QUERY, document)) for document in documents]
    for document, request, reply in zip(
        documents, requests, run_sync(model.answer(requests)), strict=True
    ):
        prompt = f"Query: {QUERY.text} Document: {document.text.strip()} Relevant:"
        encoded = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            out = direct(**encoded, decoder_input_ids=torch.tensor([[0]])).logits[0, 0]
        both = out[[VOCABULARY["true"], VOCABULARY["false"]]].softmax(0).tolist()
        answer = PROMPTS.parse(request, reply)
        assert request.prompt == prompt
        assert answer.value is not None
        assert answer.value.probabilities == pytest.approx(both, abs=1e-6)
        assert (reply.usage.prompt_tokens, reply.cut) == (encoded["input_ids"].shape[1], 0)


def test_a_tokenizer_saved_to_cut_does_not_cut(tmp_path: Path) -> None:
    folder = _save(tmp_path, "T5")
    path = folder / "tokenizer.json"
    stated = json.loads(path.read_text())
    stated["truncation"] = {
        "direction": "Right",
        "max_length": 8,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    path.write_text(json.dumps(stated))
    (reply,) = _replies(connect(f"seq2seq:{folder}"), [Grade(QUERY, DOCUMENTS[1])])
    assert reply.usage.prompt_tokens > 8


def test_a_label_that_is_no_token_is_refused(model: Model) -> None:
    """Without its probability the other label would always win."""
    request = PROMPTS.render(Grade(QUERY, DOCUMENTS[0]))
    for form in ("never", "true false"):
        with pytest.raises(CapabilityError, match="label 'no' is no single token"):
            run_sync(model.answer([replace(request, labels={"yes": ("true",), "no": (form,)})]))


def test_a_likelihood_is_the_sum_over_the_target(folder: Path, model: Model) -> None:
    request = PROMPTS.render(Likelihood(QUERY, DOCUMENTS[1]))
    (reply,) = run_sync(model.answer([request]))
    target = [VOCABULARY[word] for word in QUERY.text.split()]
    steps = _logits(folder, request.prompt, target)
    expected = math.fsum(float(steps[i, token]) for i, token in enumerate(target))
    assert reply.logprob == pytest.approx(expected, abs=1e-5)
    assert reply.tokens == len(target)


def test_answers_are_the_same_alone_and_in_a_batch_and_stand_in_their_places(model: Model) -> None:
    queries = [QUERY, Query("r", "the moon"), Query("s", "dough")]
    asks: list[Ask[Any]] = [
        kind(query, d) for query in queries for d in DOCUMENTS for kind in (Grade, Likelihood)
    ]
    for ask, reply in zip(asks, _replies(model, asks), strict=True):
        (alone,) = _replies(model, [ask])
        assert reply.label_logprobs == pytest.approx(alone.label_logprobs, abs=1e-5)
        assert reply.logprob == pytest.approx(alone.logprob, abs=1e-5)
        assert (reply.logprob is None) == isinstance(ask, Grade)


def test_text_is_the_greedy_one(folder: Path, model: Model) -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    direct = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    prompts = ["why does bread rise", "the moon the ocean : dough yeast"]
    replies = run_sync(model.answer([_write(prompt, max_tokens=6) for prompt in prompts]))
    for prompt, reply in zip(prompts, replies, strict=True):
        encoded = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        (out,) = direct.generate(**encoded, max_new_tokens=6, num_beams=1, do_sample=False)
        assert reply.text == tokenizer.decode(out, skip_special_tokens=True)
        assert 1 <= reply.usage.completion_tokens <= 6
        assert reply.finish == ("stop" if 1 in out[1:].tolist() else "length")
    assert any(reply.text for reply in replies)


def test_a_sample_depends_on_its_seed_alone(model: Model) -> None:
    requests = [
        replace(_write(prompt, max_tokens=8, temperature=4.0, seed=seed), sample=seed)
        for seed, prompt in enumerate(["why does bread rise", "moon", "the yeast the dough"])
    ]
    together = [reply.text for reply in run_sync(model.answer(requests))]
    alone = [run_sync(model.answer([request]))[0].text for request in requests[::-1]]
    assert together == alone[::-1]
    assert len(set(together)) == 3


def test_what_exceeds_the_positions_fails_alone(folders: Mapping[str, Path]) -> None:
    """T5 has no positions to exceed."""
    long = [Grade(QUERY, Document("long", "yeast " * 2 * POSITIONS)), Grade(QUERY, DOCUMENTS[0])]
    failed, fine = _replies(connect(f"seq2seq:{folders['Bart']}"), long)
    assert "do not fit" in failed.error
    assert set(fine.label_logprobs) == {"true", "false"}
    wordy = _write("moon", max_tokens=POSITIONS)
    assert "do not fit" in run_sync(connect(f"seq2seq:{folders['Bart']}").answer([wordy]))[0].error
    assert not any(r.error for r in _replies(connect(f"seq2seq:{folders['T5']}"), long))


def test_a_chat_becomes_one_text_unless_it_has_replies(folder: Path, model: Model) -> None:
    system, user = Message("system", "the moon"), Message("user", "why does bread rise")
    plain = _write("the moon\n\nwhy does bread rise", max_tokens=6)
    chat = replace(plain, prompt="", messages=(system, user))
    one, two = run_sync(model.answer([plain, chat]))
    assert (one.text, one.usage) == (two.text, two.usage)
    with pytest.raises(CapabilityError, match="plain-text prompt"):
        run_sync(model.answer([replace(chat, messages=(user, Message("assistant", "Yes"), user))]))


def test_a_chat_template_is_used_where_there_is_one(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} : {% endfor %}dough"
    tokenizer.save_pretrained(tmp_path)
    AutoModelForSeq2SeqLM.from_pretrained(folder).save_pretrained(tmp_path)
    chat = replace(_write("", max_tokens=2), messages=(Message("user", "moon"),))
    (reply,) = run_sync(connect(f"seq2seq:{tmp_path}").answer([chat]))
    assert reply.usage.prompt_tokens == 3


def test_a_template_is_told_whether_the_model_may_think(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{{ 'moon moon' if enable_thinking else 'moon' }}"
    tokenizer.save_pretrained(tmp_path)
    AutoModelForSeq2SeqLM.from_pretrained(folder).save_pretrained(tmp_path)
    at_once = replace(_write("", max_tokens=2), messages=(Message("user", "moon"),))
    thinking = replace(at_once, params=Params(max_tokens=2, thinking=1))
    replies = run_sync(connect(f"seq2seq:{tmp_path}").answer([at_once, thinking]))
    assert [reply.usage.prompt_tokens for reply in replies] == [1, 2]


def test_what_cannot_be_used_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="name the encoder-decoder model"):
        connect("seq2seq:")
    with pytest.raises(BackendError, match="cannot load the seq2seq model"):
        run_sync(connect(f"seq2seq:{tmp_path}").answer([_write("moon", max_tokens=1)]))
    with pytest.raises(BackendError, match="no model at"):
        connect(f"seq2seq:{tmp_path / 'nowhere'}")


def test_a_model_is_known_by_its_weights(folders: Mapping[str, Path]) -> None:
    names = [connect(f"seq2seq:{folder},dtype=bfloat16").identity for folder in folders.values()]
    for name, folder in zip(names, folders.values(), strict=True):
        assert name.startswith(f"seq2seq:{folder}#")
        assert name.endswith(",dtype=bfloat16")
    assert len({name.partition("#")[2] for name in names}) == 2


def _train(folder: Path, texts: Mapping[str, str], steps: int) -> None:
    """Teach the model to answer each text with a word."""
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    encoded = tokenizer(list(texts), padding=True, return_tensors="pt", return_token_type_ids=False)
    labels = torch.tensor([[VOCABULARY[word]] for word in texts.values()])
    for _ in range(steps):
        loss = model(**encoded, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)


def test_a_trained_monot5_ranks(tmp_path: Path) -> None:
    """By p(true) of the prompt it was trained on."""
    folder = _save(tmp_path / "trained", "T5")
    queries = {"bread": {"yeast", "dough"}, "moon": {"ocean"}}
    passages = ["the ocean", "yeast", "the dough", "dough the yeast", "ocean"]
    relevant = {
        (query, passage): bool(words & set(passage.split()))
        for query, words in queries.items()
        for passage in passages
    }
    texts = {
        f"Query: {query} Document: {passage} Relevant:": str(good).lower()
        for (query, passage), good in relevant.items()
    }
    _train(folder, texts, steps=60)
    with Reranker(f"seq2seq:{folder}", method="yesno", prompts={"grade": "monot5"}) as ranker:
        for ranking in ranker.rank_many([(query, passages) for query in queries]):
            found = [relevant[ranking.query.text, hit.document.text] for hit in ranking]
            assert found == sorted(found, reverse=True)
            assert (ranking[0].model_score or 0) > 0.5 > (ranking[-1].model_score or 1)
            assert ranking.tally.outcomes == {Status.OK: len(passages)}
