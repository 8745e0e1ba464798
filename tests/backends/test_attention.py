"""In-context reranking by attention, on a tiny real model."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("transformers")

import tests.backends.tiny as tiny
from llmrank.backends import attention
from llmrank.backends.local import LocalBackend
from llmrank.engine import run_sync
from llmrank.errors import SpecError
from llmrank.plan import Attend
from llmrank.prompts import PromptSet
from llmrank.request import Reply, Request
from llmrank.types import Document, Query

pytestmark = pytest.mark.slow  # loading torch takes longer than all of these

WORDS = [
    *[
        "<unk>",
        "</s>",
        "the",
        "sky",
        "sea",
        "is",
        "blue",
        "deep",
        "a",
        "what",
        "Query",
        "N",
        "A",
        "user",
        "said",
    ],
    *"12345[]:/",
]
TEXTS = ("the sky is blue", "a deep deep sea", "blue", "blue")
PLAIN = """\
ask = "attend"
description = "plain"
text = '''
{% for passage in passages %}[{{ passage.number }}] {{ passage }}
{% endfor %}Query: {{ query }}'''
"""
CHAT = PLAIN.replace("text = ", '[[messages]]\nrole = "user"\ntext = ')


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    model = tiny.model("Llama", "CausalLM", vocab_size=len(WORDS))
    reader = tiny.tokenizer(WORDS, single="$A", eos_token="</s>")
    reader.chat_template = "{% for m in messages %}user: {{ m.content }}{% endfor %} said:"
    return tiny.save(folder, model, reader)


def _request(tmp_path: Path, texts: tuple[str, ...], template: str = PLAIN) -> Request:
    path = tmp_path / "attend.toml"
    path.write_text(template, encoding="utf-8")
    docs = tuple(Document(str(i), text) for i, text in enumerate(texts))
    return PromptSet({"attend": path}).render(Attend(Query("q", "what is a deep sea"), docs))


def _reply(backend: LocalBackend, request: Request) -> Reply:
    (reply,) = run_sync(backend.answer([request]))
    return reply


def _reference(backend: LocalBackend, request: Request, heads: tuple[int, ...]) -> list[float]:
    """The same from two passes over the whole prompt, nothing shared."""
    import torch

    model, reader = backend._model, backend._tokenizer
    *passages, (_, start, _) = request.spans
    head = request.prompt[:start].rstrip()
    whole = reader(head, return_offsets_mapping=True)
    seen = []
    model.set_attn_implementation("eager")
    for query in ("what is a deep sea", "N/A"):
        asked = reader(query)["input_ids"]
        ids = torch.tensor([[*whole["input_ids"], *asked]])
        with torch.inference_mode():
            layers = model(input_ids=ids, output_attentions=True).attentions
        known = len(whole["input_ids"])
        picked = [layer[0, list(heads), known:, :known].mean(1).sum(0) for layer in layers]
        seen.append(torch.stack(picked).sum(0).double())
    model.set_attn_implementation("sdpa")
    found = []
    for _, begin, end in passages:
        inside = [i for i, (a, b) in enumerate(whole["offset_mapping"]) if a < end and b > begin]
        scores = (seen[0] - seen[1])[inside]
        if len(scores) > 1:
            scores = scores[scores >= scores.mean() - 2 * scores.std()]
        found.append(float(scores.sum()))
    return found


def test_masses_are_those_of_whole_passes(folder: Path, tmp_path: Path) -> None:
    backend = LocalBackend(str(folder))
    request = _request(tmp_path, TEXTS)
    reply = _reply(backend, request)
    assert reply.attention == pytest.approx(_reference(backend, request, (0, 1)), abs=1e-5)
    assert len(set(reply.attention or ())) == len(TEXTS)
    assert reply.usage.prompt_tokens > 20


def test_it_takes_two_forward_passes_and_leaves_the_model_as_it_was(
    folder: Path, tmp_path: Path
) -> None:
    backend = LocalBackend(str(folder))
    shapes: list[tuple[int, ...]] = []
    backend._model.base_model.register_forward_pre_hook(
        lambda module, given, named: shapes.append(tuple(named["input_ids"].shape)),
        with_kwargs=True,
    )
    before = backend._model.config._attn_implementation
    _reply(backend, _request(tmp_path, TEXTS))
    assert [shape[0] for shape in shapes] == [1, 2]
    assert shapes[1][1] == 5
    assert backend._model.config._attn_implementation == before


def test_a_chat_says_where_its_passages_are(folder: Path, tmp_path: Path) -> None:
    """The template puts words around the message, the last of which no query sees."""
    backend = LocalBackend(str(folder))
    reply = _reply(backend, _request(tmp_path, TEXTS, CHAT))
    request = _request(tmp_path, TEXTS, PLAIN.replace("{% for passage", "user: {% for passage"))
    assert reply.attention == pytest.approx(_reply(backend, request).attention, abs=1e-5)


def test_only_the_heads_that_were_chosen_count(folder: Path, tmp_path: Path) -> None:
    request = _request(tmp_path, TEXTS)
    every = _reply(LocalBackend(str(folder)), request)
    backend = LocalBackend(str(folder), heads="0.0+0.1+1.0+1.1")
    assert _reply(backend, request).attention == pytest.approx(every.attention, abs=1e-6)
    one = LocalBackend(str(folder), heads="0.1+1.1")
    assert _reply(one, request).attention == pytest.approx(_reference(one, request, (1,)), abs=1e-5)
    assert one.identity != backend.identity != LocalBackend(str(folder)).identity


@pytest.mark.parametrize("heads", ["1", "1.", "a.b", "0.1,0.2", "-1.0", "١.٢"])
def test_heads_that_cannot_be_read(heads: str) -> None:
    with pytest.raises(SpecError, match=r"layer\.head"):
        attention.parse_heads(heads)


def test_heads_that_the_model_does_not_have(folder: Path, tmp_path: Path) -> None:
    for heads in ("2.0", "0.2"):
        with pytest.raises(SpecError, match="2 layers of 2 heads"):
            _reply(LocalBackend(str(folder), heads=heads), _request(tmp_path, TEXTS))


def test_a_prompt_too_long_is_an_error_of_its_own(folder: Path, tmp_path: Path) -> None:
    reply = _reply(LocalBackend(str(folder)), _request(tmp_path, ("blue " * 40, *TEXTS)))
    assert "do not fit" in reply.error


def test_a_template_must_show_passages_in_their_order(tmp_path: Path) -> None:
    turned = PLAIN.replace("in passages", "in passages | reverse")
    with pytest.raises(SpecError, match="every passage"):
        _request(tmp_path, TEXTS, turned)


def test_marks_in_a_passage_move_no_span(tmp_path: Path) -> None:
    request = _request(tmp_path, ("\ue000the sky\ue001", "sea", ""))
    shown = [request.prompt[start:end] for _, start, end in request.spans]
    assert shown == ["\ufffdthe sky\ufffd", "sea", "", "what is a deep sea"]
