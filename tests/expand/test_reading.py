from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrank.expand.reading import CHARACTERS, WORDS, keywords, listed, prose, rewrites, sentences
from llmrank.plan import Answer, Written
from llmrank.types import Query, Status

QUERY = Query("q", "why does dough rise")


def answer(text: str, status: Status = Status.OK) -> Answer[Written]:
    return Answer(status=status, value=Written(text))


LOST: Answer[Written] = Answer(status=Status.REFUSED, problem="declined")


@pytest.mark.parametrize(
    "text",
    [
        "yeast in dough\nhow gluten works\nbread leavening",
        "Here are three queries:\n\nyeast in dough\nhow gluten works\nbread leavening\n",
        "Sure! Here are the queries:\n1. yeast in dough\n2. how gluten works\n3) bread leavening",
        "1. yeast in dough 2. how gluten works 3. bread leavening",
        "- yeast in dough\n- **how gluten works**\n* bread leavening\n\nI hope this helps!",
        '1. "yeast in dough"\n2. “how gluten works”\n3. `bread leavening`\nLet me know!',
        '["yeast in dough", "how gluten works", "bread leavening"]',
        '```json\n[\n  "yeast in dough",\n  "how gluten works",\n  "bread leavening"\n]\n```',
        "Query 1: yeast in dough\nQuery 2: how gluten works\nQuery: bread leavening",
        "**1.** yeast in dough\n**2.** how gluten works\n**3.** Search query: bread leavening",
        "**Queries:**\n• yeast in dough\n• how gluten works\n• bread leavening",
        "Of course.\nyeast in dough,\nhow gluten works,\nbread leavening",
    ],
)
def test_a_list_in_any_dress(text: str) -> None:
    assert listed(text) == ["yeast in dough", "how gluten works", "bread leavening"]


@pytest.mark.parametrize(
    ("line", "item"),
    [
        ("what is C++?", "what is C++?"),
        ("1.5 million people", "1.5 million people"),
        ("2019 election", "2019 election"),
        ("- 7 wonders", "7 wonders"),
        ("cats - dogs", "cats - dogs"),
        ("history of the title: a study", "history of the title: a study"),
        ("rock 'n' roll", "rock 'n' roll"),
        ("query planner in postgres", "query planner in postgres"),
        ("snake_case names", "snake_case names"),
        ("__init__ method", "init method"),
        ("surely you are joking", "surely you are joking"),
        ("", None),
        ("---", None),
        ("Here are three queries:", None),
    ],
)
def test_one_line(line: str, item: str | None) -> None:
    assert listed(line) == ([item] if item else [])


def test_the_last_item_of_a_text_that_was_cut_is_left_out() -> None:
    assert listed("1. yeast\n2. glut", cut=True) == ["yeast"]
    assert listed("yeas", cut=True) == []


@given(st.text(max_size=80))
def test_no_text_breaks_a_reader(text: str) -> None:
    for item in [*listed(text), *keywords([answer(text)])]:
        assert item == item.strip()
        assert item
    prose(text)


def test_rewrites_are_new_each_once_and_at_most_n() -> None:
    texts = ["Why does dough rise?\nyeast in dough\nYeast in dough!", "more\nand more\nrest"]
    found = rewrites([LOST, *map(answer, texts)], QUERY, 3)
    assert found == (("yeast in dough", "more", "and more"), "")


def test_what_is_too_long_for_a_query_is_left_out_with_a_note() -> None:
    words = [str(number) for number in range(100, 101 + WORDS)]
    characters = "".join(map(str, range(CHARACTERS)))
    longest = " ".join(words[1:])
    found, note = rewrites([answer("\n".join([" ".join(words), characters, longest]))], QUERY, 3)
    assert found == (longest,)
    assert note == "too long for a query and left out: 2"


def test_keywords_between_commas_semicolons_or_lines() -> None:
    said = ["Keywords: yeast, gluten; carbon dioxide", "1. Yeast\n2. oven spring, 酵母、小麦", "-"]
    assert keywords([LOST, *map(answer, said)]) == (
        "yeast",
        "gluten",
        "carbon dioxide",
        "oven spring",
        "酵母",
        "小麦",
    )


def test_a_sentence_is_no_keyword() -> None:
    assert keywords([answer("yeast, I think that these are the best keywords")]) == ("yeast",)


def test_the_last_keyword_of_a_text_that_was_cut_is_left_out() -> None:
    assert keywords([answer("yeast, gluten, carb", Status.TRUNCATED)]) == ("yeast", "gluten")


def test_prose_without_its_dress() -> None:
    text = (
        "Here are five facts:\n\n1. **Yeast** eats sugar.\n2. It has 1.5 bar.\n## Title: Gluten\n"
        '"The dough rises."\nHere is where the net holds the gas.'
    )
    assert prose(text) == (
        "Yeast eats sugar.\nIt has 1.5 bar.\nGluten\nThe dough rises.\n"
        "Here is where the net holds the gas."
    )


def test_what_is_said_in_circles_is_said_once() -> None:
    text = "Gas lifts the dough. " + "The net of gluten holds it. " * 9 + "Bread sets."
    assert prose(text) == "Gas lifts the dough. The net of gluten holds it. Bread sets."
    assert listed("what is dough, " * 9) == ["what is dough"]
    assert listed("very very very very dry") == ["very very very very dry"]


@pytest.mark.parametrize("filler", [" ", "*", "_", "-", "1. ", "sub-", "a", "ab", "\n", "["])
def test_a_text_of_one_thing_takes_no_time(filler: str) -> None:
    started = time.perf_counter()
    for text in (filler * 20_000, "1. " + filler * 20_000 + "x", "query" + filler * 20_000 + ":"):
        listed(text)
        prose(text)
    assert time.perf_counter() - started < 2


def test_what_cannot_be_sent_is_left_out() -> None:
    text = '["\\ud800 foo", "how gluten works", "\\ud83c\\udf5e leavening"]'
    assert listed(text) == ["how gluten works", "🍞 leavening"]
    assert listed("1. \ud800 foo\n2. bread") == ["bread"]
    found, _ = rewrites([answer(text)], QUERY, 3)
    assert found == ("how gluten works", "🍞 leavening")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("One. Two!  Three?\nfour\n\nfive", ["One.", "Two!", "Three?", "four", "five"]),
        ('He said "no." Then "yes".', ['He said "no.', 'Then "yes".']),
        ("酵母产生气体。面团发酵！", ["酵母产生气体。", "面团发酵！"]),
        ("pH 7.4 at 3.5 %", ["pH 7.4 at 3.5 %"]),
        (" \n ... \n", []),
        ("", []),
    ],
)
def test_sentences(text: str, found: list[str]) -> None:
    assert sentences(text) == found


@given(st.text())
def test_sentences_lose_no_word(text: str) -> None:
    found = [word for unit in sentences(text) for word in re.findall(r"\w+", unit)]
    assert set(found) == set(re.findall(r"\w+", text))
