from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from aiohttp import web

from llmrank import Query, Retriever
from llmrank.api import search_tuned
from llmrank.errors import InputError
from llmrank.evaluate import measure
from tests.servers import Body, Server

pytest.importorskip("ir_measures")

ANIMALS = ("cat", "dog", "cow", "hen", "pig", "ant", "bee", "fox", "owl", "rat", "eel", "emu")
# Every animal has a text that names it, and one that the vectors alone bring together with it.
TEXTS = [text for name in ANIMALS for text in (f"a {name} that {name}s", f"tail of {name[::-1]}")]
QUERIES = [Query(f"q{i:02}", name) for i, name in enumerate(ANIMALS)]


async def embed(_request: web.Request, body: Body) -> web.StreamResponse:
    """Texts that hold an animal read backwards are nearest to it."""
    vectors = [
        [float(name[::-1] in text) + 0.9 * (name in text) for name in ANIMALS] + [0.1]
        for text in body["input"]
    ]
    data = [{"index": i, "embedding": vector} for i, vector in enumerate(vectors)]
    return web.json_response({"data": data, "model": "vectors", "usage": {"prompt_tokens": 1}})


@pytest.fixture
def retriever(server: Server) -> Iterator[Retriever]:
    server.script("/embeddings", embed)
    with Retriever(
        TEXTS,
        first_stage="hybrid",
        encoder="openai:vectors",
        encoder_url=server.url,
        fusion="minmax",
    ) as opened:
        yield opened


def judged(by_words: Sequence[int]) -> dict[str, dict[str, int]]:
    """The text that names it is right for these queries, the other one for all others."""
    return {query.id: {str(2 * i + (i not in by_words)): 1} for i, query in enumerate(QUERIES)}


@pytest.mark.parametrize("by_words", [range(12), [], [0, 3, 5, 6, 8]])
def test_a_fold_gets_the_weight_that_is_best_on_the_others(
    retriever: Retriever, by_words: Sequence[int]
) -> None:
    qrels = judged(by_words)
    tuned = search_tuned(retriever, QUERIES, qrels, 5, folds=3)
    assert (len(tuned.weights), tuned.judged) == (3, 12)
    dealt = sorted(query.id for query in QUERIES)
    random.Random(0).shuffle(dealt)
    parts = dict(zip((q.id for q in QUERIES), retriever.parts(QUERIES, 5), strict=True))
    for fold, weight in enumerate(tuned.weights):
        own = dealt[fold::3]
        others = {query: qrels[query] for query in qrels if query not in own}
        mean = {
            w: math.fsum(measure(run(retriever, parts, w), others, ["nDCG@10"])["nDCG@10"].values())
            for w in (i / 10 for i in range(11))
        }
        assert mean[weight] == max(mean.values())
        assert not any(
            m == mean[weight] and abs(w - 0.5) < abs(weight - 0.5) for w, m in mean.items()
        )
        for query in own:
            assert tuned.found[query] == retriever.fuse(parts[query], 5, weight)


def run(
    retriever: Retriever, parts: Mapping[str, Any], weight: float
) -> dict[str, list[tuple[str, float]]]:
    return {query: retriever.fuse(found, 10, weight) for query, found in parts.items()}


def test_all_queries_that_agree_get_what_is_best_for_all(retriever: Retriever) -> None:
    words = search_tuned(retriever, QUERIES, judged(range(12)), 5)
    dense = search_tuned(retriever, QUERIES, judged([]), 5)
    assert max(words.weights) < min(dense.weights)
    assert [hits[0][0] for hits in words.found.values()] == [str(2 * i) for i in range(12)]
    assert [hits[0][0] for hits in dense.found.values()] == [str(2 * i + 1) for i in range(12)]
    # Of equal weights the nearest to one half is taken.
    assert len(set(words.weights)) == len(set(dense.weights)) == 1


@pytest.mark.parametrize("number", range(12))
def test_its_own_judgements_have_no_part_in_a_query(retriever: Retriever, number: int) -> None:
    name = QUERIES[number].id
    qrels = judged([0, 3, 5, 6, 8, 9])
    other = {**qrels, name: judged([number] if number not in (0, 3, 5, 6, 8, 9) else [])[name]}
    assert qrels[name] != other[name]
    before = search_tuned(retriever, QUERIES, qrels, 5).found[name]
    assert search_tuned(retriever, QUERIES, other, 5).found[name] == before


def test_queries_without_judgements_get_the_weight_of_all(retriever: Retriever) -> None:
    qrels = judged([])
    del qrels["q03"], qrels["q07"]
    tuned = search_tuned(retriever, QUERIES[::-1], qrels, 5)
    assert tuned.judged == 10
    assert tuned.found["q03"][0][0] == "7"
    assert list(tuned.found) == [query.id for query in QUERIES[::-1]]
    assert tuned.weights == search_tuned(retriever, QUERIES, qrels, 5).weights


def test_two_judged_queries_are_the_least(retriever: Retriever) -> None:
    qrels = {name: judged([])[name] for name in ("q01", "q02")}
    assert len(search_tuned(retriever, QUERIES, qrels, 5).weights) == 2
    with pytest.raises(InputError, match="1 judged queries"):
        search_tuned(retriever, QUERIES, {"q01": qrels["q01"], "other": {"1": 1}}, 5)


def test_what_has_no_weights_is_refused(retriever: Retriever) -> None:
    product: Any = "product"
    retriever.fusion = product
    with pytest.raises(InputError, match="no weight to tune"):
        search_tuned(retriever, QUERIES, judged([]), 5)
    with pytest.raises(InputError, match="fuses nothing"):
        search_tuned(Retriever(TEXTS), QUERIES, judged([]), 5)
