"""Replies: rankings and scores are read where they stand, and nothing else ever is."""

from __future__ import annotations

import gzip
import json
import math
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmrank.plan import (
    Answer,
    Ask,
    Attend,
    Choice,
    Embed,
    Grade,
    Grades,
    Likelihood,
    LogProb,
    Order,
    Permutation,
    Pick,
    Vectors,
    Write,
    Written,
)
from llmrank.prompts import PromptSet, read_order, replies
from llmrank.prompts.replies import read_digits, read_pick
from llmrank.request import Reply, Request
from llmrank.types import Document, Query, Status, Usage

LOGS = (Path(__file__).parents[2] / "../shared/data/dl19/llm_responses").resolve()
QUERY = Query("q", "how do tides work")
DOCS = tuple(Document(str(i), f"passage {i}") for i in range(1, 4))
ASKS: list[Ask[Any]] = [
    Order(QUERY, DOCS),
    Pick(QUERY, DOCS),
    Grade(QUERY, DOCS[0]),
    Likelihood(QUERY, DOCS[0]),
    Attend(QUERY, DOCS),
    Write("hyde", (("query", "a"),)),
    Embed(("a", "b")),
]


def order(text: str, count: int, *, truncated: bool = False) -> tuple[Status, list[int]]:
    """The status and the identifiers, from 1, of a reply."""
    status, value, problem = read_order(text, count, truncated=truncated)
    assert bool(problem) == (status is not Status.OK)
    return status, [] if value is None else [position + 1 for position in value.order]


def parse(item: Ask[Any], reply: Reply) -> Answer[Any]:
    prompts = PromptSet()
    return prompts.parse(prompts.render(item), reply)


FULL = [3, 1, 2]


@pytest.mark.parametrize(
    "text",
    [
        "[3] > [1] > [2]",
        "[3]>[1]>[2]",
        "[3] > [1] > [2].",
        "\n\n [3] >\n[1] >\n[2]\n",
        "Here is the ranking of the 3 passages:\n\n[3] > [1] > [2]",
        "2 of the 3 passages help. [3] > [1] > [2]",
        "20% of the passages should be included. [3] > [1] > [2]",
        "In 2019, 2 studies found 1 answer.\n[3] > [1] > [2]\nAll 3 passages are ranked.",
        "[3] > [1] > [2]\n\nPassage [2] is the least relevant, [1] the second.",
        "1. [3] > [1] > [2]",
        "1. [3]\n2. [1]\n3. [2]",
        "1) [3]\n2) [1]\n3) [2]",
        "1. [3] 2. [1] 3. [2]",
        "1. [3] > 2. [1] > 3. [2]",
        "1. [3] - it explains > 2 causes\n2. [1] - like [2], but\n3. [2] - of 1999",
        "1. **[3]**: explains\n2. **[1]**: names\n3. **[2]**: neither",
        "- [3]\n- [1]\n- [2]",
        "* [3]\n* [1]\n* [2]",
        "[3]\n[1]\n[2]",
        "[3], [1], [2]",
        "[3], [1] and [2].",
        "[3] [1] > [2]",
        "Ranking: [3], [1], [2]",
        "[3, 1, 2]",
        '["3", "1", "2"]',
        '["[3]", "[1]", "[2]"]',
        '```json\n{"ranking": [3, 1, 2]}\n```',
        '{\n  "ranking": [\n    3,\n    1,\n    2\n  ]\n}',
        "3 > 1 > 2",
        "Final ranking: 3 > 1 > 2",
        "3, 1, 2",
        "3] > [1] > [2]",
        "**[3]** > **[1]** > **[2]**",
        "`[3] > [1] > [2]`",
        '"[3] > [1] > [2]"',
        r"\[3\] > \[1\] > \[2\]",
        "Passage 3 > Passage 1 > Passage 2",
        "Document [3] > Document [1] > Document [2]",
        "[Passage 3] > [Passage 1] > [Passage 2]",
        "[ 3 ] > [ 1 ] > [ 2 ]",
        "[3] = [1] > [2]",
        "\u30103\u3011 > \u30101\u3011 > \u30102\u3011",
        "\uff3b\uff13\uff3d \uff1e \uff3b\uff11\uff3d \uff1e \uff3b\uff12\uff3d",
        "[٣] > [١] > [٢]",
        "<think>[1] > [2] > [3] or [2] > [1] > [3]?</think>[3] > [1] > [2]",
        "<thinking>1. [2]\n2. [1]</thinking>\n[3] > [1] > [2]",
        "first [1] > [2] > [3], but no</think>\n\n[3] > [1] > [2]",
        "[2] > [1] is a first guess. All of them: [3] > [1] > [2]",
        "[1] > [2] > [3] is the order shown. Better: [3] > [1] > [2]",
        "[2]\n[1]\n\nAs a chain: [3] > [1] > [2]",
        "I'm sorry for the delay. [3] > [1] > [2]",
    ],
)
def test_a_whole_ranking_is_read_in_every_usual_form(text: str) -> None:
    assert order(text, 3) == (Status.OK, FULL)


@pytest.mark.parametrize(
    ("text", "count", "status", "expected"),
    [
        ("1. [4] > [2]", 4, Status.PARTIAL, [4, 2, 1, 3]),
        ("[4] > [4] > [9]", 4, Status.PARTIAL, [4, 1, 2, 3]),
        ("[4] > [4] > [9]", 9, Status.PARTIAL, [4, 9, 1, 2, 3, 5, 6, 7, 8]),
        ("[3] > [3] > [1] > [2]", 3, Status.REPAIRED, FULL),
        ("[3] > [1] > [7] > [2]", 3, Status.REPAIRED, FULL),
        ("[3] > [1] > [99999] > [2]", 3, Status.PARTIAL, [3, 1, 2]),
        ("[0] > [3] > [1] > [2]", 3, Status.REPAIRED, FULL),
        ("12] > [1] > [12] > [2]", 12, Status.PARTIAL, [12, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
        ("[3] > [1] > 2.5 times the rest", 3, Status.PARTIAL, FULL),
        ("[3] > [1] > 2% of the rest", 3, Status.PARTIAL, FULL),
        ("[2] > [1] > ... > [3]", 4, Status.PARTIAL, [2, 1, 3, 4]),
        ("[2]", 3, Status.PARTIAL, [2, 1, 3]),
        ("Best: [2]", 3, Status.PARTIAL, [2, 1, 3]),
        ("[1]", 1, Status.OK, [1]),
        ("1", 1, Status.OK, [1]),
        ("The only one is [1] of course:\n[1]", 1, Status.OK, [1]),
        ("[1] > [2]", 1, Status.REPAIRED, [1]),
    ],
)
def test_what_can_be_repaired_is_and_says_so(
    text: str, count: int, status: Status, expected: list[int]
) -> None:
    assert order(text, count) == (status, expected)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n ",
        "[] > []",
        "20 passages are provided.",
        "20 passages are provided, so the ranking should be from 1 to 20.",
        "C > A > B",
        "[C] > [A] > [B]",
        "[2] < [1] < [3]",
        "Passages [1], [2] and [3] are about tides.",
        "As shown before [1, 2], tides differ.",
        "[1] Tides are caused by the moon.\n[2] Waves are caused by wind.",
        "[3] The Government of the Commonwealth",
        "The most relevant passage is [2], I think",
        "scores: 0.9 > 0.8 > 0.7",
        "10% > 5% > 3%",
        "a score of 0.5 > [2] in all",
        "revenue of 10 > 5 was seen",
        "2019 > 2018 > 2017",
        "in 1999, 2 of 3 dogs ate 4 > 3 bones",
        "HTTP 429: retry 3 of 5, limit 20 > 10 exceeded",
        "Error code: 400 - {'error': {'message': 'maximum context length is 4096', 'code': 400}}",
        "x1 > x2 > x3",
        "version 1.2 > 1.1",
        "<think>[3] > [1] > [2]",
        "<think>[3] > [1] > [2]</think>",
        "[0] > [1] > [2]",
        "[0, 1, 2]",
        "[25] > [26] > [27]",
        "②>①>③",
    ],
)
def test_what_is_no_ranking_is_never_read_as_one(text: str) -> None:
    assert order(text, 20) == (Status.MALFORMED, [])


def test_a_reply_that_counts_from_zero_says_so() -> None:
    assert "counts from 0" in read_order("[0] > [2] > [1]", 3)[2]


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't rank these passages.",
        "I’m sorry, I cannot do that.",
        "I cannot rank the 3 passages.",
        "I can't assist with that.",
        "I am unable to judge passage 2.",
        "I won't rank these 3.",
        "As an AI language model, I have no 1 opinion.",
        "Sorry, these 2 passages are harmful.",
        "<think>[1] > [2]</think>I'm sorry.",
    ],
)
def test_a_refusal_is_a_refusal(text: str) -> None:
    assert order(text, 3) == (Status.REFUSED, [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[4] > [12] > [1", [4, 12]),
        ("[4] > [12] > [", [4, 12]),
        ("[4] > [12] > ", [4, 12]),
        ("[4] > [12]", [4, 12]),
        ("[4] > [1", [4]),
        ("17 > 4 > 1", [17, 4]),
        ("1. [4]\n2. [12]\n3. [1", [4, 12]),
        ("1. [4]\n2. [12]\n3", [4, 12]),
        ("[4, 12, 1", [4, 12]),
        ("**[4]** > **[12]** > **[1", [4, 12]),
        ("[4", []),
        ("4", []),
        ("Sure, here is the ranking of the 20", []),
        ("<think>[4] > [12] > [1]", []),
    ],
)
def test_a_half_written_identifier_at_the_token_limit_is_dropped(
    text: str, expected: list[int]
) -> None:
    status, found = order(text, 20, truncated=True)
    assert status is Status.TRUNCATED
    assert found[: len(expected)] == expected
    rest = [number for number in range(1, 21) if number not in expected]
    assert found == (expected + rest if expected else [])


def test_a_ranking_that_was_complete_at_the_token_limit_is_complete() -> None:
    assert order("[3] > [1] > [2]", 3, truncated=True) == (Status.OK, FULL)
    answer = parse(ASKS[0], Reply(text="[3] > [1] > [2", finish="length"))
    assert answer.status is Status.TRUNCATED
    assert answer.value == Permutation((2, 0, 1), named=2)


IDENTIFIERS = ["[1]", "[2]", "[12]", "3", "0", "[0]", "1.", "Passage ", "[1, 2]", "9999", "١"]
MARKS = [" > ", ">", "\n", ", ", ":", "<think>", "</think>", "**", "[", "]", " and ", "{", "0.5"]
PIECES = st.lists(st.sampled_from([*IDENTIFIERS, *MARKS, "word", "I'm sorry"]), max_size=30)


@given(st.text() | PIECES.map("".join) | PIECES.map(" ".join), st.integers(0, 25), st.booleans())
@example("[1] > [1]", 1, True)
def test_any_text_gives_no_value_or_a_true_permutation(
    text: str, count: int, truncated: bool
) -> None:
    status, value, problem = read_order(text, count, truncated=truncated)
    complete = status in (Status.OK, Status.REPAIRED, Status.PARTIAL)
    assert (value is not None) == complete or status is Status.TRUNCATED
    assert bool(problem) == (status is not Status.OK)
    if value is not None:
        assert sorted(value.order) == list(range(count))


@given(st.permutations(range(1, 21)), st.sampled_from([" > ", ">", "\n", ", "]), st.booleans())
def test_every_permutation_is_read_back(
    ranking: list[int], separator: str, truncated: bool
) -> None:
    text = separator.join(f"[{number}]" for number in ranking)
    assert order(text, 20, truncated=truncated) == (Status.OK, ranking)


@given(
    st.text(
        alphabet=st.characters(exclude_characters="[]\u3010\u3011\uff3b\uff3d>\uff1e,"), max_size=60
    )
)
def test_text_without_brackets_commas_and_chains_is_never_a_ranking(text: str) -> None:
    assert read_order(text, 20)[1] is None


@pytest.mark.parametrize(
    "piece",
    [
        "[1] ",
        "[1]\n",
        "[1] = ",
        "1 > ",
        "[1]> ",
        "1, ",
        "9",
        "[",
        "[ ",
        " ",
        "\n",
        ">",
        "passage ",
        "passage" + " " * 900,
        "[1]" + " " * 900,
        "1. ",
        "1.\n",
        "<think>",
        "x: [1] [2] ",
        "sorry ",
    ],
)
def test_reading_time_grows_with_the_length_of_the_reply(piece: str) -> None:
    text = (piece * 20_000)[:20_000] + "x"
    start = time.process_time()
    read_order(text, 20)
    read_order(text, 20, truncated=True)
    assert time.process_time() - start < 1.0


def pick(text: str, n: int = 1, count: int = 4, *, truncated: bool = False) -> tuple[Status, str]:
    """The status and the letters of a reply."""
    status, value, problem = read_pick(text, count, n, truncated=truncated)
    assert bool(problem) == (status is not Status.OK)
    return status, "" if value is None else "".join("ABCD"[place] for place in value.best)


@pytest.mark.parametrize(
    "text",
    [
        "B",
        " B.\n",
        "[B]",
        "(B)",
        "B)",
        "**B**",
        "**Passage B**",
        "Passage B",
        "passage [B].",
        '"B"',
        "1. B",
        "- B",
        "Answer: B",
        "**Answer:** B",
        "The answer is: B",
        "The most relevant passage is: Passage B",
        "The passage that answers the query best is: B",
        '{"answer": "B"}',
        '```json\n{\n  "best": "B"\n}\n```',
        "B > A > C",
        "B\n\nPassage A is about waves, and C says nothing.",
        "Passage A names the moon, C the wind.\n\nAnswer: B",
        "A, B, C and D were shown.\nA, B, C, D\nBest: B",
        "B\nB",
        "Passage B is the most relevant.",
        "Passage B is the best because it explains tides. I am sure.",
        "Passage B answers the query best.",
        "The most relevant passage is B.",
        "The best passage is Passage B, because it explains tides.",
        "The best answer is [B]",
        "<think>A or C?\nA</think>B",
    ],
)
def test_one_pick_is_read_in_every_plain_form(text: str) -> None:
    status, letters = pick(text)
    assert letters == "B"
    assert status is (Status.REPAIRED if ">" in text and "<" not in text else Status.OK)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "b",
        "Tides",
        "BC",
        "A or B",
        "A, B",
        "A and B",
        "A\nB",
        "Answer: A\nAnswer: B",
        "Most relevant: A\nBest: B",
        "Not relevant: B",
        "Least relevant: B",
        "Second best: B",
        "Worst passage: B",
        "Query: how do tides work. Passage B",
        "I think passage B is relevant.",
        "Passage B is not relevant.",
        "Passage B is the least relevant.",
        "Passage B is the second most relevant.",
        "None of them, though Passage B mentions tides.",
        "Passage A and B are equally good.",
        "Passage A or B",
        "Passage A is the best, but so is B.",
        "Passage B is the best for tides and Passage A for waves.",
        "If the moon is meant, Passage B is the best.",
        "The best passage is not B.",
        "The best passage is B or C.",
        "The second best passage is B.",
        "Passage B: the moon pulls the sea",
        "B. The moon pulls the sea",
        "A moon pulls the sea",
        "I",
        "E",
        "B > E",
        "Neither",
        "[2]",
        "HTTP 500: B",
        "Error: B is down",
        "<think>B",
    ],
)
def test_what_is_no_pick_is_never_read_as_one(text: str) -> None:
    assert pick(text) == (Status.MALFORMED, "")


@pytest.mark.parametrize(
    ("text", "status", "letters"),
    [
        ("B, A", Status.OK, "BA"),
        ("B A", Status.OK, "BA"),
        ("B > A", Status.OK, "BA"),
        ("[B, A]", Status.OK, "BA"),
        ("[B] > [A]", Status.OK, "BA"),
        ('["B", "A"]', Status.OK, "BA"),
        ("Passage B and Passage A", Status.OK, "BA"),
        ("Passages B, and A.", Status.OK, "BA"),
        ("The two best passages are: B, A", Status.OK, "BA"),
        ("B\nA", Status.OK, "BA"),
        ("1. B\n2. A", Status.OK, "BA"),
        ("B, A, C", Status.REPAIRED, "BA"),
        ("B, A, B", Status.REPAIRED, "BA"),
        ("B", Status.PARTIAL, "B"),
        ("B, B", Status.PARTIAL, "B"),
        ("B, A\nA, B", Status.MALFORMED, ""),
        ("B, E", Status.MALFORMED, ""),
        ("B, A and some of C", Status.MALFORMED, ""),
        ("Passage B is the best.", Status.MALFORMED, ""),
    ],
)
def test_two_picks_are_read_best_first(text: str, status: Status, letters: str) -> None:
    assert pick(text, 2) == (status, letters)


def test_no_more_can_be_named_than_are_shown() -> None:
    assert pick("B, A", 3, count=2) == (Status.OK, "BA")


@pytest.mark.parametrize(
    ("text", "n", "status", "letters"),
    [
        ("B", 1, Status.OK, "B"),
        ("B, A, ", 3, Status.TRUNCATED, "BA"),
        ("B, A,", 2, Status.OK, "BA"),
        ("The best passage is B", 1, Status.TRUNCATED, ""),
        ("The best passage is B.\nIt expl", 1, Status.OK, "B"),
        ("Let me look at each pas", 1, Status.TRUNCATED, ""),
        ("<think>B", 1, Status.TRUNCATED, ""),
    ],
)
def test_a_pick_at_the_token_limit(text: str, n: int, status: Status, letters: str) -> None:
    assert pick(text, n, truncated=True) == (status, letters)


def test_a_refusal_to_pick_is_a_refusal() -> None:
    assert pick("I'm sorry, but I can't judge these.") == (Status.REFUSED, "")


PICKS = st.lists(
    st.sampled_from(
        [
            "A",
            "B",
            "E",
            "Z",
            "[C]",
            "Passage ",
            "Answer: ",
            "is the best",
            "The best passage is ",
            ", ",
            " > ",
            "\n",
            " and ",
            ".",
            "1. ",
            "word",
            " ",
            ":",
            "I",
        ]
    ),
    max_size=20,
)


@given(st.text() | PICKS.map("".join), st.integers(1, 5), st.integers(1, 6), st.booleans())
def test_any_text_gives_no_pick_or_different_passages_that_were_shown(
    text: str, n: int, count: int, truncated: bool
) -> None:
    status, value, problem = read_pick(text, count, n, truncated=truncated)
    assert bool(problem) == (status is not Status.OK)
    if value is None:
        assert status in (Status.MALFORMED, Status.REFUSED, Status.TRUNCATED)
    else:
        assert len(set(value.best)) == len(value.best) <= min(n, count)
        assert set(value.best) <= set(range(count))
        assert (len(value.best) == min(n, count)) == (status in (Status.OK, Status.REPAIRED))


@pytest.mark.parametrize(
    "piece",
    [
        "A ",
        "A, ",
        "A\n",
        "[",
        "Passage ",
        "and ",
        "the best ",
        "Answer",
        ":",
        " ",
        "A" + " " * 300,
        "The best passage is ",
        "Passage A is the best ",
        "1. ",
        "-",
        "the best passage:\n",
    ],
)
def test_the_time_to_read_a_pick_grows_with_the_length_of_the_reply(piece: str) -> None:
    text = (piece * 20_000)[:20_000] + "x"
    start = time.process_time()
    read_pick(text, 4, 1)
    read_pick(text, 4, 2, truncated=True)
    assert time.process_time() - start < 1.0


@pytest.mark.parametrize(
    ("text", "status", "expected", "named"),
    [
        ("[3] > [1] > [2]", Status.OK, [3, 1, 2], None),
        ("3, 1 and then 2", Status.OK, [3, 1, 2], None),
        ("2 of the 3 passages help.", Status.PARTIAL, [2, 3, 1], 2),
        ("1. [3] > 2. [1]", Status.REPAIRED, [1, 3, 2], None),
        ("[3] > [9] > [1]", Status.PARTIAL, [3, 1, 2], 2),
        ("[] > []", Status.MALFORMED, [], None),
        ("C > A > B", Status.MALFORMED, [], None),
        ("[0] > [7]", Status.MALFORMED, [], None),
    ],
)
def test_the_digits_reader_takes_every_number_for_an_identifier(
    text: str, status: Status, expected: list[int], named: int | None
) -> None:
    found, value, problem = read_digits(text, 3)
    assert found is status
    assert bool(problem) == (status is not Status.OK)
    assert ([] if value is None else [place + 1 for place in value.order]) == expected
    assert (None if value is None else value.named) == named


def test_a_template_says_which_reader_reads_its_rankings(tmp_path: Path) -> None:
    path = tmp_path / "lenient.toml"
    path.write_text(
        'ask = "order"\ndescription = "d"\nreader = "digits"\n'
        'text = "{{ query }} {{ passages | length }}"\n'
    )
    prompts, reply = PromptSet({"order": path}), Reply(text="passages 3 and 1")
    assert prompts.parse(prompts.render(ASKS[0]), reply).value == Permutation((2, 0, 1), named=2)
    assert parse(ASKS[0], reply).status is Status.MALFORMED


@pytest.mark.parametrize(("n", "named"), [(2, 2), (3, 3)])
def test_how_many_were_named_is_told_where_some_were_not(n: int, named: int) -> None:
    text = " > ".join(f"[{number}]" for number in range(4, 4 - n, -1))
    assert read_order(text, 4)[1].named == named


FIELDS = st.fixed_dictionaries(
    {
        "text": st.sampled_from(["", "[3] > [1] > [2]", "Error 3: [1] > [2]"]) | st.text(),
        "finish": st.sampled_from(["stop", "length", "content_filter"]),
        "reasoning": st.text(),
        "label_logprobs": st.just({"Yes": -0.1, "No": -2.0}),
        "logprob": st.sampled_from([None, -1.0, math.nan]),
        "tokens": st.integers(0, 3),
        "vectors": st.just(np.ones((2, 3), np.float32)),
        "usage": st.just(Usage(5, 2)),
        "transient": st.booleans(),
        "reused": st.booleans(),
    }
)


@given(st.sampled_from(ASKS), FIELDS, st.text(min_size=1), st.booleans())
def test_a_failure_never_has_a_value_whatever_else_the_reply_holds(
    item: Ask[Any], fields: dict[str, Any], message: str, unasked: bool
) -> None:
    fields |= {"unasked" if unasked else "error": message}
    reply = Reply(**fields)
    answer = replies.read(Request(ask=item, want="text", labels={"a": ("Yes",)}), reply)
    assert answer.value is None
    assert answer.status is (Status.UNASKED if unasked else Status.FAILED)
    assert answer.problem == message
    assert answer.usage == reply.usage


@pytest.mark.parametrize("item", ASKS)
@pytest.mark.parametrize("finish", ["content_filter", "refusal"])
def test_a_filtered_reply_never_has_a_value(item: Ask[Any], finish: str) -> None:
    reply = Reply(text="[3] > [1] > [2]", finish=finish, logprob=-1.0, tokens=1)
    answer = replies.read(Request(ask=item, want="text"), reply)
    assert (answer.status, answer.value) == (Status.REFUSED, None)


def test_reasoning_that_came_apart_is_not_read() -> None:
    answer = parse(ASKS[0], Reply(text="", reasoning="[3] > [1] > [2]", finish="length"))
    assert (answer.status, answer.value) == (Status.THINKING, None)
    assert "--thinking" in answer.problem


@pytest.mark.parametrize(
    "reply",
    [
        Reply(text="<think>[3] > [1] > [2], or", finish="length"),
        Reply(text="[3] > [1] > [2], or\n</think>", finish="length"),
        Reply(reasoning="[3] > [1] > [2], or", finish="length"),
        Reply(usage=Usage(9, 64, 0, 64), finish="length"),
    ],
)
def test_a_thought_that_never_ends_is_an_outcome_of_its_own(reply: Reply) -> None:
    assert parse(ASKS[0], reply).status is Status.THINKING
    said = replace(reply, text="<think>hm</think>[3] > [1]")
    assert parse(ASKS[0], said).status is Status.TRUNCATED
    assert parse(ASKS[0], replace(reply, finish="stop")).status is Status.MALFORMED


def test_where_a_text_ends_is_looked_for_behind_the_thought() -> None:
    prompts = PromptSet(thinking=50)
    request = prompts.render(Write("query2doc", (("query", "a"),)))
    assert request.params.stop
    assert not request.params.sent_stops
    stop = request.params.stop[0]
    reply = Reply(text=f"<think>one{stop}two</think>Tides rise.{stop}More", finish="length")
    answer = prompts.parse(request, reply)
    assert (answer.status, answer.value) == (Status.OK, Written("Tides rise.", None))


def test_the_evidence_is_kept_with_the_answer() -> None:
    prompts = PromptSet(passage_words=1)
    request = prompts.render(ASKS[0])
    reply = Reply(text="[3] > [1] > [2]", usage=Usage(9, 4), reused=True)
    answer = prompts.parse(request, reply)
    assert answer.value == Permutation((2, 0, 1))
    assert (answer.reply, answer.usage, answer.reused, answer.cut) == (
        reply.text,
        Usage(9, 4),
        True,
        3,
    )


def written(text: str, task: str = "hyde", finish: str = "stop") -> tuple[Status, str]:
    inputs = {"hyde": (("query", "a"),), "query_search": (("document", "d"), ("examples", ()))}
    answer = parse(Write(task, inputs[task]), Reply(text=text, finish=finish))
    return answer.status, "" if answer.value is None else answer.value.text


def test_a_written_text_is_kept_whole_but_for_the_thinking() -> None:
    assert written("<think>hm [1]</think>\nTides rise.\n\nAnd fall. ") == (
        Status.OK,
        "Tides rise.\n\nAnd fall.",
    )
    assert written('"Quoted," it said, "twice"') == (Status.OK, '"Quoted," it said, "twice"')
    assert written("Tides ri", finish="length") == (Status.TRUNCATED, "Tides ri")
    assert written("<think>so far", finish="length") == (Status.THINKING, "")
    assert written("<think>so far") == (Status.MALFORMED, "")
    assert written("  \n ") == (Status.MALFORMED, "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("how do tides work\nwhy is the sea salty", "how do tides work"),
        ("\n\n  how do tides work  \n", "how do tides work"),
        ('"how do tides work"', "how do tides work"),
        ("“how do tides work”", "how do tides work"),
        ("'how do tides work'", "how do tides work"),
        ("<think>a query</think>\n'tides'", "tides"),
        ("why are they called 'neap'", "why are they called 'neap'"),
        ("'90s music of the '80s", "'90s music of the '80s"),
        ("'a' or 'b'", "'a' or 'b'"),
        ("i can't sleep at night", "i can't sleep at night"),
        ("sorry, song lyrics", "sorry, song lyrics"),
        ("unfortunately meaning in hindi", "unfortunately meaning in hindi"),
        ("as an ai engineer what do i earn", "as an ai engineer what do i earn"),
    ],
)
def test_a_written_query_is_its_first_line_without_quotes(text: str, expected: str) -> None:
    assert written(text, "query_search") == (Status.OK, expected)


def test_a_written_query_that_holds_nothing_or_was_cut_is_no_whole_query() -> None:
    assert written('""', "query_search") == (Status.MALFORMED, "")
    assert written("how do ti", "query_search", finish="length") == (
        Status.TRUNCATED,
        "how do ti",
    )
    assert written("how do tides work\nwhy i", "query_search", finish="length") == (
        Status.OK,
        "how do tides work",
    )


@pytest.mark.parametrize("task", ["hyde", "query_search"])
@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m very sorry.",
        "Sorry",
        "I cannot provide such a passage.",
        "I can't write that.",
        "I am unable to create this.",
        "Unfortunately, I won't do that.",
        "As an AI language model, I do not",
    ],
)
def test_a_refusal_to_write_is_no_text(task: str, text: str) -> None:
    assert written(text, task) == (Status.REFUSED, "")


def test_the_log_probability_of_a_text_is_kept_where_there_is_one() -> None:
    item = ASKS[5]
    assert parse(item, Reply(text="a")).value == Written("a")
    assert parse(item, Reply(text="a", logprob=-2.0, tokens=4)).value == Written(
        "a", LogProb(-2.0, 4)
    )
    assert parse(item, Reply(text="a", logprob=math.nan, tokens=4)).value == Written("a")


def grades(seen: Mapping[str, float], *labels: str) -> Answer[Grades]:
    return parse(Grade(QUERY, DOCS[0], labels or ("yes", "no")), Reply(label_logprobs=seen))


def distribution(seen: Mapping[str, float], n: int = 1) -> Answer[Choice]:
    return parse(Pick(QUERY, DOCS, n, by="labels"), Reply(text="C", label_logprobs=seen))


def test_a_pick_by_labels_is_read_from_the_probabilities_of_the_letters() -> None:
    seen = {"A": math.log(0.1), "B": math.log(0.4), " B": math.log(0.2), "C": math.log(0.1)}
    answer = distribution({**seen, "a": math.log(0.1)}, n=2)
    assert answer.status is Status.OK
    assert answer.value is not None
    assert answer.value.best == (1, 0)
    assert answer.value.probabilities == pytest.approx((0.125, 0.75, 0.125))


def test_letters_that_were_not_reported_have_no_probability() -> None:
    answer = distribution({" C": math.log(0.5), "The": math.log(0.5)})
    assert (answer.status, answer.problem) == (Status.PARTIAL, "2 of 3 letters were not reported")
    assert answer.value == Choice((2,), (0.0, 0.0, 1.0))


@pytest.mark.parametrize("seen", [{}, {"The": -0.1}, {"A": -20.0}, {"A": math.nan, "B": -0.1}])
def test_probabilities_that_say_nothing_of_the_letters_are_malformed(
    seen: Mapping[str, float],
) -> None:
    answer = distribution(seen)
    assert (answer.status, answer.value) == (Status.MALFORMED, None)


def test_the_grades_of_a_scale_are_read() -> None:
    value = grades({"2": math.log(0.3), " 2": math.log(0.1), "0": math.log(0.4)}, *"210").value
    assert value is not None
    assert value.probabilities == pytest.approx((0.5, 0.0, 0.5))


@pytest.mark.parametrize("masses", [None, (1.0,), (1.0, math.nan, 0.0), (1.0, 2.0, 3.0, 4.0)])
def test_attention_must_give_every_passage_a_finite_mass(masses: tuple[float, ...] | None) -> None:
    answer = parse(ASKS[4], Reply(attention=masses))
    assert (answer.status, answer.value) == (Status.MALFORMED, None)


def test_attention_masses_are_handed_on() -> None:
    assert parse(ASKS[4], Reply(attention=(0.5, -0.1, 0.0))).value == (0.5, -0.1, 0.0)


def test_label_probabilities_are_normalised_over_the_labels() -> None:
    value = grades({"Yes": math.log(0.6), "No": math.log(0.2)}).value
    assert value is not None
    assert value.probabilities == pytest.approx((0.75, 0.25))
    assert value.mass == pytest.approx(0.8)


def test_the_surface_forms_of_a_label_are_pooled_and_others_left_out() -> None:
    seen = dict.fromkeys(["Yes", "yes", " Yes", "YES", "No"], math.log(0.1))
    value = grades({**seen, "Yesterday": math.log(0.3), "Nope": math.log(0.2)}).value
    assert value is not None
    assert value.probabilities == pytest.approx((0.8, 0.2))
    assert value.mass == pytest.approx(0.5)


def test_labels_out_of_sight_count_as_nothing() -> None:
    value = grades({"No": math.log(0.5)}).value
    assert value is not None
    assert value.probabilities == (0.0, 1.0)
    value = grades({"Yes": -math.inf, "No": 0.0}).value
    assert value is not None
    assert value.probabilities == (0.0, 1.0)


def test_probabilities_follow_the_labels_of_the_ask() -> None:
    value = grades({"Yes": math.log(0.9), "No": math.log(0.1)}, "no", "yes").value
    assert value is not None
    assert value.probabilities == pytest.approx((0.1, 0.9))


@pytest.mark.parametrize(
    ("seen", "says"),
    [
        ({}, "labels hold 0"),
        ({"Yes": -10.0, "No": -11.0}, "labels hold 6.2e-05"),
        ({"Yes": -math.inf, "No": -math.inf}, "labels hold 0"),
        ({"Maybe": -0.1}, "labels hold 0"),
        ({"Yes": math.nan, "No": -0.1}, "not a number"),
        ({"Yes": 0.7, "No": 0.3}, "up to 0"),
        ({"Yes": math.inf}, "up to 0"),
    ],
)
def test_label_log_probabilities_that_say_nothing_are_malformed(
    seen: dict[str, float], says: str
) -> None:
    answer = grades(seen)
    assert (answer.status, answer.value) == (Status.MALFORMED, None)
    assert says in answer.problem


def test_rounding_just_above_zero_is_forgiven() -> None:
    value = grades({"Yes": 1e-6, "No": -20.0}).value
    assert value is not None
    assert value.mass == 1.0
    assert parse(ASKS[3], Reply(logprob=1e-6, tokens=1)).status is Status.OK


LABEL_LOGPROBS = st.dictionaries(
    st.sampled_from(["Yes", "yes", " Yes", "No", "no", "Other"]), st.floats(), max_size=6
)


@given(LABEL_LOGPROBS)
def test_grades_are_probabilities_or_nothing(seen: dict[str, float]) -> None:
    answer = grades(seen)
    assert (answer.value is None) == (answer.status is Status.MALFORMED)
    if answer.value is not None:
        assert math.fsum(answer.value.probabilities) == pytest.approx(1.0)
        assert all(0.0 <= p <= 1.0 for p in answer.value.probabilities)
        assert replies.LOW_MASS <= answer.value.mass <= 1.0


@pytest.mark.parametrize(
    ("logprob", "tokens"),
    [(None, 3), (math.nan, 3), (-math.inf, 3), (math.inf, 3), (2.5, 3), (-4.0, 0)],
)
def test_a_likelihood_must_be_a_finite_log_probability(logprob: float | None, tokens: int) -> None:
    answer = parse(ASKS[3], Reply(logprob=logprob, tokens=tokens, text="-4.0"))
    assert (answer.status, answer.value) == (Status.MALFORMED, None)


def test_a_likelihood_is_read() -> None:
    assert parse(ASKS[3], Reply(logprob=-4.0, tokens=2)).value == LogProb(-4.0, 2)


@pytest.mark.parametrize(
    "vectors",
    [
        None,
        np.ones(3, np.float32),
        np.ones((1, 3), np.float32),
        np.ones((3, 3), np.float32),
        np.ones((2, 3, 1), np.float32),
        np.array([[1.0, math.nan], [1.0, 1.0]], np.float32),
        np.array([[1.0, math.inf], [1.0, 1.0]], np.float32),
    ],
)
def test_vectors_of_another_shape_or_without_numbers_are_malformed(
    vectors: Vectors | None,
) -> None:
    answer = parse(ASKS[6], Reply(vectors=vectors))
    assert (answer.status, answer.value) == (Status.MALFORMED, None)


def test_vectors_are_handed_on() -> None:
    vectors = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    assert parse(ASKS[6], Reply(vectors=vectors)).value is vectors


class Recorded(NamedTuple):
    """One recorded answer of a real reranker."""

    log: str
    text: str
    shown: int
    well_formed: bool


@pytest.fixture(scope="module")
def recorded() -> list[Recorded]:
    if not LOGS.is_dir():
        pytest.skip("shared/data is not here")
    return list(_recorded())


def _recorded() -> Iterator[Recorded]:
    for path in sorted(LOGS.glob("*.jsonl.gz")):
        name = path.name.removesuffix(".jsonl.gz")
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                yield Recorded(name, row["response"], len(row["docids"]), row["well_formed"])


def lenient(text: str, count: int) -> list[int]:
    """Every run of digits, repeats and unknown ones dropped, the missing in shown order."""
    found = dict.fromkeys(int(digits) for digits in re.findall(r"\d+", text))
    return list(dict.fromkeys([*(n for n in found if 1 <= n <= count), *range(1, count + 1)]))


CHATTY = "BM25__vicuna-13b-v1.5__top100__20230819T"
ENUMERATING = "BM25__vicuna-7b-v1.5__top100__20230819T145259"


def test_recorded_answers_are_read_as_leniently_as_is_right(recorded: list[Recorded]) -> None:
    """Against a reader that takes every run of digits, the readings differ in two models only.

    vicuna-13b (three logs) answers in prose ("20 passages are provided.") in all of its answers
    but two, and the lenient reader makes passage 20 the best. vicuna-7b numbers its list ("1. [14]
    > 2. [15]"), and the lenient reader takes the places for identifiers (20 answers), or writes
    "[] > []" (3 answers).
    """
    different: Counter[str] = Counter()
    for item in recorded:
        status, found = order(item.text, item.shown)
        same = found == lenient(item.text, item.shown)
        different[item.log] += not same
        if item.well_formed:
            assert (status, same) == (Status.OK, True)
        if not same and item.log == ENUMERATING:
            assert re.match(r"1\. \[\d+\]", item.text) or item.text.split() == ["[]", ">", "[]"]
        elif not same:
            assert status is Status.MALFORMED
            assert ">" not in item.text
    assert {log: n for log, n in different.items() if n} == {
        f"{CHATTY}155743": 386,
        f"{CHATTY}162526": 386,
        f"{CHATTY}165105": 387,
        ENUMERATING: 23,
    }


def test_recorded_answers_end_in_these_outcomes(
    recorded: list[Recorded],
) -> None:
    outcomes = Counter(order(item.text, item.shown)[0] for item in recorded)
    assert outcomes == {
        Status.OK: 5868,
        Status.REPAIRED: 1372,
        Status.PARTIAL: 241,
        Status.MALFORMED: 1162,
    }


def test_recorded_answers_cut_anywhere_never_name_a_passage_they_did_not_name(
    recorded: list[Recorded],
) -> None:
    """A cut answer gives the beginning of the whole answer's ranking, or no value."""
    for item in [r for r in recorded if r.well_formed][::50]:
        whole = order(item.text, item.shown)[1]
        for end in range(len(item.text)):
            status, value, problem = read_order(item.text[:end], item.shown, truncated=True)
            assert status in (Status.TRUNCATED, Status.OK)
            if value is not None and status is Status.TRUNCATED:
                named = int(re.findall(r"\d+", problem)[0])
                assert [p + 1 for p in value.order[:named]] == whole[:named]
