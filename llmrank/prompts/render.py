"""Rendering asks into requests with the templates in use, and reading the replies to them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import llmrank.prompts.replies as replies
from llmrank.errors import SpecError, TooLong
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
from llmrank.prompts.passages import (
    LEAST,
    Limits,
    Truncation,
    clean,
    excess,
    level,
    prompt_tokens,
    reply_tokens,
    shorten,
)
from llmrank.prompts.spans import marked, unmarked
from llmrank.prompts.template import LETTERS, Kind, Passage, Template, load
from llmrank.request import Message, Params, Reply, Request, Span, Tokenizer, Want
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

_IDENTIFIER = re.compile(r"\[(\s*\d+\s*)\]")


@dataclass(frozen=True)
class PromptSet:
    """Which template serves which ask: the defaults, and what the user put in their place.

    `overrides` maps a kind of ask (`order`, `grade`, `likelihood`) or a write task to the name or
    path of a template. `passage_words` and `passage_tokens`, when one is given, take the place of
    the limits of all templates, and `truncation` of what they keep of a longer passage. `by_id` is
    for a judge that goes by the ids of query and documents: requests with equal texts then differ.
    `pairs` is for a model that grades a query and a passage as they are: of a template only its
    limits on a passage hold. `tokenizer` is how the model reads text: with it a prompt too long
    for the model is made to fit, or refused. `thinking` are tokens that a chat asked for text gets
    beyond those of the reply.
    """

    overrides: Mapping[str, str | Path] = field(default_factory=dict)
    passage_words: int | None = None
    by_id: bool = False
    pairs: bool = False
    passage_tokens: int | None = None
    truncation: Truncation | None = None
    tokenizer: Tokenizer | None = None
    thinking: int = 0
    _loaded: dict[tuple[str, str | Path], Template] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        Limits(self.passage_words, self.passage_tokens, self.truncation or "head")

    def template(self, item: Ask[Any]) -> Template:
        """The template for an ask."""
        return self.slot(need(item))

    def slot(self, needed: Need) -> Template:
        """The template for whatever needs this."""
        if needed.ask not in KINDS:
            raise SpecError(f"no prompt can word an ask of the kind {needed.ask.__name__}")
        graded = needed.ask is Grade and needed.labels not in ((), YES_NO) and not needed.task
        return self._template(slot_of(needed), KINDS[needed.ask], SCALE if graded else "")

    def check(self, needed: Need) -> None:
        """Raise `SpecError` for a template that cannot serve what is needed."""
        template = self.slot(needed)
        place = f"prompt {template.name!r}"
        if needed.labels and template.labels and set(needed.labels) != set(template.labels):
            raise SpecError(
                f"{place} has the labels {', '.join(template.labels)}; "
                f"the method asks for {', '.join(needed.labels)}"
            )
        if needed.n > 1 and "n" not in template.placeholders:
            raise SpecError(
                f"{place} asks for the best passage alone, the method for up to {needed.n}: "
                "a prompt with {{ n }} in it is needed"
            )
        limits = self._limits(template)
        # No text has fewer tokens than words.
        limit = min(limits.words or needed.words, limits.tokens or needed.words)
        if needed.words > limit:
            raise SpecError(
                f"passages of {needed.words} words would be cut again: {place} shows {limit}; "
                f"use words={limit} or less, or passage_words={needed.words} (--passage-words)"
            )

    def _limits(self, template: Template, most: int | None = None) -> Limits:
        """The limits on passages, those in tokens at `most`."""
        words, tokens = self.passage_words, self.passage_tokens
        if words is None and tokens is None:
            words, tokens = template.limits.words, template.limits.tokens
        if most is not None:
            tokens = min(most, tokens or most)
        return Limits(words, tokens, self.truncation or template.truncation)

    def _template(self, slot: str, kind: Kind, default: str = "") -> Template:
        name = self.overrides.get(slot, default or DEFAULTS.get(slot, slot))
        if (slot, name) not in self._loaded:
            template = load(name)
            if template.ask != kind:
                raise SpecError(
                    f"prompt {template.name!r} is for `{template.ask}`, `{slot}` needs `{kind}`"
                )
            if slot == "grade" and template.inputs:
                raise SpecError(f"prompt {template.name!r} judges no relevance: it has `inputs`")
            self._loaded[slot, name] = template
        return self._loaded[slot, name]

    @property
    def used(self) -> Mapping[str, Template]:
        """The templates that were used so far, by slot; a slot's second one as slot/name."""
        found: dict[str, Template] = {}
        for (slot, _), template in self._loaded.items():
            found[f"{slot}/{template.name}" if slot in found else slot] = template
        return found

    @property
    def waits(self) -> bool:
        """Whether rendering may wait for a server that counts tokens."""
        return self.tokenizer is not None and self.tokenizer.remote

    def render(self, item: Ask[Any]) -> Request:
        """The request for an ask.

        Where prompt and reply would be longer than the model takes, all passages are cut to one
        limit, the largest that fits, and counted as cut. Raises `TooLong` where they would be cut
        to fewer than `LEAST` tokens, or there are none.
        """
        if isinstance(item, Embed):
            return Request(ask=item, want="vectors", texts=item.texts, role=item.role)
        template = self.template(item)
        request = self._rendered(item, template)
        over = excess(request, self.tokenizer)
        if self.tokenizer is None or over <= 0:
            return request
        lengths = [self.tokenizer.count(text) for text, _ in self._passages(item, template)]
        most = level(lengths, sum(lengths) - over)
        least = min(LEAST, self._limits(template).tokens or LEAST)
        # Cut passages may join what is around them otherwise, so the whole is counted again.
        while lengths and most >= least:
            fitting = self._rendered(item, template, most)
            if (over := excess(fitting, self.tokenizer)) <= 0:
                return fitting
            most -= -(-over // len(lengths))
        raise _too_long(request, self.tokenizer)

    def _rendered(self, item: Ask[Any], template: Template, most: int | None = None) -> Request:
        """The request for an ask, its passages no longer than `most` tokens.

        A note on what was wrong before goes only where a chat is asked for text: elsewhere it would
        stand between the prompt and what is measured.
        """
        values, shown, cut = self._values(item, template, most)
        if self.pairs and isinstance(item, Grade) and not item.task:
            return Request(
                ask=item,
                want="pair",
                texts=(values["query"], values["passage"]),
                labels={label: (label,) for label in item.labels},
                sample=item.sample,
                cut=cut,
            )
        texts, target, spans = _filled(item, template, values)
        sampling, want = template.params, want_of(need(item))
        thinking = self.thinking if want == "text" and template.messages else 0
        params = Params(
            max_tokens=sampling.max_tokens + sampling.max_tokens_per_document * shown + thinking,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            stop=sampling.stop,
            seed=_seed(item.sample, texts) if sampling.temperature else None,
            thinking=thinking,
        )
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
            spans=spans,
            sample=item.sample,
            subject=_ids(item) if self.by_id else (),
            cut=cut,
        )

    def _passages(
        self, item: Ask[Any], template: Template, most: int | None = None
    ) -> list[tuple[str, bool]]:
        """What is shown of each document, and whether it was cut."""
        if isinstance(item, Grade | Likelihood):
            texts = [clean(item.doc.contents)]
        elif isinstance(item, Order | Pick | Attend):
            # A bracketed number inside a passage would look like another passage's identifier.
            texts = [_IDENTIFIER.sub(r"(\1)", clean(doc.contents)) for doc in item.docs]
        else:
            return []
        limits = self._limits(template, most)
        return [shorten(text, limits, self.tokenizer) for text in texts]

    def _values(
        self, item: Ask[Any], template: Template, most: int | None
    ) -> tuple[dict[str, Any], int, int]:
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
        shown = self._passages(asked, template, most)
        values: dict[str, Any] = {"query": clean(asked.query.text)}
        if isinstance(asked, Grade | Likelihood):
            values["passage"] = shown[0][0]
        else:
            values["passages"] = [Passage(i, text) for i, (text, _) in enumerate(shown, start=1)]
        if isinstance(asked, Pick):
            if len(shown) > len(LETTERS):
                raise SpecError(f"{len(shown)} passages to pick from; there are 26 letters")
            values["n"] = asked.n
        if isinstance(asked, Grade):
            values["labels"] = asked.labels
        if isinstance(asked, Likelihood):
            values["examples"] = _clean_input(asked.examples)
        return values, len(shown), sum(was_cut for _, was_cut in shown)

    def parse(self, request: Request, reply: Reply) -> Answer[Any]:
        """The typed outcome of a reply."""
        if isinstance(request.ask, Write | Order):
            template = self.template(request.ask)
            return replies.read(request, reply, keep=template.keep, reader=template.reader)
        return replies.read(request, reply)


def _filled(
    item: Ask[Any], template: Template, values: Mapping[str, Any]
) -> tuple[list[str], str, tuple[Span, ...]]:
    """The texts, the target, and for an `Attend` where the passages and the query stand."""
    if not isinstance(item, Attend):
        return *template.fill(values), ()
    passages = [replace(passage, text=marked(passage.text)) for passage in values["passages"]]
    texts, target = template.fill({"passages": passages, "query": marked(values["query"])})
    plain, spans = unmarked(texts)
    shown = [plain[turn][start:end] for turn, start, end in spans]
    wanted = [text[1:-1] for text in (*(p.text for p in passages), marked(values["query"]))]
    if shown != wanted or len({span.turn for span in spans}) > 1:
        raise SpecError(
            f"prompt {template.name!r} must show every passage and then the query, in one message"
        )
    return plain, target, spans


def _seed(sample: int, texts: Sequence[str]) -> int:
    """A seed of its own for every prompt and sample.

    With one seed for all prompts a sampler draws the same noise for each, and what it writes for
    different documents begins alike.
    """
    digest = hashlib.sha256(repr((sample, list(texts))).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def slot_of(needed: Need) -> str:
    """Where a template for this is put: the kind of ask, or the task."""
    return needed.task or KINDS[needed.ask]


def want_of(needed: Need, given: Collection[Want] = ()) -> Want:
    """What a backend must be able to give; relevance is that of a pair where it gives those."""
    if needed.ask is Grade and not needed.task and "pair" in given:
        return "pair"
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

    Those of a grade: as written, in other cases unless the template says no, after a space. Those
    of a pick: the letter, alone and after a space; a small one would be a word.
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
            for variant in (
                (form, form.lower(), form.upper(), form.capitalize()) if template.cases else (form,)
            )
        )
        forms[label] = tuple(dict.fromkeys([*written, *(f" {form}" for form in written)]))
    return forms


def _too_long(request: Request, tokenizer: Tokenizer) -> TooLong:
    written = isinstance(request.ask, Write)
    asked = f"the task {need(request.ask).task!r}" if written else f"query {_ids(request.ask)[0]!r}"
    thinking = request.params.thinking
    thought = f" ({thinking} of them to think)" if thinking else ""
    return TooLong(
        f"{asked}: the prompt has {prompt_tokens(request, tokenizer)} tokens, the reply up to "
        f"{reply_tokens(request)}{thought}, and the model takes {tokenizer.context} "
        f"({tokenizer.counting})",
        remedy="nothing in it can be cut"
        if written
        else f"a smaller window, or --passage-tokens below {LEAST}",
    )


def _clean_input(value: object) -> object:
    if isinstance(value, str):
        return clean(value)
    return [tuple(clean(part) for part in row) for row in cast("Sequence[Sequence[str]]", value)]


def example(
    name: str | Path, query: str, passages: Sequence[str], tokenizer: Tokenizer | None = None
) -> Request:
    """What a template sends for a query and passages; a write task gets them as its inputs.

    A template with a limit in tokens needs a tokenizer.
    """
    template = load(name)
    asked = Query("1", query)
    docs = tuple(Document(str(i), text) for i, text in enumerate(passages, start=1))
    given: Mapping[str, str | tuple[tuple[str, ...], ...]] = {
        "query": query,
        "document": docs[0].text,
        "documents": tuple((document.text,) for document in docs),
        "examples": (),
    }
    asks: Mapping[Kind, Ask[Any]] = {
        "order": Order(asked, docs),
        "pick": Pick(asked, docs),
        "grade": Grade(
            asked,
            docs[0],
            tuple(template.labels) or ("3", "2", "1", "0"),
            template.name if template.inputs else "",
        ),
        "likelihood": Likelihood(asked, docs[0]),
        "attend": Attend(asked, docs),
        "write": Write(template.name, tuple((key, given.get(key, "")) for key in template.inputs)),
    }
    slot = template.name if template.inputs else template.ask
    return PromptSet({slot: name}, tokenizer=tokenizer).render(asks[template.ask])
