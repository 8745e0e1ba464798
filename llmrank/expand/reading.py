"""Reading what a language model wrote for a query: lists, rewritten queries, prose."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress

from llmrank.plan import Answer, Written
from llmrank.types import Query, Status

WORDS = 64
"""A longer text is no rewritten query."""

CHARACTERS = 512
"""Nor is one of more characters: not every script has spaces between its words."""

KEYWORD_WORDS = 6
"""A longer piece of a list of keywords is a sentence."""

_ENDS = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+|(?<=[。！？])|\n+")
_MARKER = re.compile(r"\A\s*(?:[-*+•–·]\s+|#{1,6}\s+|\**\(?\d{1,2}[.)]\**(?!\d)\s*)")
_INLINE = re.compile(r"\s(?=\(?\d{1,2}[.)]\s)")
_LABEL = re.compile(
    r"\A\W*(?:(?:sub-?|search |rewritten |alternative )*(?:quer(?:y|ies)|questions?)|keywords?"
    r"|(?:named )?entit(?:y|ies)|summary|facts?|title|passage|document|essay|article|translation)"
    r"\s*#?\d*\s*[:：]\W*",
    re.IGNORECASE,
)
_CHATTER = re.compile(
    r"\A\W*(?:sure|certainly|of course|okay|here(?:['’]s| is| are)|i hope|let me know)\b",
    re.IGNORECASE,
)
_EMPHASIS = re.compile(r"\*+|`+|(?<!\w)_+|_+(?!\w)")
_LOOP = re.compile(r"(\S.{6,119}?)\1{2,}", re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")
_QUOTES = "\"'“”‘’«»„「」 \t,"


def listed(text: str, *, cut: bool = False) -> list[str]:
    """The items of a list, one a line, without markers, labels and quotes around them.

    Of a text with numbered or bulleted lines only these count. Otherwise every line does, but those
    that only announce or close a list. A JSON list of texts is read too. With `cut` the end of the
    text is missing, and its last item is left out. So are items with lone surrogates, which
    no server takes.
    """
    lines = _from_json(text) or [line for line in _lines(text) if line.strip()]
    if cut:
        lines = lines[:-1]
    marked = [line for line in lines if _MARKER.match(line)]
    items = map(_bare, marked or [line for line in lines if not _is_chatter(line, ":：!.")])
    return [item for item in items if _is_item(item)]


def prose(text: str) -> str:
    """A text without list markers, labels, emphasis and the lines that announce something."""
    lines = [line for line in _lines(text) if not _is_chatter(line, ":：!")]
    return "\n".join(filter(None, map(_bare, lines)))


def sentences(text: str) -> list[str]:
    """The sentences of a text, each once, by its punctuation and line breaks.

    An abbreviation before a space ends one too. What has no word is none, nor what has a lone
    surrogate, which no server takes.
    """
    found = (" ".join(piece.split()) for piece in _ENDS.split(text))
    return [
        unit
        for unit in dict.fromkeys(found)
        if re.search(r"\w", unit) and not _SURROGATE.search(unit)
    ]


def rewrites(
    answers: Sequence[Answer[Written]], query: Query, n: int
) -> tuple[tuple[str, ...], str]:
    """The first n queries listed in the answers, without the query itself, and a note.

    A query comes once, whatever its cases and punctuation. One longer than `WORDS` words or
    `CHARACTERS` characters is left out, and the note says so.
    """
    found: dict[str, str] = {}
    long = 0
    for item in _items(answers):
        if len(item.split()) > WORDS or len(item) > CHARACTERS:
            long += 1
        else:
            found.setdefault(_alike(item), item)
    found.pop(_alike(query.text), None)
    note = f"too long for a query and left out: {long}" if long else ""
    return tuple(found.values())[:n], note


def keywords(answers: Sequence[Answer[Written]]) -> tuple[str, ...]:
    """The keywords in lists with commas, semicolons or lines between them, each once."""
    found: dict[str, str] = {}
    for answer in answers:
        if answer.value is None:
            continue
        pieces = [
            piece
            for line in listed(answer.value.text)
            for piece in map(_bare, re.split(r"[,;、，；]", line))
        ]
        if answer.status is Status.TRUNCATED:
            pieces = pieces[:-1]
        for piece in pieces:
            if _is_item(piece) and len(piece.split()) <= KEYWORD_WORDS:
                found.setdefault(_alike(piece), piece)
    return tuple(found.values())


def _items(answers: Sequence[Answer[Written]]) -> Iterator[str]:
    for answer in answers:
        if answer.value is not None:
            yield from listed(answer.value.text, cut=answer.status is Status.TRUNCATED)


def _lines(text: str) -> list[str]:
    # A small model may go round in circles: what it says three times or more in a row it says once.
    text = _LOOP.sub(r"\1", text)
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("```")]
    if len(lines) == 1 and _MARKER.match(lines[0]):
        return _INLINE.split(lines[0])
    return lines


def _from_json(text: str) -> list[str]:
    inside = text[text.find("[") : text.rfind("]") + 1]
    with suppress(ValueError, RecursionError):
        read = json.loads(inside)
        if isinstance(read, list) and all(isinstance(item, str) for item in read):
            return read
    return []


def _bare(line: str) -> str:
    line = _EMPHASIS.sub("", _MARKER.sub("", line))
    return " ".join(_LABEL.sub("", line).strip(_QUOTES).split())


def _is_chatter(line: str, ends: str) -> bool:
    """Whether a line speaks to the reader: a query may begin with the same words."""
    return bool(_CHATTER.match(line)) and line.rstrip()[-1] in ends


def _is_item(item: str) -> bool:
    if _SURROGATE.search(item):
        return False
    return bool(re.search(r"\w", item)) and not item.endswith((":", "："))


def _alike(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))
