from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from llmrank import Document, Query, Retriever, trec
from llmrank.api.reranker import Passage
from llmrank.errors import BackendError, InputError, SpecError
from llmrank.expand import Expansion, View
from llmrank.retrieve import ANALYZERS, BM25
from tests.servers import Body, Server, refuses

TEXTS = [
    "yeast makes bread dough rise",
    "the moon raises the tides",
    "sourdough bread is leavened by wild yeast",
    "a bridge hangs on its cables",
]
ENCODER = "openai:vectors"
WORDS = ("bread", "yeast", "moon", "tides", "bridge", "cables", "sourdough")


async def embed(_request: web.Request, body: Body) -> web.StreamResponse:
    """A vector counts the words that matter."""
    vectors = [[float(text.count(word)) for word in WORDS] + [0.1] for text in body["input"]]
    data = [{"index": i, "embedding": vector} for i, vector in enumerate(vectors)]
    return web.json_response({"data": data, "model": "vectors", "usage": {"prompt_tokens": 1}})


@pytest.fixture
def encoder(server: Server) -> Server:
    server.script("/embeddings", embed)
    return server


def ids(found: Sequence[Any]) -> list[str]:
    return [candidate.document.id for candidate in found]


class TestInMemory:
    def test_texts_documents_and_mappings(self) -> None:
        mixed: list[Passage] = [
            TEXTS[0],
            Document("moon", TEXTS[1]),
            {"id": "s", "text": TEXTS[2], "page": 3},
        ]
        found = Retriever(mixed).search("bread yeast")
        assert sorted(ids(found)) == ["0", "s"]
        by_id = {c.document.id: c.document for c in found}
        assert by_id["0"].text == TEXTS[0]
        assert by_id["s"].metadata == {"page": 3}
        assert [c.score for c in found] == sorted((c.score for c in found), reverse=True)

    def test_k_and_empty_queries(self) -> None:
        retriever = Retriever(TEXTS)
        assert len(retriever.search("bread moon", k=1)) == 1
        assert retriever.search("") == retriever.search("xylophone") == []
        assert retriever.search_many([]) == []
        assert retriever.search(Query("1", "moon")) == retriever.search("moon")
        with pytest.raises(InputError):
            retriever.search("moon", k=0)

    def test_titles_count(self) -> None:
        (hit,) = Retriever([Document("a", "x", "bridges"), Document("b", "y")]).search("bridge")
        assert hit.document.title == "bridges"

    @pytest.mark.parametrize("wrong", ["one text", [], [3], [TEXTS[0], {"content": "x"}]])
    def test_what_is_no_corpus_is_refused(self, wrong: Any) -> None:  # noqa: ANN401
        with pytest.raises(InputError):
            Retriever(wrong)

    def test_an_id_twice_is_refused(self) -> None:
        with pytest.raises(InputError, match="'a' occurs twice"):
            Retriever([Document("a", "x"), Document("a", "y")])

    def test_names_that_do_not_exist(self) -> None:
        wrong: Any = "splade"
        for options in ({"first_stage": wrong}, {"fusion": wrong}, {"bm25": BM25(wrong)}):
            with pytest.raises((InputError, SpecError), match="splade"):
                Retriever(TEXTS, **options)

    def test_nothing_to_search(self, tmp_path: Path) -> None:
        with pytest.raises(InputError):
            Retriever()
        with pytest.raises(InputError, match="no bm25 index"):
            Retriever(index=tmp_path / "nowhere")


class TestIndexFolder:
    def test_it_is_built_once_and_opened_without_documents(self, tmp_path: Path) -> None:
        built = Retriever(TEXTS, index=tmp_path / "i")
        stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "i").rglob("*")}
        assert Retriever(TEXTS, index=tmp_path / "i").search("bread") == built.search("bread")
        opened = Retriever(index=str(tmp_path / "i")).search("bread")
        assert [(c.document.id, c.score) for c in opened] == [
            (c.document.id, c.score) for c in built.search("bread")
        ]
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "i").rglob("*")} == stamps

    @pytest.mark.parametrize(
        "changed",
        [TEXTS[:3], [*TEXTS, "new"], [*TEXTS[:3], "another text"]],
        ids=["fewer", "more", "another text"],
    )
    def test_other_documents_are_refused(self, tmp_path: Path, changed: list[str]) -> None:
        Retriever(TEXTS, index=tmp_path / "i")
        for given in (changed, (Document(str(i), t) for i, t in enumerate(changed))):
            with pytest.raises(InputError, match=r"other documents.*remove"):
                Retriever(given, index=tmp_path / "i")

    def test_other_ids_are_refused(self, tmp_path: Path) -> None:
        Retriever(TEXTS, index=tmp_path / "i")
        with pytest.raises(InputError, match="other documents"):
            Retriever([Document(f"x{i}", t) for i, t in enumerate(TEXTS)], index=tmp_path / "i")

    @pytest.mark.parametrize(
        ("built", "other"),
        [
            (BM25("plain"), BM25("english")),
            (BM25(variant="bm25+", delta=0.7), BM25(delta=0.5)),
            (BM25(variant="robertson"), BM25(variant="lucene")),
            (BM25(k1=1.2, b=0.75), BM25(k1=0.9, b=0.75)),
            (BM25(), BM25(b=0.75)),
            (BM25(), BM25(delta=0.5)),
        ],
    )
    def test_an_index_that_was_built_otherwise_is_refused(
        self, tmp_path: Path, built: BM25, other: BM25
    ) -> None:
        first = Retriever(TEXTS, index=tmp_path / "i", bm25=built)
        with pytest.raises(InputError, match=r"/i: the index has .*another index"):
            Retriever(TEXTS, index=tmp_path / "i", bm25=other)
        for same in (built, BM25()):
            opened = Retriever(TEXTS, index=tmp_path / "i", bm25=same)
            assert opened.search("bread moon") == first.search("bread moon")
            assert opened.describe() == first.describe()
        assert first.describe() == {
            "first_stage": "bm25",
            "analyzer": "english",
            "variant": "lucene",
            "k1": 0.9,
            "b": 0.4,
            "delta": None,
            **built.given,
        }

    def test_what_the_first_stage_has_no_use_for_is_refused(self, encoder: Server) -> None:
        dense: Any = {"first_stage": "dense", "encoder": ENCODER, "encoder_url": encoder.url}
        with pytest.raises(InputError, match="variant, k1: of BM25"):
            Retriever(TEXTS, bm25=BM25(variant="atire", k1=1.0), **dense)
        with pytest.raises(InputError, match="minmax is for hybrid"):
            Retriever(TEXTS, fusion="minmax")
        with pytest.raises(InputError, match="has no delta"):
            Retriever(TEXTS, bm25=BM25(delta=1.0))
        assert encoder.received == []

    def test_what_is_embedded_is_metered(self, encoder: Server) -> None:
        with Retriever(
            TEXTS, first_stage="dense", encoder=ENCODER, encoder_url=encoder.url
        ) as retriever:
            assert (retriever.meter.requests, retriever.meter.usage.prompt_tokens) == (1, 1)
            retriever.search("moon")
            assert retriever.meter.requests == 2

    def test_documents_read_once_may_come_from_a_generator(
        self, tmp_path: Path, collection: Path
    ) -> None:
        for _ in range(2):
            retriever = Retriever(trec.read_corpus(collection), index=tmp_path / "i")
            assert ids(retriever.search("why does bread dough rise", k=3))[0].startswith("bread")

    def test_a_build_that_failed_leaves_no_index(self, tmp_path: Path) -> None:
        def broken() -> Iterator[Document]:
            yield Document("a", "some text")
            raise OSError("gone")

        with pytest.raises(OSError, match="gone"):
            Retriever(broken(), index=tmp_path / "i")
        assert ids(Retriever(TEXTS, index=tmp_path / "i").search("moon")) == ["1"]


class TestDense:
    def test_over_a_server(self, encoder: Server, tmp_path: Path) -> None:
        def opened(documents: list[str] | None) -> Retriever:
            return Retriever(
                documents,
                first_stage="dense",
                encoder=ENCODER,
                encoder_url=encoder.url,
                index=tmp_path / "i",
            )

        with opened(TEXTS) as retriever:
            assert ids(retriever.search("moon tides", k=1)) == ["1"]
            asked = len(encoder.bodies("/embeddings"))
            moon, cables = retriever.search_many(["moon", "cables"], 1)
            assert (ids(moon), ids(cables)) == (["1"], ["3"])
            assert len(encoder.bodies("/embeddings")) == asked + 1
            assert retriever.search_many([]) == []
        asked = len(encoder.bodies("/embeddings"))
        with opened(None) as again:
            assert ids(again.search("sourdough", k=1)) == ["2"]
        assert len(encoder.bodies("/embeddings")) == asked + 1

    @pytest.mark.parametrize("fusion", ["rrf", "minmax", "zscore", "product"])
    def test_hybrid_finds_what_either_finds(self, encoder: Server, fusion: Any) -> None:  # noqa: ANN401
        with Retriever(
            (text for text in TEXTS),
            first_stage="hybrid",
            encoder=ENCODER,
            encoder_url=encoder.url,
            fusion=fusion,
        ) as retriever:
            found = retriever.search("hangs moon tides", k=3)
        assert ids(found)[0] == "1"
        assert "3" in ids(found)
        assert len(found) == 3
        assert found[0].document.text == TEXTS[1]

    def test_product_scores_every_document_by_both(self, encoder: Server) -> None:
        with Retriever(
            TEXTS, first_stage="hybrid", encoder=ENCODER, encoder_url=encoder.url, fusion="product"
        ) as retriever:
            found = {c.document.id: c.score for c in retriever.search("wild yeast", k=2)}
            (both,) = retriever.parts(["wild yeast"], 2)
            bm25, dense = retriever.bm25, retriever.dense
            assert bm25 is not None
            assert dense is not None
            vector = retriever.embed(["wild yeast"], "query")[0]
        assert set(dict(both[0])) == set(dict(both[1])) >= set(found)
        for name, score in found.items():
            parts = bm25.score("wild yeast", [name]) + dense.score(vector, [name])
            assert score == parts[0] * parts[1] > 0

    def test_weights_of_dense(self, encoder: Server) -> None:
        def found(**options: Any) -> list[str]:  # noqa: ANN401
            with Retriever(
                TEXTS,
                encoder=ENCODER,
                encoder_url=encoder.url,
                **{"first_stage": "hybrid", "fusion": "minmax", **options},
            ) as retriever:
                return ids(retriever.search("wild yeast bread", 2))

        assert (
            found(dense_weight=0.0)
            == ["2", "0"]
            == ids(Retriever(TEXTS).search("wild yeast bread"))
        )
        assert found(dense_weight=1.0)[0] == found(first_stage="dense", fusion="rrf")[0]
        with pytest.raises(InputError, match="no weight"):
            found(dense_weight=0.5, fusion="product")
        with pytest.raises(InputError, match="for hybrid, not for dense"):
            found(dense_weight=0.5, first_stage="dense")

    def test_a_build_that_failed_goes_on(self, encoder: Server, tmp_path: Path) -> None:
        texts = [f"{text} {n}" for n, text in enumerate(TEXTS * 40)]

        def opened(documents: list[str]) -> Retriever:
            return Retriever(
                documents,
                first_stage="hybrid",
                encoder=ENCODER,
                encoder_url=encoder.url,
                index=tmp_path / "i",
            )

        encoder.script("/embeddings", embed, refuses(400, "no more"))
        with pytest.raises(BackendError, match="no more"):
            opened(texts)
        encoder.script("/embeddings", embed)
        sent = len(encoder.bodies("/embeddings"))
        with pytest.raises(InputError, match="other documents"):
            opened([*texts[:100], "another", *texts[101:]])
        with opened(texts) as retriever:
            assert len(retriever.dense or ()) == 160
        later = [text for body in encoder.bodies("/embeddings")[sent:] for text in body["input"]]
        assert later == texts[64:]
        assert sorted(path.name for path in (tmp_path / "i").iterdir()) == [
            "bm25",
            "corpus.json",
            "dense",
        ]

    def test_many_queries_are_embedded_in_several_requests(self, encoder: Server) -> None:
        with Retriever(
            TEXTS, first_stage="dense", encoder=ENCODER, encoder_url=encoder.url
        ) as retriever:
            sent = len(encoder.bodies("/embeddings"))
            found = retriever.search_many(["moon", "cables"] * 50, 1)
            assert [ids(one) for one in found] == [["1"], ["3"]] * 50
            sizes = [len(body["input"]) for body in encoder.bodies("/embeddings")[sent:]]
        assert sorted(sizes) == [36, 64]

    def test_nothing_is_left_open(self, encoder: Server) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            retriever = Retriever(
                TEXTS, first_stage="dense", encoder=ENCODER, encoder_url=encoder.url
            )
            retriever.search("moon")
            retriever.close()
            retriever.close()
            del retriever
            gc.collect()

    def test_a_server_without_vectors_is_an_error(self, encoder: Server) -> None:
        encoder.script("/embeddings", refuses(400, "no vectors here"))
        with pytest.raises(BackendError, match="no vectors"):
            Retriever(TEXTS, first_stage="dense", encoder=ENCODER, encoder_url=encoder.url)

    def test_a_busy_server_is_asked_again(self, encoder: Server) -> None:
        busy = refuses(503, "busy", headers={"retry-after": "0"})
        encoder.script("/embeddings", busy, embed)
        with Retriever(
            TEXTS, first_stage="dense", encoder=ENCODER, encoder_url=encoder.url
        ) as retriever:
            assert ids(retriever.search("moon", k=1)) == ["1"]

    def test_an_index_of_another_encoder_is_not_opened(
        self, encoder: Server, tmp_path: Path
    ) -> None:
        url = encoder.url
        Retriever(
            TEXTS, first_stage="dense", index=tmp_path, encoder=ENCODER, encoder_url=url
        ).close()
        with pytest.raises(InputError, match=r"vectors of 'openai:vectors@.* with 'openai:other@"):
            Retriever(first_stage="dense", index=tmp_path, encoder="openai:other", encoder_url=url)


class TestEngine:
    """A search function of the user's own."""

    @staticmethod
    def engine(texts: Sequence[str], k: int) -> list[list[tuple[str, float]]]:
        return [[("1", 0.5), ("0", 2.0), ("2", 1.0)][:k] for _ in texts]

    @pytest.mark.parametrize("kind", [list, iter])
    def test_it_searches_and_documents_give_the_texts(self, kind: Any) -> None:  # noqa: ANN401
        retriever = Retriever(kind(TEXTS), engine=self.engine)
        found = retriever.search(Query("q", "moon"))
        assert [(c.document.id, c.score) for c in found] == [("0", 2), ("2", 1), ("1", 0.5)]
        assert [c.document.text for c in found] == [TEXTS[0], TEXTS[2], TEXTS[1]]
        assert ids(retriever.search("moon", 2)) == ["0", "1"]
        assert retriever.search_many([]) == []

    def test_without_documents(self) -> None:
        assert ids(Retriever(engine=self.engine).search("moon")) == ["0", "2", "1"]

    def test_it_may_find_only_the_documents_given(self) -> None:
        retriever = Retriever(TEXTS[:2], engine=self.engine)
        with pytest.raises(InputError, match="not among those given, among them 2"):
            retriever.search("moon")

    def test_what_it_gives_is_checked(self) -> None:
        retriever = Retriever(engine=lambda texts, k: [[("a", float("nan"))] for _ in texts])
        with pytest.raises(InputError, match=r"query 'q7': .* the score nan"):
            retriever.search(Query("q7", "moon"))

    @pytest.mark.parametrize(
        "options", [{"first_stage": "hybrid"}, {"index": "i"}, {"bm25": BM25("plain")}]
    )
    def test_it_takes_no_index(self, options: Any) -> None:  # noqa: ANN401
        with pytest.raises(InputError, match="searches by itself"):
            Retriever(TEXTS, engine=self.engine, **options)

    def test_augmentations_need_an_index(self) -> None:
        with pytest.raises(InputError, match="BM25 index"):
            Retriever(engine=self.engine).search_expanded(
                Expansion(Query("1", "moon"), (View((("moon", 1),)),))
            )


class TestExpanded:
    def test_query_terms_count_repeat_times_and_each_text_once(self) -> None:
        retriever = Retriever(TEXTS)
        assert retriever.bm25 is not None
        query = Query("1", "bread bread moons")
        expansion = Expansion(
            query, (View(((query.text, 5), ("The moon, the bread!", 1), ("yeast", 1))),)
        )
        weights = {"bread": 5 * 2 + 1, "moon": 5 + 1, "yeast": 1}
        assert set(ANALYZERS["english"](query.text)) == {"bread", "moon"}
        expected = retriever.bm25.search(weights, 10)
        found = retriever.search_expanded(expansion, 10)
        assert [(c.document.id, c.score) for c in found] == expected

    def test_without_texts_the_order_is_the_plain_query_s(self) -> None:
        retriever = Retriever(TEXTS)
        found = retriever.search_expanded(
            Expansion(Query("1", "x"), (View((("wild yeast bread", 1),)),))
        )
        assert ids(found) == ids(retriever.search("wild yeast bread"))

    def test_a_dense_search_needs_a_vector(self, encoder: Server) -> None:
        with Retriever(
            TEXTS, first_stage="dense", encoder=ENCODER, encoder_url=encoder.url
        ) as retriever:
            with pytest.raises(InputError, match="BM25 index"):
                retriever.search_expanded(Expansion(Query("1", "moon"), (View((("moon", 1),)),)))
            vector = np.asarray([[0, 0, 0, 0, 1, 1, 0, 0]], dtype=np.float32)
            expansion = Expansion(Query("1", "moon"), (View(vector=vector),))
            assert ids(retriever.search_expanded(expansion, 1)) == ["3"]


@pytest.mark.local
@pytest.mark.parametrize("first_stage", ["dense", "hybrid"])
def test_with_the_local_encoder(first_stage: Any, tmp_path: Path) -> None:  # noqa: ANN401
    pytest.importorskip("sentence_transformers")
    retriever = Retriever(TEXTS, first_stage=first_stage, index=tmp_path / "i")
    assert ids(retriever.search("what makes a loaf swell", k=1))[0] in {"0", "2"}
    again = Retriever(index=tmp_path / "i", first_stage=first_stage)
    assert ids(again.search("what makes a loaf swell")) == ids(
        retriever.search("what makes a loaf swell")
    )
