from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import bm25s
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrank.errors import InputError
from llmrank.retrieve import BM25Index, plain, score_passages
from llmrank.retrieve.bm25 import DELTAS, VARIANTS
from llmrank.types import Document

DATA = (Path(__file__).parents[2] / "../shared/data").resolve()

PASSAGES = [
    "Dense retrieval embeds queries and documents.",
    "BM25 is a bag of words ranking function; words, words, words.",
    "",
    "Ranking functions score documents for queries.",
]
TEXTS = st.lists(
    st.lists(st.sampled_from("abcde"), max_size=8).map(" ".join), min_size=1, max_size=8
).filter(lambda texts: any(texts))


def corpus(texts: list[str]) -> list[Document]:
    return [Document(f"d{number}", text) for number, text in enumerate(texts)]


def by_the_formula(
    weights: dict[str, float], texts: list[str], k1: float, b: float
) -> dict[str, float]:
    rows = [Counter(plain(text)) for text in texts]
    mean = sum(row.total() for row in rows) / len(rows)
    scores = {}
    for number, row in enumerate(rows):
        score = 0.0
        for term, weight in weights.items():
            found = sum(term in other for other in rows)
            idf = math.log(1 + (len(rows) - found + 0.5) / (found + 0.5))
            saturation = row[term] + k1 * (1 - b + b * row.total() / mean)
            score += weight * idf * row[term] / saturation if row[term] else 0
        if score > 0:
            scores[f"d{number}"] = score
    return scores


@given(
    TEXTS,
    st.dictionaries(st.sampled_from("abcdef"), st.floats(0.01, 5), max_size=4),
    st.floats(0, 3),
    st.floats(0, 1),
)
def test_scores_are_lucenes_formula(
    texts: list[str], weights: dict[str, float], k1: float, b: float
) -> None:
    index = BM25Index.build(corpus(texts), k1=k1, b=b, analyzer="plain")
    expected = by_the_formula(weights, texts, k1, b)
    assert dict(index.search(weights, 100)) == pytest.approx(expected, rel=1e-5)


@given(TEXTS, st.lists(st.sampled_from("abcdef"), max_size=6), st.integers(1, 9))
def test_hits_are_the_first_k_by_score_and_id_falling(
    texts: list[str], words: list[str], k: int
) -> None:
    index = BM25Index.build(corpus(texts), analyzer="plain")
    hits = index.search(" ".join(words), k)
    everything = index.search(" ".join(words), 100)
    assert hits == everything[:k]
    assert everything == sorted(everything, key=lambda hit: (hit[1], hit[0]), reverse=True)
    assert all(score > 0 for _, score in everything)


def test_equal_documents_stand_by_falling_id() -> None:
    index = BM25Index.build([Document(name, "same text") for name in ("b", "10", "c", "9")])
    assert [name for name, _ in index.search("text", 3)] == ["c", "b", "9"]


def test_title_is_indexed_with_the_text() -> None:
    index = BM25Index.build([Document("a", "text", "heading"), Document("b", "text")])
    assert [name for name, _ in index.search("headings", 5)] == ["a"]


def test_a_repeated_word_counts_as_its_weight() -> None:
    index = BM25Index.build(corpus(PASSAGES))
    assert index.search("words words ranking", 9) == index.search({"word": 2, "rank": 1}, 9)
    half = dict(index.search({"word": 1.0, "rank": 0.5}, 9))
    assert half == pytest.approx({n: s / 2 for n, s in index.search("words words ranking", 9)})


def test_batch_answers_each_query_in_order() -> None:
    index = BM25Index.build(corpus(PASSAGES))
    queries: list[str | dict[str, float]] = ["words", "documents queries", {"word": 0.5}]
    assert index.search_all(queries, 2) == [index.search(query, 2) for query in queries]


@pytest.mark.parametrize("query", ["", "the of", "zebra", {}, {"zebra": 2.0}, {"word": -1.0}])
def test_no_hit_without_a_score_above_zero(query: str | dict[str, float]) -> None:
    assert BM25Index.build(corpus(PASSAGES)).search(query, 10) == []


@given(TEXTS)
def test_counts_are_those_of_the_documents(texts: list[str]) -> None:
    index = BM25Index.build(corpus(texts), analyzer="plain")
    for number, text in enumerate(texts):
        assert index.counts(f"d{number}") == Counter(plain(text))
    for term in "abcdef":
        assert index.frequency(term) == sum(term in plain(text) for text in texts)


def test_counts_of_more_documents_than_are_counted_at_one_time() -> None:
    texts = [f"a {'b ' * (number % 3)}c{number % 7}" for number in range(9000)]
    texts[4095] = texts[8999] = ""
    index = BM25Index.build(corpus(texts), analyzer="plain")
    for number in (0, 1, 4094, 4095, 4096, 4097, 8191, 8192, 8998, 8999):
        assert index.counts(f"d{number}") == Counter(plain(texts[number]))


@given(TEXTS, st.lists(st.sampled_from("abcdef"), max_size=6).map(" ".join))
def test_scores_of_given_documents_are_those_of_the_search(texts: list[str], query: str) -> None:
    index = BM25Index.build(corpus(texts), analyzer="plain")
    found, names = dict(index.search(query, 100)), list(index.ids[::-1])
    assert index.score(query, names) == [found.get(name, 0.0) for name in names]
    assert index.score(query, []) == []
    assert index.score({"a": 2.0}, names[:1]) == index.score("a a", names[:1])


@given(
    TEXTS,
    st.lists(st.sampled_from("abcde"), min_size=1, max_size=6),
    st.sampled_from(VARIANTS),
    st.floats(0.1, 3),
    st.floats(0, 1),
    st.none() | st.floats(0, 2),
)
def test_every_variant_is_that_of_bm25s(
    texts: list[str], words: list[str], variant: str, k1: float, b: float, delta: float | None
) -> None:
    delta = delta if variant in DELTAS else None
    index = BM25Index.build(
        corpus(texts), k1=k1, b=b, variant=variant, delta=delta, analyzer="plain"
    )
    own = {} if delta is None else {"delta": delta}
    bare = bm25s.BM25(k1=k1, b=b, method=variant, **own)
    bare.index([plain(text) for text in texts], show_progress=False, create_empty_token=False)
    known = [word for word in words if word in bare.vocab_dict]
    expected = np.zeros(len(texts)) if not known else bare.get_scores(known)
    if bare.nonoccurrence_array is not None and known:
        # What every document gets for a term that it lacks.
        expected = expected - sum(bare.nonoccurrence_array[bare.vocab_dict[w]] for w in known)
    found = index.score(" ".join(words), index.ids)
    assert found == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-5)


def test_variants_differ_and_are_kept(tmp_path: Path) -> None:
    found = {}
    for variant in VARIANTS:
        index = BM25Index.build(corpus(PASSAGES), variant=variant)
        index.save(tmp_path / variant)
        loaded = BM25Index.load(tmp_path / variant)
        assert (index.variant, loaded.variant) == (variant, variant)
        assert loaded.search("ranking words", 9) == index.search("ranking words", 9)
        found[variant] = index.score("ranking words", ["d1"])[0]
        assert index.delta == loaded.delta == DELTAS.get(variant)
    assert len(set(found.values())) == len(VARIANTS)
    assert BM25Index.build(corpus(PASSAGES)).variant == "lucene"


def test_a_delta_is_kept_and_that_of_an_earlier_version_is_the_default(tmp_path: Path) -> None:
    for delta, known in ((0.9, 0.9), (None, 0.5)):
        BM25Index.build(corpus(PASSAGES), variant="bm25l", delta=delta).save(tmp_path / "ix")
        assert BM25Index.load(tmp_path / "ix").delta == known
    described = tmp_path / "ix" / "index.json"
    content = json.loads(described.read_text())
    assert content.pop("delta") == 0.5
    described.write_text(json.dumps(content))
    assert BM25Index.load(tmp_path / "ix").delta == 0.5


def test_documents_are_read_once() -> None:
    index = BM25Index.build(iter(corpus(PASSAGES)))
    assert len(index) == 4
    assert index.ids == ("d0", "d1", "d2", "d3")
    assert (index.k1, index.b, index.analyzer) == (0.9, 0.4, "english")


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match="no documents"):
        BM25Index.build([])
    with pytest.raises(InputError, match="term"):
        BM25Index.build([Document("a", "the of")])
    with pytest.raises(InputError, match="'a' occurs twice"):
        BM25Index.build([Document("a", "x"), Document("a", "y")])
    with pytest.raises(InputError, match=r"b=1\.5"):
        BM25Index.build(corpus(PASSAGES), b=1.5)
    with pytest.raises(InputError, match="klingon"):
        BM25Index.build(corpus(PASSAGES), analyzer="klingon")
    with pytest.raises(InputError, match=r"bm26.*bm25l"):
        BM25Index.build(corpus(PASSAGES), variant="bm26")
    with pytest.raises(InputError, match=r"no delta.*bm25l or bm25\+"):
        BM25Index.build(corpus(PASSAGES), delta=0.5)
    with pytest.raises(InputError, match=r"delta=-1"):
        BM25Index.build(corpus(PASSAGES), variant="bm25+", delta=-1)
    index = BM25Index.build(corpus(PASSAGES))
    with pytest.raises(InputError, match="'d9' is not in the index"):
        index.counts("d9")
    with pytest.raises(InputError, match="'d9' is not in the index"):
        index.score("words", ["d1", "d9"])
    with pytest.raises(InputError, match="k is 0"):
        index.search("words", 0)
    with pytest.raises(InputError, match="'word' is nan"):
        index.search({"word": math.nan}, 1)


def test_a_loaded_index_answers_as_the_saved_one(tmp_path: Path) -> None:
    index = BM25Index.build(corpus(PASSAGES), k1=1, b=0, analyzer="plain")
    index.save(tmp_path / "new" / "index")
    loaded = BM25Index.load(tmp_path / "new" / "index")
    assert (loaded.ids, loaded.k1, loaded.b, loaded.analyzer) == (index.ids, 1.0, 0.0, "plain")
    assert loaded.search("words of ranking", 9) == index.search("words of ranking", 9)
    for name in index.ids:
        assert loaded.counts(name) == index.counts(name)
    about = json.loads((tmp_path / "new" / "index" / "index.json").read_text())
    assert about["documents"] == 4
    assert len(about["ids_sha256"]) == 64


def test_saving_replaces_an_index_and_leaves_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    BM25Index.build(corpus(["old text"])).save(folder)
    BM25Index.build(corpus(["new text"])).save(folder)
    loaded = BM25Index.load(folder)
    loaded.save(folder)
    assert BM25Index.load(folder).search("new", 1) == loaded.search("new", 1) != []
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_saving_spares_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    index = BM25Index.build(corpus(PASSAGES))
    with pytest.raises(InputError, match="something else"):
        index.save(tmp_path)
    with pytest.raises(InputError, match="file"):
        index.save(tmp_path / "thesis.tex")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("index.json", None, "no bm25 index here"),
        ("index.json", "{", "cannot be read"),
        ("index.json", '{"kind": "dense", "format": 1}', "does not describe a bm25"),
        ("index.json", '{"kind": "bm25", "format": 99}', "format 99"),
        ("index.json", '{"kind": "bm25", "format": 1}', "remove it and build the index again"),
        ("ids.json", '["a", "b", "c", "d"]', "not those that were indexed"),
        ("ids.json", "[1]", "not a list of strings"),
        ("terms.json", '["a"]', "do not belong together"),
        ("weights.npy", "", "cannot be read"),
        ("documents.npy", None, "cannot be read"),
        ("forward_counts.npy", None, "cannot be read"),
    ],
)
def test_a_damaged_folder_is_named(
    tmp_path: Path, name: str, content: str | None, problem: str
) -> None:
    BM25Index.build(corpus(PASSAGES)).save(tmp_path / "index")
    damaged = tmp_path / "index" / name
    damaged.unlink()
    if content is not None:
        damaged.write_text(content)
    with pytest.raises(InputError, match=problem):
        BM25Index.load(tmp_path / "index")


def test_a_pickle_is_never_read(tmp_path: Path) -> None:
    BM25Index.build(corpus(PASSAGES)).save(tmp_path)
    np.save(tmp_path / "weights.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="cannot be read"):
        BM25Index.load(tmp_path)


@given(TEXTS, st.lists(st.sampled_from("abcdef"), max_size=6).map(" ".join))
def test_passages_score_as_in_an_index_of_them(texts: list[str], query: str) -> None:
    hits = dict(BM25Index.build(corpus(texts), analyzer="plain").search(query, 100))
    expected = [hits.get(f"d{number}", 0) for number in range(len(texts))]
    assert score_passages(query, texts, analyzer="plain") == pytest.approx(expected, rel=1e-5)


def test_passages_are_analysed_as_english() -> None:
    scores = score_passages("the ranked word", PASSAGES)
    assert scores.index(max(scores)) == 1
    assert [score > 0 for score in scores] == [False, True, False, True]
    assert score_passages("anything", []) == []
    assert score_passages("anything", ["", "the"]) == [0, 0]


@pytest.mark.slow
def test_published_figures_on_scifact() -> None:
    """BEIR's BM25 (Anserini, flat index): nDCG@10 .679, Recall@100 .925."""
    if not DATA.is_dir():
        pytest.skip("shared/data is not here")
    measures = pytest.importorskip("ir_measures")
    folder = DATA / "scifact"
    index = BM25Index.build(
        Document(row["_id"], row["text"], row["title"]) for row in rows_of(folder / "corpus.jsonl")
    )
    found = {
        row["_id"]: dict(index.search(row["text"], 100))
        for row in rows_of(folder / "queries.jsonl")
    }
    judged = measures.read_trec_qrels(str(folder / "qrels.tsv"))
    ndcg, recall = measures.nDCG @ 10, measures.R @ 100
    result = measures.calc_aggregate([ndcg, recall], judged, found)
    assert result[ndcg] == pytest.approx(0.679, abs=0.003)
    assert result[recall] == pytest.approx(0.925, abs=0.003)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
