"""Reading replies: raw model output into typed outcomes. Model output is untrusted input."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from llmrank.plan import (
    Answer,
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
    Write,
    Written,
)
from llmrank.request import Reply, Request
from llmrank.types import Status

LOW_MASS = 1e-3
"""Below this share of probability on all labels together, the scores say nothing about them."""

ROUNDING = 1e-2
"""A log-probability may lie this far above 0 and still be one, rounded in half precision."""

STILL_THINKING = (
    "the token limit was reached while the model was thinking: give it room (--thinking 4096), or "
    "let a probe find out how to keep it from that (--probe)"
)

_THOUGHT = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_STRAY_END = re.compile(r"\A.*</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_SORRY = r"(?:(?:i(?:['’]?m| am) )?(?:(?:very|so) )?sorry|i apologi[sz]e|unfortunately)"
_UNABLE = (
    r"i(?: can(?:no|['’]|\ no)?t| wo['’]?n['’]?t| will not|(?:['’]m| am) (?:unable|not able))\b"
)
_AS_AI = r"as an ai(?: language)?(?: model| assistant)?,"
_DECLINES = re.compile(rf"\A\W*(?:{_SORRY}\b|{_UNABLE}|{_AS_AI})", re.IGNORECASE)
# A written text may well begin with "I can't" or "sorry": it declines only where it names the task.
_REFUSES = re.compile(
    rf"\A\W*(?:{_AS_AI}|{_SORRY}\W*\Z|{_SORRY}[\s,.:;]*(?:but )?{_UNABLE}"
    rf"|{_UNABLE} (?:to )?(?:help|assist|comply|fulfil|provide|generate|write|create|produce)\b)",
    re.IGNORECASE,
)

# Full-width and lenticular brackets and the full-width sign are read as the plain ones.
_PLAIN = str.maketrans(
    dict(zip("\uff3b\uff3d\u3010\u3011\uff1e", "[][]>", strict=True)) | dict.fromkeys('*`"“”\\')
)
_NAME = r"(?:(?:passage|document|doc)\s*+#?\s*+)?"
_BRACKETED = rf"{_NAME}\[\s*+{_NAME}\d{{1,4}}\s*+\]"
# A bracket may be missing: a prompt that ends in "[" is continued with "12] > [3]". What stands
# here must not be part of a word, a decimal number or a percentage.
_LOOSE = rf"(?<!\w)(?<!\d[.,]){_NAME}\[?\d{{1,4}}\]?(?![\w%]|[.,]\d)"
# A run is taken whole, with or without a `>` in it, so that a long one is looked at once only.
_RUN = re.compile(
    rf"(?:{_BRACKETED}|{_LOOSE}(?=\s*+>))"
    rf"(?:\s*+[>=]++\s*+(?:{_BRACKETED}|{_LOOSE})|[ \t]*+[,;]?[ \t]*+{_BRACKETED})*",
    re.IGNORECASE,
)
_LIST = re.compile(r"(?:\[\s*+)?\d{1,4}(?:\s*+,\s*+\d{1,4})+(?:\s*+\])?")
_ROW = re.compile(rf"{_BRACKETED}(?:[\s,;]*+(?:and\s++)?{_BRACKETED})*", re.IGNORECASE)
_MARKER = re.compile(
    r"(?:^[ \t]*+[-•+]|(?<![\w.\[])\(?\d{1,3}[.)])[ \t]*+(?=\[|passage|doc)",
    re.IGNORECASE | re.MULTILINE,
)
_NUMBERED = re.compile(
    rf"^[ \t]*+(\d{{1,4}})[.)][ \t]*+({_BRACKETED})", re.IGNORECASE | re.MULTILINE
)
_ONE_LETTER = r"(?:(?i:passages?|documents?|docs?|and)\s++){0,2}[\[(]?[A-Z][\])]?"
# A label is made of these words alone: "not relevant" or "second best" would turn a pick around.
_LABEL = (
    r"(?i:(?:(?:the|my|your|final|most|more|relevant|best|top|answers?|answering|choices?|outputs?"
    r"|results?|respon[sd]es?|reply|passages?|documents?|letters?|picks?|ranking|order|identifiers?"
    r"|is|are|that|which|query|question|to|for|in|of|this|\d{1,2}|two|three|four|five)\b\s*+)+):"
)
_LETTER_LINE = re.compile(
    rf"(?:[-•]\s*|\d{{1,2}}[.)]\s*)?(?:{_LABEL})?[\s\[(]*"
    rf"({_ONE_LETTER}(?:(?:\s*[,;>]\s*|\s+){_ONE_LETTER})*)[\s\])]*[.,;]?"
)
_SAID = r"(?:is\s+the\s+(?:best|most\s+relevant)|answers\s+the\s+query\s+best)"
_VERDICT = re.compile(
    rf"(?i:the\s+)?(?i:passage|document)\s+\[?([A-Z])\]?\s+{_SAID}\b"
    rf"|(?i:the)\s+(?:best|most\s+relevant)\s+(?:passage|document|answer)\s+is\s+(?i:passage\s+)?"
    rf"\[?([A-Z])\]?(?=\.|\Z|,?\s+because\b)"
)
_LETTER = re.compile(r"(?<![A-Za-z])[A-Z](?![A-Za-z])")
# The article and the pronoun are no passages.
_OTHER = re.compile(r"\b[B-HJ-Z]\b|(?i:(?<=passage )|(?<=document ))[AI]\b")
_LONGEST_PICK = 400
"""Characters of a line: 26 passages by letter and name are fewer."""
_MARKED = re.compile(r"[\[\]]|[^\W\d]")
_DIGITS = re.compile(r"\d+")
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’"}


def read(
    request: Request, reply: Reply, *, keep: str = "text", reader: str = "anchored"
) -> Answer[Any]:
    """The outcome of one reply, with the usage and the raw text kept as evidence."""
    outcome = _failure(request, reply) or _value(request, reply, keep, reader)
    status, value, problem = outcome
    return Answer(
        status=status,
        value=value,
        problem=problem,
        reply=reply.text,
        usage=reply.usage,
        key=reply.key,
        model=reply.model,
        reused=reply.reused,
        cut=max(request.cut, reply.cut),
    )


Outcome = tuple[Status, Any, str]


def _failure(request: Request, reply: Reply) -> Outcome | None:
    """What is wrong before the content is looked at, if anything."""
    if reply.unasked:
        return Status.UNASKED, None, reply.unasked
    if reply.error:
        return Status.FAILED, None, reply.error
    if reply.finish in ("content_filter", "refusal"):
        return Status.REFUSED, None, f"declined ({reply.finish})"
    if request.want == "text" and reply.finish == "length" and _still_thinking(reply):
        return Status.THINKING, None, STILL_THINKING
    return None


def _still_thinking(reply: Reply) -> bool:
    """Whether all that a reply holds is a thought; some servers show only how long it was."""
    if without_thought(reply.text):
        return False
    thought = _THOUGHT.search(reply.text) or _STRAY_END.search(reply.text) or reply.reasoning
    return bool(thought or reply.usage.reasoning_tokens)


def _value(request: Request, reply: Reply, keep: str, reader: str) -> Outcome:
    ask = request.ask
    cut = reply.finish == "length"
    if isinstance(ask, Order):
        if reader == "digits":
            return read_digits(reply.text, len(ask.docs))
        return read_order(reply.text, len(ask.docs), truncated=cut)
    if isinstance(ask, Pick):
        if ask.by == "labels":
            return _distribution(request, reply, ask)
        return read_pick(reply.text, len(ask.docs), ask.n, truncated=cut)
    if isinstance(ask, Grade):
        return _grades(request, reply)
    if isinstance(ask, Likelihood):
        likelihood = _logprob(reply)
        if likelihood is None:
            return Status.MALFORMED, None, "the reply holds no log-probability of the query"
        return Status.OK, likelihood, ""
    if isinstance(ask, Write):
        return _written(reply, keep, request.params.stop)
    if isinstance(ask, Attend):
        return _attention(ask, reply)
    if isinstance(ask, Embed):
        return _vectors(ask, reply)
    raise NotImplementedError(f"no reader for {type(ask).__name__}")


def without_thought(text: str) -> str:
    """The reply without what a reasoning model thought aloud, finished or not."""
    return _STRAY_END.sub("", _THOUGHT.sub("", text)).strip()


def read_order(text: str, count: int, *, truncated: bool = False) -> Outcome:
    """A ranking of `count` passages from a reply, as positions from 0.

    Only numbers that stand in a ranking are read, never digits of prose: a chain of identifiers
    with `>`, a numbered list of them, or, on lines of their own or after a colon, a list of numbers
    or a row of identifiers. A chain or numbered list goes before the others; of several the one
    with the most valid identifiers counts, of equal ones the last. Passages left out follow in the
    order shown. A reply that counts from 0 is malformed, because a guess could be off by one.
    """
    answer = without_thought(text)
    chain = _best_chain(answer, count, truncated)
    if 0 in chain and count not in chain:
        return Status.MALFORMED, None, "the reply counts from 0, the identifiers begin at 1"
    valid = list(dict.fromkeys(number - 1 for number in chain if 1 <= number <= count))
    if not valid or (len(valid) < 2 <= count and _mentions_more(answer, chain)):
        return _no_ranking(answer, count, truncated)
    named = set(valid)
    left_out = [position for position in range(count) if position not in named]
    order = Permutation((*valid, *left_out), len(valid) if left_out else None)
    if truncated and left_out:
        return Status.TRUNCATED, order, f"cut after {len(valid)} of {count} passages"
    if left_out:
        return Status.PARTIAL, order, f"{len(left_out)} of {count} passages were not named"
    if len(chain) != count:
        return Status.REPAIRED, order, "repeated or unknown identifiers were dropped"
    return Status.OK, order, ""


def read_digits(text: str, count: int) -> Outcome:
    """Every run of digits is an identifier, whatever it stands in; as published rerankers read.

    Repeated and unknown ones are dropped, passages left out follow in the order shown.
    """
    found = _numbers(text)
    valid = list(dict.fromkeys(number - 1 for number in found if 1 <= number <= count))
    if not valid:
        return Status.MALFORMED, None, f"the reply holds no number from 1 to {count}"
    named = set(valid)
    left_out = [position for position in range(count) if position not in named]
    order = Permutation((*valid, *left_out), len(valid) if left_out else None)
    if left_out:
        return Status.PARTIAL, order, f"{len(left_out)} of {count} passages were not named"
    if len(found) != count:
        return Status.REPAIRED, order, "repeated or unknown identifiers were dropped"
    return Status.OK, order, ""


def read_pick(text: str, count: int, n: int, *, truncated: bool = False) -> Outcome:
    """The n best of `count` lettered passages from a reply, as positions from 0, best first.

    Letters count where they are all there is on a line but for a label in front with a colon, or
    for one passage where a line begins with the plain statement that it is the best. Lines that
    contradict each other, several letters for one passage without a `>` between, and a letter that
    no passage has are malformed: nothing is guessed from prose.
    """
    answer = without_thought(text).translate(_PLAIN)
    rows = _picks(answer, n, truncated)
    if len(rows) != 1:
        if _DECLINES.match(answer):
            return Status.REFUSED, None, "the model declined"
        if truncated:
            return Status.TRUNCATED, None, "the token limit was reached before any choice"
        said = "several choices" if rows else "no choice"
        return Status.MALFORMED, None, f"the reply holds {said} of {n} of the {count} passages"
    (row,) = rows
    places = [ord(letter) - ord("A") for letter in row]
    if any(place >= count for place in places):
        return Status.MALFORMED, None, f"the reply names a passage beyond the {count} shown"
    best = tuple(dict.fromkeys(places))
    if len(best) < min(n, count):
        status = Status.TRUNCATED if truncated else Status.PARTIAL
        return status, Choice(best), f"{len(best)} of {n} passages were named"
    if len(places) > n:
        return Status.REPAIRED, Choice(best[:n]), "repeated or further passages were dropped"
    return Status.OK, Choice(best[:n]), ""


def _picks(answer: str, n: int, truncated: bool) -> list[tuple[str, ...]]:
    """The different choices that the lines of a reply make; single letters below one another are
    one choice of several."""
    lines = [line.strip().strip("{}").strip() for line in answer.splitlines()]
    rows = dict.fromkeys(row for line in lines if (row := _letters(line, n)))
    if n > 1 and len(rows) > 1 and all(len(row) == 1 for row in rows):
        return [tuple(row[0] for row in rows)]
    if not rows and n == 1:
        # A sentence at the token limit may go on.
        whole = lines[:-1] if truncated else lines
        rows = dict.fromkeys((name,) for line in whole if (name := _verdict(line)))
    return list(rows)


def _letters(line: str, n: int) -> tuple[str, ...]:
    """The letters of a line that holds nothing else, but for a label before them."""
    match = _LETTER_LINE.fullmatch(line) if len(line) <= _LONGEST_PICK else None
    if match is None:
        return ()
    letters = tuple(_LETTER.findall(match[1]))
    ordered = n > 1 or match[1].count(">") == len(letters) - 1
    return letters if ordered or len(set(letters)) == 1 else ()


def _verdict(line: str) -> str:
    """The letter that a sentence says is the best, if the line names no other."""
    match = _VERDICT.match(line)
    if match is None:
        return ""
    name = match[1] or match[2]
    return "" if set(_OTHER.findall(line[match.end() :])) - {name} else name


def _best_chain(text: str, count: int, truncated: bool) -> list[int]:
    text = text.translate(_PLAIN)
    if truncated:
        # The last number may have lost digits.
        text = re.sub(r"(?<!\d)\d+\Z", "", text.rstrip())
    unmarked = _MARKER.sub("", text)
    best: list[int] = []
    for chains in (_rankings(text, unmarked), _rows(unmarked, count)):
        for chain in chains:
            if _worth(chain, count) >= max(1, _worth(best, count)):
                best = chain
        if best:
            return best
    return best


def _rankings(text: str, unmarked: str) -> Iterator[list[int]]:
    """What is a ranking by its form, wherever it stands: a numbered list, chains with `>`."""
    listed = [(int(match[1]), _numbers(match[2])) for match in _NUMBERED.finditer(text)]
    if len(listed) > 1 and all(place == i for i, (place, _) in enumerate(listed, start=1)):
        yield [number for _, numbers in listed for number in numbers]
    for match in _RUN.finditer(unmarked):
        marked = _MARKED.search(match.group())
        if ">" in match.group() and (marked or _stands_alone(match)):
            yield _numbers(match.group())


def _rows(unmarked: str, count: int) -> Iterator[list[int]]:
    """What is a ranking only where nothing else stands beside it: lists and rows."""
    for pattern in (_LIST, _ROW):
        for match in pattern.finditer(unmarked):
            if _stands_alone(match):
                yield _numbers(match.group())
    if count == 1 and re.fullmatch(r"\W*1\W*", unmarked):
        yield [1]


def _stands_alone(match: re.Match[str]) -> bool:
    """Whether the match fills its lines, but for a label that ends in a colon before it."""
    text, start, end = match.string, match.start(), match.end()
    stop = text.find("\n", end)
    before = text[text.rfind("\n", 0, start) + 1 : start].rstrip(" \t({[")
    after = text[end : stop if stop >= 0 else len(text)].strip(" \t.,;!)}]>[")
    return not after and (not before or before.endswith(":"))


def _numbers(text: str) -> list[int]:
    return [int(digits) for digits in _DIGITS.findall(text)]


def _worth(chain: Sequence[int], count: int) -> int:
    return len({number for number in chain if 1 <= number <= count})


def _mentions_more(text: str, chain: Sequence[int]) -> bool:
    """Whether a lone identifier is surrounded by prose rather than being the whole answer."""
    return len(chain) < 2 and len(text.split()) > 3


def _no_ranking(answer: str, count: int, truncated: bool) -> Outcome:
    if _DECLINES.match(answer):
        return Status.REFUSED, None, "the model declined"
    if truncated:
        return Status.TRUNCATED, None, "the token limit was reached before any ranking"
    return Status.MALFORMED, None, f"the reply holds no ranking of the {count} passages"


def _logprob(reply: Reply) -> LogProb | None:
    total = reply.logprob
    if total is None or reply.tokens < 1 or not math.isfinite(total) or total > ROUNDING:
        return None
    return LogProb(total, reply.tokens)


def _attention(ask: Attend, reply: Reply) -> Outcome:
    masses = reply.attention
    if masses is None or len(masses) != len(ask.docs) or not all(map(math.isfinite, masses)):
        return Status.MALFORMED, None, f"expected {len(ask.docs)} finite attention masses"
    return Status.OK, tuple(masses), ""


def _distribution(request: Request, reply: Reply, ask: Pick) -> Outcome:
    """A pick from the probabilities of the letters; one that was not reported has none."""
    status, grades, problem = _grades(request, reply)
    if grades is None:
        return status, None, problem
    likely = grades.probabilities
    best = sorted(range(len(likely)), key=lambda i: (-likely[i], i))[: ask.n]
    choice = Choice(tuple(best), likely)
    unseen = sum(not any(f in reply.label_logprobs for f in fs) for fs in request.labels.values())
    if unseen:
        return Status.PARTIAL, choice, f"{unseen} of {len(likely)} letters were not reported"
    return Status.OK, choice, ""


def _grades(request: Request, reply: Reply) -> Outcome:
    seen = reply.label_logprobs
    if any(math.isnan(value) or value > ROUNDING for value in seen.values()):
        return Status.MALFORMED, None, "a label's log-probability is not a number up to 0"
    mass = [
        math.fsum(math.exp(min(0.0, seen[form])) for form in forms if form in seen)
        for forms in request.labels.values()
    ]
    total = math.fsum(mass)
    if total < LOW_MASS:
        return (
            Status.MALFORMED,
            None,
            f"the labels hold {total:.2g} of the probability: wrong prompt or chat template?",
        )
    return Status.OK, Grades(tuple(part / total for part in mass), min(1.0, total)), ""


def _written(reply: Reply, keep: str, stops: Sequence[str]) -> Outcome:
    text = without_thought(reply.text)
    cut = reply.finish == "length"
    # A model that thinks is not stopped by them, as they could end its thought.
    ends = [at for at in map(text.find, stops) if at >= 0]
    if ends:
        text, cut = text[: min(ends)].strip(), False
    if keep == "line":
        text, _, rest = text.partition("\n")
        text = _unquoted(text.strip())
        cut = cut and not rest
    if not text:
        if cut:
            return Status.TRUNCATED, None, "the token limit was reached before any text"
        return Status.MALFORMED, None, "the reply is empty"
    if _REFUSES.match(text):
        return Status.REFUSED, None, "the model declined"
    written = Written(text, _logprob(reply))
    if cut:
        return Status.TRUNCATED, written, "the token limit was reached"
    return Status.OK, written, ""


def _unquoted(text: str) -> str:
    """The text without the quotation marks around all of it."""
    closing = _QUOTES.get(text[:1])
    inside = text[1:-1]
    whole = len(text) > 1 and text[-1] == closing and closing not in inside
    return inside.strip() if whole else text


def _vectors(ask: Embed, reply: Reply) -> Outcome:
    vectors = reply.vectors
    if vectors is None or vectors.ndim != 2 or len(vectors) != len(ask.texts):
        return Status.MALFORMED, None, f"expected {len(ask.texts)} vectors"
    if not bool(np.isfinite(vectors).all()):
        return Status.MALFORMED, None, "a vector holds values that are not finite numbers"
    return Status.OK, vectors, ""
