"""What goes to a backend and what comes back: requests, replies and the backend protocol."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from llmrank.plan import Ask, Vectors
from llmrank.types import Usage

Want = Literal["text", "labels", "pair", "likelihood", "attention", "vectors"]
"""What a request wants back: generated text, log-probabilities of labels as the next token, those
of the labels for a query and a passage without a prompt, the log-probability of a given
continuation, attention masses of documents, or embeddings."""

KEY_VERSION = 1


class Message(NamedTuple):
    """One turn of a chat."""

    role: str
    content: str


class Span(NamedTuple):
    """Characters `start` to `end` of message `turn`; of a prompt without messages that is 0."""

    turn: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Params:
    """Sampling parameters.

    `thinking` of the `max_tokens` are for what a reasoning model thinks before it answers; with 0
    it is kept from that where it is known how.
    """

    max_tokens: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    thinking: int = 0

    @property
    def sent_stops(self) -> tuple[str, ...]:
        """The stop sequences for the model: none where they could end a thought."""
        return () if self.thinking else self.stop


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One rendered ask. Exactly one of `messages`, `prompt` and `texts` is filled.

    `texts` are what to embed, or the query and the passage of a pair. `target` is the continuation
    to score, `labels` the surface forms of every label (each form one token), `cut` the number of
    passages shortened; `spans` are where the passages and last the query stand, for attention.
    `ask` is for judges that need no model, and `subject` holds the ids that such a judge goes by,
    which texts do not tell apart.
    """

    ask: Ask[Any]
    want: Want
    messages: tuple[Message, ...] = ()
    prompt: str = ""
    texts: tuple[str, ...] = ()
    role: str = ""
    target: str = ""
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    params: Params = Params()
    spans: tuple[Span, ...] = ()
    sample: int = 0
    subject: tuple[str, ...] = ()
    cut: int = 0

    def key(self, identity: str) -> str:
        """Content address: SHA-256 of all that determines the reply of the backend `identity`."""
        content = [
            KEY_VERSION,
            identity,
            self.want,
            self.messages,
            self.prompt,
            self.texts,
            self.role,
            self.target,
            sorted((name, list(forms)) for name, forms in self.labels.items()),
            [
                self.params.max_tokens,
                self.params.temperature,
                self.params.top_p,
                self.params.stop,
                self.params.seed,
            ],
            self.sample,
        ]
        content += [extra for extra in (self.spans, self.subject, self.params.thinking) if extra]
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def characters(self) -> int:
        """Length of everything that is sent, in characters."""
        sent = sum(len(m.content) for m in self.messages) + sum(map(len, self.texts))
        return sent + len(self.prompt) + len(self.target)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a backend sent back, before anything is read into it.

    A non-empty `error` means that there is no reply, `fault` is its kind in a word or two, and most
    other fields are then meaningless.
    `unasked` says which cap kept the request from being sent; `key` is set where answers
    are kept. `label_logprobs` holds the log-probability of every surface form that the backend
    reported; forms it did not report are absent. `logprob` is the sum over the target's `tokens`;
    `attention` has one calibrated mass per document. `cut` is the number of passages that the
    backend shortened to fit the model. `throttled` marks an error of too much at once (429, 503, no
    answer in time); `retry_after` is for how many seconds the server wants nothing more, which it
    may also say with an answer.
    """

    text: str = ""
    finish: str = "stop"
    reasoning: str = ""
    label_logprobs: Mapping[str, float] = field(default_factory=dict)
    logprob: float | None = None
    tokens: int = 0
    attention: tuple[float, ...] | None = None
    vectors: Vectors | None = None
    usage: Usage = Usage()
    model: str = ""
    seconds: float = 0.0
    error: str = ""
    transient: bool = False
    throttled: bool = False
    retry_after: float | None = None
    fault: str = ""
    unasked: str = ""
    key: str = ""
    reused: bool = False
    cut: int = 0


class Backend(Protocol):
    """Whatever answers requests: a server, a model in this process, a judge, or a wrapper.

    `identity` names the model so that equal requests have equal answers: it is part of every key in
    the journal. `wants` lists what it can be asked for. `batch` is how many requests it takes best
    in one call; 1 means that many single calls should be in flight at once.
    """

    @property
    def identity(self) -> str:
        """Name of the model and of where it runs."""
        ...

    @property
    def wants(self) -> frozenset[Want]:
        """What requests to this backend may want."""
        ...

    @property
    def batch(self) -> int:
        """Requests per call that suit it best."""
        ...

    async def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply per request, in their order.

        An error of one request is a `Reply` with `error`; raises `BackendError` where no request
        can succeed (wrong key, unknown model).
        """
        ...

    async def close(self) -> None:
        """Let go of connections and threads."""
        ...


class Tokenizer(Protocol):
    """How a model reads text; `llmrank.backends.tokens` has what there is.

    `counting` says in words how tokens are counted, `context` how many prompt and reply may have
    together (None where that is not known), and `remote` whether a server is asked for it.
    """

    @property
    def counting(self) -> str:
        """How tokens are counted, in words."""
        ...

    @property
    def context(self) -> int | None:
        """The most tokens of a prompt and its reply; None where that is not known."""
        ...

    @property
    def remote(self) -> bool:
        """Whether counting waits for a server."""
        ...

    def count(self, text: str) -> int:
        """Tokens of a text."""
        ...

    def chat(self, messages: Sequence[Message]) -> int:
        """Tokens of a chat, with all that stands around its messages."""
        ...

    def head(self, text: str, tokens: int) -> str:
        """The beginning of a text up to where its first `tokens` tokens end."""
        ...

    def tail(self, text: str, tokens: int) -> str:
        """The end of a text from where its last `tokens` tokens begin."""
        ...


class Model(Backend, Protocol):
    """A backend that knows how its model reads text."""

    @property
    def tokenizer(self) -> Tokenizer:
        """How the model reads text, as exactly as can be known."""
        ...

    @property
    def counter(self) -> Tokenizer:
        """The same as far as no server has to be asked."""
        ...
