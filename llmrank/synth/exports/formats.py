"""The formats: each a function from an example to rows of files, and a line in the registry."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from llmrank.errors import InputError, SpecError
from llmrank.synth.exports.choice import Needs, Sample, Text

Value = Mapping[str, object] | Sequence[object]

WRITE = "Write a query that this text answers. Kind of query: {kind}\n\nText: {text}"
"""What a model is asked that learns which queries are good (`trl-dpo`)."""


class Row(NamedTuple):
    """A row of a file below the folder: JSON where the file is .jsonl, columns where it is .tsv.

    A row with a key is written once. `head` is the first line of the file.
    """

    file: str
    value: Value
    key: str = ""
    head: tuple[str, ...] = ()


Rows = Iterator[Row]


@dataclass(frozen=True, slots=True)
class Format:
    """A function from an example to rows, what it needs, and who reads them.

    `prompts` says whether its rows hold the prompt for a ranking.
    """

    rows: Callable[[Sample], Rows]
    needs: Needs
    readers: str
    prompts: bool = False


def _tsv_id(name: str) -> str:
    if name.split() != [name]:
        remedy = "take a format of JSON lines, or give the documents other ids"
        raise InputError(f"the id {name!r} holds white space, which a TSV cannot", remedy=remedy)
    return name


def _data(sample: Sample) -> str:
    return f"{sample.split}.jsonl"


def _pairs(sample: Sample) -> Iterator[tuple[Text, Text]]:
    """Every positive with every negative."""
    return product(sample.positives, sample.negatives)


def _scored(texts: Sequence[Text]) -> bool:
    return all(text.score is not None for text in texts)


def _scores(texts: Sequence[Text]) -> list[float]:
    return [text.score or 0.0 for text in texts]


def beir(sample: Sample) -> Rows:
    """Queries, judgements of the positives, and the documents of the examples."""
    yield Row("queries.jsonl", {"_id": sample.id, "text": sample.query})
    for text in sample.passages:
        doc = text.document
        value = {"_id": doc.id, "title": doc.title, "text": doc.text}
        yield Row("corpus.jsonl", value, key=doc.id)
    for text in sample.positives:
        columns = (_tsv_id(sample.id), _tsv_id(text.document.id), text.label)
        head = ("query-id", "corpus-id", "score")
        yield Row(f"qrels/{sample.split}.tsv", columns, head=head)


def msmarco(sample: Sample) -> Rows:
    """Triples as texts and as ids, a row for each positive and negative, and what the ids mean."""
    qid, split = _tsv_id(sample.id), sample.split
    yield Row(f"queries.{split}.tsv", (qid, sample.query))
    for text in sample.passages:
        doc_id = _tsv_id(text.document.id)
        yield Row("collection.tsv", (doc_id, text.contents), key=doc_id)
    for text in sample.positives:
        yield Row(f"qrels.{split}.tsv", (qid, 0, text.document.id, text.label))
    for good, bad in _pairs(sample):
        yield Row(f"triples.{split}.tsv", (sample.query, good.contents, bad.contents))
        yield Row(f"qidpidtriples.{split}.tsv", (qid, good.document.id, bad.document.id))


def st_pairs(sample: Sample) -> Rows:
    """anchor, positive."""
    for good in sample.positives:
        yield Row(_data(sample), {"anchor": sample.query, "positive": good.contents})


def st_triplets(sample: Sample) -> Rows:
    """anchor, positive, negative: a row for each positive and negative."""
    for good, bad in _pairs(sample):
        value = {"anchor": sample.query, "positive": good.contents, "negative": bad.contents}
        yield Row(_data(sample), value)


def st_ntuples(sample: Sample) -> Rows:
    """anchor, positive, negative_1 ... negative_n: a row for each positive."""
    for good in sample.positives:
        row = {"anchor": sample.query, "positive": good.contents}
        yield Row(_data(sample), {**row, **_numbered(sample)})


def _numbered(sample: Sample) -> dict[str, object]:
    return {f"negative_{i}": bad.contents for i, bad in enumerate(sample.negatives, 1)}


def st_margin(sample: Sample) -> Rows:
    """query, positive, negative and score, how much higher the positive one was scored."""
    for good, bad in _pairs(sample):
        yield Row(
            _data(sample),
            {
                "query": sample.query,
                "positive": good.contents,
                "negative": bad.contents,
                "score": (good.score or 0.0) - (bad.score or 0.0),
            },
        )


def st_kldiv(sample: Sample) -> Rows:
    """query, positive, negative_1 ... negative_n and their 1 + n scores."""
    for good in sample.positives:
        row = {"query": sample.query, "positive": good.contents, **_numbered(sample)}
        yield Row(_data(sample), {**row, "scores": _scores([good, *sample.negatives])})


def st_ce(sample: Sample) -> Rows:
    """query, passage and label: 1.0 or 0.0, or the score where one is taken."""
    for text in sample.passages:
        label = float(text.label > 0) if text.score is None else text.score
        yield Row(_data(sample), {"query": sample.query, "passage": text.contents, "label": label})


def st_listwise(sample: Sample) -> Rows:
    """query, docs and labels: the grades, or the scores where one is taken."""
    texts = sample.passages
    labels = _scores(texts) if _scored(texts) else [float(text.label) for text in texts]
    docs = [text.contents for text in texts]
    yield Row(_data(sample), {"query": sample.query, "docs": docs, "labels": labels})


def tevatron(sample: Sample) -> Rows:
    """Positive and negative passages with their texts, and with scores where one is taken."""
    yield Row(
        _data(sample),
        {
            "query_id": sample.id,
            "query": sample.query,
            "positive_passages": [_tevatron(text) for text in sample.positives],
            "negative_passages": [_tevatron(text) for text in sample.negatives],
        },
    )


def _tevatron(text: Text) -> dict[str, object]:
    # Its reranker reads the title whether there is one or not.
    doc = text.document
    row: dict[str, object] = {"docid": doc.id, "title": doc.title, "text": doc.text}
    return row if text.score is None else {**row, "score": text.score}


def flagembedding(sample: Sample) -> Rows:
    """query, pos and neg, and their scores where one is taken."""
    row: dict[str, object] = {
        "query": sample.query,
        "pos": [text.contents for text in sample.positives],
        "neg": [text.contents for text in sample.negatives],
    }
    if _scored(sample.passages):
        row["pos_scores"] = _scores(sample.positives)
        row["neg_scores"] = _scores(sample.negatives)
    yield Row(_data(sample), row)


def pylate(sample: Sample) -> Rows:
    """Ids with scores, and the texts of queries and documents: what KDProcessing joins."""
    yield Row("queries.jsonl", {"query_id": sample.id, "text": sample.query})
    for text in sample.passages:
        doc_id = text.document.id
        value = {"document_id": doc_id, "text": text.contents}
        yield Row("documents.jsonl", value, key=doc_id)
    for good in sample.positives:
        texts = [good, *sample.negatives]
        ids = [text.document.id for text in texts]
        yield Row(
            _data(sample), {"query_id": sample.id, "document_ids": ids, "scores": _scores(texts)}
        )


def colbert(sample: Sample) -> Rows:
    """Numbers of query, positive and negatives; the texts in the lines that the numbers say."""
    split = sample.split
    yield Row(f"queries.{split}.tsv", (sample.number, sample.query))
    yield Row(f"queries.{split}.ids.tsv", (sample.number, _tsv_id(sample.id)))
    for text in sample.passages:
        doc = text.document
        title = (doc.title,) if doc.title else ()
        yield Row("collection.tsv", (text.number, doc.text, *title), key=doc.id)
        yield Row("collection.ids.tsv", (text.number, _tsv_id(doc.id)), key=doc.id)
    for good in sample.positives:
        texts = [good, *sample.negatives]
        listed = [[t.number, t.score] if _scored(texts) else t.number for t in texts]
        yield Row(f"triples.{split}.jsonl", [sample.number, *listed])


def trl_sft(sample: Sample) -> Rows:
    """The prompt that llmrank sends for a ranking, and the ranking as its reply."""
    place = {text.document.id: i for i, text in enumerate(sample.shuffled, 1)}
    reply = " > ".join(f"[{place[text.document.id]}]" for text in sample.ranked)
    completion = [{"role": "assistant", "content": reply}]
    yield Row(_data(sample), {"prompt": list(sample.prompt), "completion": completion})


def trl_dpo(sample: Sample) -> Rows:
    """A query that was kept and one that was dropped, for the same document."""
    asked = WRITE.format(
        kind=sample.kind.replace("_", " ") or "any", text="\n\n".join(sample.sources)
    )
    for dropped in sample.rivals:
        yield Row(
            _data(sample),
            {
                "prompt": [{"role": "user", "content": asked}],
                "chosen": [{"role": "assistant", "content": sample.query}],
                "rejected": [{"role": "assistant", "content": dropped}],
            },
        )


def fullrank(sample: Sample) -> Rows:
    """The passages shuffled and ranked, as ids, and the texts of queries and passages."""
    shuffled = [text.document.id for text in sample.shuffled]
    ranked = [text.document.id for text in sample.ranked]
    yield Row(_data(sample), {"qid": sample.id, "initial_list": shuffled, "final_list": ranked})
    yield Row(f"queries.{sample.split}.tsv", (_tsv_id(sample.id), sample.query))
    for text in sample.passages:
        doc_id = _tsv_id(text.document.id)
        yield Row("collection.tsv", (doc_id, text.contents), key=doc_id)


FORMATS: Mapping[str, Format] = {
    "beir": Format(beir, Needs("any"), "BEIR, llmrank eval and most retrieval tools"),
    "msmarco": Format(msmarco, Needs("least"), "MS MARCO triples, as texts and as ids"),
    "st-pairs": Format(st_pairs, Needs(), "MultipleNegativesRankingLoss"),
    "st-triplets": Format(st_triplets, Needs("least"), "MultipleNegativesRanking-, TripletLoss"),
    "st-ntuples": Format(st_ntuples, Needs("fixed"), "(Cached)MultipleNegativesRankingLoss"),
    "st-margin": Format(st_margin, Needs("least", "must"), "MarginMSELoss of any encoder"),
    "st-kldiv": Format(
        st_kldiv, Needs("fixed", "must"), "DistillKLDivLoss, MarginMSELoss with many negatives"
    ),
    "st-ce": Format(st_ce, Needs("any", "may"), "CrossEncoder: BinaryCrossEntropyLoss, MSELoss"),
    "st-listwise": Format(
        st_listwise, Needs("least", "may"), "CrossEncoder: Lambda-, RankNet-, ListNet-, ListMLELoss"
    ),
    "tevatron": Format(tevatron, Needs("least", "may"), "Tevatron, retriever and reranker"),
    "flagembedding": Format(
        flagembedding, Needs("least", "may"), "FlagEmbedding, embedder and reranker"
    ),
    "pylate": Format(pylate, Needs("fixed", "must"), "PyLate's KDProcessing"),
    "colbert": Format(colbert, Needs("fixed", "may"), "ColBERT's Trainer"),
    "trl-sft": Format(
        trl_sft,
        Needs("any", "must", order=True),
        "TRL's SFTTrainer: a listwise reranker",
        prompts=True,
    ),
    "trl-dpo": Format(trl_dpo, Needs(rivals=True), "TRL's DPOTrainer: a writer of queries"),
    "fullrank": Format(fullrank, Needs("any", "must", order=True), "FullRank: a listwise reranker"),
}


def find(name: str) -> Format:
    """The format of this name; `SpecError` names them all."""
    if name not in FORMATS:
        told = "".join(f"\n  {known:14}{form.readers}" for known, form in FORMATS.items())
        raise SpecError(f"no format {name!r}; there are:{told}")
    return FORMATS[name]
