"""A server that speaks the OpenAI API: OpenAI itself, Azure, vLLM, SGLang, llama.cpp, Ollama ..."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import llmrank.backends.tokens as tokens
from llmrank.backends._answers import (
    Failure,
    by_ids,
    next_token,
    pooled,
    read,
    scored,
    text_reply,
    vectors_reply,
)
from llmrank.backends._wire import NoRoute, Wire
from llmrank.backends.dialects import (
    CHAT,
    COMPLETIONS,
    DIALECTS,
    EMBEDDINGS,
    IDS,
    LIKELIHOOD,
    MOST_IDS,
    THINKING_OFF,
    UNKNOWN,
    Dialect,
)
from llmrank.backends.wrappers.base import side_by_side
from llmrank.errors import CapabilityError, SpecError
from llmrank.request import Reply, Request, Tokenizer, Want

_LOGPROBS = re.compile(r"log_?prob|top_n_tokens")
_LIMIT = re.compile(r"max_(completion_)?tokens")
_NOT_TAKEN = re.compile(r"support|unrecogni[sz]ed|unknown|unexpected|extra|not permitted")


@dataclass(frozen=True, slots=True, kw_only=True)
class Learnt:
    """What is known of a server beyond its dialect; empty is not known yet.

    `limit` is the field that limits a chat reply, `unsent` are parameters that the server refuses.
    `labels` maps the route to the way of getting label probabilities that works, `likelihood` is
    the way of scoring a given text, `thinking` what keeps a reasoning model from thinking: names in
    `llmrank.backends.dialects`.
    `version` is what the server says of itself, `context` how many tokens a prompt and its reply
    may have together, and `tokenizes` whether the server's tokenizer can be asked.
    """

    dialect: str = UNKNOWN
    version: str = ""
    limit: str = ""
    unsent: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    likelihood: str = ""
    thinking: str = ""
    context: int | None = None
    tokenizes: bool = False


class OpenAIBackend:
    """A model behind an OpenAI-compatible server, asked one HTTP request at a time.

    `base_url`, `api_key` and `timeout` (seconds, for a whole request) are those of `Wire`.
    `dialect` names the kind of server where its address does not tell and nobody probes it.
    `tokenizer` is a folder or hub id with the model's tokenizer, and `context` the tokens that a
    prompt and its reply may have together, where the server tells neither. A reasoning model is
    kept from thinking where a probe found out how and the request leaves no room for it.
    """

    wants: frozenset[Want] = frozenset({"text", "labels", "likelihood", "vectors"})
    batch = 1

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout: float = 120.0,
        dialect: str = "",
        tokenizer: str = "",
        context: int = 0,
    ) -> None:
        if dialect and dialect not in DIALECTS:
            raise SpecError(f"no dialect {dialect!r}; the dialects are: {', '.join(DIALECTS)}")
        self.model = model
        self.wire = Wire(base_url, api_key, timeout, model)
        self.wire.dialect = dialect or self.wire.dialect
        self.url = self.wire.url
        """Where the server is, without credentials."""
        self.learnt = Learnt(dialect=self.wire.dialect)
        self._folder, self._context = tokenizer, context or None
        self._ids: dict[str, tuple[int, ...]] = {}
        self._tokenizes = True
        self._tokenizing = asyncio.Lock()

    def __repr__(self) -> str:
        return f"OpenAIBackend({self.identity!r})"

    @property
    def identity(self) -> str:
        """The model and its server, and whether it is kept from thinking where it need not."""
        quiet = "#thinking=off" if self._quiet else ""
        return f"openai:{self.model}@{self.url}{quiet}"

    @property
    def dialect(self) -> Dialect:
        """What this kind of server takes."""
        return DIALECTS[self.learnt.dialect]

    @property
    def _quiet(self) -> Mapping[str, object]:
        """What keeps the model from thinking, if that is known."""
        return THINKING_OFF.get(self.learnt.thinking, {})

    def adopt(self, learnt: Learnt) -> None:
        """Use what a probe found out."""
        before, self.learnt = self.learnt, learnt
        if (learnt.context, learnt.tokenizes) != (before.context, before.tokenizes):
            self.__dict__.pop("tokenizer", None)

    def _learn(self, **found: Any) -> None:  # noqa: ANN401 - fields of Learnt
        self.learnt = replace(self.learnt, **found)

    async def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """Replies in the order of the requests, one HTTP call for each.

        Raises `CapabilityError` where the server cannot give what a request wants, and
        `BackendError` where the key, the account or the model is refused.
        """
        return await side_by_side([self._one(request) for request in requests])

    async def close(self) -> None:
        """Close the connections."""
        await self.wire.close()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """How the model reads text: the most exact that is known of, the server's own included."""
        url, key = self.wire.account if self.learnt.tokenizes else ("", "")
        context = self._context or self.learnt.context
        return tokens.choose(self.model, folder=self._folder, served=url, key=key, context=context)

    @cached_property
    def counter(self) -> Tokenizer:
        """The same as far as no server has to be asked."""
        return tokens.choose(self.model, folder=self._folder)

    async def send(self, path: str, body: Mapping[str, object] | None = None) -> dict[str, Any]:
        """One HTTP call as `Wire.send`, for routes that answer with a JSON object."""
        data = await self.wire.send(path, body)
        if not isinstance(data, dict):
            told = f"an error: {self.url} answered with something that is no JSON object"
            raise Failure(told, status=200, transient=True)
        return data

    async def _one(self, request: Request) -> Reply:
        started = time.perf_counter()
        try:
            if request.want == "text":
                reply = await self.text(request)
            elif request.want == "labels":
                reply = await self._labels(request)
            elif request.want == "likelihood":
                reply = await self._likelihood(request)
            else:
                reply = await self._vectors(request)
        except Failure as failure:
            reply = failure.reply()
        return replace(reply, seconds=time.perf_counter() - started)

    async def text(self, request: Request, wish: Mapping[str, object] | None = None) -> Reply:
        """The generated text; `wish` goes into the body beside what the request says."""
        return read(text_reply, await self._ask(request, request.params.max_tokens, wish or {}))

    async def _ask(
        self, request: Request, max_tokens: int, wish: Mapping[str, object]
    ) -> dict[str, Any]:
        """The server's answer; a parameter that it refuses is left out from then on."""
        path = CHAT if request.messages else COMPLETIONS
        while True:
            body = {**self._body(request, max_tokens), **wish}
            try:
                return await self.send(path, body)
            except Failure as failure:
                if not (failure.rejected and self._adapts(str(failure).lower(), body)):
                    raise

    def _adapts(self, said: str, body: Mapping[str, object]) -> bool:
        """Learn from a refusal which field not to send; whether to ask again."""
        if not _NOT_TAKEN.search(said):
            return False
        if "temperature" in said and "temperature" in body:
            self._learn(unsent=("temperature",))
            return True
        if not ("messages" in body and _LIMIT.search(said)):
            return False
        if self.limit in body:
            others = [name for name in self.dialect.limits if name not in body]
            if self.learnt.limit or not others:
                return False
            self._learn(limit=others[0])
        return True

    @property
    def limit(self) -> str:
        """The field that limits the length of a chat reply."""
        return self.learnt.limit or self.dialect.limits[0]

    def _body(self, request: Request, max_tokens: int) -> dict[str, object]:
        """What is common to chat and completions; parameters at their defaults stay out."""
        params = request.params
        body: dict[str, object] = {"model": self.model, "temperature": params.temperature}
        if request.messages:
            body["messages"] = [{"role": m.role, "content": m.content} for m in request.messages]
            body |= {} if params.thinking else self._quiet
        else:
            body["prompt"] = request.prompt
        body[self.limit if request.messages else "max_tokens"] = max_tokens
        if params.top_p != 1.0:
            body["top_p"] = params.top_p
        if params.sent_stops:
            most = self.dialect.most_stops
            if most is not None and len(params.sent_stops) > most:
                raise CapabilityError(f"{self.url} takes at most {most} stop sequences")
            body["stop"] = list(params.sent_stops)
        if params.seed is not None:
            body["seed"] = params.seed
        return {name: value for name, value in body.items() if name not in self.learnt.unsent}

    async def _labels(self, request: Request) -> Reply:
        path = CHAT if request.messages else COMPLETIONS
        known, ways = self.learnt.labels.get(path), self.dialect.labels
        refused, tried = "", True
        for way in ways[ways.index(known) :] if known in ways else ways:
            try:
                found = await self.labels_by(way, request)
            except Failure as failure:
                if not (failure.rejected and _LOGPROBS.search(str(failure).lower())):
                    raise
                refused = f" ({failure})"
                continue
            if found is None:
                # Labels that are no single tokens say nothing about the server.
                tried = not (way == IDS and self._tokenizes) or bool(await self._label_ids(request))
                continue
            if tried and found.finish not in ("refusal", "content_filter"):
                self._learn(labels={**self.learnt.labels, path: way})
            return found
        if known:
            raise Failure(f"the answer holds no log-probabilities{refused}", status=200)
        raise CapabilityError(
            f"{self.url} returns no log-probabilities for {self.model}{refused}: ask a method that "
            "reads text (listwise), or a server that returns them (vLLM, SGLang, llama.cpp)"
        )

    async def labels_by(self, way: str, request: Request) -> Reply | None:
        """Log-probabilities of the labels, asked for in one way of the dialect.

        None where the server answered without them, or where no label is a single token.
        """
        ids: dict[int, str] = {}
        if way == IDS:
            ids = await self._label_ids(request)
            if not 0 < len(ids) <= MOST_IDS:
                return None
            wish: dict[str, object] = {
                "logprobs": True if request.messages else 1,
                "logprob_token_ids": list(ids),
                "return_tokens_as_token_ids": True,
            }
        else:
            count = int(way.removeprefix("top-"))
            wish = {"logprobs": True, "top_logprobs": count}
            if not request.messages:
                wish = {"logprobs": count}
        data = await self._ask(request, 1, {**wish, **self.dialect.firm})
        return read(lambda answered: self._labelled(answered, request, ids), data)

    @staticmethod
    def _labelled(
        answered: Mapping[str, Any], request: Request, ids: Mapping[int, str]
    ) -> Reply | None:
        top, reply = next_token(answered)
        if reply.finish in ("refusal", "content_filter"):
            return reply
        if ids:
            exact = by_ids(top, ids)
            return None if exact is None else replace(reply, text="", label_logprobs=exact)
        if not top:
            return None
        forms = {form for forms in request.labels.values() for form in forms}
        return replace(reply, label_logprobs=pooled(top, forms))

    async def _label_ids(self, request: Request) -> dict[int, str]:
        """The forms that are one token, by its id; two forms of one id are counted once."""
        found: dict[int, str] = {}
        async with self._tokenizing:
            for forms in request.labels.values():
                for form in forms:
                    if self._tokenizes and form not in self._ids:
                        self._ids[form] = await self._single_ids(form)
                    for number in self._ids.get(form, ()):
                        found.setdefault(number, form)
        return found

    async def _single_ids(self, form: str) -> tuple[int, ...]:
        """Ids that the form has as one token, at the start of a text and after a line break.

        Tokenizers that put a space before a text have two ids for a word.
        """
        try:
            alone = await self.encode(form)
            line, after = await self.encode("\n"), await self.encode(f"\n{form}")
        except CapabilityError:
            self._tokenizes = False
            return ()
        found = alone if len(alone) == 1 else []
        if after[:-1] == line:
            found = [*found, after[-1]]
        return tuple(dict.fromkeys(found))

    async def encode(self, text: str) -> list[int]:
        """Token ids of a text by the server's own tokenizer, without special tokens.

        Raises `CapabilityError` where it has no route for that.
        """
        tokenizer = self.dialect.tokenizer
        if tokenizer is None:
            raise CapabilityError(f"{self.url} ({self.learnt.dialect}) has no tokenizer route")
        body = {"model": self.model, tokenizer.field: text, **tokenizer.more}
        try:
            data = await self.wire.send(tokenizer.path, body)
        except (NoRoute, Failure) as error:
            if isinstance(error, Failure) and not error.rejected:
                raise
            raise CapabilityError(f"{self.url} does not tokenize ({error})") from None
        rows = data.get("tokens") if isinstance(data, dict) else data
        if not isinstance(rows, list):
            raise CapabilityError(f"{self.url} does not tokenize: it sent no tokens")
        return [int(row["id"] if isinstance(row, dict) else row) for row in rows]

    async def _likelihood(self, request: Request) -> Reply:
        known, gone = self.learnt.likelihood, ""
        reason = f"{self.learnt.dialect} has no route for it"
        for name in (known,) if known else self.dialect.likelihood:
            if (path := LIKELIHOOD[name].path) == gone:
                continue
            try:
                reply = await self.score(request, name)
            except NoRoute as error:
                reason, gone = str(error), path
                continue
            except Failure as failure:
                if known or not failure.rejected:
                    raise
                reason = str(failure)
                continue
            if reply is not None:
                self._learn(likelihood=name)
                return reply
            reason = "it ignores `echo` and `prompt_logprobs`"
        raise CapabilityError(
            f"{self.url} cannot score a given text with {self.model}: {reason}. Query likelihood "
            "works with vLLM's completions, or with a local model (--model local)"
        )

    async def score(self, request: Request, name: str) -> Reply | None:
        """Log-probability of the target after the prompt, asked for in one way of `LIKELIHOOD`.

        None where the server answered but not with the log-probabilities of the given text.
        """
        if request.messages:
            raise CapabilityError(
                "a server scores a given text after a plain-text prompt only: for query likelihood "
                "use a prompt template without chat messages"
            )
        way = LIKELIHOOD[name]
        common: dict[str, object] = {} if way.native else {"model": self.model, "temperature": 0.0}
        body = {**common, way.text: request.prompt + request.target, **way.body}
        data = await self.wire.send(way.path, body)
        answered = data[0] if isinstance(data, list) and data else data
        return read(lambda found: scored(found, request), answered)

    async def embed(self, request: Request) -> Reply:
        """The embeddings of the request's texts."""
        texts = list(request.texts)
        body = {"model": self.model, "input": texts, "encoding_format": "float"}
        return read(vectors_reply, await self.send(EMBEDDINGS, body))

    async def _vectors(self, request: Request) -> Reply:
        try:
            return await self.embed(request)
        except (NoRoute, Failure) as error:
            rejected = isinstance(error, Failure) and error.rejected
            if isinstance(error, Failure) and not (rejected and "support" in str(error).lower()):
                raise
            raise CapabilityError(
                f"{self.url} gives no embeddings with {self.model} ({error}): "
                "name an embedding model, or a server that runs one"
            ) from None
