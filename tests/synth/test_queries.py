from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrank import prompts
from llmrank.errors import SpecError
from llmrank.plan import Answer, Ask, Write, drive
from llmrank.synth import Example, Shot
from llmrank.synth.base import Writer
from llmrank.synth.queries import KINDS, WriteAcross, WriteQueries, beginning, sentences
from llmrank.types import Document, Status
from tests.synth.worlds import Answers, Toy, failed, says, writes

BREAD = Document(
    "bread", "Yeast makes the dough rise. It feeds on sugar! Heat sets it all in the end."
)
WORLD = Toy({"a": "one two three", "b": "two three four", "c": "two three four", "d": "nine"})


def written(
    writer: Writer, document: Document, judge: Answers, shots: tuple[Shot, ...] = ()
) -> list[Example]:
    return drive(writer.plan(document, WORLD, shots), judge)


def test_each_kind_is_asked_with_its_own_prompt_as_often_as_said() -> None:
    asked: list[tuple[str, int]] = []

    def write(item: Write) -> Answer[Any]:
        asked.append((item.task, item.sample))
        return says(f"{item.task} {item.sample}")

    made = written(WriteQueries(kinds="question + title", n=2), BREAD, writes(write))
    assert asked == [
        *(("query_question", 0), ("query_question", 1)),
        *(("query_title", 0), ("query_title", 1)),
    ]
    assert [(one.kind, one.query) for one in made] == [
        *(("question", "query_question 0"), ("question", "query_question 1")),
        *(("title", "query_title 0"), ("title", "query_title 1")),
    ]


def test_there_is_a_prompt_for_every_kind() -> None:
    for kind in KINDS:
        assert set(prompts.load(f"query_{kind}").inputs) == {"document", "examples"}
    for kind in ("multihop", "topic"):
        assert prompts.load(f"query_{kind}").inputs == ("documents",)


@given(st.lists(st.sampled_from(["ok", "failed", "cut", "empty"]), min_size=1, max_size=6))
def test_nothing_shifts_whatever_comes_back(outcomes: list[str]) -> None:
    answers: dict[str, Callable[[int], Answer[Any]]] = {
        "ok": lambda n: says(f"query {n}"),
        "failed": lambda _: failed(),
        "cut": lambda n: says(f"query {n}", Status.TRUNCATED),
        "empty": lambda _: says(""),
    }
    judge = writes(lambda item: answers[outcomes[item.sample]](item.sample))
    made = written(WriteQueries(n=len(outcomes)), BREAD, judge)
    assert [one.kept for one in made] == [outcome == "ok" for outcome in outcomes]
    for place, (one, outcome) in enumerate(zip(made, outcomes, strict=True)):
        assert one.query == (f"query {place}" if outcome in ("ok", "cut") else "")
        assert one.verdicts[0].note or outcome == "ok"


def test_a_document_without_text_costs_nothing() -> None:
    def refuse(item: Ask[Any]) -> Answer[Any]:
        raise AssertionError(item)

    for writer in (WriteQueries(), WriteAcross(), WriteQueries(level="sentence")):
        assert written(writer, Document("blank", " \n"), refuse) == []


def test_a_query_is_one_line_of_characters_that_can_be_shown() -> None:
    texts = ["a\x1b[31m red\x00\ud800 one", "in\ttwo\u2028parts", "\x07", "می\u200cخواهم"]
    made = written(WriteQueries(n=4), BREAD, writes(lambda item: says(texts[item.sample])))
    assert [one.query for one in made] == ["a [31m red  one", "in two parts", "", "می\u200cخواهم"]
    assert [one.kept for one in made] == [True, True, False, True]


def test_a_query_that_was_shown_is_none() -> None:
    shots = (Shot("a text", "Why does BREAD rise?"),)
    (one,) = written(WriteQueries(), BREAD, writes(lambda _: says("why does bread rise")), shots)
    assert not one.kept
    assert "shown" in one.verdicts[0].note


def test_the_prompt_shows_the_span_and_the_shots() -> None:
    shown: list[dict[str, Any]] = []

    def write(item: Write) -> Answer[Any]:
        shown.append(dict(item.inputs))
        return says("a query of words")

    shots = (Shot("text", "query"),)
    (one,) = written(WriteQueries(words=3), BREAD, writes(write), shots)
    assert shown == [{"document": "Yeast makes the", "examples": (("text", "query"),)}]
    assert one.sources[0].text == "Yeast makes the"


def test_at_the_level_of_sentences_each_query_has_one() -> None:
    long = Document("long", " ".join(f"Sentence {i} has a few more words." for i in range(30)))
    writer = WriteQueries(level="sentence", n=5)
    judge = writes(lambda item: says(dict(item.inputs)["document"]))  # type: ignore[arg-type]
    made = written(writer, long, judge)
    assert all(one.query == one.sources[0].text for one in made)
    assert all(one.query.startswith("Sentence") and one.query.endswith(".") for one in made)
    assert len({one.query for one in made}) > 1
    assert written(writer, long, judge) == made


def test_across_documents_the_nearest_that_say_something_else_are_taken() -> None:
    rows: list[Any] = []

    def write(item: Write) -> Answer[Any]:
        rows.append((item.task, dict(item.inputs)["documents"]))
        return says("what is both")

    (one,) = written(WriteAcross(documents=2), WORLD.documents[1], writes(write))
    # c has the same text as b itself.
    assert [span.document.id for span in one.sources] == ["b", "a"]
    assert rows == [("query_multihop", (("two three four",), ("one two three",)))]
    assert written(WriteAcross(), WORLD.documents[3], writes(write)) == []


@given(st.text(max_size=80), st.integers(1, 6))
def test_a_beginning_is_a_part_of_the_document(text: str, count: int) -> None:
    span = beginning(Document("d", text, "a title"), count)
    assert span.text.split() == span.document.contents.split()[:count]
    assert [w for one in sentences(span) for w in one.text.split()] == span.text.split()


@pytest.mark.parametrize(
    "given",
    [{"kinds": "poem"}, {"kinds": "claim+claim"}, {"n": 0}, {"words": 0}, {"level": "chapter"}],
)
def test_what_makes_no_sense_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="write"):
        WriteQueries(**given)


@pytest.mark.parametrize("given", [{"kind": "poem"}, {"documents": 1}, {"by": "ear"}])
def test_so_is_it_across_documents(given: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        WriteAcross(**given)
