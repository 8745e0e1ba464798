"""A relevance model behind a server's /score or /rerank route: a cross-encoder, or a causal
reranker that the server runs as a classifier."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import llmrank.backends.tokens as tokens
from llmrank.backends._answers import Failure, read
from llmrank.backends._wire import NoRoute, Wire
from llmrank.backends.crossencoder import LABELS
from llmrank.backends.dialects import ROOT
from llmrank.errors import BackendError, CapabilityError, SpecError
from llmrank.request import Reply, Request, Tokenizer, Want
from llmrank.types import Usage

SCALES = ("probability", "logit")

LEAST = 2.0**-149
"""The smallest number of a server that computes in float32: what its 0 may have been."""


class _Route(NamedTuple):
    """A route, and the body that asks it about a query and one passage."""

    path: str
    body: Callable[[str, str], dict[str, object]]


ROUTES: Mapping[str, _Route] = {
    "score": _Route(f"{ROOT}/score", lambda query, text: {"text_1": query, "text_2": [text]}),
    "rerank": _Route("/rerank", lambda query, text: {"query": query, "documents": [text]}),
    "texts": _Route("/rerank", lambda query, text: {"query": query, "texts": [text]}),
}
"""The dialects in the order in which they are tried: that of vLLM; of Jina, Cohere, vLLM, SGLang
and llama.cpp; of text-embeddings-inference."""


class ScoreBackend:
    """A relevance model on a server, asked about one query and one passage at a time.

    It gets the two as they are, without a prompt of llmrank's, and grades yes or no: p(yes) is the
    server's score where `scale` is `probability`, and its logistic function where it is `logit`
    (llama.cpp sends those). A score that is no probability is an error that says so. `base_url`,
    `api_key` and `timeout` (seconds, for a whole request) are those of `Wire`. Which of the
    `ROUTES` the server has is tried out with the first requests.
    """

    wants: frozenset[Want] = frozenset({"pair"})
    batch = 1

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout: float = 120.0,
        scale: str = "probability",
    ) -> None:
        if scale not in SCALES:
            raise SpecError(f"scale must be {' or '.join(SCALES)}, not {scale!r}")
        self.model, self._scale = model, scale
        self._wire = Wire(base_url, api_key, timeout, model)
        self.route = ""
        """The name of the route that works; empty until one did."""

    @property
    def identity(self) -> str:
        """The model and its server, and how its scores are read."""
        return f"score:{self.model}@{self._wire.url},scale={self._scale}"

    async def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """Replies in the order of the requests, one HTTP call for each, one after another.

        Raises `CapabilityError` where the server has none of the routes, or is asked for more than
        yes or no, and `BackendError` where the key, the account or the model is refused.
        """
        return [await self._one(request) for request in requests]

    async def close(self) -> None:
        """Close the connections."""
        await self._wire.close()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """How the model reads text, as near as is known."""
        return tokens.choose(self.model)

    @property
    def counter(self) -> Tokenizer:
        """The same: no server is asked for it."""
        return self.tokenizer

    async def _one(self, request: Request) -> Reply:
        if request.want != "pair" or tuple(request.labels) != LABELS:
            raise CapabilityError(
                f"{self.identity} grades one passage, yes or no: use the method `yesno`"
            )
        started = time.perf_counter()
        try:
            reply = await self._graded(request)
        except Failure as failure:
            reply = failure.reply()
        return replace(reply, seconds=time.perf_counter() - started)

    async def _graded(self, request: Request) -> Reply:
        refused: Failure | None = None
        reason = ""
        for name in (self.route,) if self.route else ROUTES:
            route = ROUTES[name]
            try:
                data = await self._wire.send(
                    route.path, {"model": self.model, **route.body(*request.texts)}
                )
            except NoRoute as error:
                reason = error.told
                continue
            except Failure as failure:
                if self.route or not failure.rejected:
                    raise
                refused = failure
                continue
            reply = self._reply(request, _read(data), data)
            self.route = name
            return reply
        if refused:
            raise refused
        raise CapabilityError(
            f"{self._wire.url} has no route that scores {self.model} ({reason}): serve it as a "
            "classifier (vLLM: --runner pooling), or ask it for labels (--model openai:...)"
        )

    def _reply(self, request: Request, score: float, data: object) -> Reply:
        if self._scale == "probability":
            if not 0.0 <= score <= 1.0:
                raise BackendError(
                    f"{self._wire.url} sent the score {score:g}, which is no probability; if it "
                    f"sends logits, write score:{self.model},scale=logit"
                )
            yes, no = (math.log(max(part, LEAST)) for part in (score, 1.0 - score))
        else:
            yes, no = -_softplus(-score), -_softplus(score)
        forms = request.labels
        return Reply(
            label_logprobs={forms["yes"][0]: yes, forms["no"][0]: no},
            usage=_usage(data),
            model=str(data.get("model") or "") if isinstance(data, dict) else "",
        )


def _read(data: object) -> float:
    """The only score of an answer: of /score, of the rerank APIs, or of a bare list of rows."""

    def score(found: Mapping[str, Any]) -> float:
        (row,) = found.get("data") or found["results"]
        value = row.get("score", row.get("relevance_score"))
        if isinstance(value, bool) or not math.isfinite(value):
            raise ValueError(f"the score is {value}")
        return float(value)

    return read(score, data if isinstance(data, dict) else {"results": data})


def _usage(data: object) -> Usage:
    """Tokens as the server counted them; what it does not say is 0."""
    told = data.get("usage") if isinstance(data, dict) else None
    counts = told if isinstance(told, dict) else {}
    used = counts.get("prompt_tokens") or counts.get("total_tokens")
    return Usage(prompt_tokens=used if isinstance(used, int) else 0)


def _softplus(x: float) -> float:
    """log(1 + exp(x))."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))
