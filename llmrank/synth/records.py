"""Examples as JSON records, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmrank.synth.base import Calls, Example, Passage, Span, Verdict
from llmrank.types import Document


def record(example: Example) -> dict[str, object]:
    """One line of `examples.jsonl`: texts are left to the corpus where they are in it."""
    return {
        "_id": example.id,
        "query": example.query,
        "kind": example.kind,
        "kept": example.kept,
        "split": example.split,
        "sources": [
            {"document": span.document.id, "start": span.start, "end": span.end}
            for span in example.sources
        ],
        "passages": [_passage(passage) for passage in example.passages],
        "verdicts": [verdict._asdict() for verdict in example.verdicts],
        "calls": [calls._asdict() for calls in example.calls],
    }


def _passage(passage: Passage) -> dict[str, object]:
    written = {} if passage.in_corpus else {"text": passage.document.text}
    return {
        "document": passage.document.id,
        "label": passage.label,
        "origin": passage.origin,
        "scores": dict(passage.scores),
        **written,
    }


def whole(example: Example) -> dict[str, object]:
    """A record with the texts of all documents, from which `restored` makes the example again."""
    spans = [span.document for span in example.sources]
    documents = [*spans, *(passage.document for passage in example.passages)]
    texts = {document.id: [document.text, document.title] for document in documents}
    return {**record(example), "texts": texts}


def restored(found: Mapping[str, Any]) -> Example:
    """The example that `whole` made a record of."""
    documents = {name: Document(name, *text) for name, text in found["texts"].items()}
    return Example(
        id=found["_id"],
        query=found["query"],
        kind=found["kind"],
        sources=tuple(
            Span(documents[one["document"]], one["start"], one["end"]) for one in found["sources"]
        ),
        passages=tuple(
            Passage(documents[one["document"]], one["origin"], one["label"], one["scores"])
            for one in found["passages"]
        ),
        verdicts=tuple(Verdict(**one) for one in found["verdicts"]),
        calls=tuple(Calls(**{**one, "keys": tuple(one["keys"])}) for one in found["calls"]),
        split=found["split"],
    )
