"""Files in every shape that users bring: what is read, what is written and what is refused."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import threading
import tracemalloc
from array import array
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrank import trec
from llmrank.errors import InputError, MissingExtra
from llmrank.types import Document, Query
from tests.effort import examples

ROOT = Path(__file__).parents[1]
SHARED = (ROOT / "../shared/data").resolve()

Reader = Callable[[Path], Iterable[object]]


def put(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def refusal(read: Callable[[], object]) -> InputError:
    with pytest.raises(InputError) as caught:
        read()
    return caught.value


def python(code: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", f"from llmrank import trec\n{code}"]
    return subprocess.run(command, input=stdin, capture_output=True, cwd=ROOT, check=True)


# ---- lines ----

READERS: list[Reader] = [
    trec.read_corpus,
    trec.read_queries,
    trec.read_qrels,
    trec.read_run,
    trec.read_jsonl,
]


@pytest.mark.parametrize("read", READERS)
def test_missing_file_is_named(tmp_path: Path, read: Reader) -> None:
    path = tmp_path / "nowhere.txt"
    error = refusal(lambda: list(read(path)))
    assert str(error) == f"{path}: cannot be read: No such file or directory"


@pytest.mark.parametrize("read", READERS)
def test_bytes_that_are_not_utf8_are_shown(tmp_path: Path, read: Reader) -> None:
    path = put(tmp_path, "latin1.txt", b"\n\ncaf\xe9 au lait\n")
    error = refusal(lambda: list(read(path)))
    assert (error.path, error.line) == (str(path), 3)
    assert "byte 0xe9 at position 4" in str(error)
    assert "iconv" in error.remedy


@pytest.mark.parametrize("read", READERS)
def test_torn_gzip_is_refused(tmp_path: Path, read: Reader) -> None:
    whole = gzip.compress(b"\n" * 20_000 + os.urandom(4000).hex().encode())
    path = put(tmp_path, "torn.gz", whole[: len(whole) // 2])
    error = refusal(lambda: list(read(path)))
    assert str(error).startswith(f"{path}:{error.line}: the gzip data is torn")
    assert error.line is not None
    assert 10_000 < error.line <= 20_001


def test_gzip_with_a_broken_checksum_is_refused(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(b"d1\ttext\n"))
    packed[-8] ^= 1
    path = put(tmp_path, "c.tsv.gz", bytes(packed))
    assert "torn or damaged" in str(refusal(lambda: list(trec.read_corpus(path))))


def test_gzip_is_known_by_content_not_by_name(tmp_path: Path) -> None:
    packed = put(tmp_path, "packed.tsv", gzip.compress(b"d1\tone\n"))
    plain = put(tmp_path, "plain.tsv.gz", "d1\tone\n")
    assert list(trec.read_corpus(packed)) == list(trec.read_corpus(str(plain)))


def test_bom_crlf_and_blank_lines_leave_no_trace_but_their_numbers(tmp_path: Path) -> None:
    path = put(tmp_path, "c.tsv", b"\xef\xbb\xbfd1\tone\r\n\r\n \t \nd2\t two \r\nd3\t\r\n")
    lines = [(line.number, line.text) for line in trec.read_lines(path)]
    assert lines == [(1, "d1\tone"), (4, "d2\t two "), (5, "d3\t")]


def test_unusual_separators_do_not_end_a_line(tmp_path: Path) -> None:
    path = put(tmp_path, "c.tsv", "d1\ta\u2028b\x0bc\x85d\n")
    assert [d.text for d in trec.read_corpus(path)] == ["a\u2028b\x0bc\x85d"]


def test_standard_input_is_read_and_named(tmp_path: Path) -> None:
    code = "import sys; print(list(trec.read_run('-')), sys.stdin.closed)"
    printed = python(code, gzip.compress(b"q1 Q0 d1 1 2 t\n")).stdout
    assert printed.strip() == b"[('q1', (('d1', 2.0),))] False"
    code = "try: list(trec.read_run('-'))\nexcept Exception as error: print(error)"
    assert python(code, b"q1 Q0 d1\n").stdout.startswith(b"<stdin>:1: expected 6 columns")


def test_rereadable_standard_input_is_read_twice_and_cleaned_up() -> None:
    code = (
        "with trec.rereadable('-') as source:\n"
        "    print([q for q, _ in trec.read_run(source)], list(trec.read_run(source)))\n"
        "print(source.exists())"
    )
    printed = python(code, gzip.compress(b"q1 Q0 d1 1 2 t\n")).stdout.split(b"\n")
    assert printed[:2] == [b"['q1'] [('q1', (('d1', 2.0),))]", b"False"]


def test_rereadable_pipe_and_plain_file(tmp_path: Path) -> None:
    path = put(tmp_path, "a.run", "q1 Q0 d1 1 2 t\n")
    with trec.rereadable(path) as source:
        assert source is path
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    feeder = threading.Thread(target=pipe.write_bytes, args=(path.read_bytes(),))
    feeder.start()
    with trec.rereadable(pipe) as source:
        assert [[q for q, _ in trec.read_run(source)] for _ in range(2)] == [["q1"], ["q1"]]
    feeder.join()


# ---- JSON lines ----


def test_jsonl_comes_back_as_it_was(tmp_path: Path) -> None:
    records: list[dict[str, object]] = [{"a": "ä\u2028\n"}, {}, {"b": [1.5, None, {"c": "\ud83d"}]}]
    for name in ("x.jsonl", "x.jsonl.gz"):
        trec.write_jsonl(tmp_path / name, records)
        assert list(trec.read_jsonl(tmp_path / name)) == records
    assert (tmp_path / "x.jsonl").read_text().startswith('{"a": "ä')
    assert gzip.decompress((tmp_path / "x.jsonl.gz").read_bytes()).count(b"\n") == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "expected a JSON object, found list"),
        ("null", "expected a JSON object, found NoneType"),
        ('{"a": ', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_jsonl_line_that_is_no_object(tmp_path: Path, text: str, message: str) -> None:
    path = put(tmp_path, "x.jsonl", '{"a": 1}\n\n' + text)
    error = refusal(lambda: list(trec.read_jsonl(path)))
    assert str(error).startswith(f"{path}:3: {message}")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1}, b"x"])
def test_jsonl_refuses_what_json_cannot_hold(tmp_path: Path, value: object) -> None:
    path = put(tmp_path, "x.jsonl", "before")
    error = refusal(lambda: trec.write_jsonl(path, [{"a": 1}, {"a": value}]))
    assert (error.path, error.line) == (path, 2)
    assert path.read_text() == "before"
    assert names(tmp_path) == ["x.jsonl"]


# ---- corpora ----


@pytest.mark.parametrize("id_key", ["_id", "id", "docid", "doc_id"])
@pytest.mark.parametrize("text_key", ["text", "contents", "passage"])
def test_corpus_keys(tmp_path: Path, id_key: str, text_key: str) -> None:
    path = put(tmp_path, "c.jsonl", json.dumps({id_key: "d1", "title": "T", text_key: "one"}))
    assert list(trec.read_corpus(path)) == [Document("d1", "one", "T")]


def test_corpus_keeps_other_keys_as_metadata(tmp_path: Path) -> None:
    records = [
        {"_id": 7, "text": "one", "title": None, "url": "u", "metadata": {"year": 1958}},
        {"_id": "d2", "docid": "x", "text": None, "metadata": "m"},
    ]
    path = put(tmp_path, "c.jsonl", "\n".join(map(json.dumps, records)))
    first, second = trec.read_corpus(path)
    assert (first, first.metadata) == (Document("7", "one"), {"url": "u", "year": 1958})
    assert (second, second.metadata) == (Document("d2", ""), {"docid": "x", "metadata": "m"})


def test_corpus_tsv_with_and_without_titles(tmp_path: Path) -> None:
    two = put(tmp_path, "two.tsv", 'd1\t"one" \nd2\t\n')
    assert list(trec.read_corpus(two)) == [Document("d1", '"one" '), Document("d2", "")]
    three = put(tmp_path, "three.tsv", "d1\tT\tone\nd2\t\ttwo\n")
    assert list(trec.read_corpus(three)) == [Document("d1", "one", "T"), Document("d2", "two")]


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.gz"])
def test_beir_folder(tmp_path: Path, name: str) -> None:
    put(tmp_path, name, '{"_id": "d1", "text": "one"}\n')
    assert list(trec.read_corpus(tmp_path)) == [Document("d1", "one")]


def test_folder_without_the_file(tmp_path: Path) -> None:
    missing = {
        "corpus.jsonl": trec.read_corpus,
        "queries.jsonl": trec.read_queries,
        "qrels/test.tsv": trec.read_qrels,
    }
    for name, read in missing.items():
        error = refusal(lambda read=read: list(read(tmp_path)))  # type: ignore[misc]
        assert f"neither {name} nor {name}.gz" in str(error)
    assert "Is a directory" in str(refusal(lambda: list(trec.read_run(tmp_path))))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "one"}', "none of the keys _id, id, docid, doc_id"),
        ('{"_id": "d2", "body": "one"}', "none of the keys text, contents, passage"),
        ('{"_id": "", "text": "one"}', "string or an integer as id, found ''"),
        ('{"_id": null, "text": "one"}', "string or an integer as id, found None"),
        ('{"_id": true, "text": "one"}', "string or an integer as id, found True"),
        ('{"_id": 1.5, "text": "one"}', "string or an integer as id, found 1.5"),
        ('{"_id": "d2", "text": ["one"]}', "expected a string as text, found list"),
        ('{"_id": "d2", "title": 3, "text": ""}', "expected a string as text, found int"),
        ('["d2", "one"]', "expected a JSON object, found list"),
        ("d2\tone", "not valid JSON"),
    ],
)
def test_bad_json_record(tmp_path: Path, line: str, message: str) -> None:
    path = put(tmp_path, "c.jsonl", '{"_id": "d1", "text": "one"}\n\n' + line)
    error = refusal(lambda: list(trec.read_corpus(path)))
    assert (error.path, error.line) == (str(path), 3)
    assert message in str(error)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("d1 one\n", 1, "_id<TAB>text or _id<TAB>title<TAB>text, found 1 tab-separated"),
        ("d1\tu\tT\tone\n", 1, "found 4 tab-separated columns"),
        ("d1\tone\nd2\ttwo\tmore\n", 2, "found 3 columns where the first line has 2"),
        ("d1\tone\n\tnameless\n", 2, "as id, found ''"),
    ],
)
def test_bad_tsv_record(tmp_path: Path, text: str, line: int, message: str) -> None:
    path = put(tmp_path, "c.tsv", text)
    error = refusal(lambda: list(trec.read_corpus(path)))
    assert (error.path, error.line) == (str(path), line)
    assert message in str(error)


def test_texts_are_only_the_wanted_ones_and_unknown_ids_are_absent(tmp_path: Path) -> None:
    path = put(tmp_path, "c.tsv", "d1\tone\nd2\ttwo\nd3\t\n")
    assert trec.read_texts(path, ["d3", "d9", "d1"]) == {
        "d1": Document("d1", "one"),
        "d3": Document("d3", ""),
    }
    assert trec.read_texts(path, []) == {}


def test_texts_stop_reading_when_all_are_found(tmp_path: Path) -> None:
    path = put(tmp_path, "c.tsv", b"d1\tone\nd2\ttwo\n\xff\n")
    assert set(trec.read_texts(path, {"d1", "d2"})) == {"d1", "d2"}
    assert refusal(lambda: trec.read_texts(path, {"d1", "d9"})).line == 3


def test_texts_with_repeated_ids(tmp_path: Path) -> None:
    path = put(tmp_path, "c.tsv", "d1\tone\nd2\ttwo\nd1\tone\nd2\tother\n")
    assert set(trec.read_texts(path, ["d1", "d9"])) == {"d1"}
    error = refusal(lambda: trec.read_texts(path, ["d1", "d2", "d9"]))
    assert str(error).startswith(f"{path}:4: document 'd2' stands on line 2 too")


# ---- queries ----


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("queries.jsonl", '{"_id": "1", "text": "one", "metadata": {}}\n{"_id": 2, "text": ""}\n'),
        ("q.jsonl", '{"qid": "1", "query": "one"}\n{"query_id": "2", "text": ""}'),
        ("q.tsv", "1\tone\n2\t\n"),
    ],
)
def test_queries(tmp_path: Path, name: str, text: str) -> None:
    path = put(tmp_path, name, text)
    source = tmp_path if name == "queries.jsonl" else path
    assert list(trec.read_queries(source)) == [Query("1", "one"), Query("2", "")]


def test_repeated_queries(tmp_path: Path) -> None:
    path = put(tmp_path, "q.tsv", "1\tone\n2\ttwo\n1\tone\n2\tother\n")
    read = trec.read_queries(path)
    assert [next(read), next(read)] == [Query("1", "one"), Query("2", "two")]
    error = refusal(lambda: next(read))
    assert str(error).startswith(f"{path}:4: query '2' stands on line 2 too")


def test_queries_with_tabs_in_the_text_are_refused(tmp_path: Path) -> None:
    path = put(tmp_path, "q.tsv", "1\tone\ttwo\n")
    assert refusal(lambda: list(trec.read_queries(path))).line == 1


# ---- judgements ----


def test_qrels_of_trec_and_beir(tmp_path: Path) -> None:
    lines = "q1\t0\td1\t1\nq1 Q0  d2 -2\r\n\nq2 0 d1 0\nq2 0 d1 0\n"
    expected = {"q1": {"d1": 1, "d2": -2}, "q2": {"d1": 0}}
    assert trec.read_qrels(put(tmp_path, "q.txt", lines)) == expected
    header = "query-id\tcorpus-id\tscore\n"
    put(tmp_path, "qrels/test.tsv", header + "q1\td1\t1\nq1\td 2\t3\n")
    assert trec.read_qrels(tmp_path) == {"q1": {"d1": 1, "d 2": 3}}
    assert trec.read_qrels(put(tmp_path, "empty", "")) == {}


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("q1\td1\t1\n", 1, "found 3 (three columns need the header"),
        ("q1 0 d1 1\nq1 0 d2 1 x\n", 2, "expected 4 columns"),
        ("q1 0 d1 1\nq1 0 d2 1.5\n", 2, "expected an integer as grade, found '1.5'"),
        ("query-id\tcorpus-id\tscore\nq1\td1\tyes\n", 2, "expected an integer"),
        ("query-id\tcorpus-id\tscore\nq1\t0\td1\t1\n", 2, "found 4 columns"),
        ("q1 0 d1 1\nq1 0 d1 2\n", 2, "'d1' has grade 2 for query 'q1', but 1"),
    ],
)
def test_bad_qrels(tmp_path: Path, text: str, line: int, message: str) -> None:
    path = put(tmp_path, "q.tsv", text)
    error = refusal(lambda: trec.read_qrels(path))
    assert (error.path, error.line) == (str(path), line)
    assert message in str(error)


# ---- ir_datasets ----


def test_ir_datasets(tmp_path: Path) -> None:
    library = pytest.importorskip("ir_datasets")
    dataset = library.create_dataset(
        docs_tsv=put(tmp_path, "docs.tsv", "d1\tone\nd2\ttwo\n"),
        queries_tsv=put(tmp_path, "queries.tsv", "q1\tfirst\n"),
        qrels_trec=put(tmp_path, "qrels", "q1 0 d1 2\n"),
    )
    library.registry.register(f"llmrank-{tmp_path.name}", dataset)
    source = f"ir_datasets:llmrank-{tmp_path.name}"
    assert list(trec.read_corpus(source)) == [Document("d1", "one"), Document("d2", "two")]
    assert trec.read_texts(source, ["d2", "d9"]) == {"d2": Document("d2", "two")}
    assert list(trec.read_queries(source)) == [Query("q1", "first")]
    assert trec.read_qrels(source) == {"q1": {"d1": 2}}


def test_ir_datasets_without_the_name_or_the_part(tmp_path: Path) -> None:
    library = pytest.importorskip("ir_datasets")
    error = refusal(lambda: list(trec.read_corpus("ir_datasets:no/such")))
    assert "knows no data set named 'no/such'" in str(error)
    docs = library.create_dataset(docs_tsv=put(tmp_path, "docs.tsv", "d1\tone\n"))
    library.registry.register(f"llmrank-{tmp_path.name}", docs)
    error = refusal(lambda: list(trec.read_queries(f"ir_datasets:llmrank-{tmp_path.name}")))
    assert "has no queries" in str(error)


def test_ir_datasets_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ir_datasets", None)
    with pytest.raises(MissingExtra, match=r"llmrank\[data\]"):
        next(trec.read_corpus("ir_datasets:cranfield"))


# ---- reading runs ----


def test_run_is_sorted_by_score_not_by_rank_and_cut(tmp_path: Path) -> None:
    text = "q2 Q0 d1 1 0.5 t\nq2 Q0 d2 2 9 t\r\nq2 Q0 d3 3 -1e3 t\n\nq1\tQ0\td1\t0\t1.25\tt\n"
    path = put(tmp_path, "a.run", text)
    assert list(trec.read_run(path)) == [
        ("q2", (("d2", 9.0), ("d1", 0.5), ("d3", -1000.0))),
        ("q1", (("d1", 1.25),)),
    ]
    assert [len(hits) for _, hits in trec.read_run(path, 2)] == [2, 1]
    assert "depth" in str(refusal(lambda: list(trec.read_run(path, 0))))
    assert list(trec.read_run(put(tmp_path, "empty", ""))) == []


def test_run_ties_are_those_of_float32(tmp_path: Path) -> None:
    scores = {"a": 1 + 1e-8, "b": 1.0, "c": 1 + 1.2e-7, "d10": 0.0, "d9": -0.0}
    path = put(tmp_path, "a.run", "".join(f"q Q0 {d} 1 {s!r} t\n" for d, s in scores.items()))
    ((_, hits),) = trec.read_run(path)
    assert hits == tuple((d, scores[d]) for d in ("c", "b", "a", "d9", "d10"))


@examples(60)
@given(
    st.dictionaries(
        st.text("abé\U0001f600\uff101", min_size=1, max_size=3),
        st.sampled_from([0.0, 1.0, 1 + 1e-8, 1 + 1.2e-7, -3.5, 2.0**-149, 1e-60, 16777217.0]),
        min_size=1,
        max_size=8,
    )
)
def test_order_is_that_of_trec_eval(
    tmp_path_factory: pytest.TempPathFactory, scores: dict[str, float]
) -> None:
    pytrec_eval: Any = pytest.importorskip("pytrec_eval")
    path = tmp_path_factory.getbasetemp() / "order.run"
    path.write_text("".join(f"q Q0 {d} 1 {s!r} t\n" for d, s in scores.items()))
    ((_, hits),) = trec.read_run(path)
    for place, (doc_id, _) in enumerate(hits, 1):
        evaluator = pytrec_eval.RelevanceEvaluator({"q": {doc_id: 1}}, {"recip_rank"})
        assert evaluator.evaluate({"q": scores})["q"]["recip_rank"] == pytest.approx(1 / place)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q2 Q0 d1 1 2.5", "expected 6 columns (query Q0 document rank score tag), found 5"),
        ("q2 Q0 d1 1 2.5 my tag", "found 7 (ids and tags hold no white space)"),
        ("q2 Q0 d1 1 high t", "finite number (float32) as score, found 'high'"),
        ("q2 Q0 d1 1 nan t", "found 'nan'"),
        ("q2 Q0 d1 1 -inf t", "found '-inf'"),
        ("q2 Q0 d1 1 1e39 t", "found '1e39'"),
        ("q2 Q0 d1 1 1_0 t", "found '1_0'"),
        ("q1 Q0 d1 2 0.5 t", "document 'd1' stands twice in query 'q1': lines 1 and 3"),
    ],
)
def test_bad_run_line(tmp_path: Path, line: str, message: str) -> None:
    path = put(tmp_path, "a.run", f"q1 Q0 d1 1 1.0 t\n\n{line}\n")
    error = refusal(lambda: list(trec.read_run(path)))
    assert (error.path, error.line) == (str(path), 3)
    assert message in str(error)


def test_run_that_is_not_grouped(tmp_path: Path) -> None:
    path = put(tmp_path, "a.run", "q1 Q0 d1 1 3 t\nq2 Q0 d1 1 3 t\nq1 Q0 d2 2 2 t\n")
    error = refusal(lambda: list(trec.read_run(path)))
    assert (error.line, "sort -s -k1,1" in error.remedy) == (3, True)


def test_run_lines_keep_file_order_and_tag(tmp_path: Path) -> None:
    path = put(tmp_path, "a.run", "q1 Q0 d1 7 1 t1\n\nq1 Q0 d2 1 3 t2\n")
    assert [(line.number, hit) for line, hit in trec.read_run_lines(path)] == [
        (1, trec.RunLine("q1", "d1", 1.0, "t1")),
        (3, trec.RunLine("q1", "d2", 3.0, "t2")),
    ]


def peak_of_reading(path: Path) -> int:
    tracemalloc.start()
    try:
        for _ in trec.read_run(path):
            pass
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_run(tmp_path: Path) -> None:
    def lines(queries: int) -> str:
        return "".join(f"q{q} Q0 d{d} 1 {-d} t\n" for q in range(queries) for d in range(100))

    small, large = put(tmp_path, "small", lines(10)), put(tmp_path, "large", lines(100))
    peak_of_reading(small)
    assert peak_of_reading(large) < peak_of_reading(small) + 30_000


# ---- writing runs ----

GROUPS = [("q1", [("d2", 3.5), ("d1", 0.25)]), ("q0", []), ("q2", [("d1", 1.0), ("d2", 1.0)])]
WRITTEN = (
    "q1 Q0 d2 1 3.5 my_tag\nq1 Q0 d1 2 0.25 my_tag\nq2 Q0 d1 1 1.0 my_tag\n"
    "q2 Q0 d2 2 0.9999999403953552 my_tag\n"
)


def test_written_run(tmp_path: Path) -> None:
    trec.write_run(tmp_path / "a.run", GROUPS, tag=" my\ttag ")
    assert (tmp_path / "a.run").read_text() == WRITTEN
    trec.write_run(tmp_path / "a.run.gz", iter(GROUPS), tag="my tag")
    trec.write_run(tmp_path / "b.run.gz", GROUPS, tag="my tag")
    packed = (tmp_path / "a.run.gz").read_bytes()
    assert gzip.decompress(packed).decode() == WRITTEN
    assert packed == (tmp_path / "b.run.gz").read_bytes()
    assert packed[4:8] == bytes(4)  # no time stamp
    assert (tmp_path / "a.run").stat().st_mode == put(tmp_path, "plain", "").stat().st_mode


def test_written_run_to_standard_output(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    trec.write_run("-", GROUPS, tag="my tag")
    assert capsysbinary.readouterr().out.decode() == WRITTEN


@pytest.mark.parametrize("top", [float("inf"), 1e300, float("nan"), 0.5])
def test_scores_that_rise_or_that_float32_cannot_hold_become_places(
    tmp_path: Path, top: float
) -> None:
    trec.write_run(tmp_path / "a.run", [("q", [("d1", top), ("d2", 1.0)])], tag="t")
    assert list(trec.read_run(tmp_path / "a.run")) == [("q", (("d1", 2.0), ("d2", 1.0)))]


def test_tied_scores_are_lowered_by_the_least_step(tmp_path: Path) -> None:
    scores = [7.1, 1.0 + 1e-9, 1.0, 1.0, 0.25]
    hits = [(f"d{i}", score) for i, score in enumerate(scores)]
    trec.write_run(tmp_path / "a.run", [("q", hits)], tag="t")
    ((_, read),) = trec.read_run(tmp_path / "a.run")
    assert [doc_id for doc_id, _ in read] == ["d0", "d1", "d2", "d3", "d4"]
    assert [score for _, score in read] == pytest.approx(scores, abs=2e-7)
    assert (read[0][1], read[4][1]) == (7.1, 0.25)


def test_ties_at_the_lowest_float32_become_places(tmp_path: Path) -> None:
    lowest = -3.4028234663852886e38
    trec.write_run(tmp_path / "a.run", [("q", [("d1", lowest), ("d2", lowest)])], tag="t")
    assert list(trec.read_run(tmp_path / "a.run")) == [("q", (("d1", 2.0), ("d2", 1.0)))]


def test_empty_tag_still_gives_six_columns(tmp_path: Path) -> None:
    trec.write_run(tmp_path / "a.run", GROUPS, tag=" ")
    assert {hit.tag for _, hit in trec.read_run_lines(tmp_path / "a.run")} == {"llmrank"}


@examples(60)
@given(
    st.lists(
        st.floats() | st.floats(width=32, allow_nan=False) | st.integers(-3, 3), max_size=9
    ).flatmap(lambda scores: st.sampled_from([scores, sorted(scores, reverse=True)]))
)
def test_a_written_run_reads_back_in_the_same_order(
    tmp_path_factory: pytest.TempPathFactory, scores: list[float]
) -> None:
    path = tmp_path_factory.getbasetemp() / "written.run"
    trec.write_run(path, [("q", [(f"d{i}", s) for i, s in enumerate(scores)])], tag="t")
    for _, hits in trec.read_run(path):
        assert [doc_id for doc_id, _ in hits] == [f"d{i}" for i in range(len(scores))]
        narrow = array("f", [score for _, score in hits])
        assert all(a > b for a, b in pairwise(narrow))
        written = [score for _, score in hits]
        if written != list(range(len(scores), 0, -1)):
            assert written == pytest.approx(scores, rel=1e-5, abs=1e-40)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([("q 1", [("d1", 1.0)])], "the id 'q 1' is empty or holds white space"),
        ([("q1", [("d\u00a01", 1.0)])], "is empty or holds white space"),
        ([("q1", [("", 1.0)])], "the id '' is empty"),
        ([("q1", [("\ud83d", 1.0)])], "surrogates not allowed"),
        ([("q1", [("d1", 2.0), ("d1", 1.0)])], "document 'd1' is given twice"),
        ([("q1", []), ("q1", [("d1", 1.0)])], "query 'q1' is given twice"),
    ],
)
def test_run_that_cannot_be_written(
    tmp_path: Path, groups: list[tuple[str, list[tuple[str, float]]]], message: str
) -> None:
    path = put(tmp_path, "a.run", "before")
    error = refusal(lambda: trec.write_run(path, [("q0", [("d1", 1.0)]), *groups], tag="t"))
    assert error.path == path
    assert message in str(error)
    assert path.read_text() == "before"
    assert names(tmp_path) == ["a.run"]


@pytest.mark.parametrize("name", ["a.run", "a.run.gz"])
def test_an_interrupted_write_leaves_nothing(tmp_path: Path, name: str) -> None:
    def groups() -> Iterator[tuple[str, list[tuple[str, float]]]]:
        yield "q1", [("d1", 1.0)]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trec.write_run(tmp_path / name, groups(), tag="t")
    assert names(tmp_path) == []


def test_a_run_can_be_rewritten_onto_itself(tmp_path: Path) -> None:
    path = put(tmp_path, "a.run", "q1 Q0 d1 1 1 t\nq1 Q0 d2 2 2 t\n")
    trec.write_run(path, trec.read_run(path), tag="new")
    assert path.read_text() == "q1 Q0 d2 1 2.0 new\nq1 Q0 d1 2 1.0 new\n"


def test_targets_that_are_no_plain_files(tmp_path: Path) -> None:
    trec.write_run("/dev/null", GROUPS, tag="t")
    assert Path("/dev/null").is_char_device()
    path = put(tmp_path, "real.run", "before")
    (tmp_path / "link.run").symlink_to(path)
    trec.write_run(tmp_path / "link.run", GROUPS, tag="my tag")
    assert path.read_text() == WRITTEN
    assert (tmp_path / "link.run").is_symlink()
    for bad in (tmp_path, tmp_path / "no" / "a.run"):
        error = refusal(lambda bad=bad: trec.write_run(bad, GROUPS, tag="t"))  # type: ignore[misc]
        assert str(error).startswith(f"{bad}: cannot be written")


# ---- real collections ----


@pytest.mark.parametrize(
    ("name", "sizes"), [("scifact", (5183, 300, 339)), ("cranfield", (1400, 225, 1837))]
)
def test_real_collections(name: str, sizes: tuple[int, int, int]) -> None:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip("shared/data is not here")
    documents = {document.id for document in trec.read_corpus(folder)}
    queries = {query.id for query in trec.read_queries(folder)}
    qrels = trec.read_qrels(folder / "qrels.tsv")
    assert (len(documents), len(queries), sum(map(len, qrels.values()))) == sizes
    run = dict(trec.read_run(folder / "runs/bm25.trec", 10))
    assert run.keys() == queries >= qrels.keys()
    assert {doc_id for hits in run.values() for doc_id, _ in hits} <= documents
