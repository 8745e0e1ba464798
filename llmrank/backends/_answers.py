"""Reading what an OpenAI-compatible server sends: JSON into replies. It is untrusted input."""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np

from llmrank.request import Reply, Request
from llmrank.types import Usage

T = TypeVar("T")

ABSENT = -9999.0
"""What OpenAI and vLLM report as the log-probability of a token that they do not report."""


class Failure(Exception):
    """One request that failed, where another one may succeed. `status` is 0 without an answer.

    `overflow` says that the prompt was too long, `late` that no answer came in time; `finish` that
    the server declined to answer, which is an outcome and no error. `throttled` failures are of too
    much at once.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        transient: bool = False,
        retry_after: float | None = None,
        usage: Usage | None = None,
        overflow: bool = False,
        late: bool = False,
        finish: str = "",
    ) -> None:
        super().__init__(message)
        self.throttled = late or status in (429, 503)
        self.status, self.transient, self.retry_after = status, transient, retry_after
        self.overflow, self.late, self.finish = overflow, late, finish
        self.usage = usage or Usage()

    @property
    def rejected(self) -> bool:
        """Whether the server did not accept the request as it was put."""
        return self.status in (400, 422) and not (self.overflow or self.finish)

    @property
    def kind(self) -> str:
        """What failures are counted by."""
        if self.late:
            return "no answer in time"
        if self.overflow:
            return "prompt too long"
        if self.status == 200:
            return "unusable answer"
        return f"HTTP {self.status}" if self.status else "no answer"

    def reply(self) -> Reply:
        """The failure as what is handed back."""
        if self.finish:
            return Reply(finish=self.finish, usage=self.usage)
        return Reply(
            error=str(self),
            fault=self.kind,
            transient=self.transient,
            throttled=self.throttled,
            retry_after=self.retry_after,
            usage=self.usage,
        )


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait before asking again, in any of the three forms in use; None if not said."""
    try:
        if milliseconds := headers.get("retry-after-ms"):
            seconds = float(milliseconds) / 1000
        else:
            seconds = _seconds(headers.get("retry-after", ""))
    except ValueError:
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _seconds(value: str) -> float:
    if re.fullmatch(r"\s*[\d.]+\s*", value):
        return float(value)
    when = parsedate_to_datetime(value)
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return (when - datetime.now(UTC)).total_seconds()


def read(read: Callable[[Mapping[str, Any]], T], data: Mapping[str, Any]) -> T:
    """The result of a reader; what a server sends is not to be trusted to have the right form."""
    try:
        return read(data)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise Failure(
            f"the answer is not in the form of the OpenAI API ({type(error).__name__}: {error})",
            status=200,
            usage=_usage(data),
        ) from None


def _usage(data: Mapping[str, Any]) -> Usage:
    """Tokens as the server counted them; what it does not say is 0."""

    def number(source: object, name: str) -> int:
        value = source.get(name) if isinstance(source, dict) else None
        return value if isinstance(value, int) else 0

    usage = data.get("usage")
    if not isinstance(usage, dict):
        return Usage()
    return Usage(
        number(usage, "prompt_tokens"),
        number(usage, "completion_tokens"),
        number(usage.get("prompt_tokens_details"), "cached_tokens"),
        number(usage.get("completion_tokens_details"), "reasoning_tokens"),
    )


def _choice(data: Mapping[str, Any]) -> dict[str, Any]:
    choices = data.get("choices")
    if not choices:
        raise Failure("the answer holds no choices", status=200, usage=_usage(data))
    choice: dict[str, Any] = choices[0]
    if choice.get("finish_reason") in ("error", "abort"):
        raise Failure("the server broke off", status=200, transient=True, usage=_usage(data))
    return choice


def text_reply(data: Mapping[str, Any]) -> Reply:
    """The generated text of a chat or plain completion, and how it ended."""
    choice = _choice(data)
    message = choice.get("message") or {"content": choice.get("text")}
    content, refusal = message.get("content"), message.get("refusal")
    finish = "refusal" if refusal else choice.get("finish_reason") or "stop"
    if content is None and not refusal and finish not in ("length", "content_filter"):
        raise Failure(
            f"the answer holds no text (finish_reason {finish!r})", status=200, usage=_usage(data)
        )
    text = content or refusal or ""
    if not isinstance(text, str):
        raise TypeError("the content is not a string")
    return Reply(
        text=text,
        finish=finish,
        reasoning=message.get("reasoning_content") or message.get("reasoning") or "",
        usage=_usage(data),
        model=data.get("model") or "",
    )


def next_token(data: Mapping[str, Any]) -> tuple[list[tuple[str, float]], Reply]:
    """The likeliest first tokens with their log-probabilities (none if not told), and the reply."""
    choice = _choice(data)
    message = choice.get("message")
    text = (choice.get("text") if message is None else message.get("content")) or ""
    refused = bool(message and message.get("refusal"))
    finish = "refusal" if refused else choice.get("finish_reason") or "stop"
    reply = Reply(text=text, finish=finish, usage=_usage(data), model=data.get("model") or "")
    return _first_top(choice.get("logprobs") or {}), reply


def _first_top(found: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The first token's alternatives; llama.cpp sends the form of chats in completions too."""
    if "content" in found:
        first = next(iter(found["content"] or ()), None) or {}
        return [(top["token"], top["logprob"]) for top in first.get("top_logprobs") or ()]
    first = next(iter(found.get("top_logprobs") or ()), None) or {}
    return list(first.items())


def by_ids(top: Sequence[tuple[str, float]], ids: Mapping[int, str]) -> dict[str, float] | None:
    """Log-probability of every form by the ids of its tokens; None unless all ids came back.

    vLLM writes a token as `token_id:N` when asked to, so that no two of them read the same.
    """
    named = {name.removeprefix("token_id:"): logprob for name, logprob in top}
    if not all(str(number) in named for number in ids):
        return None
    return pooled([(form, named[str(number)]) for number, form in ids.items()], set(ids.values()))


def pooled(top: Sequence[tuple[str, float]], forms: set[str]) -> dict[str, float]:
    """Log-probability of every form among the tokens; tokens that read the same are added up.

    Some servers show the space before a word as their tokenizer's mark for it.
    """
    seen: dict[str, float] = {}
    for token, logprob in top:
        form = token if token in forms else token.replace("Ġ", " ").replace("▁", " ")
        if form not in forms or logprob is None or logprob <= ABSENT:
            continue
        seen[form] = _added(seen[form], logprob) if form in seen else logprob
    return seen


def _added(a: float, b: float) -> float:
    """log(exp(a) + exp(b))."""
    return max(a, b) + math.log1p(math.exp(-abs(a - b)))


def scored(data: Mapping[str, Any], request: Request) -> Reply | None:
    """The target's log-probability, or None where the answer is not about the given text."""
    if "details" in data:
        steps, usage = _detailed_steps(data["details"] or {})
    else:
        choice, usage = _choice(data), _usage(data)
        steps = _echoed_steps(choice, request.prompt + request.target) or _prompt_steps(choice)
    if not steps:
        return None
    offsets, values = steps
    start = _target_start(offsets, len(request.target))
    logprobs = values[start:]
    if any(value is None for value in logprobs):
        raise Failure("a token of the target has no log-probability", status=200)
    return Reply(
        logprob=math.fsum(logprobs),
        tokens=len(logprobs),
        usage=usage,
        model=data.get("model") or "",
    )


Steps = tuple[Sequence[int], Sequence[Any]]
"""Where each token starts, and last where the text ends; each token's log-probability or None."""


def _echoed_steps(choice: Mapping[str, Any], whole: str) -> Steps | None:
    found = choice.get("logprobs") or {}
    names, values = found.get("tokens"), found.get("token_logprobs")
    if not names or not values or not (choice.get("text") or "").endswith(whole):
        return None
    offsets = found.get("text_offset")
    if not offsets or offsets[-1] <= 0:  # SGLang sends -1 throughout.
        return _starts(names), values
    return [*offsets, offsets[-1] + len(names[-1])], values


def _prompt_steps(choice: Mapping[str, Any]) -> Steps | None:
    found = choice.get("prompt_logprobs")
    if not found:
        return None
    # The token itself stands first, likelier ones may follow; the first position has nothing.
    steps = [next(iter(step.values())) if step else {} for step in found]
    return _starts([step.get("decoded_token", "") for step in steps]), [
        step.get("logprob") for step in steps
    ]


def _detailed_steps(found: Mapping[str, Any]) -> tuple[Steps | None, Usage]:
    """Steps and tokens of a reply of TGI's own route."""
    prefill = found.get("prefill") or []
    usage = Usage(len(prefill), found.get("generated_tokens") or 0)
    if not prefill:
        return None, usage
    names = [step["text"] for step in prefill]
    return (_starts(names), [step["logprob"] for step in prefill]), usage


def _starts(names: Sequence[str]) -> list[int]:
    return list(accumulate(map(len, names), initial=0))


def _target_start(offsets: Sequence[int], length: int) -> int:
    """Position of the first token of a target of so many characters at the end of the text.

    Counted from the end, because a begin-of-text token, or a character split over several tokens,
    makes offsets in the prompt larger than they are. A token that begins in the prompt and ends in
    the target belongs to the target.
    """
    boundary = offsets[-1] - length
    start = bisect_left(offsets, boundary)
    return start if offsets[start] == boundary else max(0, start - 1)


def vectors_reply(data: Mapping[str, Any]) -> Reply:
    """The embeddings in the order of the texts: float32 of shape (texts, dimensions)."""
    rows = sorted(data["data"], key=lambda row: row["index"])
    vectors = np.array([row["embedding"] for row in rows], dtype=np.float32)
    return Reply(vectors=vectors, usage=_usage(data), model=data.get("model") or "")
