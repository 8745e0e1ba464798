"""PromptReps: dense and sparse representations of a text from one prompt to a causal model.

The model is asked for the one word that a text is about and reads up to where that word begins. Its
hidden state there is the dense representation, its scores of the next token are the sparse one.
Zhuang et al. 2024, arXiv 2404.18424.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmrank.backends._batching import batches
from llmrank.backends.local import LocalBackend, Tokens
from llmrank.errors import BackendError, CapabilityError, SpecError
from llmrank.plan import Embed, Vectors
from llmrank.request import Message, Reply, Request, Want
from llmrank.types import Usage

if TYPE_CHECKING:
    import torch

Terms = Mapping[str, int]
"""Tokens, as the model's vocabulary writes them, and their weights."""

PROMPTS: Mapping[str, str] = {
    "query": 'Search query: "{text}"\n\nWhich single word says best what this query looks for? '
    "Write the word in lower case.",
    "document": 'Text: "{text}"\n\nWhich single word says best what this text is about, so that a '
    "search finds it? Write the word in lower case.",
}
"""What the model is asked, by role; the wording is llmrank's."""

OPENING = 'The single word is: "'
"""How the model's reply begins; the word comes next."""

MOST_TERMS = 128
"""Tokens of a text that are kept, the strongest."""

FALLBACK_TERMS = 10
"""Tokens of the vocabulary that stand for a text of stop words and punctuation alone."""

SCALE = 100
"""A weight is an integer, this many times log(1 + relu(score))."""

_SLOT = "{text}"
_WORD = re.compile(r"[^\W_]+")


class Representations(NamedTuple):
    """Both representations of several texts, in their order.

    `vectors` are float32 of length 1, shape (texts, dimensions); the relevance of a document to a
    query is the inner product of their vectors, or that of their terms.
    """

    vectors: Vectors
    terms: tuple[Terms, ...]


class PromptReps(LocalBackend):
    """An encoder made of a causal model, on the CPU or a GPU, without training.

    `model` is named as for `LocalBackend`; the paper's are instruction-tuned, and a model without a
    chat template reads the same words as plain text. Of a text the first `length` tokens are read,
    fewer where the model has less room; its reply counts the texts cut. In float32 a vector does
    not depend on what else is in its batch (to 1e-5); in bfloat16 it does.
    """

    kind = "promptreps"
    wants: frozenset[Want] = frozenset({"vectors"})

    def __init__(
        self, model: str = "", *, dtype: str = "float32", device: str = "", length: int = 512
    ) -> None:
        if length < 1:
            raise SpecError("length must be at least 1 token")
        super().__init__(model, dtype=dtype, device=device)
        self._length = length

    @property
    def identity(self) -> str:
        """The model, how much of a text it reads, and the wording of the prompts."""
        wording = repr([sorted(PROMPTS.items()), OPENING])
        asked = hashlib.sha256(wording.encode()).hexdigest()[:8]
        return f"{super().identity},length={self._length},prompt={asked}"

    async def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """Dense vectors of the texts of every request; computes while the caller waits."""
        self._check_wants(requests)
        single = [replace(r, texts=(text,)) for r in requests for text in r.texts]
        replies = iter(await super().answer(single))
        return [self._joined([next(replies) for _ in request.texts]) for request in requests]

    def represent(self, texts: Sequence[str], *, role: str) -> Representations:
        """Dense and sparse representations of texts, `role` being query or document.

        The terms are tokens of the words of a text, lower-cased and without English stop words:
        the 128 strongest, or the 10 strongest of the vocabulary where no word is left. A blank text
        has none. Raises `BackendError` where the model computes no numbers.
        """
        ask = Embed(tuple(texts), role=role)
        rows = [self._row(Request(ask=ask, want="vectors", texts=(t,), role=role)) for t in texts]
        for problem in filter(None, map(self._refused, rows)):
            raise BackendError(problem)
        found: dict[int, tuple[Vectors, Terms]] = {}
        for batch in batches(range(len(rows)), rows, self._budget):
            vectors, scores = self._read([rows[i] for i in batch])
            if not np.isfinite(vectors).all():
                raise BackendError(self._overflow().error)
            terms = map(self._terms, (texts[i] for i in batch), scores.cpu().numpy())
            found |= dict(zip(batch, zip(vectors, terms, strict=True), strict=True))
        pairs = [found[i] for i in range(len(texts))]
        return Representations(self._stacked([v for v, _ in pairs]), tuple(t for _, t in pairs))

    @property
    def _compute(self) -> Mapping[Want, Callable[[Sequence[Tokens]], list[Reply]]]:
        return {"vectors": self._vectors}

    def _row(self, request: Request) -> Tokens:
        if request.role not in self._frames:
            raise SpecError(f"the role of a text is query or document, not {request.role!r}")
        before, after = self._frames[request.role]
        ids = self._literal(request.texts[0].strip())
        room = max(0, min(self._length, self.context - len(before) - len(after)))
        cut = replace(request, cut=int(len(ids) > room))
        return Tokens(cut, [*before, *ids[:room], *after], [])

    @cached_property
    def _frames(self) -> Mapping[str, tuple[list[int], list[int]]]:
        """What the model reads before and after a text, by role."""
        return {role: self._framed(prompt) for role, prompt in PROMPTS.items()}

    def _framed(self, prompt: str) -> tuple[list[int], list[int]]:
        if self._tokenizer.chat_template:
            parts = self._chat_text([Message("user", prompt)]).split(_SLOT)
            if len(parts) != 2:
                raise CapabilityError(f"the chat template of {self.name} changes messages")
            return self._ids(parts[0]), self._ids(parts[1] + OPENING)
        before, after = prompt.split(_SLOT)
        return list(self._tokenizer(before)["input_ids"]), self._ids(f"{after}\n\n{OPENING}")

    def _literal(self, text: str) -> list[int]:
        """Token ids of a text from outside: the name of a control token in it is mere letters."""
        encoded = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        return list(encoded["input_ids"])

    def _vectors(self, rows: Sequence[Tokens]) -> list[Reply]:
        return [
            Reply(
                vectors=vector[None],
                usage=Usage(prompt_tokens=len(row.prompt)),
                cut=row.request.cut,
            )
            if np.isfinite(vector).all()
            else self._overflow()
            for row, vector in zip(rows, self._read(rows)[0], strict=True)
        ]

    def _read(self, rows: Sequence[Tokens]) -> tuple[Vectors, torch.Tensor]:
        """Vectors of rows, and the scores of the next token: (rows, vocab)."""
        import torch

        # What enters the output layer is kept, as all hidden states of all layers would fill a GPU.
        entered: list[torch.Tensor] = []
        output: Any = self._model.get_output_embeddings()
        hook = output.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
        try:
            scores = self._next_logits(rows, 1)[:, -1]
        finally:
            hook.remove()
        vectors = torch.nn.functional.normalize(entered[0][:, -1].float(), dim=-1)
        return vectors.cpu().numpy(), scores

    def _terms(self, text: str, scores: NDArray[np.float32]) -> Terms:
        """The sparse representation of a text, given the scores of the next token: (vocab,)."""
        if not text.strip():
            return {}
        tokens, most = np.fromiter(self._tokens_of(text), np.intp), MOST_TERMS
        if not tokens.size:
            tokens, most = np.arange(len(scores)), FALLBACK_TERMS
        strongest = tokens[np.lexsort((tokens, -scores[tokens]))[:most]]
        weights = np.rint(SCALE * np.log1p(np.maximum(scores[strongest], 0))).astype(int)
        names = self._tokenizer.convert_ids_to_tokens(strongest.tolist())
        weighed = zip(names, weights.tolist(), strict=True)
        return {name: weight for name, weight in weighed if weight}

    def _tokens_of(self, text: str) -> Iterator[int]:
        """The different tokens of a text's words, lower-cased and without stop words."""
        words = dict.fromkeys(_WORD.findall(text.lower()))
        told = [word for word in words if word not in _stop_words()]
        tokens = dict.fromkeys(token for word in told for token in self._literal(word))
        return (token for token in tokens if token != self._tokenizer.unk_token_id)

    def _joined(self, replies: Sequence[Reply]) -> Reply:
        """The reply to a request, from those to its texts."""
        for reply in replies:
            if reply.error:
                return reply
        return Reply(
            vectors=self._stacked([r.vectors[0] for r in replies if r.vectors is not None]),
            usage=Usage(prompt_tokens=sum(reply.usage.prompt_tokens for reply in replies)),
            model=self.name,
            seconds=sum(reply.seconds for reply in replies),
            cut=sum(reply.cut for reply in replies),
        )

    def _stacked(self, vectors: Sequence[Vectors]) -> Vectors:
        dimensions = self._model.get_output_embeddings().weight.shape[1]
        return np.asarray(vectors, np.float32).reshape(len(vectors), dimensions)


@cache
def _stop_words() -> frozenset[str]:
    """NLTK's English stop words, the pieces of contractions among them."""
    from bm25s.stopwords import STOPWORDS_EN_PLUS  # type: ignore[import-untyped, unused-ignore]

    return frozenset(STOPWORDS_EN_PLUS)
