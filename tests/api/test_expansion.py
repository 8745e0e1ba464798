from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from aiohttp import web

from llmrank import Query, Reranker, Retriever, Session, Settings, trec
from llmrank.api import demand, expand, expand_run, parse_pipeline, run_pipeline
from llmrank.api.effects import weighted
from llmrank.errors import CapabilityError, InputError, SpecError, TooManyFailures
from llmrank.expand import Expansion, View, parse
from llmrank.store import RunFolder
from llmrank.types import Status
from tests.api.judges import MODEL, sent
from tests.api.test_retriever import ENCODER, TEXTS, embed, ids
from tests.servers import Body, Server, chat, refuses, sends

QUERIES = [Query("q1", "bread"), Query("q2", "nobody"), Query("q3", "moon")]


async def write(_request: web.Request, body: Body) -> web.StreamResponse:
    """Write about the query, fail where it is about nobody."""
    asked = body["messages"][-1]["content"].strip().splitlines()
    if any("nobody" in line for line in asked):
        return await refuses(400, "nobody")(_request, body)
    about = "bread" if any(line in ("bread", "Query: bread") for line in asked) else "moon"
    return web.json_response(chat(f"All about {about} and its cables."))


@pytest.fixture
def writer(server: Server) -> Server:
    server.script("/chat/completions", write)
    server.script("/embeddings", embed)
    return server


@pytest.fixture
def session(writer: Server) -> Iterator[Session]:
    settings = Settings(MODEL, writer.url, encoder=ENCODER, encoder_url=writer.url)
    with Session(settings, embeds=True) as session:
        yield session


class TestQuery2doc:
    def test_texts_stand_with_their_queries(self, session: Session) -> None:
        expansions, tally = expand(session, parse("query2doc(n=2, repeat=3)"), QUERIES)
        assert [e.query for e in expansions] == QUERIES
        assert [e.expanded for e in expansions] == [True, False, True]
        assert expansions[0].texts == ("All about bread and its cables.",) * 2
        assert [e.views[0].texts[0] for e in expansions] == [
            ("bread", 3),
            ("nobody", 1),
            ("moon", 3),
        ]
        assert [a.status for a in expansions[1].answers] == [Status.FAILED] * 2
        assert tally.outcomes == {Status.OK: 4, Status.FAILED: 2}
        assert tally.failures == 2

    def test_samples_are_asked_for_one_by_one(self, session: Session, writer: Server) -> None:
        expand(session, parse("query2doc(n=3)"), QUERIES[:1])
        seeds = [body.get("seed") for body in writer.bodies("/chat/completions")]
        assert len(set(seeds)) == len(seeds) == 3

    def test_what_is_empty_is_left_out(self, session: Session, writer: Server) -> None:
        writer.script("/chat/completions", sends(chat("  \n")), sends(chat("a text")))
        (expansion,), tally = expand(session, parse("query2doc(n=2)"), QUERIES[:1])
        assert expansion.texts == ("a text",)
        assert (tally.asks, tally.failures) == (2, 1)

    def test_no_queries(self, session: Session, writer: Server) -> None:
        assert expand(session, parse("query2doc"), [])[0] == []
        assert sent(writer) == 0

    def test_queries_may_be_made_while_they_are_read(
        self, session: Session, writer: Server
    ) -> None:
        """As by a generator that itself asks a model, for instance to rank."""
        with Reranker(MODEL, method="sliding", base_url=writer.url) as ranker:
            made = (Query(str(i), ranker.rank("moon", ["bread"])[0].document.text) for i in (1, 2))
            expansions, _ = expand(session, parse("query2doc"), made)
        assert [e.query for e in expansions] == [Query("1", "bread"), Query("2", "bread")]


class TestHyde:
    def test_the_vector_is_the_mean_of_query_and_texts(self, session: Session) -> None:
        (expansion,), _ = expand(session, parse("hyde(n=3)"), QUERIES[:1])
        (vector,) = [view.vector for view in expansion.views]
        # Of the words bread and cables; the query has the first alone.
        assert vector is not None
        assert np.allclose(vector, [[1, 0, 0, 0, 0, 3 / 4, 0, 0.1]])

    def test_without_a_text_the_vector_is_the_query_s(self, session: Session) -> None:
        expansions, tally = expand(session, parse("hyde(n=2)"), [Query("q", "moon nobody")])
        (expansion,) = expansions
        assert not expansion.expanded
        (vector,) = [view.vector for view in expansion.views]
        assert vector is not None
        assert np.allclose(vector, [[0, 0, 1, 0, 0, 0, 0, 0.1]])
        assert tally.failures == 2

    def test_it_needs_an_encoder(self, writer: Server, judgements: Path) -> None:
        with (
            Session(Settings(f"oracle:{judgements}")) as session,
            pytest.raises(CapabilityError, match="Embed"),
        ):
            expand(session, parse("hyde"), QUERIES)


class TestFolder:
    def test_everything_is_recorded_and_paid_for_once(self, writer: Server, tmp_path: Path) -> None:
        folder = RunFolder(tmp_path / "run")
        retriever = Retriever(TEXTS)
        files = []
        for _ in range(2):
            with Session(Settings(MODEL, writer.url), folder.journal()) as session:
                tally = expand_run(
                    session, parse("query2doc(n=2)"), QUERIES, folder, retriever, k=3
                )
            files.append((folder.run.read_bytes(), sent(writer)))
        assert files[0][0] == files[1][0]
        # Four texts and two failures, which alone are asked for again.
        assert [number for _, number in files] == [6, 8]
        assert (tally.reused, tally.failures) == (4, 2)
        rows = list(trec.read_jsonl(folder.path / "expansions.jsonl"))
        assert [row["_id"] for row in rows] == ["q1", "q2", "q3"]
        assert [row["expanded"] for row in rows] == [True, False, True]
        assert all(len(row["samples"]) == 2 for row in rows)  # type: ignore[arg-type]
        run = dict(trec.read_run(folder.run))
        assert [doc for doc, _ in run["q3"]] == ["1", "3"]
        assert "q2" not in run
        manifest = json.loads((folder.path / "manifest.json").read_text())
        assert manifest["expansion"] == "query2doc(n=2, repeat=5)"
        summary = json.loads((folder.path / "summary.json").read_text())
        assert (summary["queries"], summary["reused"]) == (3, 4)
        assert summary["failed_requests"] == {"HTTP 400": 2}
        with pytest.raises(TooManyFailures):
            demand(tally, 0.1)

    def test_hyde_searches_by_its_vector(self, writer: Server, tmp_path: Path) -> None:
        folder = RunFolder(tmp_path / "run")
        settings = Settings(MODEL, writer.url, encoder=ENCODER, encoder_url=writer.url)
        with (
            Session(settings, folder.journal(), embeds=True) as session,
            Retriever(
                TEXTS, first_stage="dense", encoder=ENCODER, encoder_url=writer.url
            ) as retriever,
        ):
            expand_run(session, parse("hyde(n=1)"), QUERIES, folder, retriever, k=2)
            plain = ids(retriever.search("nobody", 2))
        run = {q: [doc for doc, _ in hits] for q, hits in trec.read_run(folder.run)}
        assert run["q1"] == ["0", "2"] or run["q1"] == ["2", "0"]
        assert run["q2"] == plain
        assert run["q3"][0] == "1"

    def test_another_encoder_than_that_of_the_index_is_refused(
        self, writer: Server, tmp_path: Path
    ) -> None:
        settings = Settings(MODEL, writer.url, encoder="openai:other", encoder_url=writer.url)
        folder = RunFolder(tmp_path / "run")
        options = {"encoder": ENCODER, "encoder_url": writer.url}
        with (
            Retriever(TEXTS, first_stage="dense", **options) as retriever,  # type: ignore[arg-type]
            Session(settings, folder.journal(), embeds=True) as session,
        ):
            before = len(writer.received)
            told = r"vectors of 'openai:vectors@.* embedded with 'openai:other@"
            with pytest.raises(InputError, match=told):
                expand_run(session, parse("hyde(n=1)"), QUERIES, folder, retriever, k=2)
            with pytest.raises(InputError, match=told):
                run_pipeline(session, parse_pipeline("dense"), retriever, QUERIES, folder)
        assert len(writer.received) == before

    def test_documents_cannot_be_graded_without_their_texts(
        self, session: Session, writer: Server, tmp_path: Path
    ) -> None:
        folder = RunFolder(tmp_path / "run")
        retriever = Retriever(iter(TEXTS))
        with pytest.raises(InputError, match="texts of the documents are not known"):
            expand_run(
                session, parse("gated(query2doc, by=grade)"), QUERIES, folder, retriever, k=2
            )
        with pytest.raises(InputError, match="texts of the documents are not known"):
            run_pipeline(session, parse_pipeline("bm25 >> yesno@2"), retriever, QUERIES, folder)
        assert sent(writer) == 0

    def test_judgements_of_other_queries_are_refused_before_anything_is_asked(
        self, session: Session, writer: Server, tmp_path: Path
    ) -> None:
        folder = RunFolder(tmp_path / "run")
        with pytest.raises(InputError, match="none of the queries is judged"):
            expand_run(
                session,
                parse("query2doc"),
                QUERIES,
                folder,
                Retriever(TEXTS),
                qrels={"other": {"0": 1}},
            )
        assert sent(writer) == 0

    @pytest.mark.parametrize("pipeline", ["hybrid@2", "bm25 >> yesno@2", "bm25"])
    def test_a_pipeline_runs_on_what_it_names(
        self, session: Session, writer: Server, tmp_path: Path, pipeline: str
    ) -> None:
        engine = Retriever(TEXTS, engine=lambda texts, k: [[("0", 1.0)] for _ in texts])
        retrievers = [engine] if "bm25" in pipeline else [engine, Retriever(TEXTS)]
        for retriever in retrievers:
            with pytest.raises(SpecError, match="the pipeline is for"):
                run_pipeline(
                    session,
                    parse_pipeline(pipeline),
                    retriever,
                    QUERIES,
                    RunFolder(tmp_path / "run"),
                )
        assert sent(writer) == 0

    def test_without_a_query_text_nothing_is_sent(
        self, session: Session, writer: Server, tmp_path: Path
    ) -> None:
        with pytest.raises(InputError, match="'e' has no text"):
            expand(session, parse("query2doc"), [*QUERIES, Query("e", " ")])
        assert sent(writer) == 0


def test_a_term_of_two_views_is_shown_with_its_larger_weight() -> None:
    views = View(terms={"yeast": 0.2, "gas": 0.4}), View(terms={"yeast": 0.5, "gas": 0.1})
    for given in (views, views[::-1]):
        found = weighted(Expansion(Query("q", "dough"), given))
        assert list(found.items()) == [("yeast", 0.5), ("gas", 0.4)]
