from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
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


def test_scores_of_named_documents_are_those_of_a_search() -> None:
    rng = np.random.default_rng(7)
    index = index_of(rng.standard_normal((20, 5)).astype(np.float32))
    query = rng.standard_normal(5).astype(np.float32)
    found = index.search(query.reshape(1, -1), 20, model="m")[0]
    assert index.score(query, [name for name, _ in found]) == [score for _, score in found]
    assert index.score(query, []) == []
    with pytest.raises(InputError, match="'nosuch'"):
        index.score(query, ["nosuch"])


class TestGrowing:
    """An index that is built in a folder, and goes on where it was ended."""

    texts = tuple(f"{n} {n % 7} {n % 3}" for n in range(1, 24))

    def documents(self) -> list[Document]:
        return [Document(f"d{n}", text) for n, text in enumerate(self.texts)]

    def build(self, folder: Path, documents: Iterable[Document], batch: int = 4) -> list[str]:
        """Build, and give the texts that were embedded."""
        embedded: list[str] = []

        def noting(texts: Sequence[str]) -> Vectors:
            embedded.extend(texts)
            return embed(texts)

        DenseIndex.build_in(folder, documents, noting, model="m", batch=batch)
        return embedded

    def end_after(self, folder: Path, count: int, batch: int = 4) -> None:
        """Have the reading of the documents fail after so many."""

        def broken() -> Iterable[Document]:
            yield from self.documents()[:count]
            raise OSError("gone")

        with pytest.raises(OSError, match="gone"):
            self.build(folder, broken(), batch)

    def same(self, folder: Path) -> None:
        """The folder holds what building in memory gives, and nothing is left beside it."""
        found, expected = DenseIndex.load(folder), index_of(embed(self.texts))
        assert found.ids == expected.ids
        assert np.array_equal(found.vectors, expected.vectors)
        assert found._longest == expected._longest
        assert [path.name for path in folder.parent.iterdir()] == [folder.name]

    @pytest.mark.parametrize("batch", [1, 4, 23, 100])
    def test_at_once(self, tmp_path: Path, batch: int) -> None:
        assert self.build(tmp_path / "i", self.documents(), batch) == list(self.texts)
        self.same(tmp_path / "i")

    @pytest.mark.parametrize("count", [0, 3, 4, 11, 22, 23])
    @pytest.mark.parametrize("batch", [4, 5])
    def test_it_goes_on_where_it_was_ended(self, tmp_path: Path, count: int, batch: int) -> None:
        self.end_after(tmp_path / "i", count)
        with pytest.raises(InputError, match="no dense index"):
            DenseIndex.load(tmp_path / "i")
        kept = count // 4 * 4
        assert self.build(tmp_path / "i", self.documents(), batch) == list(self.texts[kept:])
        self.same(tmp_path / "i")

    def test_ended_more_than_once(self, tmp_path: Path) -> None:
        for count in (9, 8, 17):
            self.end_after(tmp_path / "i", count)
        assert self.build(tmp_path / "i", self.documents()) == list(self.texts[16:])
        self.same(tmp_path / "i")

    @pytest.mark.parametrize("cut", [1, 20, 60, 200])
    @pytest.mark.parametrize("name", ["vectors.npy", "progress.jsonl"])
    def test_what_was_half_written_is_embedded_again(
        self, tmp_path: Path, name: str, cut: int
    ) -> None:
        self.end_after(tmp_path / "i", 12)
        path = tmp_path / "i.part" / name
        path.write_bytes(path.read_bytes()[:-cut])
        again = self.build(tmp_path / "i", self.documents())
        assert again == list(self.texts[len(self.texts) - len(again) :])
        assert len(again) % 4 == 3
        self.same(tmp_path / "i")

    @pytest.mark.parametrize("line", [0, 1, 2, 3])
    @pytest.mark.parametrize(
        "damage",
        [b"\0\0", b"[]", b"7", b"{}", b'[4, "x", 1]', b'["4", "x"]', b"\xff", b'[0, "x"]'],
    )
    def test_a_damaged_line_and_all_behind_it_count_nothing(
        self, tmp_path: Path, line: int, damage: bytes
    ) -> None:
        self.end_after(tmp_path / "i", 12)
        path = tmp_path / "i.part" / "progress.jsonl"
        lines = path.read_bytes().splitlines()
        lines[line] = damage
        path.write_bytes(b"".join(one + b"\n" for one in lines))
        kept = 4 * max(0, line - 1)
        assert self.build(tmp_path / "i", self.documents()) == list(self.texts[kept:])
        self.same(tmp_path / "i")

    def test_vectors_without_a_mark_are_written_again(self, tmp_path: Path) -> None:
        self.end_after(tmp_path / "i", 12)
        with (tmp_path / "i.part" / "vectors.npy").open("ab") as file:
            file.write(b"half a ve")
        assert self.build(tmp_path / "i", self.documents()) == list(self.texts[12:])
        self.same(tmp_path / "i")

    def test_an_index_that_stands_there_answers_until_the_end(self, tmp_path: Path) -> None:
        self.build(tmp_path / "i", [Document("old", "1 2 3")])
        self.end_after(tmp_path / "i", 12)
        assert DenseIndex.load(tmp_path / "i").ids == ("old",)
        self.build(tmp_path / "i", self.documents())
        self.same(tmp_path / "i")

    def test_other_documents_are_refused_and_nothing_is_lost(self, tmp_path: Path) -> None:
        self.end_after(tmp_path / "i", 12)
        other = [*self.documents()[:6], Document("x", "1 2 3"), *self.documents()[7:]]
        for wrong in (other, self.documents()[:9], self.documents()[::-1]):
            with pytest.raises(InputError, match=r"i\.part: holds vectors of other documents"):
                self.build(tmp_path / "i", wrong)
        assert self.build(tmp_path / "i", self.documents()) == list(self.texts[12:])
        self.same(tmp_path / "i")

    def test_another_model_is_refused(self, tmp_path: Path) -> None:
        self.end_after(tmp_path / "i", 12)
        with pytest.raises(InputError, match="by 'm', not by 'other'"):
            DenseIndex.build_in(tmp_path / "i", self.documents(), embed, model="other")

    def test_bad_vectors_keep_what_came_before(self, tmp_path: Path) -> None:
        def wrong(texts: Sequence[str]) -> Vectors:
            vectors = embed(texts)
            return vectors if "5 5 2" in texts or "1 1 1" in texts else vectors[:, :2]

        with pytest.raises(InputError, match=r"\(4, 2\) came where \(4, 3\)"):
            DenseIndex.build_in(tmp_path / "i", self.documents(), wrong, model="m", batch=4)
        assert self.build(tmp_path / "i", self.documents()) == list(self.texts[8:])

    def test_a_document_twice_is_refused(self, tmp_path: Path) -> None:
        self.end_after(tmp_path / "i", 12)
        with pytest.raises(InputError, match="'d2' occurs twice"):
            self.build(tmp_path / "i", [*self.documents(), self.documents()[2]])

    def test_nothing_is_left_of_an_empty_corpus(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no documents"):
            self.build(tmp_path / "i", [])
        assert not list(tmp_path.iterdir())

    @pytest.mark.skipif(sys.platform == "win32", reason="needs fcntl and SIGKILL")
    def test_a_process_that_is_killed(self, tmp_path: Path) -> None:
        program = f"""
import sys, time
import numpy as np
from llmrank.retrieve import DenseIndex
from llmrank.types import Document

def embed(texts):
    if texts[0].startswith("13 "):
        print("ready", flush=True)
        time.sleep(60)
    return np.array([[float(part) for part in text.split()] for text in texts], dtype=np.float32)

documents = [Document(f"d{{n}}", text) for n, text in enumerate({self.texts!r})]
DenseIndex.build_in({str(tmp_path / "i")!r}, documents, embed, model="m", batch=4)
"""
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as building:
            assert building.stdout is not None
            assert building.stdout.readline() == b"ready\n"
            with pytest.raises(InputError, match="another process"):
                self.build(tmp_path / "i", self.documents())
            building.send_signal(signal.SIGKILL)
        lines = (tmp_path / "i.part" / "progress.jsonl").read_text().splitlines()
        assert [json.loads(line)[0] for line in lines[1:]] == [4, 8, 12]
        assert self.build(tmp_path / "i", self.documents()) == list(self.texts[12:])
        self.same(tmp_path / "i")
