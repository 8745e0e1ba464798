from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from llmrank.errors import InputError
from llmrank.retrieve import DenseIndex
from llmrank.types import Document

Vectors = NDArray[np.float32]


def embed(texts: Sequence[str]) -> Vectors:
    """A text here is its vector, written out."""
    return np.array([[float(part) for part in text.split()] for text in texts], dtype=np.float32)


def index_of(vectors: NDArray[Any], batch: int = 64) -> DenseIndex:
    documents = (
        Document(f"d{number}", " ".join(map(repr, row)))
        for number, row in enumerate(vectors.tolist())
    )
    return DenseIndex.build(documents, embed, model="m", batch=batch)


SMALL = st.lists(st.lists(st.integers(-3, 3), min_size=3, max_size=3), min_size=1, max_size=12).map(
    lambda rows: np.array(rows, dtype=np.float32)
)


@given(SMALL, SMALL, st.integers(1, 15), st.integers(1, 5))
def test_search_is_exact_with_ties_by_falling_id(
    documents: Vectors, queries: Vectors, k: int, batch: int
) -> None:
    found = index_of(documents, batch).search(queries, k, model="m")
    for query, hits in zip(queries, found, strict=True):
        products = (documents @ query).tolist()
        every = [(f"d{number}", product) for number, product in enumerate(products)]
        assert hits == sorted(every, key=lambda hit: (hit[1], hit[0]), reverse=True)[:k]


def test_equal_vectors_tie_wherever_they_stand() -> None:
    rng = np.random.default_rng(7)
    vectors = rng.standard_normal((1003, 97)).astype(np.float32)
    copies = [0, 5, 500, 1001, 1002]
    query = rng.standard_normal((1, 97)).astype(np.float32)
    vectors[copies] = query
    hits = index_of(vectors).search(query, 4, model="m")[0]
    assert hits == [(name, hits[0][1]) for name in ("d500", "d5", "d1002", "d1001")]


def test_a_query_is_answered_the_same_alone_and_among_many() -> None:
    rng = np.random.default_rng(7)
    vectors = rng.standard_normal((30_000, 8)).astype(np.float32)
    index = DenseIndex(
        tuple(map(str, range(30_000))), "m", vectors, float(np.linalg.norm(vectors, axis=1).max())
    )
    queries = rng.standard_normal((600, 8)).astype(np.float32)
    together = index.search(queries, 5, model="m")
    assert len(together) == 600
    for number in (0, 300, 599):
        assert together[number : number + 1] == index.search(
            queries[number : number + 1], 5, model="m"
        )
    best = int((vectors.astype(np.float64) @ queries[599].astype(np.float64)).argmax())
    assert together[599][0][0] == str(best)


def test_title_is_embedded_with_the_text() -> None:
    index = DenseIndex.build([Document("a", "2", "1")], embed, model="m")
    assert index.vectors.tolist() == [[1, 2]]
    assert len(index) == 1


def test_bad_input_is_named() -> None:
    index = index_of(np.eye(2))
    with pytest.raises(InputError, match="'other'"):
        index.search(np.eye(2, dtype=np.float32), 1, model="other")
    with pytest.raises(InputError, match="3 dimensions"):
        index.search(np.eye(3, dtype=np.float32), 1, model="m")
    with pytest.raises(InputError, match="shape"):
        index.search(np.ones(2, dtype=np.float32), 1, model="m")
    with pytest.raises(InputError, match="finite"):
        index.search(np.full((1, 2), np.nan, dtype=np.float32), 1, model="m")
    with pytest.raises(InputError, match="k is 0"):
        index.search(np.eye(2, dtype=np.float32), 0, model="m")
    assert index.search(np.zeros((0, 2), dtype=np.float32), 1, model="m") == []


@pytest.mark.parametrize(
    ("texts", "problem"),
    [([], "no documents"), (["1 nan"], "finite"), (["1 2", "3"], "shape"), ([""], "shape")],
)
def test_bad_documents_are_named(texts: list[str], problem: str) -> None:
    documents = [Document(str(number), text) for number, text in enumerate(texts)]
    with pytest.raises(InputError, match=problem):
        DenseIndex.build(documents, embed, model="m", batch=1)


def test_an_embedder_that_loses_a_text_is_named() -> None:
    documents = [Document("a", "1"), Document("b", "2")]
    with pytest.raises(InputError, match=r"\(1, 1\) came where \(2, 1\)"):
        DenseIndex.build(documents, lambda texts: embed(texts[:1]), model="m")


def test_a_loaded_index_answers_as_the_saved_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    vectors = rng.standard_normal((50, 6)).astype(np.float32)
    index = index_of(vectors)
    index.save(tmp_path / "index")
    loaded = DenseIndex.load(tmp_path / "index")
    assert loaded.model == "m"
    assert isinstance(loaded.vectors, np.memmap)
    assert loaded.search(vectors, 7, model="m") == index.search(vectors, 7, model="m")


def test_a_failed_save_keeps_the_index_before(tmp_path: Path) -> None:
    index = index_of(np.eye(2))
    index.save(tmp_path / "index")
    unwritable = cast("Vectors", np.array([[None]], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        DenseIndex(("x",), "m", unwritable, 1.0).save(tmp_path / "index")
    assert DenseIndex.load(tmp_path / "index").ids == index.ids
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_a_damaged_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no dense index here"):
        DenseIndex.load(tmp_path / "nowhere")
    index_of(np.eye(2)).save(tmp_path)
    np.save(tmp_path / "vectors.npy", np.eye(3, dtype=np.float32))
    with pytest.raises(InputError, match="do not belong together"):
        DenseIndex.load(tmp_path)
    np.save(tmp_path / "vectors.npy", np.eye(2))
    with pytest.raises(InputError, match="float64"):
        DenseIndex.load(tmp_path)
