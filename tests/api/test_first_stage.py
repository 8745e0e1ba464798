from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from llmrank import Document, Query, Retriever
from llmrank.errors import InputError
from llmrank.expand import Expansion, View
from llmrank.plan import Vectors
from tests.servers import Body, Server

DOCUMENTS = [
    Document("a", "yeast makes bread rise"),
    Document("b", "the moon raises the tides", title="The moon"),
    Document("c", "sourdough bread and wild yeast, more yeast"),
    Document("d", "a bridge hangs on its cables"),
]
WORDS = ("bread", "yeast", "moon", "bridge")
QUERY = Query("q", "wild yeast")


def vector(text: str) -> list[float]:
    """A vector counts the words that matter."""
    return [*(float(text.count(word)) for word in WORDS), 0.1]


async def embed(_request: web.Request, body: Body) -> web.StreamResponse:
    data = [{"index": i, "embedding": vector(text)} for i, text in enumerate(body["input"])]
    return web.json_response({"data": data, "model": "vectors", "usage": {"prompt_tokens": 1}})


@pytest.fixture
def url(server: Server) -> Iterator[str]:
    server.script("/embeddings", embed)
    yield server.url


def hybrid(url: str, **given: Any) -> Retriever:  # noqa: ANN401
    encoder = "openai:vectors"
    return Retriever(DOCUMENTS, first_stage="hybrid", encoder=encoder, encoder_url=url, **given)


def plain(text: str) -> Expansion:
    asked: Vectors = np.array([vector(text)], dtype=np.float32)
    return Expansion(Query("q", text), (View(((text, 1.0),)), View(vector=asked)))


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"dense_weight": 0.8},
        {"fusion": "minmax", "dense_weight": 0.1},
        {"fusion": "zscore"},
        {"fusion": "product"},
    ],
)
def test_a_plain_query_finds_what_the_retriever_finds(url: str, given: dict[str, Any]) -> None:
    with hybrid(url, **given) as retriever:
        for text in ("wild yeast", "moon bread", "cables"):
            expected = [(c.document.id, c.score) for c in retriever.search(text, 3)]
            assert retriever.indexed(3).search(plain(text), 3) == expected


def test_other_views_are_fused_by_rank_as_the_expansion_says() -> None:
    first = Retriever(DOCUMENTS).indexed(10)
    views = (View((("bread", 1.0),)), View(terms={"yeast": 1.0}), View((("yeast", 2.0),)))
    found = dict(first.search(Expansion(QUERY, views, constant=1), 9))
    # bread: a before c, as it is shorter; yeast: c before a.
    assert found == pytest.approx({"a": 1 / 2 + 2 / 3, "c": 1 / 3 + 2 / 2})


def test_texts_and_terms_of_a_view_add_up() -> None:
    retriever = Retriever(DOCUMENTS)
    assert retriever.bm25 is not None
    view = View((("wild yeast", 2.0), ("yeast", 0.5)), {"yeast": 1.0, "bread": 0.25})
    expected = retriever.bm25.search({"wild": 2, "yeast": 3.5, "bread": 0.25}, 9)
    assert retriever.indexed(9).search(Expansion(QUERY, (view,)), 9) == expected


def test_a_ranking_is_taken_as_it_is() -> None:
    first = Retriever(DOCUMENTS).indexed(10)
    ranking = (("d", 2.0), ("a", 1.0), ("b", 0.5))
    found = first.search(Expansion(QUERY, (View((("moon", 1.0),)),), ranking=ranking), 2)
    assert found == [("d", 2.0), ("a", 1.0)]
    assert first.search(Expansion(QUERY, ()), 5) == []


def test_what_feedback_takes(url: str) -> None:
    first = Retriever(DOCUMENTS).indexed(7)
    assert (first.kinds, first.size, first.depth) == (frozenset({"bm25"}), 4, 7)
    assert first.analyze("Wild yeasts") == ["wild", "yeast"]
    assert (first.frequency("yeast"), first.frequency("the")) == (2, 0)
    assert first.counts("b") == {"moon": 2, "rais": 1, "tide": 1}
    assert first.document("b") == DOCUMENTS[1]
    with pytest.raises(InputError, match="needs vectors"):
        first.vectors(["a"])
    with pytest.raises(InputError, match="'z'"):
        first.counts("z")
    with hybrid(url) as retriever:
        both = retriever.indexed(7)
        assert both.kinds == {"bm25", "dense"}
        expected = [vector(DOCUMENTS[i].contents) for i in (2, 0)]
        np.testing.assert_allclose(both.vectors(["c", "a"]), expected, rtol=1e-6)
