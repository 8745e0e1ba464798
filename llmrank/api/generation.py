"""Synthetic queries run by a session: written, filtered, and each with where it came from."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import llmrank.trec as trec
from llmrank.api.runs import Progress, fingerprint, summary, versions
from llmrank.api.session import Session
from llmrank.errors import InputError
from llmrank.plan import Need, Write
from llmrank.prompts import PromptSet
from llmrank.retrieve import distinct
from llmrank.store import RunFolder
from llmrank.synth import (
    Demonstration,
    Draft,
    Verdict,
    complete,
    length,
    round_trip,
    write_queries,
)
from llmrank.synth.filters import Search
from llmrank.synth.queries import TASK
from llmrank.types import Document, Tally


@dataclass(frozen=True, slots=True)
class Recipe:
    """How queries are generated: n a document, from examples, kept if found again at rank <= k.

    `seed` is that of the choice of documents, for the manifest.
    """

    n: int = 1
    k: int = 1
    examples: tuple[Demonstration, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n < 1 or self.k < 1:
            raise InputError(f"n and k must be at least 1, not {self.n} and {self.k}")


@dataclass(frozen=True, slots=True)
class Example:
    """A generated query with the verdict of every filter it met; kept if it passed them all."""

    id: str
    draft: Draft
    verdicts: tuple[Verdict, ...]

    @property
    def kept(self) -> bool:
        """Whether there is a query and every filter passed it."""
        return bool(self.draft.query) and all(verdict.passed for verdict in self.verdicts)


def draw(documents: Iterable[Document], count: int, seed: int) -> list[Document]:
    """`count` documents with a text, every one equally likely, in corpus order; one pass.

    Vitter 1985, algorithm R: memory holds the sample alone.
    """
    if count < 1:
        raise InputError(f"expected at least one document, not {count}")
    rng = Random(seed)
    kept: list[tuple[int, Document]] = []
    with_text = (document for document in documents if document.contents.strip())
    for number, document in enumerate(with_text):
        if len(kept) < count:
            kept.append((number, document))
        elif (place := rng.randrange(number + 1)) < count:
            kept[place] = (number, document)
    return [document for _, document in sorted(kept, key=lambda pair: pair[0])]


def demonstrations(source: str | Path) -> tuple[Demonstration, ...]:
    """Examples for the model from JSONL records with `document` and `query`."""
    found = []
    for number, entry in enumerate(trec.read_jsonl(source), start=1):
        document, query = entry.get("document"), entry.get("query")
        if not isinstance(document, str) or not isinstance(query, str):
            raise InputError(f"example {number} lacks a text `document` or `query`", path=source)
        found.append(Demonstration(document, query))
    return tuple(found)


def generate(
    session: Session,
    documents: Iterable[Document],
    search: Search,
    recipe: Recipe | None = None,
    *,
    progress: Progress | None = None,
) -> tuple[list[Example], Tally]:
    """Write queries for documents and filter them; examples stand in the order of the documents.

    `search` is the first stage of the round-trip filter, which is run only for queries that the
    cheaper filters passed.
    """
    session.check([Need(Write, task=TASK)])
    recipe = recipe or Recipe()
    done: dict[int, list[Draft]] = {}
    total = Tally()

    def finished(key: int, drafts: list[Draft], tally: Tally) -> None:
        nonlocal total
        done[key] = drafts
        total += tally
        if progress is not None:
            progress(len(done), total)

    # Read here, as what makes the documents may itself wait for the loop that the plans run on;
    # distinct, as the ids of the queries are made from theirs.
    plans = [
        (i, write_queries(document, recipe.examples, n=recipe.n))
        for i, document in enumerate(distinct(documents))
    ]
    session.run_sync(plans, finished)
    examples = [
        Example(f"{draft.document.id}#{draft.sample}", draft, _verdicts(draft, search, recipe.k))
        for i in range(len(done))
        for draft in done[i]
    ]
    return examples, total


def _verdicts(draft: Draft, search: Search, k: int) -> tuple[Verdict, ...]:
    if not draft.query:
        return ()
    cheap = (complete(draft.answer.status), length(draft.query))
    if not all(verdict.passed for verdict in cheap):
        return cheap
    return *cheap, round_trip(draft.query, draft.document.id, search, k=k)


def generate_folder(
    session: Session,
    documents: Sequence[Document],
    search: Search,
    recipe: Recipe,
    folder: RunFolder,
    *,
    source: str | Path = "",
    progress: Progress | None = None,
) -> tuple[list[Example], Tally]:
    """Generate into a folder: `examples.jsonl` with provenance, and the kept ones in BEIR layout.

    The BEIR files are `queries.jsonl` and `qrels/train.tsv`, next to the user's own corpus.
    """
    started = time.time()
    session.check([Need(Write, task=TASK)])
    folder.check("generation")
    examples, tally = generate(session, documents, search, recipe, progress=progress)
    trec.write_jsonl(folder.path / "examples.jsonl", (record(e, session.prompts) for e in examples))
    kept = [example for example in examples if example.kept]
    trec.write_jsonl(
        folder.path / "queries.jsonl", ({"_id": e.id, "text": e.draft.query} for e in kept)
    )
    rows = [f"{e.id}\t{e.draft.document.id}\t1\n" for e in kept]
    folder.write_text("qrels/train.tsv", "query-id\tcorpus-id\tscore\n" + "".join(rows))
    manifest = {
        "generation": {
            "n": recipe.n,
            "round_trip_k": recipe.k,
            "examples": [example._asdict() for example in recipe.examples],
            "seed": recipe.seed,
        },
        **session.describe(),
        "data": {"corpus": fingerprint(source, "corpus.jsonl")},
        "versions": versions(),
    }
    folder.write("manifest.json", manifest)
    told = summary(session, tally, len(documents), started, 0)
    folder.write("summary.json", {**told, "funnel": funnel(examples)})
    return examples, tally


def funnel(examples: Sequence[Example]) -> Mapping[str, int]:
    """How many examples got how far: asked for, written, and past each filter."""
    counts: Counter[str] = Counter(asked=len(examples))
    for example in examples:
        counts["written"] += bool(example.draft.query)
        for verdict in example.verdicts:
            counts[verdict.filter] += verdict.passed
        counts["kept"] += example.kept
    return dict(counts)


def record(example: Example, prompts: PromptSet) -> dict[str, object]:
    """One line of `examples.jsonl`; `params` are those that were sent, the seed among them."""
    template = prompts.slot(Need(Write, task=TASK))
    answer = example.draft.answer
    return {
        "_id": example.id,
        "query": example.draft.query,
        "document": example.draft.document.id,
        "kept": example.kept,
        "verdicts": [verdict._asdict() for verdict in example.verdicts],
        "provenance": {
            "model": answer.model,
            "prompt": {"name": template.name, "sha256": template.sha256},
            "params": asdict(prompts.render(example.draft.ask).params),
            "sample": example.draft.sample,
            "prompt_tokens": answer.usage.prompt_tokens,
            "completion_tokens": answer.usage.completion_tokens,
            "status": str(answer.status),
            "problem": answer.problem,
            "reply": answer.reply,
            "journal_key": answer.key,
        },
    }
