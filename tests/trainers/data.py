"""A small run of `llmrank generate`, as it lies in its folder, and the corpus it was made from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from llmrank import trec

Json = dict[str, object]

TOPICS = ("bread", "tides", "bees", "rust", "glass", "maple", "quartz", "otters")
NEGATIVES = 2


def corpus_lines() -> list[Json]:
    """Two documents about each topic; half of them have a title."""
    return [
        {
            "_id": f"{topic}-{part}",
            "title": topic.title() if part == 0 else "",
            "text": f"What is known of {topic}, part {part}.\tIt has\ntwo lines.",
        }
        for topic in TOPICS
        for part in (0, 1)
    ]


def passage(document: str, label: int | None, *, text: str | None = None, **scores: float) -> Json:
    """A passage of an example."""
    told: Json = {"document": document, "label": label, "origin": "bm25", "scores": scores}
    return told if text is None else {**told, "origin": "written", "text": text}


def example(
    name: str, passages: Iterable[Json], *, failed: str = "", split: str = "train", query: str = ""
) -> Json:
    """A line of examples.jsonl, dropped by the stage `failed`."""
    document = name.partition("#")[0]
    return {
        "_id": name,
        "query": query or f"what is known of {name.replace('#', ' ')}",
        "kind": "question",
        "kept": not failed,
        "split": split,
        "sources": [{"document": document, "start": 0, "end": 20}],
        "passages": list(passages),
        "verdicts": [{"stage": failed, "passed": False, "value": 1, "bound": 0, "note": ""}]
        if failed
        else [],
        "calls": [],
    }


def lines() -> list[Json]:
    """A kept and a dropped example for each topic; each kept one has all that any format needs."""
    found = []
    for i, topic in enumerate(TOPICS):
        other, third = TOPICS[i - 1], TOPICS[i - 2]
        passages = [
            passage(f"{topic}-0", 2, teacher=2.5 + i, dense=0.9),
            passage(f"{topic}-1", 1, teacher=1.5, dense=0.7),
            passage(f"{other}-0", None, teacher=1.0, dense=0.69),
            passage(f"{other}-1", 0, teacher=-0.5, dense=0.4),
            passage(f"{topic}-0#0-1", 0, text=f"Nothing of {topic}.", teacher=-1.0, dense=0.3),
            passage(f"{third}-1", 0, teacher=-2.0 - i, dense=0.2),
        ]
        split = "dev" if i == 0 else "train"
        found.append(example(f"{topic}-0#0", passages, split=split))
        found.append(
            example(f"{topic}-0#1", [], failed="round_trip(k=1)", split="", query=f"about {topic}")
        )
    return found


def write(folder: Path, examples: Iterable[Mapping[str, object]] | None = None) -> Path:
    """The run folder with these examples, beside its corpus."""
    folder.mkdir(parents=True, exist_ok=True)
    corpus = folder.parent / "corpus.jsonl"
    trec.write_jsonl(corpus, corpus_lines())
    trec.write_jsonl(folder / "examples.jsonl", lines() if examples is None else examples)
    manifest = {"generation": {}, "data": {"corpus": {"name": str(corpus)}}}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def rows(path: Path) -> list[Json]:
    """The rows of a JSONL file."""
    return list(trec.read_jsonl(path))
