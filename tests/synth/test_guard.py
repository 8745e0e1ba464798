"""The guard on real test queries: what is planted is found, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from llmrank import trec
from llmrank.synth import HeldOut
from llmrank.synth.across import Guard
from llmrank.types import Document
from tests.synth.worlds import Toy, example, passed

SOURCE = Document("source", "a document that is relevant to nothing")


def _reworded(text: str) -> str:
    """With the longest word after the middle exchanged."""
    words = text.split()
    place = max(range(len(words) // 2, len(words)), key=lambda i: len(words[i]))
    return " ".join([*words[:place], "something", *words[place + 1 :]])


PLANTED: tuple[Callable[[str], str], ...] = (
    str,
    lambda text: re.sub(r"[^\w\s]", " ", text).upper(),
    lambda text: f"Is it true that {text}",
    _reworded,
)


def test_twenty_of_twenty_planted_queries_are_found_and_no_other(shared_data: Path) -> None:
    held_out = list(trec.read_queries(shared_data / "scifact"))
    # Of a short query one word is much.
    long = [query for query in held_out if len(query.text.split()) >= 12][:20]
    planted = [PLANTED[i % len(PLANTED)](query.text) for i, query in enumerate(long)]
    others = [query.text for query in trec.read_queries(shared_data / "cranfield")]
    world = Toy({}, held_out=HeldOut(held_out, frozenset()))
    made = [example(text, SOURCE, id=str(i)) for i, text in enumerate([*planted, *others])]
    found = passed(Guard(), made, world)
    assert [one.verdicts[-1].note.split()[1:2] for one in found[:20]] == [[q.id] for q in long]
    assert all(one.kept for one in found[20:])


@pytest.mark.parametrize("name", ["scifact", "cranfield"])
def test_documents_of_test_queries_are_no_sources(shared_data: Path, name: str) -> None:
    qrels = trec.read_qrels(shared_data / name / "qrels.tsv")
    relevant = {d for grades in qrels.values() for d, grade in grades.items() if grade > 0}
    documents = list(trec.read_corpus(shared_data / name))
    world = Toy({}, held_out=HeldOut((), frozenset(relevant)))
    made = [example("a query of its own", document) for document in documents]
    found = passed(Guard(), made, world)
    assert {one.source.id for one in found if not one.kept} == relevant & {d.id for d in documents}
