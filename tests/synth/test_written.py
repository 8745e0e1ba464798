from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrank.errors import SpecError
from llmrank.plan import Answer, Ask, Drive, Grade, Grades, Write, Written
from llmrank.prompts import PromptSet
from llmrank.synth.base import QUERY, SOURCE, WRITTEN, Example, Passage, Span, Stage
from llmrank.synth.written import Harder, Levels, Unanswered
from llmrank.types import Document, Status
from tests.synth.passages import FAILED, Index, document, example, labels, mined, run

TEXTS = st.lists(
    st.sampled_from(
        [None, "", "Salt.", "salt", "Rye is sour.", "Text of s", "Why does dough rise?"]
    ),
    min_size=4,
    max_size=4,
)
LIKELY = st.lists(st.sampled_from([None, 0.0, 0.3, 0.5, 0.8, 1.0]), min_size=4, max_size=4)


class Model:
    """Writes the texts, by sample or by level, and says how likely each answers, by text."""

    def __init__(
        self,
        texts: Sequence[str | None],
        likely: Mapping[str, float | None],
        status: Status = Status.OK,
    ) -> None:
        self.texts, self.likely, self.status = texts, likely, status
        self.writes: list[Write] = []
        self.grades: list[Grade] = []

    def __call__(self, item: Ask[Any]) -> Answer[Any]:
        if isinstance(item, Write):
            self.writes.append(item)
            level = dict(item.inputs).get("level")
            text = self.texts[item.sample if level is None else 3 - int(str(level))]
            return FAILED if text is None else Answer(status=self.status, value=Written(text))
        assert isinstance(item, Grade)
        self.grades.append(item)
        value = self.likely.get(item.doc.text, self.likely.get(item.query.text))
        if value is None:
            return FAILED
        return Answer(status=Status.OK, value=Grades((value, 1 - value), 1.0))


def added(one: Example) -> list[tuple[str, str, int | None]]:
    """Id, text and label of what was written."""
    return [
        (p.document.id, p.document.text, p.label)
        for p in one.passages
        if p.origin in (WRITTEN, QUERY)
    ]


def test_a_written_passage_that_does_not_answer_is_a_negative() -> None:
    model = Model(["Salt.", "Rye.", None], {"Salt.": 0.2, "Rye.": 0.6})
    one = run(Harder(n=3), example(), model)
    assert added(one) == [("s#0-1", "Salt.", 0)]
    assert one.passages[0] == Passage(document("s"), SOURCE, 1)
    assert one.passages[1].scores == {"answers": 0.2}
    assert one.verdicts[0][1:] == (True, 1, None, "")
    assert [item.sample for item in model.writes] == [0, 1, 2]
    assert dict(model.writes[0].inputs) == {"query": one.query, "document": "text of s"}
    assert {item.query for item in model.grades} == {one.asked}


def test_two_rounds() -> None:
    running = Drive(Harder(n=4).plan(example(), Index()))
    tickets = running.start()
    assert len(tickets) == 4
    model = Model(["a", "b", "c", "d"], {})
    while tickets:
        tickets = [new for t in tickets for new in running.answer(t, model(t.ask))]
    assert running.rounds == 2


@pytest.mark.parametrize("stage", [Harder(n=4), Unanswered(n=4), Levels()])
@given(texts=TEXTS, likely=LIKELY)
def test_what_holds_whatever_is_written(
    stage: Stage, texts: list[str | None], likely: list[float | None]
) -> None:
    """Each text stands with its own judgement, none is there twice, and the example is kept."""
    known = {text: value for text, value in zip(texts, likely, strict=True) if text is not None}
    before = example(passages=[Passage(document("s"), SOURCE, 1), mined("a")])
    one = run(stage, before, Model(texts, known))
    new = one.passages[2:]
    assert one.kept
    assert one.passages[0].label in (1, 3)
    assert labels(one)["a"] == 0
    assert one.verdicts[0].value == len(new)
    assert len({p.document.id for p in new}) == len(new)
    for passage in new:
        text = passage.document.text
        assert text in ("Salt.", "salt", "Rye is sour.")
        value = known[text]
        if passage.label == 1:
            assert passage.scores == {}
        else:
            assert value is not None
            assert passage.scores == {"answers": value}
            assert (value >= 0.5) is ((passage.label or 0) > 1)
    assert len({p.document.text.strip(".").lower() for p in new}) == len(new)
    assert run(stage, before, Model(texts, known)) == one


def test_a_second_stage_counts_on_and_repeats_nothing() -> None:
    likely = {"Salt.": 0.1, "Rye.": 0.1, "Oats.": 0.1}
    one = run(Harder(n=2), example(), Model(["Salt.", "Rye."], likely))
    two = run(Harder(n=2), one, Model(["salt", "Oats."], likely))
    assert added(two) == [("s#0-1", "Salt.", 0), ("s#0-2", "Rye.", 0), ("s#0-3", "Oats.", 0)]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("It is salt. It is 3.5 g of", "It is salt."),
        ('He said "Salt!" And then', 'He said "Salt!"'),
        ("塩です。そして", "塩です。"),
        ("no end in sight", None),
    ],
)
def test_of_a_passage_that_was_cut_off_whole_sentences_stay(text: str, left: str | None) -> None:
    model = Model([text], {} if left is None else {left: 0.0}, Status.TRUNCATED)
    assert [text for _, text, _ in added(run(Harder(n=1), example(), model))] == (
        [] if left is None else [left]
    )


def test_what_cannot_be_shown_is_not_kept() -> None:
    model = Model(["Salt\x00 is\ud800 it.\nAnd\tso on."], {"Salt  is  it.\nAnd\tso on.": 0.0})
    ((_, text, _),) = added(run(Harder(n=1), example(), model))
    assert text == "Salt  is  it.\nAnd\tso on."


def test_a_query_that_no_source_answers() -> None:
    model = Model(
        ["why is dough sour", "why is dough white", "why is dough round"],
        {"why is dough sour": 0.1, "why is dough white": 0.7},
    )
    one = run(Unanswered(n=3), example(), model)
    assert added(one) == [("s#0-1", "why is dough sour", None)]
    assert one.passages[1].origin == QUERY
    assert one.passages[1].scores == {"answers": 0.1}
    assert {item.doc for item in model.grades} == {document("s")}
    assert [item.query.text for item in model.grades] == list(model.texts)


def test_every_source_is_asked() -> None:
    def model(item: Ask[Any]) -> Answer[Any]:
        if isinstance(item, Write):
            text = ("first other query", "second other query", "third other query")[item.sample]
            return Answer(status=Status.OK, value=Written(text))
        assert isinstance(item, Grade)
        if item.query.text.startswith("third") and item.doc.id == "t":
            return FAILED
        no = not item.query.text.startswith("second") or item.doc.id == "s"
        return Answer(status=Status.OK, value=Grades((0.2, 0.8) if no else (0.9, 0.1), 1.0))

    one = run(Unanswered(n=3), example("s", "t"), model)
    assert [text for _, text, _ in added(one)] == ["first other query"]


def test_a_query_that_was_cut_off_is_none() -> None:
    model = Model(["why is dough sour"], {"why is dough sour": 0.0}, Status.TRUNCATED)
    assert added(run(Unanswered(n=1), example(), model)) == []
    assert model.grades == []


def test_levels() -> None:
    texts = ["Full.", "Short.", "Near.", "Far."]
    model = Model(texts, {"Full.": 0.9, "Short.": 0.5, "Near.": 0.7, "Far.": 0.1})
    before = example(passages=[mined("a"), mined("b", None), mined("p", 1)])
    one = run(Levels(), before, model)
    assert labels(one) == {
        "s": 3,
        "a": 0,
        "b": None,
        "p": 3,
        "s#0-1": 3,
        "s#0-2": 2,
        "s#0-3": 1,
        "s#0-4": 0,
    }
    assert [dict(item.inputs)["level"] for item in model.writes] == ["3", "2", "1", "0"]
    assert [item.doc.text for item in model.grades] == ["Full.", "Short.", "Far."]


def test_a_level_that_the_judge_contradicts_is_left_out() -> None:
    model = Model(
        ["Full.", None, "Near.", "Far."], {"Full.": 0.4, "Short.": 0.9, "Near.": 0.7, "Far.": 0.6}
    )
    assert added(run(Levels(), example(), model)) == [("s#0-2", "Near.", 1)]


def test_the_model_is_shown_what_the_query_was_written_for() -> None:
    long = Document("s", "one two three four five")
    one = Example("s#0", "a query", "", (Span(long, 4, 23), Span(document("t"), 0, 6)))
    model = Model(["x"], {})
    run(Harder(n=1, words=2), one, model)
    assert dict(model.writes[0].inputs)["document"] == "two three\n\ntext o"


@pytest.mark.parametrize("stage", [Harder(), Unanswered(), Levels()])
def test_what_they_need_is_what_they_ask_and_has_a_prompt(stage: Stage) -> None:
    prompts = PromptSet()
    for need in stage.needs:
        prompts.check(need)
    model = Model(["Salt.", "Rye.", "Oats.", "Corn."], {"Salt.": 0.1})
    run(stage, example(), model)
    assert {item.task for item in model.writes} == {need.task for need in stage.needs} - {""}
    assert all((item.labels, item.task) == (("yes", "no"), "") for item in model.grades)
    asked: list[Ask[Any]] = [*model.writes, *model.grades]
    for item in asked:
        request = prompts.render(item)
        sent = request.prompt + "".join(message.content for message in request.messages)
        assert "why does dough rise" in sent or "why does dough rise" not in repr(item)
        assert "text of s" in sent or "text of s" not in repr(item)


def test_every_level_is_worded_in_its_own_way() -> None:
    prompts, inputs = PromptSet(), [(("query", "q"), ("level", level)) for level in "3210"]
    sent = {
        prompts.render(Write("graded_document", given)).messages[-1].content for given in inputs
    }
    assert len(sent) == 4


@pytest.mark.parametrize("stage", [Harder, Unanswered])
@pytest.mark.parametrize("wrong", [{"n": 0}, {"words": 0}, {"below": 0.0}, {"below": 1.1}])
def test_wrong_parameters(stage: Callable[..., Stage], wrong: dict[str, object]) -> None:
    with pytest.raises(SpecError):
        stage(**wrong)
