from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrank import rerank
from llmrank.errors import InputError, SpecError
from llmrank.plan import Grade
from llmrank.synth import Example, HeldOut, Passage, Stage
from llmrank.synth.across import Guard, Near, Split, Unique
from llmrank.synth.filters import Copied, Judge, Language, Length, RoundTrip, SelfContained
from llmrank.types import Document, Query
from tests.synth.worlds import Answers, Toy, embeds, example, failed, graded, passed

TEXTS = {
    "bread": "yeast makes the bread dough rise in the warm oven",
    "moon": "the moon raises the tides of the sea",
    "bees": "bees carry pollen from flower to flower",
}
WORLD = Toy(TEXTS)
BREAD, MOON, BEES = WORLD.documents


def verdict(
    stage: Stage, one: Example, world: Toy = WORLD, *, judge: Answers = lambda _: failed()
) -> tuple[bool, Any]:
    (found,) = passed(stage, [one], world, judge)
    last = found.verdicts[-1]
    assert last.stage == str(stage)
    assert found.kept == last.passed
    return last.passed, last.value


def test_length_counts_words() -> None:
    stage = Length(least=3, most=5)
    assert verdict(stage, example("why bread", BREAD)) == (False, 2)
    assert verdict(stage, example("why does bread rise?", BREAD)) == (True, 4)
    assert verdict(stage, example("why does the bread dough rise", BREAD)) == (False, 6)
    assert verdict(stage, example("面包为什么", BREAD)) == (True, 5)


def test_copied_is_the_longest_run() -> None:
    stage = Copied(most=0.5)
    assert verdict(stage, example("Yeast makes the bread", BREAD)) == (False, 1.0)
    assert verdict(stage, example("why is bread dough good", BREAD)) == (True, 0.4)


def test_another_language_than_the_source_is_dropped() -> None:
    likely = {"brot steigt auf": {"de": 0.9, "en": 0.001}, "p53 mdm2": {"la": 0.2, "en": 0.05}}
    world = Toy(TEXTS, languages=lambda text: likely.get(text, {"en": 0.9, "de": 0.1}))
    assert verdict(Language(), example("brot steigt auf", BREAD), world) == (False, 0.0011)
    assert verdict(Language(), example("p53 mdm2", BREAD), world) == (True, 0.25)
    assert verdict(Language(), example("bread", BREAD), world) == (True, 1.0)


def test_self_contained_is_asked_of_the_query_alone() -> None:
    def yes(item: Grade) -> float:
        assert (item.task, item.doc.contents) == ("self_contained", "")
        return 0.2 if "this" in item.query.text else 0.8

    stage = SelfContained()
    assert verdict(stage, example("what did this study find", BREAD), judge=graded(yes))[0] is False
    assert verdict(stage, example("why does bread rise", BREAD), judge=graded(yes)) == (True, 0.8)
    assert verdict(stage, example("why does bread rise", BREAD)) == (False, None)


def test_the_judge_scores_every_source() -> None:
    stage = Judge(rerank.parse("yesno"), least=0.5)
    judge = graded(lambda item: 0.9 if item.doc.id == "bread" else 0.3)
    assert verdict(stage, example("a query", BREAD), judge=judge)[0]
    assert not verdict(stage, example("a query", BREAD, MOON), judge=judge)[0]
    assert verdict(stage, example("a query", BREAD)) == (False, None)


def test_round_trip_gives_the_rank_of_the_worst_source() -> None:
    query = "the moon and the bread dough"
    assert verdict(RoundTrip(k=1), example(query, BREAD)) == (True, 1)
    assert verdict(RoundTrip(k=1), example(query, MOON)) == (False, 2)
    assert verdict(RoundTrip(k=2), example(query, BREAD, MOON)) == (True, 2)
    assert verdict(RoundTrip(k=2), example(query, BEES)) == (False, None)


def test_round_trip_through_a_reranker() -> None:
    judge = graded(lambda item: 0.9 if item.doc.id == "moon" else 0.1)
    stage = RoundTrip(rerank.parse("yesno@20"), k=1)
    assert verdict(stage, example("the moon and the bread dough", MOON), judge=judge) == (True, 1)
    assert not verdict(stage, example("the moon and the bread", BREAD), judge=judge)[0]


@given(
    st.lists(st.sampled_from(["a b c d e", "A b, c d e!", "f g h i j", "k l m n o"]), max_size=9)
)
def test_of_equal_queries_the_first_is_kept(queries: list[str]) -> None:
    made = [example(query, BREAD, id=f"d#{i}") for i, query in enumerate(queries)]
    found = passed(Unique(), made, WORLD)
    first = {query.lower().replace(",", "").replace("!", "") for query in queries}
    assert sum(one.kept for one in found) == len(first)
    for place, one in enumerate(found):
        if not one.kept:
            named = int(one.verdicts[-1].note.partition("#")[2])
            assert named < place
            assert found[named].kept


def test_unique_by_vectors() -> None:
    vectors = {"one": (1.0, 0.0), "near": (0.99, 0.1), "far": (0.0, 2.0)}
    made = [example(query, BREAD, id=f"{query}#0") for query in (*vectors, "unknown")]
    found = passed(Unique(by="vectors"), made, WORLD, embeds(vectors))
    assert [one.kept for one in found] == [True, False, True, False]
    assert found[1].verdicts[-1].note == "as one#0"
    assert found[3].verdicts[-1].note == "could not be embedded"


class TestGuard:
    held_out = HeldOut(
        (Query("t1", "Why does bread rise in the oven?"), Query("t2", "tides")), frozenset({"bees"})
    )
    world = Toy(TEXTS, held_out=held_out)

    @pytest.mark.parametrize(
        "query",
        [
            "Why does bread rise in the oven?",
            "why does BREAD rise -- in the oven",
            "why does bread rise in the hot oven",
            "Tides!",
        ],
    )
    def test_what_is_near_to_a_test_query_is_dropped(self, query: str) -> None:
        (found,) = passed(Guard(least=0.3), [example(query, BREAD)], self.world)
        assert not found.kept
        assert found.verdicts[-1].note.startswith("as t")

    def test_nothing_else_is(self) -> None:
        assert verdict(Guard(), example("what raises the sea", MOON), self.world) == (True, None)

    def test_what_was_written_for_a_test_document_is_dropped(self) -> None:
        (found,) = passed(Guard(), [example("who carries pollen", BEES)], self.world)
        assert found.verdicts[-1].note == "bees is relevant to a held-out query"

    def test_test_documents_are_no_passages(self) -> None:
        one = example("what raises the sea", MOON)
        beside = tuple(Passage(document, "bm25", 0) for document in (BREAD, BEES))
        (found,) = passed(Guard(), [Example(**{**_fields(one), "passages": beside})], self.world)
        assert [passage.document.id for passage in found.passages] == ["bread"]

    def test_by_vectors_too(self) -> None:
        vectors = {query.text: (1.0, 0.0) for query in self.held_out.queries}
        vectors |= {"paraphrase of it": (2.0, 0.1), "something else": (0.0, 1.0)}
        stage, judge = Guard(cosine=0.9), embeds(vectors)
        made = [example(query, MOON) for query in ("paraphrase of it", "something else", "unknown")]
        found = passed(stage, made, self.world, judge)
        assert [one.kept for one in found] == [False, True, False]

    def test_without_test_data_there_is_nothing_to_guard(self) -> None:
        with pytest.raises(InputError, match="--held-out"):
            passed(Guard(), [], WORLD)


def _fields(one: Example) -> dict[str, Any]:
    return {name: getattr(one, name) for name in Example.__slots__}


NAMES = st.lists(st.integers(0, 40).map(str), min_size=1, max_size=4, unique=True)


@given(
    st.lists(st.tuples(NAMES, NAMES), max_size=12),
    st.floats(0, 0.5),
    st.floats(0, 0.4),
    st.integers(0, 3),
)
def test_no_document_is_in_two_splits(
    groups: list[tuple[list[str], list[str]]], dev: float, test: float, seed: int
) -> None:
    documents = {str(i): Document(str(i), f"text {i}") for i in range(41)}
    made = []
    for number, (sources, others) in enumerate(groups):
        one = example("a query", *(documents[name] for name in sources), id=str(number))
        passages = tuple(Passage(documents[name], "bm25", 0) for name in others)
        made.append(Example(**{**_fields(one), "passages": passages}))
    places: dict[str, set[str]] = {}
    stage = Split(dev=dev, test=test, seed=seed)
    for one in passed(stage, made, WORLD):
        if not one.kept:
            splits = {stage.of(span.document) for span in one.sources}
            assert len(splits) > 1 or one.verdicts[-1].note == "no negative is in its split"
            continue
        assert one.split in ("train", "dev", "test")
        for document in (*(s.document for s in one.sources), *(p.document for p in one.passages)):
            places.setdefault(document.id, set()).add(one.split)
    assert all(len(splits) == 1 for splits in places.values())


def test_copies_are_in_one_split() -> None:
    stage = Split(dev=0.5)
    for i in range(50):
        one, other = Document(f"a{i}", f"Text {i}!"), Document(f"b{i}", f"text  {i}")
        assert stage.of(one) == stage.of(other)


def test_an_example_whose_negatives_are_all_elsewhere_is_dropped() -> None:
    stage = Split(dev=0.5)
    documents = [Document(str(i), f"text {i}") for i in range(20)]
    train = [one for one in documents if stage.of(one) == "train"]
    dev = [one for one in documents if stage.of(one) == "dev"]
    one = example("a query", train[0])
    beside = (Passage(train[0], "source", 1), Passage(dev[0], "bm25", 0))
    lost, kept = passed(
        stage,
        [
            Example(**{**_fields(one), "passages": beside}),
            Example(**{**_fields(one), "passages": (*beside, Passage(train[1], "bm25", 0))}),
        ],
        WORLD,
    )
    assert (lost.kept, lost.verdicts[-1].note) == (False, "no negative is in its split")
    assert kept.kept


def test_splits_have_about_their_shares() -> None:
    stage = Split(dev=0.2, test=0.1)
    found = [stage.of(Document(str(i), f"document {i}")) for i in range(5000)]
    assert 0.17 < found.count("dev") / 5000 < 0.23
    assert 0.08 < found.count("test") / 5000 < 0.12


@pytest.mark.parametrize(
    ("stage", "given"),
    [
        (Copied, {"most": 1.5}),
        (Unique, {"least": 0.0}),
        (Unique, {"by": "smell"}),
        (Guard, {"cosine": -0.1}),
        (Split, {"dev": 0.5, "test": 0.5}),
        (RoundTrip, {"k": 0}),
        (RoundTrip, {"by": "luck"}),
        (Judge, {}),
        (Judge, {"method": rerank.parse("yesno"), "least": float("nan")}),
        (Length, {"least": 9, "most": 3}),
        (Length, {"least": -1}),
    ],
)
def test_what_makes_no_sense_is_refused(stage: type[Stage], given: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        stage(**given)


@given(st.lists(st.lists(st.floats(-5, 5), min_size=3, max_size=3), min_size=1, max_size=20))
def test_near_finds_the_largest_cosine(rows: list[list[float]]) -> None:
    vectors = np.array(rows, dtype=np.float32)
    near = Near(-1.0)
    for place, vector in enumerate(vectors):
        near.add(str(place), vector)
    lengths = np.linalg.norm(vectors, axis=1)
    units = vectors / np.where(lengths > 0, lengths, 1)[:, None]
    found = near.find(vectors[0])
    assert found is not None
    assert found.value == pytest.approx(float((units @ units[0]).max()), abs=1e-5)
