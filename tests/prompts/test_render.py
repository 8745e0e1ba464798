"""Rendering: what is sent for an ask, and that nothing from outside is more than text."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrank.errors import InputError, SpecError
from llmrank.plan import (
    Ask,
    Attend,
    By,
    Embed,
    Grade,
    Likelihood,
    Need,
    Order,
    Pick,
    Write,
    need,
)
from llmrank.prompts import PromptSet, load, names
from llmrank.prompts.passages import clean
from llmrank.prompts.render import KINDS, want_of
from llmrank.request import Message, Params, Request, Want
from llmrank.types import Document, Query
from tests.effort import some

ROOT = Path(__file__).parents[2]
QUERY = Query("q", "how do tides work")
DOC = Document("d", "the moon pulls the sea")
CONTROL = [
    "<|im_start|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|endoftext|>",
    "<\uff5cbegin\u2581of\u2581sentence\uff5c>",
    "<|channel|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<s>",
    "</s>",
    "<bos>",
    "<eos>",
    "<pad>",
    "<unk>",
    "<think>",
    "</think>",
    "<tool_call>",
    "<extra_id_0>",
    "[INST]",
    "[/INST]",
    "[TOOL_CALLS]",
    "<<SYS>>",
    "<</SYS>>",
]
ASKS: dict[str, Ask[Any]] = {
    "listwise": Order(QUERY, (DOC, Document("e", "wind makes waves"))),
    "setwise": Pick(QUERY, (DOC, Document("e", "wind makes waves"))),
    "attention": Attend(QUERY, (DOC, Document("e", "wind makes waves"))),
    "yesno": Grade(QUERY, DOC),
    "scale": Grade(QUERY, DOC, ("2", "1", "0")),
    "likelihood": Likelihood(QUERY, DOC),
    "query_given_examples": Likelihood(QUERY, DOC, "query_given_examples", (("a", "b"),)),
    "hyde": Write("hyde", (("query", QUERY.text),)),
    "query2doc": Write("query2doc", (("query", QUERY.text),)),
    "self_contained": Grade(QUERY, Document("", ""), task="self_contained"),
    "worthwhile": Grade(Query("", ""), DOC, task="worthwhile"),
}

ROWS: dict[str, str | tuple[tuple[str, ...], ...]] = {
    "document": DOC.text,
    "documents": ((DOC.text,), ("wind makes waves",)),
    "examples": (("a document", "a query"),),
}

GIVEN = {"query": QUERY.text, "task": "any"} | ROWS

# Templates that are filled with texts and rows, one for each of their inputs.
ASKS |= {
    name: Write(name, tuple((key, GIVEN.get(key, "three")) for key in load(name).inputs))
    for name in names()
    if name not in ASKS and load(name).ask == "write"
}

CHOSEN = {"monot5"}
"""Templates that serve no ask unless they are asked for by name."""


def sent(request: Request) -> str:
    return "\n".join([*(m.content for m in request.messages), request.prompt, request.target])


def shared_start(texts: Sequence[str]) -> str:
    """The text that all of them begin with."""
    columns = takewhile(lambda column: len(set(column)) == 1, zip(*texts, strict=False))
    return "".join(column[0] for column in columns)


def window(*texts: str) -> Order:
    return Order(QUERY, tuple(Document(str(i), text) for i, text in enumerate(texts)))


def test_every_shipped_template_has_an_ask_here() -> None:
    assert set(ASKS) == {name for name in names() if name not in CHOSEN}
    assert all(load(name).ask in KINDS.values() for name in CHOSEN)


@pytest.mark.parametrize("name", ASKS)
def test_a_shipped_template_renders_for_its_ask(name: str) -> None:
    item = ASKS[name]
    request = PromptSet().render(item)
    template = load(name)
    assert KINDS[type(item)] == template.ask
    assert request.ask is item
    assert bool(request.messages) != bool(request.prompt)
    assert bool(request.target) == (request.want == "likelihood")
    assert bool(request.labels) == (request.want == "labels")
    text = sent(request)
    assert "{{" not in text
    assert "{%" not in text
    shown = (DOC.text, QUERY.text)
    assert any(part in text for part in shown)
    if template.inputs == ("query",) or template.ask not in ("write", "grade"):
        assert QUERY.text in text
    assert request.characters > len(QUERY.text)


def test_a_listwise_prompt_numbers_its_passages_and_grows_its_token_limit() -> None:
    two, three = (PromptSet().render(window(*texts)) for texts in (["a", "b"], ["a", "b", "c"]))
    user = three.messages[-1].content
    assert [line for line in user.splitlines() if line.startswith("[")] == [
        "[1] a",
        "[2] b",
        "[3] c",
    ]
    assert three.params.max_tokens - two.params.max_tokens == 6
    twenty = PromptSet().render(window(*"abcdefghijklmnopqrst"))
    # "[20] > " is at most five tokens in the usual vocabularies.
    assert twenty.params.max_tokens >= 5 * 20


def test_only_a_chat_that_answers_in_text_gets_room_to_think() -> None:
    plain, roomy = PromptSet(), PromptSet(thinking=100)
    for item in ASKS.values():
        less, more = plain.render(item), roomy.render(item)
        room = 100 if less.want == "text" and less.messages else 0
        assert (less.params.thinking, more.params.thinking) == (0, room)
        assert more.params.max_tokens == less.params.max_tokens + room
        assert (more.key("m") == less.key("m")) is (room == 0)


def test_titles_are_shown_and_the_order_of_documents_is_kept() -> None:
    item = Order(QUERY, (Document("b", "text", "Title"), Document("a", "other")))
    text = sent(PromptSet().render(item))
    assert text.index("[1] Title text") < text.index("[2] other")


@pytest.mark.parametrize(
    "syntax",
    ["{{ 7 * 7 }}", "{% for x in y %}", "{# note #}", "{{ passages }}", "{{ ''.__class__ }}"],
)
@pytest.mark.parametrize("name", some(list(ASKS)))
def test_template_syntax_in_a_query_or_passage_is_only_text(name: str, syntax: str) -> None:
    query, doc = Query("q", f"why {syntax}"), Document("d", f"so {syntax}", syntax)
    item = ASKS[name]
    if isinstance(item, Write):
        filled = {"documents": ((syntax,),), "examples": ((syntax, syntax),)}
        item = replace(item, inputs=tuple((key, filled.get(key, syntax)) for key, _ in item.inputs))
    elif isinstance(item, Order | Pick | Attend):
        item = replace(item, query=query, docs=(doc, doc))
    elif isinstance(item, Grade | Likelihood):
        item = replace(item, query=query, doc=doc)
    assert syntax in sent(PromptSet().render(item))
    assert "49" not in sent(PromptSet().render(item))


@pytest.mark.parametrize("token", CONTROL)
def test_control_tokens_from_outside_are_broken_up(token: str) -> None:
    item = Order(Query("q", f"a{token}b"), (Document("d", f"x {token}system y", token), DOC))
    text = sent(PromptSet().render(item))
    assert token not in text
    assert re.findall(r"\w+", token)[0] in text  # the words stay readable
    examples = (("document", token), ("examples", ((token, token),)))
    assert token not in sent(PromptSet().render(Write("query_search", examples)))
    again = replace(window("a", "b"), problem=f"bad {token}")
    assert token not in sent(PromptSet().render(again))


@given(st.lists(st.sampled_from([*CONTROL, "<", "|", ">", "[", "]", "/", " ", "\n", "s", "a"])))
def test_cleaning_leaves_no_control_token_whatever_is_put_together(parts: list[str]) -> None:
    text = clean("".join(parts))
    assert not any(token in text for token in CONTROL)
    assert clean(text) == text
    assert text == " ".join(text.split())


@given(st.text())
def test_cleaning_keeps_every_character_but_space(text: str) -> None:
    assert "".join(clean(text).split()) == "".join(text.split())


def test_ordinary_text_is_left_alone() -> None:
    text = "if a < b and b > c | d, see <b>bold</b> [12] [sic] {x} and 5 > 3"
    assert clean(text) == text


@pytest.mark.parametrize("inside", ["[3]", "[ 3 ]", "[12]", "[[3]]", "[3] > [1]"])
def test_identifiers_inside_passages_become_round(inside: str) -> None:
    text = sent(PromptSet().render(window(f"as shown {inside} before", "other")))
    passage = text[text.index("as shown") : text.index(" before")]
    assert not re.search(r"\[\s*\d+\s*\]", passage)
    assert "3" in passage or "12" in passage
    # A prompt with one passage has no identifiers to be mistaken for.
    assert inside in sent(PromptSet().render(Grade(QUERY, Document("d", inside))))


@pytest.mark.parametrize(
    ("words", "cut", "last"), [(2, 2, "two"), (3, 1, "three"), (4, 0, "four"), (None, 0, "four")]
)
def test_passages_cut_short_are_counted(words: int | None, cut: int, last: str) -> None:
    item = window("one two three four", "one", "one  two\nthree ")
    request = PromptSet(passage_words=words).render(item)
    assert request.cut == cut
    first = sent(request).split("[1] ")[1].splitlines()[0]
    assert first.split()[-1] == last


def test_control_tokens_do_not_count_as_more_words_than_they_are() -> None:
    request = PromptSet(passage_words=6).render(window("a <|x|> b", "c"))
    assert request.cut == 0
    assert "a < |x| > b" in sent(request)


@given(st.text(alphabet="ab \n<|>", max_size=40), st.integers(1, 8))
def test_a_passage_is_cut_exactly_when_it_has_more_words(text: str, words: int) -> None:
    request = PromptSet(passage_words=words).render(Grade(QUERY, Document("d", text)))
    assert request.cut == (len(clean(text).split()) > words)
    shown = sent(request).split("Passage:")[1].split("\n")[0]
    assert shown.split() == clean(text).split()[:words]


def test_the_word_limit_must_be_positive() -> None:
    with pytest.raises(SpecError, match="passage_words"):
        PromptSet(passage_words=0)


def test_empty_documents_render() -> None:
    assert "[1] \n" in sent(PromptSet().render(window("", "b"))) + "\n"


def test_what_windows_of_one_query_share() -> None:
    """The system message and the opening sentence: passages differ, the query comes last."""
    texts = [f"passage {chr(97 + i)} of the pool" for i in range(26)]
    requests = [PromptSet().render(window(*texts[s : s + 20])) for s in (6, 3, 0)]
    systems = {request.messages[0] for request in requests}
    assert len(systems) == 1
    shared = shared_start([request.messages[1].content for request in requests])
    assert shared == (
        "Here are 20 passages, each with an identifier in square brackets.\n\n[1] passage "
    )
    # What follows the passages is the same for all windows of one query.
    ends = {request.messages[1].content.split("\n\nQuery: ")[1] for request in requests}
    assert len(ends) == 1


def test_what_candidates_of_one_query_share() -> None:
    """The passage stands first, so that nothing but the label before it is shared."""
    texts = [sent(PromptSet().render(Grade(QUERY, Document("d", t)))) for t in ("moon", "sea")]
    assert shared_start(texts) == "Passage: "
    texts = [sent(PromptSet().render(Grade(Query("q", t), DOC))) for t in ("moon", "sea")]
    assert shared_start(texts) == f"Passage: {DOC.text}\n\nQuery: "


def test_asking_again_says_what_was_wrong_to_a_chat_that_writes() -> None:
    item = window("a", "b")
    first = PromptSet().render(item)
    again = PromptSet().render(replace(item, problem="no {ranking}", sample=1000))
    assert again.messages[:-1] == first.messages[:-1]
    assert again.messages[-1].content.startswith(first.messages[-1].content)
    assert "no {ranking}" in again.messages[-1].content
    assert again.key("m") != first.key("m")


@pytest.mark.parametrize("name", ["likelihood", "yesno", "scale", "attention", "query_search"])
def test_asking_again_adds_nothing_where_it_would_change_what_is_measured(name: str) -> None:
    item = ASKS[name]
    again = PromptSet().render(replace(item, problem="low mass", sample=1000))
    assert sent(again) == sent(PromptSet().render(item))
    assert again.key("m") != PromptSet().render(item).key("m")


def test_asking_again_does_not_put_words_into_the_assistants_mouth(tmp_path: Path) -> None:
    path = tmp_path / "prefilled.toml"
    path.write_text(
        'ask = "order"\ndescription = "d"\n'
        '[[messages]]\nrole = "user"\ntext = "{{ query }} {{ passages | length }}"\n'
        '[[messages]]\nrole = "assistant"\ntext = "["\n'
    )
    request = PromptSet({"order": path}).render(replace(window("a"), problem="no ranking"))
    assert "no ranking" in request.messages[0].content
    assert request.messages[1] == Message("assistant", "[")


def test_labels_are_pooled_over_their_surface_forms() -> None:
    labels = PromptSet().render(Grade(QUERY, DOC)).labels
    assert list(labels) == ["yes", "no"]
    assert set(labels["yes"]) == {"Yes", "yes", "YES", " Yes", " yes", " YES"}
    assert not set(labels["yes"]) & set(labels["no"])
    assert list(PromptSet().render(Grade(QUERY, DOC, ("no", "yes"))).labels) == ["no", "yes"]
    with pytest.raises(SpecError, match="'yesno' has no label 'maybe'"):
        PromptSet({"grade": "yesno"}).render(Grade(QUERY, DOC, ("yes", "maybe")))


def test_a_grade_with_labels_of_its_own_shows_them_best_first() -> None:
    request = PromptSet().render(Grade(QUERY, DOC, ("high", "some", "none")))
    assert "from the best to the worst: high, some, none." in sent(request)
    assert list(request.labels) == ["high", "some", "none"]
    assert set(request.labels["none"]) == {"none", "None", "NONE", " none", " None", " NONE"}
    request = PromptSet().render(Grade(QUERY, DOC, ("3", "2", "1", "0")))
    assert request.labels == {label: (label, f" {label}") for label in "3210"}
    assert (request.want, request.params.max_tokens) == ("labels", 1)


def test_passages_to_pick_from_are_lettered() -> None:
    item = Pick(QUERY, (Document("a", "text", "Title"), Document("b", "see [2]")))
    request = PromptSet().render(item)
    shown = [line for line in sent(request).splitlines() if line.startswith("Passage ")]
    assert shown == ["Passage A: Title text", "Passage B: see (2)"]
    assert "Reply with its letter alone." in sent(request)
    assert (request.want, request.labels) == ("text", {})
    several = PromptSet().render(replace(item, n=2))
    assert "Reply with their 2 letters alone" in sent(several)


def test_a_pick_by_labels_is_asked_in_the_same_words() -> None:
    item = Pick(QUERY, (DOC, DOC, DOC))
    request = PromptSet().render(replace(item, by="labels"))
    assert request.messages == PromptSet().render(item).messages
    assert request.want == "labels"
    assert request.labels == {"A": ("A", " A"), "B": ("B", " B"), "C": ("C", " C")}
    # A note would stand between the prompt and what is measured.
    again = PromptSet().render(replace(item, by="labels", problem="low mass"))
    assert again.messages == request.messages


@pytest.mark.parametrize("by", ["text", "labels"])
def test_there_are_letters_for_twenty_six_passages(by: By) -> None:
    docs = tuple(Document(str(i), "t") for i in range(27))
    assert "Passage Z: t" in sent(PromptSet().render(Pick(QUERY, docs[:26], by=by)))
    with pytest.raises(SpecError, match="26 letters"):
        PromptSet().render(Pick(QUERY, docs, by=by))


def test_the_query_stands_last_where_its_attention_is_measured() -> None:
    request = PromptSet().render(ASKS["attention"])
    assert request.want == "attention"
    (message,) = request.messages
    assert message.content.endswith(f"Query: {QUERY.text}")
    assert message.content.count(QUERY.text) == 1
    assert [line for line in message.content.splitlines() if line.startswith("[")] == [
        f"[1] {DOC.text}",
        "[2] wind makes waves",
    ]


def test_overrides_serve_their_slot_and_must_be_of_its_kind(tmp_path: Path) -> None:
    path = tmp_path / "short.toml"
    path.write_text(
        'ask = "write"\ndescription = "d"\ninputs = ["query"]\ntext = "Q {{ query }}"\n'
    )
    prompts = PromptSet({"hyde": path})
    assert prompts.render(ASKS["hyde"]).prompt == f"Q {QUERY.text}"
    assert set(prompts.used) == {"hyde"}
    with pytest.raises(SpecError, match="needs `order`"):
        PromptSet({"order": "yesno"}).render(window("a"))
    with pytest.raises(SpecError, match="needs `pick`"):
        PromptSet({"pick": "yesno"}).slot(Need(Pick, "labels"))
    # A changed copy must not go on with the templates of the original.
    assert replace(prompts, overrides={}).render(ASKS["hyde"]).messages


@pytest.mark.parametrize(
    "inputs", [(), (("query", "a"), ("topic", "b")), (("document", "a"),), (("queri", "a"),)]
)
def test_a_write_ask_gives_exactly_what_its_template_takes(
    inputs: tuple[tuple[str, str], ...],
) -> None:
    with pytest.raises(SpecError, match=r"takes \['query'\]"):
        PromptSet().render(Write("hyde", inputs))


def test_an_expression_that_fails_on_real_values_is_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "fragile.toml"
    path.write_text(
        'ask = "order"\ndescription = "d"\ntext = "{{ query }} {{ passages[1].text }}"\n'
    )
    prompts = PromptSet({"order": path})
    assert prompts.render(window("a", "b")).prompt.endswith("b")
    with pytest.raises(InputError, match="'fragile' cannot be filled"):
        prompts.render(window("a"))


def test_asks_without_a_wording_are_refused() -> None:
    with pytest.raises(SpecError, match="Embed"):
        PromptSet().template(Embed(("a",)))
    with pytest.raises(SpecError, match="no prompt named"):
        PromptSet().render(Write("nosuch", ()))


@pytest.mark.parametrize("name", [name for name in ASKS if name != "scale"])
def test_what_an_ask_needs_is_served_by_the_template_it_is_rendered_with(name: str) -> None:
    prompts = PromptSet()
    assert prompts.slot(need(ASKS[name])) is prompts.template(ASKS[name])
    assert len(prompts.used) == 1
    assert want_of(need(ASKS[name])) == prompts.render(ASKS[name]).want


def test_texts_to_embed_are_sent_as_they_are() -> None:
    request = PromptSet().render(Embed(("a  <|x|>", "{{ b }}"), "document"))
    assert (request.want, request.texts, request.role) == (
        "vectors",
        ("a  <|x|>", "{{ b }}"),
        "document",
    )


def test_a_seed_is_sent_only_where_there_is_chance() -> None:
    seeds = [PromptSet().render(replace(ASKS["hyde"], sample=i)).params.seed for i in (0, 1)]
    assert len({None, *seeds}) == 3
    assert PromptSet().render(replace(window("a"), sample=1)).params.seed is None


WANTS: list[Want] = ["text", "labels", "likelihood", "vectors"]
texts = st.sampled_from(["", "a", "b", "a\nb", "ab", "é", "\ud800"])
requests = st.builds(
    Request,
    ask=st.sampled_from([window("a"), window("b")]),
    want=st.sampled_from(WANTS),
    messages=st.lists(
        st.builds(Message, st.sampled_from(["user", "system"]), texts), max_size=2
    ).map(tuple),
    prompt=texts,
    texts=st.lists(texts, max_size=2).map(tuple),
    role=st.sampled_from(["", "query"]),
    target=texts,
    labels=st.dictionaries(texts, st.lists(texts, max_size=2).map(tuple), max_size=2),
    params=st.builds(
        Params,
        max_tokens=st.integers(1, 2),
        temperature=st.sampled_from([0.0, 0.5]),
        top_p=st.sampled_from([0.5, 1.0]),
        stop=st.lists(texts, max_size=2).map(tuple),
        seed=st.sampled_from([None, 0, 1]),
    ),
    sample=st.integers(0, 1),
    cut=st.integers(0, 1),
)


@given(requests, requests, st.sampled_from(sorted(Request.__dataclass_fields__)))
def test_the_key_changes_when_and_only_when_what_is_sent_changes(
    one: Request, other: Request, name: str
) -> None:
    mixed = replace(one, **{name: getattr(other, name)})
    for left, right in ((one, other), (one, mixed)):
        same = replace(left, ask=right.ask, cut=right.cut) == right
        assert (left.key("m") == right.key("m")) == same
    assert one.key("m") != one.key("n")


@given(requests, requests, st.sampled_from(sorted(Params.__dataclass_fields__)))
def test_every_sampling_parameter_is_part_of_the_key(
    one: Request, other: Request, name: str
) -> None:
    mixed = replace(one.params, **{name: getattr(other.params, name)})
    changed = replace(one, params=mixed)
    assert (one.key("m") == changed.key("m")) == (one.params == mixed)


def test_neighbouring_fields_do_not_run_into_each_other() -> None:
    item = window("a")
    variants = [
        Request(ask=item, want="text", prompt="ab"),
        Request(ask=item, want="text", prompt="a", target="b"),
        Request(ask=item, want="text", texts=("ab",)),
        Request(ask=item, want="text", texts=("a", "b")),
        Request(ask=item, want="text", messages=(Message("a", "b"),)),
        Request(ask=item, want="text", labels={"a": ("b",)}),
        Request(ask=item, want="text", labels={"a": (), "b": ()}),
        Request(ask=item, want="text", params=Params(stop=("a", "b"))),
        Request(ask=item, want="text", params=Params(stop=("ab",))),
    ]
    assert len({request.key("m") for request in variants}) == len(variants)


PRINT_KEYS = """
import sys
from tests.prompts.test_render import ASKS
from llmrank.prompts import PromptSet
sys.stdout.write(" ".join(PromptSet().render(item).key("m") for item in ASKS.values()))
"""


def test_keys_are_the_same_in_another_process() -> None:
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", PRINT_KEYS],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [PromptSet().render(item).key("m") for item in ASKS.values()]


def test_a_key_of_an_earlier_release_still_holds() -> None:
    request = Request(
        ask=window("a"),
        want="labels",
        messages=(Message("user", "é?"),),
        labels={"yes": ("Yes",), "no": ("No",)},
    )
    assert request.key("model@here") == (
        "9f749607de77667229a97a20fbc00a7ae0a5c28c62465bc5784a30a79188d448"
    )


def test_samples_of_different_prompts_have_different_seeds() -> None:
    prompts = PromptSet()

    def seed(query: str, sample: int) -> int | None:
        return prompts.render(Write("hyde", (("query", query),), sample=sample)).params.seed

    assert len({seed(query, sample) for query in ("a", "b", "c") for sample in range(3)}) == 9
    assert seed("a", 1) == seed("a", 1)
