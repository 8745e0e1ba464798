"""A judge that answers from relevance judgements: perfect, or with stated noise and bias."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random

from llmrank.backends.tokens import Estimate
from llmrank.backends.wrappers import expected_usage
from llmrank.errors import InputError
from llmrank.plan import Attend, Grade, Likelihood, Order, Pick, Write
from llmrank.request import Reply, Request, Tokenizer, Want
from llmrank.types import Document, Query, Usage

SHARPNESS = 4.0
"""How sure an oracle's probabilities are of a difference of 1 in utility, in nats."""


class Oracle:
    """Answers every ask from grades; unjudged documents count as grade 0.

    The utility of a document is its grade over the highest grade of the judgements, plus noise of
    deviation `noise` of which the share `fixed` belongs to query and document (the judge errs the
    same way each time) and the rest is drawn anew for every request, minus `bias` times how far
    down the document is shown (0 to 1). Without judgements it keeps every order as shown, which is
    what an estimate needs.
    """

    wants: frozenset[Want] = frozenset({"text", "labels", "likelihood", "attention"})
    batch = 1
    tokenizer: Tokenizer = Estimate()
    counter: Tokenizer = tokenizer

    def __init__(
        self,
        qrels: Mapping[str, Mapping[str, int]],
        *,
        noise: float = 0.0,
        fixed: float = 0.5,
        bias: float = 0.0,
        seed: int = 0,
        name: str = "",
    ) -> None:
        if not (math.isfinite(noise) and math.isfinite(bias) and noise >= 0 and 0 <= fixed <= 1):
            raise InputError("an oracle needs noise >= 0, 0 <= fixed <= 1 and a finite bias")
        self._qrels = qrels
        self._noise, self._fixed, self._bias, self._seed = noise, fixed, bias, seed
        top = max((grade for judged in qrels.values() for grade in judged.values()), default=1)
        self._top = max(1, top)
        self._name = name or _digest(qrels)

    @property
    def identity(self) -> str:
        """The judgements and the settings."""
        settings = f"noise={self._noise},fixed={self._fixed},bias={self._bias}"
        return f"oracle:{self._name},{settings},seed={self._seed}"

    async def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """Replies in the order of the requests."""
        return [self._one(request) for request in requests]

    async def close(self) -> None:
        """Nothing to let go of."""

    def _one(self, request: Request) -> Reply:
        ask = request.ask
        usage = Usage(expected_usage(request, self.counter.count).prompt_tokens)
        if isinstance(ask, Order | Pick | Attend):
            return self._among(request, ask, usage)
        if isinstance(ask, Grade):
            utility = self._utility(request, ask.query, ask.doc, 0.0)
            logprobs = _label_logprobs(utility, request.labels)
            return Reply(label_logprobs=logprobs, usage=usage, model="oracle")
        if isinstance(ask, Likelihood):
            logprob = self._utility(request, ask.query, ask.doc, 0.0) - 10.0
            tokens = max(1, len(ask.query.text.split()))
            return Reply(logprob=logprob, tokens=tokens, usage=usage, model="oracle")
        if isinstance(ask, Write):
            return Reply(text="a text that answers", usage=usage, model="oracle")
        return Reply(error=f"an oracle cannot answer {type(ask).__name__}")

    def _among(self, request: Request, ask: Order | Pick | Attend, usage: Usage) -> Reply:
        """The documents compared with each other."""
        steps = max(1, len(ask.docs) - 1)
        utilities = [
            self._utility(request, ask.query, doc, i / steps) for i, doc in enumerate(ask.docs)
        ]
        if isinstance(ask, Attend):
            return Reply(attention=tuple(utilities), usage=usage, model="oracle")
        if request.want == "labels":
            forms = (forms[0] for forms in request.labels.values())
            logprobs = log_softmax([SHARPNESS * utility for utility in utilities])
            found = dict(zip(forms, logprobs, strict=True))
            return Reply(label_logprobs=found, usage=usage, model="oracle")
        best = sorted(range(len(ask.docs)), key=lambda i: (-utilities[i], i))
        if isinstance(ask, Pick):
            chain = ", ".join(chr(ord("A") + i) for i in best[: ask.n])
        else:
            chain = " > ".join(f"[{i + 1}]" for i in best)
        usage = replace(usage, completion_tokens=self.counter.count(chain))
        return Reply(text=chain, usage=usage, model="oracle")

    def _utility(self, request: Request, query: Query, doc: Document, depth: float) -> float:
        grade = grade_of(self._qrels.get(query.id, {}), doc.id) / self._top
        utility = max(0.0, grade) - self._bias * depth
        if not self._noise:
            return utility
        own = Random(f"{self._seed}/{query.id}/{doc.id}").gauss(0, 1)
        fresh = Random(f"{self._seed}/{request.key('oracle')}/{doc.id}").gauss(0, 1)
        noise = math.sqrt(self._fixed) * own + math.sqrt(1 - self._fixed) * fresh
        return utility + self._noise * noise


def grade_of(judged: Mapping[str, int], doc_id: str) -> int:
    """The grade of a document, or of the one that a passage `document#1` belongs to; else 0."""
    return judged.get(doc_id, judged.get(doc_id.rpartition("#")[0], 0))


def _label_logprobs(utility: float, labels: Mapping[str, tuple[str, ...]]) -> dict[str, float]:
    """Labels stand best first; each is the likelier, the nearer its level is to the utility."""
    levels = [1 - i / max(1, len(labels) - 1) for i in range(len(labels))]
    logprobs = log_softmax([-SHARPNESS * (utility - level) ** 2 for level in levels])
    return {forms[0]: value for forms, value in zip(labels.values(), logprobs, strict=True)}


def log_softmax(scores: Sequence[float]) -> list[float]:
    """Logarithms of the probabilities that are proportional to exp(score)."""
    # Without the largest taken out first, a score far from 0 would underflow.
    top = max(scores)
    norm = top + math.log(math.fsum(math.exp(score - top) for score in scores))
    return [score - norm for score in scores]


def _digest(qrels: Mapping[str, Mapping[str, int]]) -> str:
    rows = sorted((q, d, grade) for q, judged in qrels.items() for d, grade in judged.items())
    return hashlib.sha256(repr(rows).encode()).hexdigest()[:12]
