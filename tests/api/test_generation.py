from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from llmrank import Document, Reranker, Retriever, Session, Settings, trec
from llmrank.api import Example, Recipe, demonstrations, draw, funnel, generate, generate_folder
from llmrank.errors import BackendError, InputError
from llmrank.store import RunFolder
from llmrank.synth import Demonstration
from llmrank.types import Status
from tests.api.judges import MODEL
from tests.servers import Body, Server, completion, refuses, sends

DOCUMENTS = [
    Document("yeast", "yeast makes the bread dough rise"),
    Document("odd", "FAIL bricks and mortar"),
    Document("moon", "the moon raises the tides"),
    Document("mute", "MUTE about a silent film"),
    Document("short", "SHORT story of a cable"),
    Document("blank", "  "),
    Document("bridge", "WRONG bridges hang on cables"),
    Document("cut", "CUT paper and scissors"),
]
WRITTEN = {
    "yeast": " why does bread dough rise",
    "moon": " what raises the tides",
    "MUTE": " ",
    "SHORT": " cable",
    "WRONG": " why does bread dough rise",
}


async def write(request: web.Request, body: Body) -> web.StreamResponse:
    """A query for the last document of the prompt, or what its first word tells."""
    shown = re.findall(r"^Document: (.*)$", body["prompt"], re.MULTILINE)[-1]
    if "FAIL" in shown:
        return await refuses(400, "odd")(request, body)
    if "CUT" in shown:
        return web.json_response(completion(" how do scissors cut", finish="length"))
    text = next(text for word, text in WRITTEN.items() if word in shown)
    return web.json_response(completion(text))


@pytest.fixture
def writer(server: Server) -> Server:
    server.script("/completions", write)
    return server


@pytest.fixture
def session(writer: Server) -> Iterator[Session]:
    with Session(Settings(MODEL, writer.url)) as session:
        yield session


@pytest.fixture(scope="module")
def retriever() -> Retriever:
    return Retriever(DOCUMENTS)


def by_document(examples: list[Example]) -> dict[str, Example]:
    return {example.draft.document.id: example for example in examples}


class TestGenerate:
    def test_nothing_shifts(self, session: Session, retriever: Retriever) -> None:
        examples, tally = generate(session, DOCUMENTS, retriever.find, Recipe(n=2))
        with_text = [d.id for d in DOCUMENTS if d.id != "blank"]
        assert [e.id for e in examples] == [f"{d}#{i}" for d in with_text for i in (0, 1)]
        for example in examples:
            word = example.draft.document.text.split()[0]
            expected = WRITTEN.get(word, WRITTEN.get(example.draft.document.id, "")).strip()
            if word != "CUT" and example.draft.document.id != "moon":
                assert example.draft.query == expected
        assert by_document(examples)["moon"].draft.query == "what raises the tides"
        assert {e.draft.document.id for e in examples if e.kept} == {"yeast", "moon"}
        assert (tally.outcomes[Status.FAILED], tally.asks) == (2, 14)

    def test_every_verdict_is_right(self, session: Session, retriever: Retriever) -> None:
        found = by_document(generate(session, DOCUMENTS, retriever.find)[0])
        told = {
            name: {v.filter: (v.passed, v.value) for v in example.verdicts}
            for name, example in found.items()
        }
        assert told["odd"] == told["mute"] == {}
        assert told["short"] == {"complete": (True, None), "length": (False, 1)}
        assert told["yeast"]["round_trip"] == (True, 1)
        assert told["bridge"]["length"] == (True, 5)
        assert told["bridge"]["round_trip"] == (False, None)
        assert told["cut"]["complete"][0] is False
        assert "round_trip" not in told["cut"]
        assert not found["cut"].kept

    @pytest.mark.parametrize(("k", "kept"), [(1, False), (2, False), (3, True), (200, True)])
    def test_the_rank_is_held_against_k(self, session: Session, k: int, kept: bool) -> None:
        asked: list[tuple[str, int]] = []

        def search(text: str, depth: int) -> list[tuple[str, float]]:
            asked.append((text, depth))
            return [("a", 3.0), ("b", 2.0), ("moon", 1.0)]

        (example,), _ = generate(session, [DOCUMENTS[2]], search, Recipe(k=k))
        verdict = example.verdicts[-1]
        assert (verdict.value, verdict.bound, verdict.passed, example.kept) == (3, k, kept, kept)
        assert asked == [("what raises the tides", max(k, 100))]

    def test_examples_are_shown(
        self, session: Session, writer: Server, retriever: Retriever
    ) -> None:
        shown = (Demonstration("a doc of mine", "a query of mine"),)
        generate(session, DOCUMENTS[:1], retriever.find, Recipe(examples=shown))
        (body,) = writer.bodies("/completions")
        assert "Document: a doc of mine\nQuery: a query of mine" in body["prompt"]

    def test_documents_may_be_made_while_they_are_read(
        self, session: Session, writer: Server, retriever: Retriever
    ) -> None:
        with Reranker(MODEL, method="sliding", base_url=writer.url) as ranker:
            made = (ranker.rank("moon", [d])[0].document for d in DOCUMENTS[:1])
            examples, _ = generate(session, made, retriever.find)
        assert [e.id for e in examples] == ["yeast#0"]

    def test_what_cannot_be_is_refused_before_anything_is_sent(
        self, session: Session, writer: Server, retriever: Retriever
    ) -> None:
        with pytest.raises(InputError, match="'yeast' occurs twice"):
            generate(session, [*DOCUMENTS, DOCUMENTS[0]], retriever.find)
        for n, k in ((0, 1), (1, 0)):
            with pytest.raises(InputError, match="at least 1"):
                Recipe(n, k)
        assert writer.received == []


class TestFolder:
    def test_the_beir_files_can_be_read(
        self, writer: Server, retriever: Retriever, tmp_path: Path
    ) -> None:
        folder = RunFolder(tmp_path / "run")
        trec.write_jsonl(
            tmp_path / "corpus.jsonl", [{"_id": d.id, "text": d.text} for d in DOCUMENTS]
        )
        with Session(Settings(MODEL, writer.url), folder.journal()) as session:
            examples, _ = generate_folder(
                session, DOCUMENTS, retriever.find, Recipe(n=2), folder, source=tmp_path
            )
        queries = list(trec.read_queries(folder.path))
        assert [(q.id, q.text) for q in queries] == [
            (e.id, e.draft.query) for e in examples if e.kept
        ]
        qrels = trec.read_qrels(folder.path / "qrels/train.tsv")
        assert qrels == {q.id: {q.id.split("#")[0]: 1} for q in queries}
        assert len(queries) == 4
        summary = json.loads((folder.path / "summary.json").read_text())
        assert summary["funnel"] == funnel(examples)
        assert summary["funnel"]["asked"] == 14
        assert summary["funnel"]["kept"] == 4
        manifest = json.loads((folder.path / "manifest.json").read_text())
        assert manifest["generation"]["n"] == 2
        assert len(manifest["data"]["corpus"]["sha256"]) == 64

    def test_the_provenance_is_complete(
        self, writer: Server, retriever: Retriever, tmp_path: Path
    ) -> None:
        folder = RunFolder(tmp_path / "run")
        with Session(Settings(MODEL, writer.url), folder.journal()) as session:
            generate_folder(session, DOCUMENTS, retriever.find, Recipe(), folder)
            rows = {
                str(row["document"]): row for row in trec.read_jsonl(folder.path / "examples.jsonl")
            }
            assert len(rows) == len(DOCUMENTS) - 1
            assert session.journal is not None
            for name, row in rows.items():
                came: dict[str, object] = row["provenance"]  # type: ignore[assignment]
                assert {"model", "prompt", "params", "sample", "status", "problem"} <= came.keys()
                if name == "odd":
                    assert (came["status"], row["query"]) == ("failed", "")
                    continue
                assert came["model"] == "served"
                assert (came["prompt_tokens"], came["completion_tokens"]) == (30, 2)
                stored = session.journal.get(str(came["journal_key"]))
                assert stored is not None
                assert stored.text == came["reply"]
        assert rows["mute"]["provenance"]["status"] != "ok"  # type: ignore[index]

    def test_again_it_costs_nothing_and_is_the_same(
        self, writer: Server, retriever: Retriever, tmp_path: Path
    ) -> None:
        folder = RunFolder(tmp_path / "run")
        documents = [d for d in DOCUMENTS if d.id != "odd"]
        found = []
        for _ in range(2):
            with Session(Settings(MODEL, writer.url), folder.journal()) as session:
                generate_folder(session, documents, retriever.find, Recipe(n=2), folder)
            names = ("examples.jsonl", "queries.jsonl", "qrels/train.tsv")
            found.append([(folder.path / name).read_bytes() for name in names])
        assert found[0] == found[1]
        assert len(writer.bodies("/completions")) == 12

    def test_a_run_that_fails_leaves_an_earlier_result_as_it_was(
        self, writer: Server, retriever: Retriever, tmp_path: Path
    ) -> None:
        folder = RunFolder(tmp_path / "run")
        with Session(Settings(MODEL, writer.url), folder.journal()) as session:
            generate_folder(session, DOCUMENTS[:1], retriever.find, Recipe(), folder)
            assert (folder.path / "queries.jsonl").exists()
            before = {p: p.read_bytes() for p in folder.path.rglob("*.[jt]s*[lnv]")}
            assert len(before) == 5
            writer.script("/completions", refuses(401, "no such key"))
            with pytest.raises(BackendError):
                generate_folder(session, DOCUMENTS[2:], retriever.find, Recipe(), folder)
        assert {p: p.read_bytes() for p in before} == before

    def test_all_failing_still_gives_readable_files(
        self, writer: Server, retriever: Retriever, tmp_path: Path
    ) -> None:
        writer.script("/completions", sends(completion("")))
        folder = RunFolder(tmp_path / "run")
        with Session(Settings(MODEL, writer.url), folder.journal()) as session:
            generate_folder(session, DOCUMENTS, retriever.find, Recipe(), folder)
        assert (folder.path / "qrels/train.tsv").read_text() == "query-id\tcorpus-id\tscore\n"
        assert (folder.path / "queries.jsonl").read_text() == ""


class TestDraw:
    @given(st.integers(1, 12), st.integers(0, 12), st.integers(0, 99))
    def test_a_sample_in_order_the_same_each_time(self, count: int, size: int, seed: int) -> None:
        corpus = [Document(str(i), "text" if i % 3 else " ") for i in range(size)]
        with_text = [d for d in corpus if d.text.strip()]
        drawn = draw(iter(corpus), count, seed)
        assert drawn == draw(corpus, count, seed)
        assert len(drawn) == min(count, len(with_text))
        assert drawn == [d for d in with_text if d in drawn]

    def test_every_document_is_equally_likely(self) -> None:
        corpus = [Document(str(i), "text") for i in range(10)]
        times = 3000
        counts = Counter(d.id for seed in range(times) for d in draw(corpus, 3, seed))
        # Five deviations of a binomial with p = 0.3.
        assert all(abs(counts[d.id] - 0.3 * times) < 5 * (times * 0.21) ** 0.5 for d in corpus)

    def test_another_seed_draws_others(self) -> None:
        corpus = [Document(str(i), "text") for i in range(1000)]
        assert draw(corpus, 5, 0) != draw(corpus, 5, 1)

    def test_none_cannot_be_drawn(self) -> None:
        with pytest.raises(InputError):
            draw(DOCUMENTS, 0, 0)


def test_demonstrations_are_read_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    path.write_text('{"document": "d", "query": "q"}\n', encoding="utf-8")
    assert demonstrations(path) == (Demonstration("d", "q"),)
    path.write_text('{"document": "d", "query": "q"}\n{"document": "d"}\n', encoding="utf-8")
    with pytest.raises(InputError, match="example 2"):
        demonstrations(path)
