"""Rendering asks into requests with the templates in use, and reading the replies to them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import llmrank.prompts.replies as replies
from llmrank.errors import SpecError
from llmrank.plan import (
    Answer,
    Ask,
    Attend,
    Embed,
    Grade,
    Likelihood,
    Need,
    Order,
    Pick,
    Write,
    need,
)
from llmrank.prompts.template import LETTERS, Kind, Passage, Template, load
from llmrank.request import Message, Params, Reply, Request, Want
from llmrank.types import Document, Query

KINDS: Mapping[type[Ask[Any]], Kind] = {
    Order: "order",
    Pick: "pick",
    Grade: "grade",
    Likelihood: "likelihood",
    Attend: "attend",
    Write: "write",
}
WANTS: Mapping[Kind, Want] = {
    "order": "text",
    "pick": "text",
    "grade": "labels",
    "likelihood": "likelihood",
    "attend": "attention",
    "write": "text",
}
DEFAULTS: Mapping[str, str] = {
    "order": "listwise",
    "pick": "setwise",
    "grade": "yesno",
    "likelihood": "likelihood",
    "attend": "attention",
}
YES_NO = ("yes", "no")
SCALE = "scale"
"""The default template of a grade with other labels than yes and no."""

AGAIN = (
    "Your previous reply could not be used: {problem}. "
    "Reply again in exactly the form asked for and add nothing else."
)

# The bar of some models' tokens is full-width.
_CONTROL = re.compile(
    r"<(?=[|\uff5c])|(?<=[|\uff5c])>"
    r"|<(?=/?(?:s|bos|eos|pad|unk|mask|think|thinking|tool_call|tool_response"
    r"|start_of_turn|end_of_turn|start_of_image|end_of_utterance|extra_id_\d+|unused\d+)>)"
    r"|<(?=</?SYS>>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|gMASK)\])"
)
_IDENTIFIER = re.compile(r"\[(\s*\d+\s*)\]")


def clean(text: str) -> str:
    """Text from outside on one line, its chat control tokens made harmless."""
    return " ".join(_CONTROL.sub(r" \g<0> ", text).split())


@dataclass(frozen=True)
class PromptSet:
    """Which template serves which ask: the defaults, and what the user put in their place.

    `overrides` maps a kind of ask (`order`, `grade`, `likelihood`) or a write task to the name or
    path of a template. `passage_words`, when given, holds for all templates. `by_id` is for a judge
    that goes by the ids of query and documents: requests with equal texts then differ.
    """

    overrides: Mapping[str, str | Path] = field(default_factory=dict)
    passage_words: int | None = None
    by_id: bool = False
    _loaded: dict[tuple[str, str | Path], Template] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if self.passage_words is not None and self.passage_words < 1:
            raise SpecError("passage_words must be at least 1")

    def template(self, item: Ask[Any]) -> Template:
        """The template for an ask."""
        needed = need(item)
        if needed.ask not in KINDS:
            raise SpecError(f"no prompt can word an ask of the kind {needed.ask.__name__}")
        graded = isinstance(item, Grade) and item.labels != YES_NO
        return self._template(slot_of(needed), KINDS[needed.ask], SCALE if graded else "")

    def slot(self, needed: Need) -> Template:
        """The template for whatever needs this."""
        return self._template(slot_of(needed), KINDS[needed.ask])

    def _template(self, slot: str, kind: Kind, default: str = "") -> Template:
        name = self.overrides.get(slot, default or DEFAULTS.get(slot, slot))
        if (slot, name) not in self._loaded:
            template = load(name)
            if template.ask != kind:
                raise SpecError(
                    f"prompt {template.name!r} is for `{template.ask}`, `{slot}` needs `{kind}`"
                )
            self._loaded[slot, name] = template
        return self._loaded[slot, name]

    @property
    def used(self) -> Mapping[str, Template]:
        """The templates that were used so far, by slot; a slot's second one as slot/name."""
        found: dict[str, Template] = {}
        for (slot, _), template in self._loaded.items():
            found[f"{slot}/{template.name}" if slot in found else slot] = template
        return found

    def render(self, item: Ask[Any]) -> Request:
        """The request for an ask.

        A note on what was wrong before goes only where a chat is asked for text: elsewhere it would
        stand between the prompt and what is measured.
        """
        if isinstance(item, Embed):
            return Request(ask=item, want="vectors", texts=item.texts, role=item.role)
        template = self.template(item)
        values, shown, cut = self._values(item, template)
        texts, target = template.fill(values)
        sampling = template.params
        params = Params(
            max_tokens=sampling.max_tokens + sampling.max_tokens_per_document * shown,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            stop=sampling.stop,
            seed=_seed(item.sample, texts) if sampling.temperature else None,
        )
        want = want_of(need(item))
        if item.problem and want == "text" and template.messages:
            last = max(i for i, turn in enumerate(template.messages) if turn.role == "user")
            texts[last] += "\n\n" + AGAIN.format(problem=clean(item.problem))
        chat = zip(template.messages, texts, strict=False)
        return Request(
            ask=item,
            want=want,
            messages=tuple(Message(turn.role, text) for turn, text in chat),
            prompt="" if template.messages else texts[0],
            target=target,
            labels=_forms(item, template),
            params=params,
            sample=item.sample,
            subject=_ids(item) if self.by_id else (),
            cut=cut,
        )

    def _values(self, item: Ask[Any], template: Template) -> tuple[dict[str, Any], int, int]:
        """Placeholder values, the number of documents shown, and how many were cut."""
        if isinstance(item, Write):
            given = {name: _clean_input(value) for name, value in item.inputs}
            if given.keys() != set(template.inputs):
                raise SpecError(
                    f"prompt {template.name!r} takes {sorted(template.inputs)}, "
                    f"the task {item.task!r} gives {sorted(given)}"
                )
            return given, 0, 0
        asked = cast("Order | Pick | Grade | Likelihood | Attend", item)
        several = not isinstance(asked, Grade | Likelihood)
        docs: Sequence[Document] = (
            (asked.doc,) if isinstance(asked, Grade | Likelihood) else asked.docs
        )
        limit = self.passage_words or template.passage_words  # neither can be 0
        shown = [_shorten(clean(doc.contents), limit) for doc in docs]
        cut = sum(was_cut for _, was_cut in shown)
        query: Query = asked.query
        values: dict[str, Any] = {"query": clean(query.text)}
        if several:
            # A bracketed number inside a passage would look like another passage's identifier.
            values["passages"] = [
                Passage(number, _IDENTIFIER.sub(r"(\1)", text))
                for number, (text, _) in enumerate(shown, start=1)
            ]
        else:
            values["passage"] = shown[0][0]
        if isinstance(asked, Pick):
            if len(docs) > len(LETTERS):
                raise SpecError(f"{len(docs)} passages to pick from; there are 26 letters")
            values["n"] = asked.n
        if isinstance(asked, Grade):
            values["labels"] = asked.labels
        return values, len(docs), cut

    def parse(self, request: Request, reply: Reply) -> Answer[Any]:
        """The typed outcome of a reply."""
        if isinstance(request.ask, Write | Order):
            template = self.template(request.ask)
            return replies.read(request, reply, keep=template.keep, reader=template.reader)
        return replies.read(request, reply)


def _seed(sample: int, texts: Sequence[str]) -> int:
    """A seed of its own for every prompt and sample.

    With one seed for all prompts a sampler draws the same noise for each, and what it writes for
    different documents begins alike.
    """
    digest = hashlib.sha256(repr((sample, list(texts))).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def slot_of(needed: Need) -> str:
    """Where a template for this is put: the kind of ask, or the write task."""
    return needed.task or KINDS[needed.ask]


def want_of(needed: Need) -> Want:
    """What a backend must be able to give."""
    if needed.by == "labels":
        return "labels"
    return "vectors" if needed.ask is Embed else WANTS[KINDS[needed.ask]]


def _ids(item: Ask[Any]) -> tuple[str, ...]:
    """Ids of the query and of the documents of an ask."""
    if isinstance(item, Order | Pick | Attend):
        return (item.query.id, *(doc.id for doc in item.docs))
    if isinstance(item, Grade | Likelihood):
        return item.query.id, item.doc.id
    return ()


def _forms(item: Ask[Any], template: Template) -> dict[str, tuple[str, ...]]:
    """Surface forms of every label that is read as the next token.

    Those of a grade: as written, in other cases, after a space. Those of a pick: the letter, alone
    and after a space; a small one would be a word.
    """
    if isinstance(item, Pick) and item.by == "labels":
        return {letter: (letter, f" {letter}") for letter in LETTERS[: len(item.docs)]}
    if not isinstance(item, Grade):
        return {}
    # A template that shows the labels takes any.
    owned = template.labels or {label: (label,) for label in item.labels}
    missing = [label for label in item.labels if label not in owned]
    if missing:
        raise SpecError(f"prompt {template.name!r} has no label {missing[0]!r}")
    forms = {}
    for label in item.labels:
        written = dict.fromkeys(
            variant
            for form in owned[label]
            for variant in (form, form.lower(), form.upper(), form.capitalize())
        )
        forms[label] = tuple(dict.fromkeys([*written, *(f" {form}" for form in written)]))
    return forms


def _shorten(text: str, words: int) -> tuple[str, bool]:
    """The first `words` words, and whether anything was left out."""
    parts = text.split(" ", words)
    return (text, False) if len(parts) <= words else (" ".join(parts[:words]), True)


def _clean_input(value: object) -> object:
    if isinstance(value, str):
        return clean(value)
    return [tuple(clean(part) for part in row) for row in cast("Sequence[Sequence[str]]", value)]


def example(name: str | Path, query: str, passages: Sequence[str]) -> Request:
    """What a template sends for a query and passages; a write task gets them as its inputs."""
    template = load(name)
    asked = Query("1", query)
    docs = tuple(Document(str(i), text) for i, text in enumerate(passages, start=1))
    given: Mapping[str, str | tuple[tuple[str, ...], ...]] = {
        "query": query,
        "document": docs[0].text,
        "examples": (),
    }
    asks: Mapping[Kind, Ask[Any]] = {
        "order": Order(asked, docs),
        "pick": Pick(asked, docs),
        "grade": Grade(asked, docs[0], tuple(template.labels) or ("3", "2", "1", "0")),
        "likelihood": Likelihood(asked, docs[0]),
        "attend": Attend(asked, docs),
        "write": Write(template.name, tuple((key, given.get(key, "")) for key in template.inputs)),
    }
    slot = template.name if template.ask == "write" else template.ask
    return PromptSet({slot: name}).render(asks[template.ask])
