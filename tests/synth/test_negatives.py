from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrank import spec
from llmrank.errors import SpecError
from llmrank.synth.base import SOURCE, Example, HeldOut, Passage, Span
from llmrank.synth.negatives import Mine
from llmrank.types import Candidate, Document
from tests.synth.passages import Index, document, example, found, labels, mined, run, scores

NAMES = st.lists(st.sampled_from([f"d{i}" for i in range(12)] + ["s", "t"]), unique=True)
SCORES = st.floats(-20, 20, allow_subnormal=False)


@st.composite
def lists(draw: st.DrawFn) -> list[Candidate]:
    """What a first stage might find: any documents, the sources or not, scores falling."""
    names = draw(NAMES)
    values = sorted(draw(st.lists(SCORES, min_size=len(names), max_size=len(names))), reverse=True)
    return [Candidate(document(n), score) for n, score in zip(names, values, strict=True)]


def negatives(one: Example) -> list[str]:
    return [name for name, label in labels(one).items() if label == 0]


def test_the_first_that_are_far_enough_below_the_source_are_negatives() -> None:
    world = Index(found("a", "s", "b", "c", "d", "e", top=11))  # the source has 10
    one = run(Mine(by="dense", n=2, depth=50, margin=0.85), example(), world=world)
    assert world.asked == [("why does dough rise", 50, "dense")]
    assert labels(one) == {"s": 1, "a": None, "b": None, "c": 0, "d": 0}
    assert [p.origin for p in one.passages] == [SOURCE, *["dense"] * 4]
    assert scores(one, "dense") == {"s": 10.0, "a": 11.0, "b": 9.0, "c": 8.0, "d": 7.0}
    (verdict,) = one.verdicts
    assert verdict[1:] == (True, 2, 1, "source at rank 2, without a label: 2")
    assert spec.split(verdict.stage).parameters["margin"] == "0.85"


@given(lists(), st.floats(0.01, 1.5), st.integers(1, 5), st.integers(0, 3), st.booleans())
def test_what_holds_whatever_is_found(
    candidates: list[Candidate], margin: float, n: int, skip: int, several: bool
) -> None:
    """Sources are no negatives, negatives are below the bound, nothing is lost or there twice."""
    sources = ("s", "t") if several else ("s",)
    stage = Mine(n=n, depth=12, skip=skip, margin=margin)
    one = run(stage, example(*sources), world=Index(candidates))
    seen = {c.document.id: c.score for c in candidates[:12]}
    assert [p.document.id for p in one.passages[: len(sources)]] == list(sources)
    assert all(p.label == 1 for p in one.passages[: len(sources)])
    names = [p.document.id for p in one.passages]
    assert len(set(names)) == len(names)
    own = [seen[name] for name in sources if name in seen]
    others = [name for name in seen if name not in sources][skip:]
    assert set(names[len(sources) :]) <= set(others)
    below = []
    if own:
        bound = min(own) * (margin if min(own) > 0 else 2 - margin)
        below = [name for name in others if seen[name] <= bound]
        above = [name for name in others if seen[name] > bound]
        assert [name for name in names if labels(one)[name] is None] == above
        if margin < 1 and min(own):
            assert bound < min(own)
    assert negatives(one) == below[:n]
    assert scores(one, "bm25") == {name: seen[name] for name in names if name in seen}
    assert one.kept is bool(below)
    assert run(stage, example(*sources), world=Index(candidates)) == one


@given(lists(), st.floats(0.05, 1.0), st.floats(0.05, 1.0))
def test_a_wider_margin_takes_more(candidates: list[Candidate], one: float, other: float) -> None:
    few, many = (
        set(negatives(run(Mine(n=99, margin=m), example(), world=Index(candidates))))
        for m in sorted((one, other))
    )
    assert few <= many


def test_a_source_that_is_not_found_scores_less_than_all() -> None:
    world = Index(found("a", "b", "c"))
    one = run(Mine(n=2), example(), world=world)
    assert labels(one) == {"s": 1, "a": None, "b": None}
    assert (one.kept, one.verdicts[0].value) == (False, 0)
    assert one.verdicts[0].note == "source not among the first 100, without a label: 2"
    assert run(Mine(n=2, least=0), example(), world=world).kept
    assert negatives(run(Mine(n=2, margin=math.inf), example(), world=world)) == ["a", "b"]


def test_nothing_found() -> None:
    one = run(Mine(), example())
    assert labels(one) == {"s": 1}
    assert not one.kept


@pytest.mark.parametrize(
    "copy",
    [
        Document("x", "Text of S."),
        Document("x", "text of s", title="A title"),
        Document("x", "", title="TEXT  of s"),
    ],
)
def test_a_copy_of_the_source_is_no_negative_but_shows_where_it_would_stand(copy: Document) -> None:
    others = found("a", "b", top=5)
    world = Index([Candidate(copy, 6.0), *others])
    one = run(Mine(), example(), world=world)
    assert negatives(one) == ["a", "b"]
    assert "x" not in labels(one)


def test_nor_is_what_was_shown_of_the_source_or_another_positive() -> None:
    long = Document("s", "first part. second part")
    better = Passage(document("p"), "bm25", 1)
    one = Example("s#0", "a query", "", (Span(long, 0, 11),), (better,))
    copies = [Document("x", "First part"), Document("y", "text of p")]
    candidates = [Candidate(long, 9.0), *(Candidate(copy, 5.0) for copy in copies)]
    one = run(Mine(least=0), one, world=Index([*candidates, *found("p", "a", top=4)]))
    assert labels(one) == {"s": 1, "p": 1, "a": 0}


def test_what_lies_in_the_list_twice_is_taken_once() -> None:
    twins = [Candidate(document(name, "the same"), 5.0) for name in ("a", "b")]
    wordless = [Candidate(Document("w", "..."), 3.0)] * 2
    listed = [*found("s"), *twins, *found("c", "c", top=4), *wordless]
    assert negatives(run(Mine(), example(), world=Index(listed))) == ["a", "c", "w"]


@given(lists(), lists())
def test_a_second_one_adds_to_the_first(first: list[Candidate], second: list[Candidate]) -> None:
    before = run(Mine(n=3, least=0), example(), world=Index(first))
    after = run(Mine(by="dense", n=3, least=0), before, world=Index(second))
    names = [p.document.id for p in after.passages]
    assert len(set(names)) == len(names)
    assert names[: len(before.passages)] == [p.document.id for p in before.passages]
    assert scores(after, "bm25") == scores(before, "bm25")
    own = next((c.score for c in second if c.document.id == "s"), None)
    bound = None if own is None else own * (0.95 if own > 0 else 1.05)
    seen = {c.document.id: c.score for c in second}
    for name, label in labels(before).items():
        near = bound is not None and name in seen and seen[name] > bound
        assert labels(after)[name] == (None if near and label == 0 else label)
    assert labels(after)["s"] == 1
    assert len(after.verdicts) == 2


def test_a_source_that_lost_its_label_stays_without() -> None:
    before = example(passages=[mined("p", 1), Passage(document("s"), SOURCE)])
    one = run(Mine(), before, world=Index(found("s", "a", "b", "p")))
    assert labels(one) == {"p": 1, "s": None, "a": 0, "b": 0}


def test_how_it_is_written() -> None:
    assert str(Mine(margin=math.inf, by="hybrid")) == (
        "mine(by=hybrid, n=8, depth=100, skip=0, margin=inf, least=1)"
    )
    given_ = spec.split(str(Mine(margin=math.inf))).parameters
    assert Mine(**spec.bind("mine", Mine, given_)) == Mine(margin=math.inf)  # type: ignore[arg-type]
    assert Mine(by="hybrid").searches == {"bm25", "dense"}


@pytest.mark.parametrize(
    "wrong",
    [
        *({"by": "x"}, {"n": 0}, {"skip": -1}, {"skip": 100}, {"least": -1}),
        *({"margin": 0.0}, {"margin": math.nan}),
    ],
)
def test_wrong_parameters(wrong: dict[str, object]) -> None:
    with pytest.raises(SpecError):
        Mine(**wrong)  # type: ignore[arg-type]


def test_documents_of_test_queries_are_no_negatives() -> None:
    world = Index(found("s", "a", "b", "c", top=11), held_out=HeldOut((), frozenset({"b"})))
    one = run(Mine(n=2, depth=50, margin=1.0), example(), world=world)
    assert negatives(one) == ["a", "c"]
    assert "b" not in labels(one)
