from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from llmrank.synth import Calls, Example, Passage, Span, Verdict
from llmrank.synth.records import record, restored, whole
from llmrank.types import Document

NAMES = st.sampled_from("abcdef")
TEXTS = {name: Document(name, f"text of {name}", name.upper()) for name in "abcdef"}
EXAMPLES = st.builds(
    Example,
    id=st.text(max_size=5),
    query=st.text(max_size=9),
    kind=st.just("claim"),
    sources=st.lists(
        st.builds(Span, NAMES.map(TEXTS.__getitem__), st.integers(0, 3), st.integers(3, 9)),
        min_size=1,
        max_size=2,
    ).map(tuple),
    passages=st.lists(
        st.builds(
            Passage,
            NAMES.map(TEXTS.__getitem__),
            st.sampled_from(["source", "bm25", "written", "query"]),
            st.none() | st.integers(0, 3),
            st.dictionaries(st.text(max_size=3), st.floats(allow_nan=False, allow_infinity=False)),
        ),
        max_size=3,
    ).map(tuple),
    verdicts=st.lists(
        st.builds(
            Verdict,
            stage=st.text(max_size=4),
            passed=st.booleans(),
            value=st.none() | st.floats(0, 1),
            bound=st.none() | st.floats(0, 1),
            note=st.text(max_size=4),
        )
    ).map(tuple),
    calls=st.just((Calls("s", "p", "0", "m", {"seed": 1}, 2, {"ok": 2}, 3, 4, ("k", "l")),)),
    split=st.sampled_from(["", "train", "dev"]),
)


@given(EXAMPLES)
def test_an_example_survives_json(one: Example) -> None:
    assert restored(json.loads(json.dumps(whole(one)))) == one


@given(EXAMPLES)
def test_a_record_has_texts_of_written_passages_alone(one: Example) -> None:
    told = record(one)
    assert "texts" not in told
    passages = told["passages"]
    assert isinstance(passages, list)
    for passage, kept in zip(one.passages, passages, strict=True):
        assert ("text" in kept) == (passage.origin in ("written", "query"))


@given(EXAMPLES)
def test_only_positive_grades_are_positives(one: Example) -> None:
    last = {p.document.id: p.label for p in one.passages if p.in_corpus}
    for name, grade in one.positives.items():
        assert grade > 0
        assert last.get(name, 1) == grade
    sources = {span.document.id for span in one.sources}
    assert one.positives.keys() <= sources | last.keys()
    assert sources - last.keys() <= one.positives.keys()
