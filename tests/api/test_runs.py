from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmrank import Caps, Session, Settings, trec
from llmrank.api import Inputs, Retriever, RunInput, demand, rerank_run
from llmrank.errors import InputError, SpecError, StoppedAtCap, TooManyFailures
from llmrank.rerank import Method, parse
from llmrank.store import RunFolder
from llmrank.types import Status, Tally
from tests.api.judges import MODEL, answer, passage, sent
from tests.servers import Server, refuses

DEPTH = 20


@pytest.fixture(scope="module")
def first(collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BM25 run of the first queries of the example collection."""
    path = tmp_path_factory.mktemp("first") / "first.trec"
    retriever = Retriever(list(trec.read_corpus(collection)))
    queries = list(trec.read_queries(collection))[:6]
    found = (
        (q.id, [(c.document.id, c.score) for c in retriever.search(q, DEPTH)]) for q in queries
    )
    trec.write_run(path, found, tag="bm25")
    return path


@pytest.fixture
def rerank(first: Path, collection: Path) -> Callable[..., tuple[Tally, int]]:
    """Rerank with a noisy oracle into a folder: the tally and the requests really sent."""

    def run(
        folder: Path, method: str | Method, *, caps: Caps | None = None, limit: int | None = None
    ) -> tuple[Tally, int]:
        chosen = parse(method) if isinstance(method, str) else method
        model = f"oracle:{collection / 'qrels/test.tsv'},noise=0.3"
        inputs = Inputs(RunInput(first, collection, collection, limit), chosen.depth)
        into = RunFolder(folder)
        with Session(Settings(model, caps=caps or Caps()), into.journal()) as session:
            tally = rerank_run(session, chosen, inputs, into)
            return tally, session.meter.requests

    return run


Rerank = Callable[..., tuple[Tally, int]]


def results(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "run.trec").read_bytes(), (folder / "scores.jsonl").read_bytes()


def orders(run: Path) -> dict[str, list[str]]:
    return {query: [doc for doc, _ in hits] for query, hits in trec.read_run(run)}


def test_a_method_that_cannot_rank_the_longest_query_sends_nothing(
    rerank: Rerank, first: Path, collection: Path, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=r"query '\w+': a latin square of 20 items"):
        rerank(tmp_path / "run", "jointrank(k=4, design=latin)")
    with closing(RunFolder(tmp_path / "run").journal()) as journal:
        assert len(journal) == 0
    assert rerank(tmp_path / "run", "jointrank(k=4, design=latin)@16")[0].asks == 6 * 8


def test_a_longer_document_at_another_query_is_named(tmp_path: Path) -> None:
    trec.write_jsonl(
        tmp_path / "corpus.jsonl",
        [
            {"_id": "short", "text": "a b"},
            {"_id": "brief", "text": "c"},
            {"_id": "long", "text": " ".join(map(str, range(30)))},
        ],
    )
    trec.write_jsonl(tmp_path / "queries.jsonl", [{"_id": q, "text": q} for q in ("q1", "q2")])
    groups = [("q1", [("short", 2.0), ("brief", 1.0)]), ("q2", [("long", 1.0)])]
    trec.write_run(tmp_path / "run.trec", groups, tag="x")
    (tmp_path / "qrels").write_text("q1 0 short 1\n")
    method = parse("passages(full(by=labels), words=1, overlap=0)")
    inputs = Inputs(RunInput(tmp_path / "run.trec", tmp_path, tmp_path), method.depth)
    into = RunFolder(tmp_path / "out")
    with (
        Session(Settings(f"oracle:{tmp_path / 'qrels'}"), into.journal()) as session,
        pytest.raises(SpecError, match="query 'q2': full: by labels at most 26"),
    ):
        rerank_run(session, method, inputs, into)


class TestFolder:
    def test_it_holds_everything(self, rerank: Rerank, first: Path, tmp_path: Path) -> None:
        tally, requests = rerank(tmp_path / "run", "yesno@10")
        found = {path.name for path in (tmp_path / "run").iterdir()}
        assert found >= {"manifest.json", "run.trec", "scores.jsonl", "summary.json"}
        manifest = json.loads((tmp_path / "run/manifest.json").read_text())
        assert manifest["method"] == "yesno@10"
        assert manifest["reported"] == ["oracle"]
        assert manifest["data"]["run"]["name"] == "first.trec"
        assert all(len(source["sha256"]) == 64 for source in manifest["data"].values())
        assert list(manifest["prompts"]) == ["grade"]
        summary = json.loads((tmp_path / "run/summary.json").read_text())
        assert summary["requests"] == requests == summary["asks"] == tally.asks == 60
        assert summary["queries"] == 6
        assert summary["complete"] is True
        assert summary["prompt_tokens"] == tally.usage.prompt_tokens > 0
        assert summary["cost"] is None
        assert {q: sorted(d) for q, d in orders(tmp_path / "run/run.trec").items()} == {
            q: sorted(d) for q, d in orders(first).items()
        }

    def test_scores_say_where_a_document_came_from(
        self, rerank: Rerank, first: Path, tmp_path: Path
    ) -> None:
        rerank(tmp_path / "run", "yesno@10")
        hits = dict(trec.read_run(first))
        rows = list(trec.read_jsonl(tmp_path / "run/scores.jsonl"))
        assert len(rows) == 60
        for row in rows:
            rank = row["first_stage_rank"]
            assert isinstance(rank, int)
            doc, score = hits[str(row["query"])][rank - 1]
            assert (row["document"], row["first_stage_score"]) == (doc, score)

    def test_below_the_depth_the_order_stays(
        self, rerank: Rerank, first: Path, tmp_path: Path
    ) -> None:
        rerank(tmp_path / "run", "yesno@5")
        before, after = orders(first), orders(tmp_path / "run/run.trec")
        assert list(before) == list(after)
        for query, docs in before.items():
            assert after[query][5:] == docs[5:]
            assert sorted(after[query][:5]) == sorted(docs[:5])

    def test_the_limit_takes_the_first_queries(
        self, rerank: Rerank, first: Path, tmp_path: Path
    ) -> None:
        rerank(tmp_path / "run", "yesno@5", limit=2)
        assert list(orders(tmp_path / "run/run.trec")) == list(orders(first))[:2]

    def test_it_does_not_write_over_its_own_input(
        self, rerank: Rerank, collection: Path, tmp_path: Path
    ) -> None:
        rerank(tmp_path / "run", "yesno@5")
        before = results(tmp_path / "run")
        folder = RunFolder(tmp_path / "run")
        inputs = Inputs(RunInput(folder.run, collection, collection), 5)
        model = f"oracle:{collection / 'qrels/test.tsv'}"
        with (
            Session(Settings(model), folder.journal()) as session,
            pytest.raises(InputError, match="overwritten"),
        ):
            rerank_run(session, parse("yesno@5"), inputs, folder)
        assert results(tmp_path / "run") == before


class TestAgain:
    @pytest.mark.parametrize("method", ["yesno@10", "sliding(window=8, stride=4)@20", "likelihood"])
    def test_the_second_run_sends_nothing_and_gives_the_same_bytes(
        self, rerank: Rerank, tmp_path: Path, method: str
    ) -> None:
        tally, requests = rerank(tmp_path / "run", method)
        before = results(tmp_path / "run")
        again, further = rerank(tmp_path / "run", method)
        assert (requests, further) == (tally.asks, 0)
        assert again.reused == again.asks == tally.asks
        assert again.usage.total == 0
        assert results(tmp_path / "run") == before

    def test_a_larger_depth_asks_only_for_what_is_new(self, rerank: Rerank, tmp_path: Path) -> None:
        rerank(tmp_path / "run", "yesno@5")
        tally, requests = rerank(tmp_path / "run", "yesno@12")
        assert (tally.reused, requests) == (30, 42)
        rerank(tmp_path / "elsewhere/run", "yesno@12")
        assert results(tmp_path / "run") == results(tmp_path / "elsewhere/run")

    def test_a_folder_beside_is_looked_into(self, rerank: Rerank, tmp_path: Path) -> None:
        rerank(tmp_path / "one", "yesno@5")
        tally, requests = rerank(tmp_path / "two", "yesno@5")
        assert (tally.reused, requests) == (30, 0)
        assert results(tmp_path / "one") == results(tmp_path / "two")

    def test_a_folder_beside_may_be_gone_later(self, rerank: Rerank, tmp_path: Path) -> None:
        rerank(tmp_path / "one", "yesno@5")
        rerank(tmp_path / "two", "yesno@5")
        for path in (tmp_path / "one").iterdir():
            path.unlink()
        (tmp_path / "one").rmdir()
        assert rerank(tmp_path / "two", "yesno@5")[1] == 0

    @settings(
        max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(
        cap=st.integers(0, 40), method=st.sampled_from(["yesno@6", "sliding(window=6, stride=3)"])
    )
    def test_a_capped_run_goes_on_to_the_same_bytes(
        self,
        rerank: Rerank,
        tmp_path_factory: pytest.TempPathFactory,
        cap: int,
        method: str,
    ) -> None:
        folder = tmp_path_factory.mktemp("capped")
        whole, requests = rerank(folder / "whole/run", method)
        part, sent_first = rerank(folder / "part/run", method, caps=Caps(calls=cap))
        assert sent_first == min(cap, requests)
        assert (part.unasked > 0) == (cap < requests)
        stopped = json.loads((folder / "part/run/summary.json").read_text())
        assert stopped["complete"] is (cap >= requests)
        _, sent_then = rerank(folder / "part/run", method, caps=Caps(calls=requests))
        assert sent_first + sent_then == requests
        assert results(folder / "part/run") == results(folder / "whole/run")
        assert whole.unasked == 0


class TestFailures:
    def _run(self, server: Server, folder: Path) -> Tally:
        data = folder / "data"
        data.mkdir()
        corpus = [{"_id": f"d{i}", "text": passage(i)} for i in range(1, 9)]
        trec.write_jsonl(data / "corpus.jsonl", corpus)
        trec.write_jsonl(data / "queries.jsonl", [{"_id": "q", "text": "worth"}])
        hits = [(f"d{i}", float(9 - i)) for i in range(1, 9)]
        trec.write_run(folder / "first.trec", [("q", hits)], tag="x")
        inputs = Inputs(RunInput(folder / "first.trec", data, data), 100)
        into = RunFolder(folder / "run")
        with Session(Settings(MODEL, server.url, in_flight=1), into.journal()) as session:
            return rerank_run(session, parse("yesno"), inputs, into)

    def test_everybody_is_kept(self, server: Server, tmp_path: Path) -> None:
        odd = refuses(400, "odd")
        server.script("/chat/completions", answer, odd, odd, answer, odd, answer)
        tally = self._run(server, tmp_path)
        assert tally.outcomes == {Status.OK: 5, Status.FAILED: 3}
        order = orders(tmp_path / "run/run.trec")["q"]
        assert order == ["d8", "d2", "d3", "d7", "d5", "d6", "d4", "d1"]
        rows = list(trec.read_jsonl(tmp_path / "run/scores.jsonl"))
        assert [row["document"] for row in rows] == ["d1", "d4", "d6", "d7", "d8"]
        demand(tally, 0.4)
        with pytest.raises(TooManyFailures, match="3 of 8"):
            demand(tally, 0.3)

    def test_a_wrong_key_leaves_no_results_that_could_pass_for_some(
        self, server: Server, tmp_path: Path
    ) -> None:
        from llmrank.errors import BackendError

        server.script("/chat/completions", refuses(401, "no"))
        with pytest.raises(BackendError):
            self._run(server, tmp_path)
        assert not (tmp_path / "run/run.trec").exists()
        assert not (tmp_path / "run/summary.json").exists()
        assert sent(server) >= 1


class TestDemand:
    def test_nothing_asked_is_fine(self) -> None:
        demand(Tally(), 0.0)

    def test_a_cap_is_told(self) -> None:
        with pytest.raises(StoppedAtCap, match="7 asks unsent"):
            demand(Tally({Status.OK: 1, Status.UNASKED: 7}), 0.0)

    def test_what_was_never_sent_is_no_failure(self) -> None:
        with pytest.raises(StoppedAtCap):
            demand(Tally({Status.UNASKED: 7}), 0.0)

    @given(st.integers(0, 20), st.integers(0, 20), st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]))
    def test_the_share_is_that_of_all_answers(self, good: int, bad: int, most: float) -> None:
        tally = Tally({Status.OK: good, Status.MALFORMED: bad}, failures=bad)
        if bad > most * (good + bad):
            with pytest.raises(TooManyFailures):
                demand(tally, most)
        else:
            demand(tally, most)


class TestInputs:
    @pytest.fixture
    def data(self, tmp_path: Path) -> Path:
        trec.write_jsonl(
            tmp_path / "corpus.jsonl", [{"_id": "a", "text": "x"}, {"_id": "b", "text": ""}]
        )
        trec.write_jsonl(
            tmp_path / "queries.jsonl", [{"_id": "1", "text": "y"}, {"_id": "2", "text": " "}]
        )
        return tmp_path

    def _inputs(self, data: Path, run: str, depth: int = 10) -> Inputs:
        (data / "run").write_text(run, encoding="utf-8")
        return Inputs(RunInput(data / "run", data, data), depth)

    def test_a_missing_text_is_named(self, data: Path) -> None:
        with pytest.raises(InputError, match=r"1 of 2 documents.*no text.*zz"):
            self._inputs(data, "1 Q0 a 1 3 x\n1 Q0 zz 2 2 x\n")

    def test_below_the_depth_no_text_is_needed(self, data: Path) -> None:
        inputs = self._inputs(data, "1 Q0 a 1 3 x\n1 Q0 zz 2 2 x\n", depth=1)
        assert list(inputs.texts) == ["a"]

    def test_a_missing_query_is_named(self, data: Path) -> None:
        with pytest.raises(InputError, match="'9' is not among"):
            self._inputs(data, "9 Q0 a 1 3 x\n")

    def test_an_empty_query_is_named(self, data: Path) -> None:
        with pytest.raises(InputError, match="'2' has no text"):
            self._inputs(data, "2 Q0 a 1 3 x\n")

    def test_empty_documents_are_counted(self, data: Path) -> None:
        assert self._inputs(data, "1 Q0 a 1 3 x\n1 Q0 b 2 2 x\n").empty == 1


@pytest.mark.parametrize("price", [-1.0, math.nan, math.inf])
def test_a_price_must_be_an_amount(price: float) -> None:
    with pytest.raises(InputError, match="price"):
        Caps(cost=1.0, prompt_price=price)


def test_an_oracle_tells_documents_and_queries_with_equal_texts_apart(tmp_path: Path) -> None:
    (tmp_path / "docs").write_text("a\tsame\nb\tsame\n")
    (tmp_path / "queries").write_text("q1\twhy\nq2\twhy\n")
    (tmp_path / "qrels").write_text("q1 0 b 1\nq2 0 a 1\n")
    (tmp_path / "run").write_text(
        "".join(f"{q} Q0 {d} 1 {s} t\n" for q in ("q1", "q2") for d, s in (("a", 2), ("b", 1)))
    )
    folder = RunFolder(tmp_path / "out" / "run")
    method = parse("yesno")
    source = RunInput(tmp_path / "run", tmp_path / "docs", tmp_path / "queries")
    with Session(Settings(f"oracle:{tmp_path / 'qrels'}"), folder.journal()) as session:
        tally = rerank_run(session, method, Inputs(source, method.depth), folder)
    assert (tally.asks, tally.reused) == (4, 0)
    ranked = {q: [d for d, _ in hits] for q, hits in trec.read_run(folder.run)}
    assert ranked == {"q1": ["b", "a"], "q2": ["a", "b"]}
