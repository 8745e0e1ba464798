"""A cross-encoder in this process: a classifier, run by transformers, that reads a query and a
passage together and says how relevant the passage is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from inspect import signature
from typing import TYPE_CHECKING, Any, NamedTuple

from llmrank.backends.local import InProcess, positions
from llmrank.errors import BackendError, CapabilityError, SpecError
from llmrank.request import Reply, Request, Want
from llmrank.types import Usage

if TYPE_CHECKING:
    import torch

LABELS = ("yes", "no")
EXAMPLE = "cross:cross-encoder/ms-marco-MiniLM-L6-v2"


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
    sentence-transformers. It reads a query and a passage as they are, without a prompt, and grades
    yes or no. One logit x is read as log p(yes) = log sigmoid(x); of two the second is that of yes,
    and the two are normalised; a model of more classes is refused. A passage that does not fit with
    its query is cut at the end, to the token, and its reply says so in `cut`. A query that fills
    the model by itself is an error of that request. Nogueira and Cho 2019, arXiv 1901.04085.
    """

    kind = "cross"
    wants: frozenset[Want] = frozenset({"pair"})

    def __init__(self, model: str, *, dtype: str = "float32", device: str = "") -> None:
        if not model:
            raise SpecError(f"name the cross-encoder: {EXAMPLE}")
        super().__init__(model, dtype=dtype, device=device)

    @cached_property
    def context(self) -> int:
        """The most tokens that a query and a passage may have together."""
        inner = getattr(self._model.base_model, "embeddings", None)
        table = getattr(inner, "position_embeddings", None)
        padding = getattr(table, "padding_idx", None)
        # RoBERTa's positions begin behind that of the padding, so that many cannot be used.
        begin = 0 if padding is None else padding + 1
        return min(int(self._tokenizer.model_max_length), positions(self._model.config) - begin)

    @property
    def _compute(self) -> Mapping[Want, Callable[[Sequence[_Pair]], list[Reply]]]:
        return {"pair": self._pairs}

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
        return tokenizer, model

    def _row(self, request: Request) -> _Pair:
        if tuple(request.labels) != LABELS:
            raise CapabilityError(
                f"{self.name} grades one passage, yes or no: use the method `yesno`"
            )
        query, passage = request.texts
        encoded = self._encode(query, passage)
        shortened = len(encoded["input_ids"]) > self.context
        if shortened and self._room(query) > 0:
            encoded = self._encode(
                query, passage, truncation="only_second", max_length=self.context
            )
        return _Pair(request, encoded, shortened)

    def _encode(self, query: str, passage: str, **options: object) -> Mapping[str, list[int]]:
        # Outside a list an empty passage would go missing together with its separator.
        encoded = self._tokenizer([query], [passage], **options)
        return {name: encoded[name][0] for name in self._inputs}

    @cached_property
    def _inputs(self) -> list[str]:
        """What the model takes of what its tokenizer gives."""
        taken = signature(self._model.forward).parameters
        return [name for name in self._tokenizer.model_input_names if name in taken]

    def _room(self, query: str) -> int:
        """Tokens that a query leaves for the passage."""
        special = self._tokenizer.num_special_tokens_to_add(pair=True)
        return self.context - int(special) - len(self._ids(query))

    def _refused(self, row: _Pair) -> str:
        if row.width <= self.context:
            return ""
        return f"the query leaves no room for a passage in {self.name}, which takes {self.context}"

    def _pairs(self, rows: Sequence[_Pair]) -> list[Reply]:
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
        usage=Usage(prompt_tokens=row.width),
        cut=int(row.shortened),
    )
