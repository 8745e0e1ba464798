from __future__ import annotations

import asyncio
import gc
import json
import math
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmrank
from llmrank import Candidate, Caps, Document, Query, Reranker, api
from llmrank.api import arerank, rerank
from llmrank.api.reranker import Passage
from llmrank.backends import connect
from llmrank.backends.openai import OpenAIBackend
from llmrank.backends.oracle import Oracle
from llmrank.errors import BackendError, CapabilityError, InputError, LlmrankError, SpecError
from llmrank.store import Journal
from tests import servers
from tests.api.judges import sent
from tests.judge import asked, judge
from tests.servers import Server

TEXTS = ["the sun is a star", "yeast makes dough rise", "bread", "yeast", "tides"]
QUERY = "why does dough rise"


@pytest.fixture
def server() -> Iterator[Server]:
    with judge() as running:
        yield running


@pytest.fixture
def qrels(tmp_path: Path) -> str:
    (tmp_path / "qrels").write_text("1 0 1 3\n1 0 3 1\nq 0 good 1\n")
    return f"oracle:{tmp_path / 'qrels'}"


def _ids(ranking: Iterable[llmrank.Hit]) -> list[str]:
    return [hit.document.id for hit in ranking]


def test_a_ranking(qrels: str) -> None:
    ranking = Reranker(qrels, method="sliding(window=3, stride=1)").rank(QUERY, TEXTS)
    assert _ids(ranking)[:2] == ["1", "3"]
    assert sorted(_ids(ranking)) == ["0", "1", "2", "3", "4"]
    assert [hit.rank for hit in ranking] == [1, 2, 3, 4, 5]
    assert [hit.score for hit in ranking] == [5, 4, 3, 2, 1]
    assert ranking[0].document.text == TEXTS[1]
    assert ranking[0].first_stage_rank == 2
    assert ranking[0].first_stage_score > ranking[-1].first_stage_score
    assert ranking.tally.asks == 3


def test_passages_as_users_have_them(qrels: str) -> None:
    passages: list[Passage] = [
        "a text",
        {"text": "a text", "id": "good", "title": "T", "url": "http://x", "page": 3},
        {"_id": 7, "text": "a text", "id": None},
        Document("doc", "a text", metadata={"source": "s"}),
    ]
    ranking = Reranker(qrels, method="yesno").rank(Query("q", QUERY), passages)
    assert ranking.query.id == "q"
    assert _ids(ranking) == ["good", "0", "7", "doc"]
    found = {hit.document.id: hit for hit in ranking}
    assert found["good"].document.metadata == {"url": "http://x", "page": 3}
    assert found["good"].document.contents == "T a text"
    assert found["doc"].document.metadata == {"source": "s"}


def test_first_stage_scores_are_kept_and_given_for_all_or_none(qrels: str) -> None:
    reranker = Reranker(qrels, method="yesno")
    passages: list[Passage] = [
        Candidate(Document("candidate", "a text"), 2.5),
        {"text": "a text", "score": np.float32(-1.5)},
    ]
    found = {hit.document.id: hit for hit in reranker.rank(QUERY, passages)}
    assert found["candidate"].first_stage_score == 2.5
    assert found["1"].first_stage_score == -1.5
    with pytest.raises(InputError, match="2 of 3 passages bring a score"):
        reranker.rank(QUERY, [*passages, "a text"])


def test_equal_texts_are_kept_apart(server: Server) -> None:
    reranker = Reranker("openai:m", base_url=server.url)
    ranking = reranker.rank(QUERY, ["same", "same", "other", "same"])
    assert sorted(_ids(ranking)) == ["0", "1", "2", "3"]
    assert all(
        hit.document.text == ("other" if hit.document.id == "2" else "same") for hit in ranking
    )


@pytest.mark.parametrize("method", ["yesno", "likelihood", "sliding"])
def test_none_and_one_passage(qrels: str, method: str) -> None:
    reranker = Reranker(qrels, method=method)
    assert list(reranker.rank(QUERY, [])) == []
    assert reranker.rank(QUERY, []).tally.asks == 0
    assert _ids(reranker.rank(QUERY, ["only"])) == ["0"]
    assert sorted(_ids(reranker.rank(QUERY, iter(["", "only"])))) == ["0", "1"]
    assert reranker.rank_many([]) == []


@pytest.mark.parametrize(
    ("query", "passages", "told"),
    [
        ("", ["a"], "no text"),
        (QUERY, ["", " "], "none of the 2 passages has a text"),
        (" \n", ["a"], "no text"),
        (None, ["a"], "the query is NoneType"),
        (QUERY, "a text", "several passages, not str"),
        (QUERY, {"1": "a text"}, "several passages, not dict"),
        (QUERY, None, "several passages, not NoneType"),
        (QUERY, [None], "passage 0 is NoneType"),
        (QUERY, ["a", {"page_content": "a"}], "passage 1 is a mapping with the keys page_content"),
        (QUERY, [{"text": None}], "passage 0"),
        (QUERY, [{"text": "a", "score": "high"}], "not a finite number"),
        (QUERY, [{"text": "a", "score": float("nan")}], "not a finite number"),
        (QUERY, [{"text": "a", "id": "x"}, {"text": "b", "id": "x"}], "'x'"),
        (QUERY, ["a", {"text": "b", "id": "0"}], "'0'"),
    ],
)
def test_what_cannot_be_ranked(qrels: str, query: Any, passages: Any, told: str) -> None:  # noqa: ANN401
    reranker = Reranker(qrels)
    with pytest.raises(InputError, match=told):
        reranker.rank(query, passages)


@pytest.mark.parametrize(
    ("build", "error"),
    [
        (lambda m: Reranker("nosuch:x"), SpecError),
        (lambda m: Reranker(m, method="nosuch"), SpecError),
        (lambda m: Reranker(m, method="sliding(window=1)"), SpecError),
        (lambda m: Reranker(m, prompts={"order": "nosuch"}), SpecError),
        (lambda m: Reranker(m, prompts={"grade": "yesno"}, method="sliding"), SpecError),
        (lambda m: Reranker(m, in_flight=0), InputError),
        (lambda m: Reranker(m, remember=-1), InputError),
        (lambda m: Reranker("openai:x"), BackendError),
    ],
)
def test_what_cannot_be_made(
    qrels: str, build: Callable[[str], Reranker], error: type[LlmrankError]
) -> None:
    with pytest.raises(error):
        build(qrels)


def test_no_query_is_paid_for_where_another_cannot_be_ranked(server: Server) -> None:
    for method, long in [
        ("jointrank(k=3, design=latin)", ["a text"] * 10),
        ("passages(full(by=labels), words=1, overlap=0)", ["a b c"] * 9),
        ("psc(passages(full(by=labels), words=1, overlap=0))", ["a b c"] * 9),
    ]:
        with Reranker("openai:m", base_url=server.url, method=method) as reranker:
            before = asked(server)
            with pytest.raises(SpecError, match="query '2': "):
                reranker.rank_many([(QUERY, TEXTS), (QUERY, long), (QUERY, TEXTS)])
            assert asked(server) == before
            assert len(reranker.rank(QUERY, TEXTS)) == 5


class TestPromptsThatCannotServe:
    def _prompt(self, folder: Path, kind: str, rest: str) -> Path:
        path = folder / "mine.toml"
        path.write_text(f'ask = "{kind}"\ndescription = "x"\n{rest}')
        return path

    @pytest.mark.parametrize("labels", ["4", "1-3", "high/none"])
    def test_a_grade_prompt_has_the_labels_that_are_asked_for(
        self, qrels: str, tmp_path: Path, labels: str
    ) -> None:
        text = 'text = "{{ query }} {{ passage }}"\n[labels]\n2 = ["two"]\n1 = ["1"]\n0 = ["0"]\n'
        prompt = self._prompt(tmp_path, "grade", text)
        with pytest.raises(SpecError, match=r"labels 2, 1, 0; the method asks for"):
            Reranker(qrels, method=f"grade(labels={labels})", prompts={"grade": prompt})
        fitting = Reranker(qrels, method="grade(labels=3)", prompts={"grade": prompt})
        assert _ids(fitting.rank(QUERY, TEXTS))[0] == "1"
        with pytest.raises(SpecError, match="asks for 3, 2, 1, 0"):
            Reranker(qrels, method="yesno >> grade@3", prompts={"grade": "yesno"})

    def test_a_prompt_that_shows_the_labels_serves_any(self, qrels: str, tmp_path: Path) -> None:
        text = 'text = "{{ query }} {{ passage }} {{ labels }}"\n'
        prompt = self._prompt(tmp_path, "grade", text)
        for method in ("grade(labels=1-5)", "yesno"):
            assert Reranker(qrels, method=method, prompts={"grade": prompt}).rank(QUERY, TEXTS)

    def test_a_prompt_to_pick_several_says_how_many(self, qrels: str, tmp_path: Path) -> None:
        prompt = self._prompt(tmp_path, "pick", 'text = "{{ query }} {{ passages }}"\n')
        with pytest.raises(SpecError, match="for up to 5"):
            Reranker(qrels, method="tourrank", prompts={"pick": prompt})
        for method in ("setwise", "prp", "tourrank(by=labels)"):
            Reranker(qrels, method=method, prompts={"pick": prompt})
        several = self._prompt(tmp_path, "pick", 'text = "{{ query }} {{ n }} {{ passages }}"\n')
        Reranker(qrels, method="tourrank", prompts={"pick": several})


def test_a_model_that_cannot_answer_says_so(server: Server) -> None:
    server.script("/chat/completions", servers.sends(servers.chat("Yes")))
    with (
        Reranker("openai:m", base_url=server.url, method="yesno") as reranker,
        pytest.raises(CapabilityError, match="no log-probabilities"),
    ):
        reranker.rank(QUERY, TEXTS)


def test_many_queries_keep_their_order(server: Server) -> None:
    with Reranker("openai:m", base_url=server.url) as reranker:
        requests = [(f"query {i}", TEXTS[: i % 5]) for i in range(20)]
        many = reranker.rank_many(requests)
        one_by_one = [reranker.rank(Query(str(i + 1), q), p) for i, (q, p) in enumerate(requests)]
    assert [(r.query, r.hits) for r in many] == [(r.query, r.hits) for r in one_by_one]


def test_in_a_notebook_and_in_a_server(server: Server) -> None:
    reranker = Reranker("openai:m", base_url=server.url)
    expected = reranker.rank(QUERY, TEXTS)

    async def cell() -> None:
        # A notebook's cell runs inside a loop; ordinary calls work there too.
        assert reranker.rank(QUERY, TEXTS).hits == expected.hits
        assert (await reranker.arank(QUERY, TEXTS)).hits == expected.hits
        several = await asyncio.gather(*(reranker.arank(QUERY, TEXTS) for _ in range(20)))
        assert all(ranking.hits == expected.hits for ranking in several)
        assert len(await reranker.arank_many([(QUERY, TEXTS)] * 3)) == 3

    # Each run has another event loop.
    for _ in range(3):
        asyncio.run(cell())
    reranker.close()


def test_the_loop_of_a_server_goes_on_meanwhile() -> None:
    with judge(delay=0.2) as slow, Reranker("openai:m", base_url=slow.url) as reranker:

        async def serve() -> int:
            ticks = 0
            ranking = asyncio.ensure_future(reranker.arank(QUERY, TEXTS))
            while not ranking.done():
                await asyncio.sleep(0.01)
                ticks += 1
            assert len(await ranking) == 5
            return ticks

        assert asyncio.run(serve()) > 5


def test_a_cancelled_call_leaves_the_reranker_usable() -> None:
    with judge(delay=0.3) as slow, Reranker("openai:m", base_url=slow.url) as reranker:

        async def serve() -> None:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reranker.arank(QUERY, TEXTS), 0.05)
            assert len(await reranker.arank(QUERY, TEXTS)) == 5

        asyncio.run(serve())


def test_from_several_threads_at_once(server: Server, tmp_path: Path) -> None:
    with Reranker("openai:m", base_url=server.url, journal=tmp_path / "j") as reranker:
        expected = reranker.rank(QUERY, TEXTS).hits
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: reranker.rank(QUERY, TEXTS).hits, range(40)))
    assert all(hits == expected for hits in found)
    assert asked(server) == 1


def test_a_journal_pays_once(server: Server, tmp_path: Path) -> None:
    for _ in range(2):
        with Reranker(
            "openai:m", base_url=server.url, method="yesno", journal=tmp_path / "new" / "journal"
        ) as reranker:
            ranking = reranker.rank(QUERY, TEXTS)
    assert asked(server) == 5
    assert (ranking.tally.asks, ranking.tally.reused) == (5, 5)
    journal = Journal(tmp_path / "new" / "journal")
    assert len(journal) == 5
    journal.close()


SAMPLED = """
ask = "order"
description = "passages in an order that is drawn"
[params]
max_tokens = 50
temperature = 0.7
[[messages]]
role = "user"
text = "{{ query }}\\n{% for p in passages %}[{{ p.number }}] {{ p }}\\n{% endfor %}"
"""


@pytest.mark.parametrize(
    ("method", "prompt"),
    [
        ("yesno", ""),
        ("psc(sliding(window=3, stride=1), samples=3)", ""),
        ("psc(sliding(window=3, stride=1), samples=3)", SAMPLED),
    ],
)
def test_without_a_journal_no_equal_request_is_sent_again(
    server: Server, tmp_path: Path, method: str, prompt: str
) -> None:
    (tmp_path / "own.toml").write_text(prompt)
    prompts = {"order": tmp_path / "own.toml"} if prompt else {}
    # What is shuffled is shuffled by the query's id.
    given = [(Query("q", QUERY), TEXTS)] * 3

    def ranked(remember: int) -> tuple[list[llmrank.Ranking], list[str]]:
        server.received.clear()
        with Reranker(
            "openai:m", base_url=server.url, method=method, prompts=prompts, remember=remember
        ) as reranker:
            rankings = [*reranker.rank_many(given), reranker.rank(*given[0])]
        return rankings, [json.dumps(body) for body in server.bodies("/chat/completions")]

    every, bodies = ranked(0)
    assert len(bodies) == sum(ranking.tally.asks for ranking in every) >= 4 * 5
    assert ("seed" in bodies[0]) is bool(prompt)
    once, fewer = ranked(100)
    assert sorted(fewer) == sorted(set(bodies))
    assert [ranking.hits for ranking in once] == [ranking.hits for ranking in every]
    assert sum(ranking.tally.reused for ranking in once) == len(bodies) - len(fewer)


def test_of_many_answers_the_oldest_are_forgotten(server: Server) -> None:
    with Reranker("openai:m", base_url=server.url, method="yesno", remember=5) as reranker:
        for texts, count in [(TEXTS, 5), (TEXTS, 5), (["new"], 6), (TEXTS[1:], 6), (TEXTS[:1], 7)]:
            reranker.rank(QUERY, texts)
            assert sent(server) == count


def test_what_failed_is_not_remembered(server: Server) -> None:
    server.script("/chat/completions", servers.refuses(400, "no"), servers.sends(servers.chat("1")))
    with Reranker("openai:m", base_url=server.url) as reranker:
        assert reranker.rank(QUERY, TEXTS[:2]).tally.failures >= 1
        before = sent(server)
        reranker.rank(QUERY, TEXTS[:2])
        assert sent(server) > before


def test_caps(server: Server) -> None:
    with Reranker("openai:m", base_url=server.url, method="yesno", caps=Caps(calls=3)) as reranker:
        tally = reranker.rank(QUERY, TEXTS).tally
    assert (tally.asks, tally.unasked, asked(server)) == (3, 2, 3)


def test_what_is_no_number_is_no_limit() -> None:
    for cap in ({"cost": math.nan}, {"seconds": math.nan}, {"calls": -1}):
        with pytest.raises(InputError, match="0 or more"):
            Caps(**cap)


def test_without_a_key_the_journal_is_let_go_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    journal = Journal(tmp_path / "j.sqlite")
    with pytest.raises(BackendError, match="no API key"):
        api.Session(api.Settings(model="openai:m"), journal)
    with pytest.raises(InputError, match="closed database"):
        journal.get("k")


def test_settings_have_all_else(server: Server) -> None:
    settings = api.Settings(model="openai:m", base_url=server.url, thinking=500, passage_words=2)
    with Reranker(settings=settings, method="full(by=text)", remember=0) as reranker:
        reranker.rank("tides", ["the moon and more", "dough"])
    (body,) = server.bodies("/chat/completions")
    shown = body["messages"][-1]["content"]
    assert "the moon" in shown
    assert "and more" not in shown
    assert body["max_tokens"] > 500
    with Reranker("openai:other", settings=settings, method="full(by=text)") as reranker:
        assert "openai:other" in repr(reranker)


def test_a_prompt_of_ones_own(server: Server, tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text(
        'ask = "order"\ndescription = "mine"\nsource = "me"\n[params]\nmax_tokens = 50\n'
        '[[messages]]\nrole = "user"\ntext = """My own.\n{% for p in passages %}\n'
        '[{{ p.number }}] {{ p }}\n{% endfor %}\n{{ query }}"""\n'
    )
    with Reranker("openai:m", base_url=server.url, prompts={"order": mine}) as reranker:
        assert len(reranker.rank(QUERY, TEXTS)) == 5
    (body,) = server.bodies("/chat/completions")
    assert body["messages"][0]["content"].startswith("My own.")


def test_closing_twice_and_using_it_afterwards(server: Server, tmp_path: Path) -> None:
    reranker = Reranker("openai:m", base_url=server.url, journal=tmp_path / "j")
    with reranker:
        reranker.rank(QUERY, TEXTS)
        reranker.close()
    reranker.close()
    with pytest.raises(InputError, match="closed"):
        reranker.rank(QUERY, TEXTS)
    with pytest.raises(InputError, match="closed"):
        asyncio.run(reranker.arank(QUERY, TEXTS))


def test_a_forgotten_reranker_closes_its_connections(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    reranker = Reranker("openai:m", base_url=server.url)
    reranker.rank(QUERY, TEXTS)
    del reranker
    gc.collect()
    for thread in threading.enumerate():
        if thread.name == "llmrank-close":
            thread.join(5)
    gc.collect()
    # Warnings are errors in these tests; what a loop has to say of open connections is logged.
    assert not caplog.records


def test_a_program_that_closes_nothing_ends_in_silence(server: Server) -> None:
    program = f"""
import asyncio, llmrank.api as api
print(len(api.rerank("q", ["a", "b"], base_url={server.url!r})))
print(len(asyncio.run(api.arerank("q", ["a", "b", "c"], base_url={server.url!r}))))
ranker = api.Reranker("openai:m", base_url={server.url!r})
ranker.rank("q", ["a", "b"])
ranker = api.Reranker("openai:m", base_url={server.url!r})
ranker.rank("q", ["a", "b"])
"""
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", program], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("2\n3\n", "")


def test_in_one_line(qrels: str) -> None:
    assert _ids(rerank(QUERY, TEXTS, qrels))[0] == "1"
    assert _ids(asyncio.run(arerank(QUERY, TEXTS, qrels, method="yesno")))[0] == "1"


class Grader(Oracle):
    """A judge of pairs, as cross-encoders are."""

    wants = frozenset({"pair"})


def test_the_default_suits_the_model() -> None:
    found = api.default_method(connect("local:"))
    assert str(found).startswith("likelihood(")
    assert str(api.default_method(Oracle({}))).startswith("adaptive(")
    assert str(api.default_method(OpenAIBackend("x", api_key="k"))).startswith("adaptive(")
    assert str(api.default_method(Grader({}))).startswith("yesno@")


@pytest.mark.local
def test_the_local_model() -> None:
    with Reranker(method="likelihood") as reranker:
        ranking = reranker.rank("Why does bread dough rise?", [TEXTS[0], TEXTS[1]])
    assert _ids(ranking) == ["1", "0"]
    assert all(hit.model_score is not None and hit.model_score < 0 for hit in ranking)
