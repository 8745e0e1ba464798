from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrank.errors import SpecError
from llmrank.plan import drive
from llmrank.synth.base import DocumentFilter
from llmrank.synth.documents import All, Choice, Clusters, Distinct, Sample, Worthwhile
from tests.synth.worlds import Answers, Toy, failed, graded

TEXTS = {f"d{i}": f"text number {i} about {i % 5}" for i in range(60)} | {"blank": "  "}


def chosen(choice: Choice, world: Toy) -> list[str]:
    return [document.id for document in choice.choose(iter(world.documents), world)]


def kept(step: DocumentFilter, world: Toy, judge: Answers = lambda _: failed()) -> list[str]:
    memory = drive(step.begin(world), judge)
    return [
        document.id
        for document in world.documents
        if step.keeps(document, drive(step.plan(document, world), judge), memory)
    ]


def test_all_have_a_text() -> None:
    assert chosen(All(), Toy(TEXTS)) == [name for name in TEXTS if name != "blank"]
    assert chosen(All(characters=22), Toy(TEXTS)) == [n for n, t in TEXTS.items() if len(t) >= 22]


@given(st.integers(1, 80), st.integers(0, 5))
def test_a_sample_is_of_the_size_asked_for_and_in_order(count: int, seed: int) -> None:
    names = chosen(Sample(count=count, seed=seed), Toy(TEXTS))
    assert len(names) == len(set(names)) == min(count, 60)
    assert names == sorted(names, key=list(TEXTS).index)
    assert names == chosen(Sample(count=count, seed=seed), Toy(TEXTS))


@given(st.integers(1, 61), st.integers(0, 9))
def test_clusters_choose_from_everywhere(count: int, k: int) -> None:
    rng = np.random.default_rng(1)
    vectors = np.repeat(np.eye(3, dtype=np.float32), [40, 20, 1], axis=0)
    vectors = vectors + rng.normal(0, 0.01, vectors.shape).astype(np.float32)
    world = Toy(TEXTS, vectors=vectors)
    names = chosen(Clusters(count=count, k=k), world)
    # The document without text has a vector too.
    assert count - 1 <= len(names) <= count
    assert names == sorted(names, key=list(TEXTS).index)


def test_near_duplicates_are_left_out() -> None:
    words = " ".join(f"word{i}" for i in range(60))
    world = Toy({"a": words, "b": f"{words} more", "c": "something else entirely here", "d": words})
    assert kept(Distinct(), world) == ["a", "c"]


def test_a_model_says_what_is_worthwhile() -> None:
    def yes(item: Any) -> float:  # noqa: ANN401
        assert (item.task, item.query.text) == ("worthwhile", "")
        return 0.9 if "bread" in item.doc.text else 0.1

    world = Toy({"a": "bread", "b": "menu home contact"})
    assert kept(Worthwhile(), world, graded(yes)) == ["a"]
    assert kept(Worthwhile(), world) == []


@pytest.mark.parametrize(
    ("step", "given"),
    [
        (Sample, {"count": 0}),
        (Clusters, {"count": 0}),
        (Clusters, {"k": -1}),
        (Clusters, {"temperature": 0.0}),
        (Clusters, {"diversity": 2.0}),
        (Distinct, {"least": 0.0}),
        (Worthwhile, {"least": 1.1}),
    ],
)
def test_what_makes_no_sense_is_refused(step: type[Any], given: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        step(**given)
