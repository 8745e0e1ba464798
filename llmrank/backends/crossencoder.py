"""A cross-encoder in this process: a classifier, run by transformers, that reads a query and a
passage together and says how relevant the passage is."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from llmrank.backends.local import InProcess
from llmrank.errors import BackendError, CapabilityError, SpecError
from llmrank.plan import Grade
from llmrank.request import Reply, Request, Want
from llmrank.types import Usage

if TYPE_CHECKING:
    import torch

LABELS = ("yes", "no")
EXAMPLE = "cross:cross-encoder/ms-marco-MiniLM-L6-v2"
STATED = 1_000_000
"""A tokenizer that knows no limit names a far larger one."""


class _Pair(NamedTuple):
    """A query and a passage as the tokenizer encodes them together."""

    request: Request
    encoded: Mapping[str, list[int]]
    shortened: bool

    @property
    def width(self) -> int:
        """Tokens of both, the separators included."""
        return len(self.encoded["input_ids"])


class CrossEncoderBackend(InProcess[_Pair]):
    """A sequence classifier such as monoBERT or ms-marco-MiniLM, on the CPU or a GPU.

    `model` is a folder or a model id of the Hugging Face hub, saved by transformers or
    sentence-transformers. It reads the query and the passage of a grade of yes or no, not the
    wording of the prompt, of which only the limit on the words of a passage holds. One logit x is
    read as log p(yes) = log sigmoid(x), of two the second is that of yes. A passage that does not
    fit with its query is cut at the end by the tokenizer; its reply then has the finish `length`.
    A query that fills the model by itself is an error of that request. Nogueira and Cho 2019,
    arXiv 1901.04085.
    """

    kind = "cross"
    wants: frozenset[Want] = frozenset({"labels"})

    def __init__(self, model: str, *, dtype: str = "float32", device: str = "") -> None:
        if not model:
            raise SpecError(f"name the cross-encoder: {EXAMPLE}")
        super().__init__(model, dtype=dtype, device=device)

    @property
    def context(self) -> int:
        """The most tokens that a query and a passage may have together."""
        stated = int(self._tokenizer.model_max_length)
        positions = int(getattr(self._model.config, "max_position_embeddings", STATED))
        # RoBERTa's positions begin at 2, so a limit that only the model states may be 2 too high.
        return min(stated, positions) if stated < STATED else positions - 2

    @property
    def _compute(self) -> Mapping[Want, Callable[[Sequence[_Pair]], list[Reply]]]:
        return {"labels": self._labels}

    def _load(self, dtype: torch.dtype) -> tuple[Any, Any]:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        # A separator that is written in a passage must not be read as one.
        tokenizer = AutoTokenizer.from_pretrained(self._source, split_special_tokens=True)
        model, found = AutoModelForSequenceClassification.from_pretrained(
            self._source, dtype=dtype, output_loading_info=True
        )
        if found["missing_keys"]:
            missing = ", ".join(sorted(found["missing_keys"]))
            raise BackendError(f"{self.name} is no trained classifier: it has no {missing}")
        if model.config.num_labels > 2:
            raise BackendError(f"{self.name} has {model.config.num_labels} classes, not 1 or 2")
        if model.config.pad_token_id is None:
            model.config.pad_token_id = tokenizer.pad_token_id
        return tokenizer, model

    def _row(self, request: Request) -> _Pair:
        query, passage = _texts(self.name, request)
        encoded = self._tokenizer(query, passage)
        shortened = len(encoded["input_ids"]) > self.context
        if shortened and self._room(query) > 0:
            encoded = self._tokenizer(
                query, passage, truncation="only_second", max_length=self.context
            )
        return _Pair(request, encoded, shortened)

    def _room(self, query: str) -> int:
        """Tokens that a query leaves for the passage."""
        special = self._tokenizer.num_special_tokens_to_add(pair=True)
        return self.context - int(special) - self.count(query)

    def _refused(self, row: _Pair) -> str:
        if row.width <= self.context:
            return ""
        return f"the query leaves no room for a passage in {self.name}, which takes {self.context}"

    def _labels(self, rows: Sequence[_Pair]) -> list[Reply]:
        import torch

        padded = self._tokenizer.pad([dict(row.encoded) for row in rows], return_tensors="pt")
        with torch.inference_mode():
            logits = self._model(**padded.to(self._model.device)).logits.float()
        if logits.shape[1] == 1:
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        no_yes = logits.log_softmax(-1).cpu().tolist()
        return [_reply(row, yes, no) for row, (no, yes) in zip(rows, no_yes, strict=True)]


def _reply(row: _Pair, yes: float, no: float) -> Reply:
    forms = row.request.labels
    return Reply(
        label_logprobs={forms["yes"][0]: yes, forms["no"][0]: no},
        finish="length" if row.shortened else "stop",
        usage=Usage(prompt_tokens=row.width),
    )


def _texts(name: str, request: Request) -> tuple[str, str]:
    """Query and passage of a request on one line each, the passage as far as its prompt shows it.

    What a prompt leaves out must not count: the request's key does not tell passages apart by it.
    """
    asked = request.ask
    if not isinstance(asked, Grade) or asked.labels != LABELS:
        raise CapabilityError(f"{name} grades one passage, yes or no: use the method `yesno`")
    words = asked.doc.contents.split()
    if request.cut:
        texts = [request.prompt, *(turn.content for turn in request.messages)]
        # Prompts part control tokens by spaces, so spaces are left out of the comparison.
        shown = "".join("".join(texts).split())
        counts = range(1, len(words) + 1)
        hidden = bisect_left(counts, True, key=lambda n: "".join(words[:n]) not in shown)
        words = words[:hidden]
    return " ".join(asked.query.text.split()), " ".join(words)
