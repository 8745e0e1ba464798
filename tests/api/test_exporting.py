from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmrank import prompts, trec
from llmrank.api.exporting import CONTENTS, Exported, export
from llmrank.api.runs import fingerprint
from llmrank.errors import InputError, SpecError
from llmrank.plan import Order
from llmrank.synth.exports import FORMATS
from llmrank.types import Document, Query
from tests.trainers import data

TRAIN = len(data.TOPICS) - 1


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return data.write(tmp_path / "run")


def _contents(name: str) -> str:
    (found,) = [one for one in data.corpus_lines() if one["_id"] == name]
    return f"{found['title']} {found['text']}".strip()


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def _tsv(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_writes_what_it_says(name: str, run: Path, tmp_path: Path) -> None:
    told = export(run, name, tmp_path / "out")
    assert (told.kept, told.examples, told.left_out) == (TRAIN, TRAIN, {})
    for file, count in told.rows.items():
        lines = (tmp_path / "out" / file).read_text(encoding="utf-8").split("\n")
        assert lines.pop() == ""
        assert len(lines) - file.startswith("qrels/") == count > 0
    contents = json.loads((tmp_path / "out" / CONTENTS).read_text())
    assert contents["rows"] == told.rows
    assert {*told.rows, CONTENTS} == _files(tmp_path / "out").keys()
    # The same export again gives the same files and leaves nothing else behind.
    before = _files(tmp_path / "out")
    assert export(run, name, tmp_path / "out") == told
    assert _files(tmp_path / "out") == before
    assert {path.name for path in tmp_path.iterdir()} == {"run", "out", "corpus.jsonl"}


def test_pairs_and_tuples(run: Path, tmp_path: Path) -> None:
    export(run, "st-pairs", tmp_path / "pairs")
    pairs = data.rows(tmp_path / "pairs" / "train.jsonl")
    assert len(pairs) == 2 * TRAIN
    assert pairs[0] == {"anchor": "what is known of tides-0 0", "positive": _contents("tides-0")}
    export(run, "st-ntuples", tmp_path / "tuples")
    first = data.rows(tmp_path / "tuples" / "train.jsonl")[0]
    assert list(first) == ["anchor", "positive", "negative_1", "negative_2", "negative_3"]
    # In the order of the example; the passage that was not judged is no negative.
    found = [first[f"negative_{i}"] for i in (1, 2, 3)]
    assert found == [_contents("bread-1"), "Nothing of tides.", _contents("otters-1")]
    export(run, "st-ntuples", tmp_path / "tuples", negatives=1)
    assert list(data.rows(tmp_path / "tuples" / "train.jsonl")[0])[2:] == ["negative_1"]


def test_scores(run: Path, tmp_path: Path) -> None:
    export(run, "st-kldiv", tmp_path / "raw", negatives=2)
    first = data.rows(tmp_path / "raw" / "train.jsonl")[0]
    assert first["scores"] == [3.5, -0.5, -1.0]
    export(run, "st-kldiv", tmp_path / "raw", negatives=2, scale="minmax", score="dense")
    first = data.rows(tmp_path / "raw" / "train.jsonl")[0]
    assert first["scores"] == pytest.approx([1, 1 / 6, 0])
    export(run, "st-margin", tmp_path / "margin")
    assert [row["score"] for row in data.rows(tmp_path / "margin" / "train.jsonl")[:3]] == [
        4.0, 4.5, 6.5,
    ]  # fmt: skip
    export(run, "st-listwise", tmp_path / "list")
    assert data.rows(tmp_path / "list" / "train.jsonl")[0]["labels"] == [2, 1, 0, 0, 0]
    export(run, "st-listwise", tmp_path / "list", score="teacher")
    first = data.rows(tmp_path / "list" / "train.jsonl")[0]
    assert first["labels"] == [3.5, 1.5, -0.5, -1.0, -3.0]
    export(run, "st-ce", tmp_path / "ce")
    labels = [row["label"] for row in data.rows(tmp_path / "ce" / "train.jsonl")[:5]]
    assert labels == [1.0, 1.0, 0.0, 0.0, 0.0]


def test_splits(run: Path, tmp_path: Path) -> None:
    told = export(run, "beir", tmp_path / "both", split="train,dev")
    assert told.kept == len(data.TOPICS)
    for split, count in (("train", TRAIN), ("dev", 1)):
        qrels = trec.read_qrels(tmp_path / "both" / "qrels" / f"{split}.tsv")
        assert len(qrels) == count
    assert qrels == {"bread-0#0": {"bread-0": 2, "bread-1": 1}}
    # Those documents alone that are in the examples, each once.
    found = [document.id for document in trec.read_corpus(tmp_path / "both")]
    assert len(found) == len(set(found)) == 3 * len(data.TOPICS)
    assert len(list(trec.read_queries(tmp_path / "both"))) == len(data.TOPICS)


def test_an_example_without_a_split_is_for_training(tmp_path: Path) -> None:
    told = [{**one, "split": ""} for one in data.lines()]
    run = data.write(tmp_path / "run", told)
    assert export(run, "st-pairs", tmp_path / "out").kept == len(data.TOPICS)


def test_texts_lose_their_tabs_and_line_breaks_in_a_tsv_alone(run: Path, tmp_path: Path) -> None:
    export(run, "msmarco", tmp_path / "tsv")
    query, good, bad = _tsv(tmp_path / "tsv" / "triples.train.tsv")[0]
    assert query == "what is known of tides-0 0"
    assert good == " ".join(_contents("tides-0").split())
    assert bad == " ".join(_contents("bread-1").split())
    ids = _tsv(tmp_path / "tsv" / "qidpidtriples.train.tsv")
    assert ids[0] == ["tides-0#0", "tides-0", "bread-1"]
    assert len(ids) == 6 * TRAIN
    qrels = trec.read_qrels(tmp_path / "tsv" / "qrels.train.tsv")
    assert qrels["tides-0#0"] == {"tides-0": 2, "tides-1": 1}
    export(run, "st-triplets", tmp_path / "json")
    assert data.rows(tmp_path / "json" / "train.jsonl")[0]["positive"] == _contents("tides-0")


def test_an_id_that_a_tsv_cannot_hold(tmp_path: Path) -> None:
    told = [data.example("x\ty#0", [data.passage("bread-0", 1), data.passage("bread-1", 0)])]
    run = data.write(tmp_path / "run", told)
    with pytest.raises(InputError, match="white space"):
        export(run, "msmarco", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert export(run, "tevatron", tmp_path / "out").examples == 1


def test_colbert_counts_from_0(run: Path, tmp_path: Path) -> None:
    export(run, "colbert", tmp_path / "out", negatives=2, score="teacher")
    collection = _tsv(tmp_path / "out" / "collection.tsv")
    assert [int(row[0]) for row in collection] == list(range(len(collection)))
    ids = dict(_tsv(tmp_path / "out" / "collection.ids.tsv"))
    texts = {row[0]: row[1:] for row in collection}
    for line in (tmp_path / "out" / "triples.train.jsonl").read_text().splitlines():
        _, *listed = json.loads(line)
        assert len(listed) == 3
        for number, _ in listed:
            name = ids[str(number)]
            if not name.endswith("#0-1"):
                text, *title = texts[str(number)]
                assert [*title, text] == [" ".join(_contents(name).split())] or title
                assert " ".join([*title, text]) == " ".join(_contents(name).split())


def test_the_listwise_prompt_is_the_one_that_llmrank_sends(run: Path, tmp_path: Path) -> None:
    export(run, "trl-sft", tmp_path / "out")
    row = data.rows(tmp_path / "out" / "train.jsonl")[0]
    export(run, "fullrank", tmp_path / "lists")
    lists = data.rows(tmp_path / "lists" / "train.jsonl")[0]
    initial, final = lists["initial_list"], lists["final_list"]
    assert isinstance(initial, list)
    assert isinstance(final, list)
    docs = tuple(Document(name, _contents(name)) for name in initial if "#" not in name)
    written = Document("tides-0#0-1", "Nothing of tides.")
    shown = list(docs)
    shown.insert(initial.index(written.id), written)
    ask = Order(Query("tides-0#0", "what is known of tides-0 0"), tuple(shown))
    request = prompts.PromptSet().render(ask)
    assert row["prompt"] == [message._asdict() for message in request.messages]
    assert final == ["tides-0", "tides-1", "bread-1", "tides-0#0-1", "otters-1"]
    reply = " > ".join(f"[{initial.index(name) + 1}]" for name in final)
    assert row["completion"] == [{"role": "assistant", "content": reply}]


def test_preferences_show_what_the_writer_was_shown(run: Path, tmp_path: Path) -> None:
    export(run, "trl-dpo", tmp_path / "out")
    row = data.rows(tmp_path / "out" / "train.jsonl")[0]
    asked = row["prompt"]
    assert isinstance(asked, list)
    assert asked[0]["content"].endswith("\n\nText: " + _contents("tides-0")[:20])
    assert row["chosen"] == [{"role": "assistant", "content": "what is known of tides-0 0"}]
    assert row["rejected"] == [{"role": "assistant", "content": "about tides"}]


SCORED = [data.passage("tides-0", 1, teacher=1), data.passage("bees-0", 0, teacher=0)]


def _mixed() -> list[data.Json]:
    """Of six kept examples one has all."""
    return [
        data.example("a#0", SCORED),
        data.example("a#1", [data.passage("tides-0", 1, teacher=1)]),
        data.example("a#2", [data.passage("tides-0", 1), data.passage("bees-0", 0, teacher=1)]),
        data.example("a#3", [data.passage("tides-0", None), data.passage("bees-0", 0)]),
        data.example("a#4", []),
        data.example("a#5", [*SCORED, data.passage("bees-1", 0)]),
        data.example("a#6", SCORED, failed="judge(least=2)"),
        data.example("a#7", SCORED, split="dev"),
    ]


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    run = data.write(tmp_path / "run", _mixed())
    told = export(run, "st-kldiv", tmp_path / "out")
    assert (told.kept, told.examples, told.negatives, told.unscored) == (6, 2, 1, 1)
    assert told.left_out == {
        "no negative passage": 1,
        "no positive or no negative passage with the score": 1,
        "no positive passage": 2,
    }
    assert told.kept == told.examples + sum(told.left_out.values())
    assert json.loads((tmp_path / "out" / CONTENTS).read_text())["left_out"] == told.left_out
    told = export(run, "st-ntuples", tmp_path / "out", negatives=2)
    assert (told.examples, told.left_out["fewer negative passages than --negatives"]) == (1, 2)


@pytest.mark.parametrize(
    ("name", "examples", "told"),
    [
        ("st-kldiv", [data.example("a#0", [data.passage("tides-0", 1)])], "mine"),
        (
            "pylate",
            [data.example("a#0", [data.passage("tides-0", 1), data.passage("bees-0", 0)])],
            "teacher",
        ),
        ("trl-dpo", [data.example("a#0", SCORED)], "several queries"),
        ("st-pairs", [data.example("a#0", SCORED, split="dev")], "--split"),
        ("st-pairs", [data.example("a#0", SCORED, failed="copied")], "no kept example"),
        ("st-pairs", [], "no kept example"),
    ],
)
def test_an_export_of_nothing_is_an_error_with_a_remedy(
    tmp_path: Path, name: str, examples: list[data.Json], told: str
) -> None:
    run = data.write(tmp_path / "run", examples)
    with pytest.raises(InputError, match=told):
        export(run, name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_corpus(run: Path, tmp_path: Path) -> None:
    manifest = run / "manifest.json"
    other = tmp_path / "other.jsonl"
    trec.write_jsonl(other, [one for one in data.corpus_lines() if one["_id"] != "bees-0"])
    with pytest.raises(InputError, match=r"lacks 1 of the \d+ documents, such as 'bees-0'"):
        export(run, "st-pairs", tmp_path / "out", corpus=other)
    manifest.write_text(json.dumps({"data": {"corpus": {"name": "gone"}}}))
    with pytest.raises(InputError, match="--corpus"):
        export(run, "st-pairs", tmp_path / "out")
    for content in ("{}", "[]", "no json"):
        manifest.write_text(content)
        with pytest.raises(InputError, match="--corpus"):
            export(run, "st-pairs", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    told = export(run, "st-pairs", tmp_path / "out", corpus=tmp_path / "corpus.jsonl")
    assert told.examples == TRAIN


def test_a_corpus_that_is_another_by_now(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    manifest = {"data": {"corpus": {**fingerprint(path), "path": str(path)}}}
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert export(run, "st-pairs", tmp_path / "out").examples == TRAIN
    trec.write_jsonl(path, [{**one, "text": "another text"} for one in data.corpus_lines()])
    with pytest.raises(InputError, match="not what it was"):
        export(run, "st-pairs", tmp_path / "out")
    assert export(run, "st-pairs", tmp_path / "out", corpus=path).examples == TRAIN


def test_a_line_that_is_no_example_is_named(run: Path, tmp_path: Path) -> None:
    path = run / "examples.jsonl"
    path.write_text(path.read_text() + '{"_id": "x"}\n')
    with pytest.raises(InputError, match=rf"examples.jsonl:{2 * len(data.TOPICS) + 1}: "):
        export(run, "st-pairs", tmp_path / "out")
    with pytest.raises(InputError, match=r"cannot be read"):
        export(tmp_path / "nowhere", "st-pairs", tmp_path / "out")
    with pytest.raises(SpecError, match="no format"):
        export(run, "parquet", tmp_path / "out")


def test_another_export_into_the_same_folder_takes_its_place(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(run, "beir", out)
    (out / "model.bin").write_text("a user's own")
    export(run, "pylate", out)
    names = {"train.jsonl", "queries.jsonl", "documents.jsonl", CONTENTS, "model.bin"}
    assert _files(out).keys() == names


def test_a_folder_with_something_else_is_refused(run: Path, tmp_path: Path) -> None:
    before = _files(tmp_path)
    for out in (run, tmp_path, tmp_path / "corpus.jsonl"):
        with pytest.raises(InputError, match="--out"):
            export(run, "st-pairs", out)
    assert _files(tmp_path) == before


def test_what_fails_half_way_leaves_the_earlier_export(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(run, "msmarco", out)
    before = _files(tmp_path)
    told = [*data.lines(), data.example("white space#0", SCORED)]
    trec.write_jsonl(run / "examples.jsonl", told)
    with pytest.raises(InputError, match="white space"):
        export(run, "msmarco", out)
    after = _files(tmp_path)
    assert {k: v for k, v in after.items() if "examples" not in k} == {
        k: v for k, v in before.items() if "examples" not in k
    }


def _many(count: int) -> Iterator[data.Json]:
    for i in range(count):
        yield data.example(f"d{i}#0", SCORED, query=f"query {i} " + "long " * 200)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_examples(tmp_path: Path) -> None:
    import tracemalloc

    def peak(count: int) -> tuple[int, Exported]:
        run = data.write(tmp_path / f"run{count}")
        trec.write_jsonl(run / "examples.jsonl", _many(count))
        tracemalloc.start()
        told = export(run, "tevatron", tmp_path / f"out{count}")
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most, told

    peak(100)  # what is imported and compiled on the way
    few, _ = peak(500)
    many, told = peak(5000)
    assert told.examples == 5000
    assert many < few + 500_000


GOLDEN: dict[str, data.Json] = {
    "tevatron": {
        "query_id": "q#0",
        "query": "a query",
        "positive_passages": [
            {"docid": "maple-0", "title": "Maple", "text": "a\tb", "score": 2.0},
        ],
        "negative_passages": [
            {"docid": "maple-1", "title": "", "text": "c", "score": 0.5},
            {"docid": "q#0-1", "title": "", "text": "written", "score": -1.0},
        ],
    },
    "flagembedding": {
        "query": "a query",
        "pos": ["Maple a\tb"],
        "neg": ["c", "written"],
        "pos_scores": [2.0],
        "neg_scores": [0.5, -1.0],
    },
    "pylate": {
        "query_id": "q#0",
        "document_ids": ["maple-0", "maple-1", "q#0-1"],
        "scores": [2.0, 0.5, -1.0],
    },
    "st-kldiv": {
        "query": "a query",
        "positive": "Maple a\tb",
        "negative_1": "c",
        "negative_2": "written",
        "scores": [2.0, 0.5, -1.0],
    },
    "st-listwise": {
        "query": "a query",
        "docs": ["Maple a\tb", "c", "written"],
        "labels": [2.0, 0.5, -1.0],
    },
    "st-ce": {"query": "a query", "passage": "Maple a\tb", "label": 2.0},
}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_shape_of_a_row(name: str, tmp_path: Path) -> None:
    passages = [
        data.passage("maple-0", 1, teacher=2),
        data.passage("maple-1", 0, teacher=0.5),
        data.passage("q#0-1", 0, text="written", teacher=-1),
    ]
    run = data.write(tmp_path / "run", [data.example("q#0", passages, query="a query")])
    corpus = tmp_path / "small.jsonl"
    trec.write_jsonl(
        corpus,
        [
            {"_id": "maple-0", "title": "Maple", "text": "a\tb"},
            {"_id": "maple-1", "text": "c"},
        ],
    )
    export(run, name, tmp_path / "out", corpus=corpus, score="teacher")
    row = data.rows(tmp_path / "out" / "train.jsonl")[0]
    assert row == GOLDEN[name]
    assert list(row) == list(GOLDEN[name])
