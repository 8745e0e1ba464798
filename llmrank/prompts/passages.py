"""Text from outside as prompts show it: control tokens defused, cut to words and to tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from llmrank.errors import SpecError
from llmrank.request import Request, Tokenizer

Truncation = Literal["head", "tail", "middle"]
"""What is kept of a long passage: its head, its tail, or both ends without the middle."""

TRUNCATIONS: tuple[str, ...] = get_args(Truncation)

GAP = " ... "
"""What stands for the middle that was left out."""

LEAST = 32
"""Tokens below which passages are not cut to make a prompt fit: they would say too little."""

WRAPPING = 256
"""More tokens than a chat template or a tokenizer puts around the texts of a prompt."""

# Names of special tokens that are written in angle brackets without a bar or an underscore.
_NAMED = (
    r"s|sop|eop|bos|eos|eod|pad|unk|mask|cls|sep|eoh|eoa|image|img|filename|reponame|role"
    r"|think(?:ing)?|(?:mm|seed):[\w:]+|ifm\|\w+|mask:\d+|unused\d+|special\d+|2mass"
)
# The same for square brackets, where an underscore alone would be too common.
_BRACKETED = (
    r"INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS?|TOOL_RESULTS|TOOL_CONTENT|IMG|IMG_BREAK"
    r"|IMG_END|PREFIX|MIDDLE|SUFFIX|AUDIO|BEGIN_AUDIO|ARGS|CALL_ID|THINK|MODEL_SETTINGS"
    r"|[gs]?MASK|CLS|SEP|PAD|UNK|BOS|EOS|EOT|@BOS@|multimodal|UNUSED_TOKEN_\d+|unused\d+"
    r"|extra_id_\d+|start_header_id|end_header_id"
)
# A match is one character, and a space after it breaks the token apart. Operators such as `<|>` and
# a `|>` between spaces are no tokens. The bar of some models' tokens is full-width.
_CONTROL = re.compile(
    r"<(?=/?[|\uff5c][^\s>])"
    r"|(?<=\S)(?<!<)[|\uff5c](?=>)"
    rf"|<(?=/?(?i:{_NAMED}|[a-z][\w:]*_[\w:]*)>)"
    r"|<(?=</?SYS>>)"
    rf"|\[(?=/?(?:{_BRACKETED}|\|\w{{4,}}\|)\])"
    r"|>(?=>[A-Z][A-Z_\d]*<<)"
    r"|\uff5c(?=DSML\uff5c)"
    r"|\](?=~!?b[\[\]])|\[(?=e~\[)|\](?=<\])"
)


_MARKS = re.compile(r"[<>|\[\]\uff5c]")
"""Without any of these a text holds no control token, which is found out far faster."""


def clean(text: str) -> str:
    """Text from outside on one line, its chat control tokens made harmless."""
    if _MARKS.search(text):
        text = _CONTROL.sub(r"\g<0> ", text)
    return " ".join(text.split())


@dataclass(frozen=True, slots=True)
class Limits:
    """The most words and the most tokens of a passage, None for no limit, and what is kept."""

    words: int | None = None
    tokens: int | None = None
    truncation: Truncation = "head"

    def __post_init__(self) -> None:
        for name, limit in (("words", self.words), ("tokens", self.tokens)):
            if limit is not None and limit < 1:
                raise SpecError(f"passage_{name} must be at least 1")
        if self.truncation not in TRUNCATIONS:
            known = ", ".join(TRUNCATIONS)
            raise SpecError(f"truncation must be one of {known}, not {self.truncation!r}")


def shorten(text: str, limits: Limits, tokenizer: Tokenizer | None) -> tuple[str, bool]:
    """A cleaned text within the limits, and whether anything was left out.

    The mark for a middle that was left out counts as a word, and with its own tokens; where there
    is no room for it and both ends, the head is kept. Counted alone, the text has at most as many
    tokens as its limit says. Raises `SpecError` for a
    limit in tokens without a tokenizer.
    """
    shown = text
    if limits.words is not None:
        shown = _to_words(text, limits.words, limits.truncation)
    if limits.tokens is not None:
        if tokenizer is None:
            raise SpecError("a limit in tokens needs a tokenizer; passage_words needs none")
        if tokenizer.count(shown) > limits.tokens:
            shown = _to_tokens(shown, limits.tokens, limits.truncation, tokenizer)
    return shown, shown != text


def _to_words(text: str, words: int, truncation: Truncation) -> str:
    parts = text.split(" ")
    if len(parts) <= words:
        return text
    if truncation == "tail":
        return " ".join(parts[-words:])
    last = (words - 1) // 2
    if truncation == "head" or not last:
        return " ".join(parts[:words])
    return " ".join(parts[: words - 1 - last]) + GAP + " ".join(parts[-last:])


def _to_tokens(text: str, tokens: int, truncation: Truncation, tokenizer: Tokenizer) -> str:
    """What is left may be read as more tokens than it was part of, so it is counted anew."""
    both = truncation == "middle"
    keep = tokens - (tokenizer.count(GAP) if both else 0)
    while keep > both:
        shown = _kept(text, keep, truncation, tokenizer)
        over = tokenizer.count(shown) - tokens
        if over <= 0:
            return shown
        keep -= over
    # There is no room for both ends, or not for one character.
    return _to_tokens(text, tokens, "head", tokenizer) if both else ""


def _kept(text: str, tokens: int, truncation: Truncation, tokenizer: Tokenizer) -> str:
    if truncation == "tail":
        return tokenizer.tail(text, tokens).lstrip()
    if truncation == "head":
        return tokenizer.head(text, tokens).rstrip()
    last = tokens // 2
    first = tokenizer.head(text, tokens - last).rstrip()
    return first + GAP + tokenizer.tail(text, last).lstrip()


def excess(request: Request, tokenizer: Tokenizer | None) -> int:
    """Tokens of a prompt and its reply beyond what the model takes; 0 or less where they fit.

    Pairs and texts to embed always fit: their models cut them.
    """
    if tokenizer is None or request.want in ("pair", "vectors") or tokenizer.context is None:
        return 0
    room = tokenizer.context - reply_tokens(request)
    texts = (*(turn.content for turn in request.messages), request.prompt, request.target)
    # No token is less than a byte, so a short prompt need not be counted.
    if sum(len(text.encode("utf-8", "surrogatepass")) for text in texts) + WRAPPING <= room:
        return 0
    return prompt_tokens(request, tokenizer) - room


def prompt_tokens(request: Request, tokenizer: Tokenizer) -> int:
    """Tokens of all that a request makes a model read."""
    if request.messages:
        return tokenizer.chat(request.messages) + tokenizer.count(request.target)
    # Many tokenizers begin and some end a plain prompt with a token of their own.
    return tokenizer.count(request.prompt) + tokenizer.count(request.target) + 2


def reply_tokens(request: Request) -> int:
    """The most tokens that a reply may have."""
    return request.params.max_tokens if request.want == "text" else 1


def level(lengths: Sequence[int], room: int) -> int:
    """The largest common limit under which the lengths sum to at most `room`."""
    left = room
    for i, length in enumerate(sorted(lengths)):
        share = left // (len(lengths) - i)
        if length > share:
            return share
        left -= length
    return max(lengths, default=0)
