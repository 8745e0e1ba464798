from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrank.errors import SpecError
from llmrank.plan import Answer, Ask, Drive, Write, Written, drive
from llmrank.synth import Demonstration, length, round_trip, write_queries
from llmrank.types import Document, Status


class Model:
    """Answers with texts in turn; None is a reply without anything usable."""

    def __init__(self, *texts: str | None) -> None:
        self.texts = texts
        self.asks: list[Write] = []

    def __call__(self, item: Ask[Any]) -> Answer[Any]:
        assert isinstance(item, Write)
        self.asks.append(item)
        text = self.texts[item.sample]
        if text is None:
            return Answer(status=Status.MALFORMED, problem="empty")
        return Answer(status=Status.OK, value=Written(text))


def test_drafts_stand_in_the_order_of_samples_also_where_one_failed() -> None:
    model = Model("first query", None, "third query")
    drafts = drive(write_queries(Document("d", "some text"), n=3), model)
    assert [(draft.sample, draft.query) for draft in drafts] == [
        (0, "first query"),
        (1, ""),
        (2, "third query"),
    ]
    assert {draft.document.id for draft in drafts} == {"d"}
    assert drafts[1].answer.status is Status.MALFORMED


def test_samples_are_asked_in_one_round() -> None:
    assert len(Drive(write_queries(Document("d", "some text"), n=4)).start()) == 4


@given(st.lists(st.sampled_from(["word", "other", "\n"]), max_size=20), st.integers(1, 9))
def test_the_document_is_shown_up_to_so_many_words(words: list[str], most: int) -> None:
    model = Model("query")
    document = Document("d", " ".join(words), title="Title")
    drive(write_queries(document, [Demonstration("doc", "query")], words=most), model)
    ((_, shown), (_, examples)) = model.asks[0].inputs
    assert isinstance(shown, str)
    assert shown.split() == ["Title", *" ".join(words).split()][:most]
    assert examples == (("doc", "query"),)


@pytest.mark.parametrize("text", ["", " ", "\n\t"])
def test_a_document_without_text_costs_nothing(text: str) -> None:
    model = Model()
    assert drive(write_queries(Document("d", text)), model) == []
    assert model.asks == []


def test_at_least_one_query() -> None:
    with pytest.raises(SpecError, match="at least 1"):
        next(write_queries(Document("d", "text"), n=0))


@pytest.mark.parametrize(("query", "passed"), [("", 0), ("two words", 0), ("now three words", 1)])
def test_length(query: str, passed: bool) -> None:
    verdict = length(query)
    assert (verdict.passed, verdict.value, verdict.bound) == (passed, len(query.split()), 3)
    assert length("one", words=1).passed


@given(st.integers(1, 130), st.integers(1, 120))
def test_round_trip(place: int, k: int) -> None:
    """The document stands at `place`; what lies beyond 100 and k is not looked at."""
    asked: list[int] = []

    def search(text: str, depth: int) -> list[tuple[str, float]]:
        asked.append(depth)
        ids = [f"other{i}" for i in range(1, place)] + ["mine", "more"]
        return [(doc_id, -float(i)) for i, doc_id in enumerate(ids)][:depth]

    verdict = round_trip("a query", "mine", search, k=k)
    seen = max(k, 100)
    assert asked == [seen]
    assert verdict.value == (place if place <= seen else None)
    assert verdict.passed is (place <= k)
    assert verdict.bound == k


def test_round_trip_of_a_query_that_finds_nothing() -> None:
    verdict = round_trip("zzz", "mine", lambda text, k: [])
    assert (verdict.passed, verdict.value) == (False, None)
