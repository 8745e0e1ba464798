from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrank.errors import SpecError
from llmrank.synth import STEPS, exports
from llmrank.synth.exports import Choice, Lack, Line, Needs, Options, Sample, Scale, Text
from llmrank.types import Document
from tests.trainers import data

FINITE = st.floats(allow_nan=False, allow_infinity=False)
SCORES = st.lists(FINITE, min_size=1, max_size=12)


def _line(passages: list[data.Json]) -> Line:
    return exports.read(json.dumps(data.example("D#0", passages)))


@st.composite
def lines(draw: st.DrawFn) -> Line:
    """An example with any labels, of which some passages lack the score."""
    labels = draw(st.lists(st.sampled_from([None, 0, 0, 1, 2]), max_size=9))
    passages = [data.passage(f"d{i}", label) for i, label in enumerate(labels)]
    for told in passages:
        told["scores"] = draw(
            st.fixed_dictionaries({}, optional={"teacher": FINITE, "bm25": FINITE})
        )
    return _line(passages)


NEEDS = st.builds(
    Needs,
    st.sampled_from(["none", "any", "least", "fixed"]),
    st.sampled_from(["never", "may", "must"]),
)


@given(lines(), NEEDS, st.none() | st.integers(1, 4))
def test_what_is_chosen_of_an_example(line: Line, needs: Needs, negatives: int | None) -> None:
    found = exports.choose(line, needs, Options(negatives))
    scored = needs.scores == "must"
    usable = [p for p in line.passages if not scored or "teacher" in p.scores]
    good = [p for p in usable if p.label]
    bad = [p for p in usable if p.label == 0] if needs.negatives != "none" else []
    enough = {"none": 0, "any": 0, "least": 1, "fixed": negatives or 1}[needs.negatives]
    if isinstance(found, Lack):
        assert not good or len(bad) < enough
        return
    assert list(found.positives) == good
    assert list(found.negatives) == bad[:negatives]
    assert len(found.negatives) >= enough
    assert found.values.keys() == ({p.document for p in found.passages} if scored else set())
    known = [p for p in line.passages if p.label or (p.label == 0 and needs.negatives != "none")]
    assert found.unscored == len(known) - len(good) - len(bad)


@pytest.mark.parametrize(
    ("passages", "needs", "lack"),
    [
        ([], Needs(), Lack.POSITIVE),
        ([("a", 0), ("b", None)], Needs(), Lack.POSITIVE),
        ([("a", 1), ("b", None)], Needs("least"), Lack.NEGATIVE),
        ([("a", 1), ("b", 0)], Needs("fixed"), Lack.FEWER),
        ([("a", 1), ("b", 0), ("c", 0)], Needs("fixed", "must"), Lack.SCORE),
        ([("a", 1)], Needs(rivals=True), Lack.RIVAL),
    ],
)
def test_what_an_example_lacks(
    passages: list[tuple[str, int | None]], needs: Needs, lack: Lack
) -> None:
    line = _line([data.passage(name, label) for name, label in passages])
    assert exports.choose(line, needs, Options(2)) is lack
    assert exports.REMEDIES[lack]


def test_a_ranking_takes_scores_that_differ() -> None:
    needs = Needs("any", "must", order=True)
    tied = [data.passage("a", 1, teacher=0.5), data.passage("b", 0, teacher=0.5)]
    assert exports.choose(_line(tied), needs, Options()) is Lack.TIED
    apart = [*tied, data.passage("c", 0, teacher=0.4)]
    assert isinstance(exports.choose(_line(apart), needs, Options()), Choice)


@given(SCORES)
def test_minmax(values: list[float]) -> None:
    scaled = exports.SCALES["minmax"](values)
    assert all(0 <= value <= 1 for value in scaled)
    if min(values) / 2 < max(values) / 2:
        assert (min(scaled), max(scaled)) == (0, 1)
    else:
        assert set(scaled) == {0.5}


@given(SCORES)
def test_softmax(values: list[float]) -> None:
    scaled = exports.SCALES["softmax"](values)
    assert math.isclose(math.fsum(scaled), 1)
    for (a, weight), (b, other) in pairwise(zip(values, scaled, strict=True)):
        if weight > 1e-300 and other > 1e-300:
            assert math.isclose(math.log(weight) - math.log(other), a - b, abs_tol=1e-6)


@given(SCORES)
def test_standard(values: list[float]) -> None:
    scaled = exports.SCALES["standard"](values)
    assert abs(math.fsum(scaled)) < 1e-6
    spread = math.fsum(value * value for value in scaled) / len(scaled)
    assert math.isclose(spread, 1, abs_tol=1e-6) or not any(scaled)
    if len(set(values)) == 1:
        assert not any(scaled)


@given(SCORES, st.sampled_from(list(exports.SCALES)))
def test_scaling_keeps_the_order(values: list[float], scale: Scale) -> None:
    scaled = exports.SCALES[scale](values)
    order = sorted(range(len(values)), key=values.__getitem__)
    assert all(scaled[a] <= scaled[b] for a, b in pairwise(order))


def test_scores_are_scaled_over_what_is_chosen() -> None:
    line = _line(
        [
            data.passage("a", 1, teacher=3),
            data.passage("b", 0, teacher=1),
            data.passage("c", 0, teacher=-5),
            data.passage("d", None, teacher=9),
        ]
    )
    needs = Needs("fixed", "must")
    found = exports.choose(line, needs, Options(1, scale="minmax"))
    assert isinstance(found, Choice)
    assert found.values == {"a": 1, "b": 0}


def test_rivals_were_dropped_for_what_they_are() -> None:
    told = [
        data.example("D#0", [], query="kept"),
        data.example("D#1", [], failed="round_trip(k=1)", query="far from it"),
        data.example("D#2", [], failed="unique(least=0.9)", query="kept too, almost"),
        data.example("D#3", [], failed="guard", query="a test query"),
        data.example("D#8", [], failed="mine(n=8)", query="no negatives"),
        {**data.example("D#4", [], failed="copied", query="a claim"), "kind": "claim"},
        data.example("D#5", [], failed="copied", query="kept"),
        {**data.example("D#6", [], failed="copied"), "query": ""},
        data.example("E#7", [], failed="copied", query="of another document"),
    ]
    group = [exports.read(json.dumps(one)) for one in told]
    assert exports.rivals(group[0], group) == ["far from it"]
    assert STEPS.keys() >= exports.WORSE


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{}", "_id"),
        ('{"_id": "a", "query": "q"}', "kept"),
        ('{"_id": "a", "query": "q", "kept": true, "passages": [{"document": 1}]}', "passages.0"),
        (
            '{"_id": "a", "query": "q", "kept": true,'
            ' "passages": [{"document": "d", "scores": {"bm25": NaN}}]}',
            "bm25",
        ),
        (
            '{"_id": "a", "query": "q", "kept": true,'
            ' "passages": [{"document": "d"}, {"document": "d"}]}',
            "twice",
        ),
        ("[]", "object"),
    ],
)
def test_lines_that_are_no_examples(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        exports.read(text)


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("st-pairs", Options(negatives=3), "no negatives"),
        ("trl-dpo", Options(negatives=3), "no negatives"),
        ("st-triplets", Options(score="teacher"), "no scores"),
        ("st-ce", Options(scale="minmax"), "--score"),
        ("st-kldiv", Options(negatives=0), "at least 1"),
        ("st-kldiv", Options(scale="log"), "minmax"),  # type: ignore[arg-type]
    ],
)
def test_options_that_mean_nothing_to_a_format(name: str, options: Options, told: str) -> None:
    with pytest.raises(SpecError, match=told):
        exports.check(name, exports.find(name).needs, options)


def test_an_unknown_format_names_them_all() -> None:
    with pytest.raises(SpecError) as found:
        exports.find("st")
    assert all(name in str(found.value) for name in exports.FORMATS)


def _sample(positives: int, negatives: int, *, scored: bool = True) -> Sample:
    texts = [
        Text(Document(f"d{i}", f"text {i}", "title" if i % 2 else ""), i, int(i < positives), s)
        for i in range(positives + negatives)
        for s in [float(-i) if scored else None]
    ]
    good, bad = tuple(texts[:positives]), tuple(texts[positives:])
    return Sample("q", 0, "query", "search_query", "train", good, bad, ("shown",), ("x", "y"))


PER_PAIR = {"st-triplets", "st-margin"}
PER_POSITIVE = {"st-pairs", "st-ntuples", "st-kldiv", "pylate"}


@given(st.integers(1, 4), st.integers(1, 5))
def test_rows_of_an_example(positives: int, negatives: int) -> None:
    sample = _sample(positives, negatives)
    for name, form in exports.FORMATS.items():
        data_rows = [row for row in form.rows(sample) if row.file == "train.jsonl"]
        if name in PER_PAIR:
            assert len(data_rows) == positives * negatives
        elif name in PER_POSITIVE:
            assert len(data_rows) == positives
        for row in data_rows:
            json.dumps(row.value, allow_nan=False)


def test_the_shuffled_order_does_not_tell_the_grades() -> None:
    firsts = {replace(_sample(1, 3), id=f"q{i}").shuffled[0].document.id for i in range(60)}
    assert firsts == {"d0", "d1", "d2", "d3"}
    assert _sample(1, 3).shuffled == _sample(1, 3).shuffled


@given(st.integers(1, 3), st.integers(1, 4), st.integers(0, 9))
def test_a_listwise_reply_says_the_ranking(positives: int, negatives: int, seed: int) -> None:
    sample = replace(_sample(positives, negatives), seed=seed)
    (row,) = exports.FORMATS["trl-sft"].rows(sample)
    assert isinstance(row.value, dict)
    reply = row.value["completion"][0]["content"]
    places = [int(part.strip("[]")) - 1 for part in reply.split(" > ")]
    assert sorted(places) == list(range(positives + negatives))
    assert [sample.shuffled[place] for place in places] == sample.ranked
    scores = [text.score or 0.0 for text in sample.ranked]
    assert scores == sorted(scores, reverse=True)


def test_half_a_character_spoils_no_line() -> None:
    text = '{"_id": "a", "query": "half \\ud800", "kept": true, "passages": [{"document": "d"}]}'
    assert exports.read(text).query == "half \ud800"
