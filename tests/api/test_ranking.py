"""What rankings hold whatever the model does; `test_reranker.py` has the ways to ask for them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrank import Candidate, Document, Query, Ranking, Reranker
from llmrank.errors import BackendError, InputError, LlmrankError
from tests.api.judges import MODEL, answer, passage, prompts, sent
from tests.effort import examples
from tests.servers import Server, chat, refuses, sends

QUERY = "what is a text worth"
PASSAGES = [passage(worth) for worth in (3, 1, 4, 15, 9, 2, 6)]
BEST_FIRST = ["3", "4", "6", "2", "0", "5", "1"]


@pytest.fixture
def listwise(server: Server) -> Iterator[Reranker]:
    with Reranker(MODEL, method="sliding(window=10, stride=5)", base_url=server.url) as ranker:
        yield ranker


@pytest.fixture
def pointwise(server: Server) -> Iterator[Reranker]:
    with Reranker(MODEL, method="yesno", base_url=server.url) as ranker:
        yield ranker


def ids(ranking: Ranking) -> list[str]:
    return [hit.document.id for hit in ranking]


def test_the_best_come_first(listwise: Reranker, pointwise: Reranker) -> None:
    for by in (listwise, pointwise):
        ranking = by.rank(QUERY, (text for text in PASSAGES))
        assert ids(ranking) == BEST_FIRST
        assert [hit.score for hit in ranking] == [7, 6, 5, 4, 3, 2, 1]


def test_below_the_depth_the_order_stays(server: Server) -> None:
    with Reranker(MODEL, method="yesno@3", base_url=server.url) as ranker:
        ranking = ranker.rank(QUERY, PASSAGES)
    assert ids(ranking) == ["2", "0", "1", "3", "4", "5", "6"]
    assert [hit.model_score is None for hit in ranking] == [False] * 3 + [True] * 4
    assert sent(server) == 3


@examples(30)
@given(st.data())
def test_scores_strictly_fall_and_nobody_is_lost(judgements: Path, data: st.DataObject) -> None:
    scores = data.draw(st.lists(st.floats(-9, 9), max_size=12))
    method = data.draw(st.sampled_from(["yesno", "sliding(window=3, stride=2)", "likelihood"]))
    given = [Candidate(Document(f"d{i}", f"text {i % 4}"), s) for i, s in enumerate(scores)]
    with Reranker(f"oracle:{judgements},noise=0.7", method=method) as ranker:
        ranking = ranker.rank(Query("q", QUERY), given)
        again = ranker.rank(Query("q", QUERY), given)
    assert sorted(ids(ranking)) == sorted(c.document.id for c in given)
    assert all(above.score > below.score for above, below in pairwise(ranking))
    assert {hit.first_stage_rank for hit in ranking} == set(range(1, len(given) + 1))
    assert ids(again) == ids(ranking)


def test_replies_without_an_order_move_nobody(listwise: Reranker, server: Server) -> None:
    server.script("/chat/completions", sends(chat("I would rather not.")))
    ranking = listwise.rank(QUERY, PASSAGES)
    assert ids(ranking) == [str(i) for i in range(7)]
    assert ranking.tally.failures == ranking.tally.asks == 2


def test_one_failure_leaves_the_others_their_order(pointwise: Reranker, server: Server) -> None:
    server.script("/chat/completions", refuses(400, "this one is too odd"), answer)
    ranking = pointwise.rank(QUERY, [passage(worth) for worth in (1, 2, 3, 4)])
    assert ranking.tally.failures == 1
    (lost,) = [hit for hit in ranking if hit.model_score is None]
    assert lost.rank == lost.first_stage_rank
    others = [int(hit.document.id) for hit in ranking if hit is not lost]
    assert others == sorted(others, reverse=True)


def test_after_a_refused_key_the_ranker_goes_on(listwise: Reranker, server: Server) -> None:
    server.script("/chat/completions", refuses(401, "no such key"))
    with pytest.raises(BackendError):
        listwise.rank(QUERY, PASSAGES)
    server.script("/chat/completions", answer)
    assert ids(listwise.rank(QUERY, PASSAGES)) == BEST_FIRST


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_candidate_s_score_must_be_a_number(pointwise: Reranker, score: float) -> None:
    with pytest.raises(InputError, match="score of passage 1"):
        pointwise.rank(QUERY, [Candidate(Document("a", "b")), Candidate(Document("b", "c"), score)])


@pytest.mark.parametrize(
    "wrong",
    [{"method": "slide"}, {"method": "yesno@0"}, {"prompts": {"order": "nowhere"}}],
)
def test_what_cannot_be_made_leaves_no_journal(
    server: Server, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    with pytest.raises(LlmrankError):
        Reranker(MODEL, base_url=server.url, journal=tmp_path / "j", **wrong)
    assert not (tmp_path / "j").exists()
    assert server.received == []


def test_neither_ids_nor_metadata_are_sent(pointwise: Reranker, server: Server) -> None:
    pointwise.rank(Query("secret-1", QUERY), [Document("secret-2", passage(1), "", {"k": "sec"})])
    assert not any("sec" in text for text in prompts(server))


def test_failures_are_not_kept_in_the_journal(server: Server, tmp_path: Path) -> None:
    server.script("/chat/completions", refuses(400, "odd"))
    with Reranker(
        MODEL, method="yesno", base_url=server.url, journal=tmp_path / "journal"
    ) as ranker:
        assert ranker.rank(QUERY, PASSAGES).tally.failures == 7
        server.script("/chat/completions", answer)
        assert ids(ranker.rank(QUERY, PASSAGES)) == BEST_FIRST


def test_calls_of_several_tasks_share_the_limit(server: Server) -> None:
    under_way = [0, 0]

    async def counted(request: Any, body: Any) -> Any:  # noqa: ANN401
        under_way[0] += 1
        under_way[1] = max(under_way)
        await asyncio.sleep(0.01)
        under_way[0] -= 1
        return await answer(request, body)

    server.script("/chat/completions", counted)
    with Reranker(MODEL, method="yesno", base_url=server.url, in_flight=3) as ranker:

        async def several() -> list[Ranking]:
            return await asyncio.gather(*(ranker.arank(str(i), PASSAGES) for i in range(5)))

        assert all(ids(ranking) == BEST_FIRST for ranking in asyncio.run(several()))
    assert under_way[1] == 3
