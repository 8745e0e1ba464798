"""Augmentation by texts that a language model writes for the query."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from llmrank.errors import SpecError
from llmrank.expand.base import (
    Expansion,
    FirstStage,
    View,
    check_counts,
    check_shares,
    plain,
    usable,
    vectors,
    write,
)
from llmrank.expand.feedback import rm3
from llmrank.expand.reading import keywords as read_keywords
from llmrank.expand.reading import prose
from llmrank.expand.weights import divided, largest, total
from llmrank.plan import Embed, Plan, Write, ask_all
from llmrank.types import Query

ANY = "any"
HYDE_TASKS = (ANY, "web", "claim", "argument", "science", "finance", "entity", "news")
"""What a hypothetical document may be written for."""

GRF_TASKS = (
    "keywords",
    "entities",
    "cot_keywords",
    "cot_entities",
    "queries",
    "summary",
    "facts",
    "document",
    "essay",
    "news",
)
"""The generation subtasks of generative relevance feedback; `cot` thinks aloud first."""

LISTS = GRF_TASKS[:2]
"""The subtasks that list terms and nothing else."""


def query2doc(query: Query, first: FirstStage, *, n: int = 1, repeat: int = 5) -> Plan[Expansion]:
    """Pseudo documents appended to the query.

    Wang et al. 2023, arXiv 2303.07678: one text of at most 128 tokens. For BM25 the query counts
    `repeat` times; for dense retrieval query and texts are embedded as one input, the texts behind
    the query on lines of their own.
    """
    check_counts(repeat=repeat)
    answers = yield from write(query, "query2doc", n)
    texts = usable(answers)
    if not texts:
        return (yield from plain(query, first, answers))
    views = []
    if "bm25" in first.kinds:
        views.append(View(((query.text, repeat), *((text, 1.0) for text in texts))))
    if "dense" in first.kinds:
        vector = yield from vectors(["\n".join([query.text, *texts])], "query")
        if vector is None:
            return (yield from plain(query, first, answers, "the texts could not be embedded"))
        views.append(View(vector=vector))
    return Expansion(query, tuple(views), texts, tuple(answers))


def hyde(
    query: Query, first: FirstStage, *, n: int = 4, task: str = ANY, language: str = ANY
) -> Plan[Expansion]:
    """The mean of the vectors of the query and of n hypothetical documents, unnormalised.

    Gao et al. 2022, arXiv 2212.10496 (eight samples, temperature 0.7). `task` says what is asked
    for: a passage of a web page, one for or against a `claim`, one against an `argument`, a passage
    of `science`, `finance` or `news`, the entry of an `entity`, or `any` that answers; `language`
    in what language, of which `any` leaves the choice to the model. Without a usable document the
    vector is the query's own.
    """
    if task not in HYDE_TASKS:
        raise SpecError(f"no task {task!r}; there are: {', '.join(HYDE_TASKS)}")
    if not language.strip():
        raise SpecError("language is empty")
    (prompt,) = hyde_prompts({"task": task, "language": language})
    also = (("task", task), ("language", language)) if prompt == "hyde_task" else ()
    answers = yield from write(query, prompt, n, also=also)
    texts = usable(answers)
    if not texts:
        return (yield from plain(query, first, answers))
    asks = [Embed((query.text,), role="query"), Embed(texts, role="document")]
    own, written = yield from ask_all(asks)
    if own.value is None or written.value is None:
        return (yield from plain(query, first, answers, "the texts could not be embedded"))
    mean = np.vstack([own.value, written.value]).mean(axis=0, keepdims=True)
    return Expansion(query, (View(vector=mean),), texts, tuple(answers))


def hyde_prompts(parameters: Mapping[str, object]) -> list[str]:
    """What `hyde` has written: where nothing special is asked for, the query is all it takes."""
    plain_text = parameters["task"] == parameters["language"] == ANY
    return ["hyde" if plain_text else "hyde_task"]


def grf(
    query: Query,
    first: FirstStage,
    *,
    tasks: str = "all",
    terms: int = 50,
    original_query_weight: float = 0.5,
    prf: bool = False,
) -> Plan[Expansion]:
    """Generative relevance feedback: the terms of texts written for the query, weighted as by RM3.

    Mackie et al. 2023, arXiv 2304.13157: every subtask (`tasks`: all, or names joined by +) gives a
    text, and all texts are one feedback document. With w the original query's weight a term weighs
    w * p(t | query) + (1 - w) * p(t | texts), p being its share of the terms; of the texts the
    `terms` most frequent terms that the index knows are kept, their shares summing to 1. All texts
    are asked for in one round. The paper tunes both parameters by cross-validation.

    With `prf` the index has its say as well: what these weights find and what `rm3` finds for the
    query (with its defaults) are fused by the sum of 1 / (60 + rank). Mackie et al. 2023, arXiv
    2305.07477, where the two are weighted by cross-validation; here they count the same. Where only
    one of them has terms it serves alone, and the note says why.
    """
    prompts = grf_prompts({"tasks": tasks})
    check_counts(terms=terms)
    check_shares(original_query_weight=original_query_weight)
    # Where there is no index this raises, before anything is paid for.
    own = divided(Counter(first.analyze(query.text)), 1)
    inputs = (("query", query.text),)
    answers = yield from ask_all([Write(prompt, inputs) for prompt in prompts])
    texts = tuple(filter(None, map(prose, usable(answers))))
    known = Counter(term for term in first.analyze("\n".join(texts)) if first.frequency(term))
    found = yield from plain(query, first, answers)
    if known:
        model = divided(largest(known, terms), 1)
        weights = total([(original_query_weight, own), (1 - original_query_weight, model)])
        found = Expansion(query, (View(terms=weights),), texts, tuple(answers))
    return (yield from _with_prf(found, first)) if prf else found


def _with_prf(generated: Expansion, first: FirstStage) -> Plan[Expansion]:
    """A generative expansion beside that of `rm3`; one of them where the other has no terms."""
    fed = yield from rm3(generated.query, first)
    if not fed.expanded:
        note = "; ".join(filter(None, (generated.note, f"rm3: {fed.note}")))
        return replace(generated, note=note)
    if not generated.expanded:
        return replace(
            generated, views=fed.views, expanded=True, note=f"{generated.note}, rm3 alone"
        )
    return replace(generated, views=(*generated.views, *fed.views))


def keywords(
    query: Query, first: FirstStage, *, tasks: str = "keywords", repeat: int = 5
) -> Plan[Expansion]:
    """Keywords, entities or both (`tasks=keywords+entities`) added to the query, for BM25.

    Q2E of Jagerman et al. 2023, arXiv 2305.03653: the query counts `repeat` times, every keyword
    once. A keyword of more than six words is a sentence and left out.
    """
    prompts = keyword_prompts({"tasks": tasks})
    check_counts(repeat=repeat)
    inputs = (("query", query.text),)
    answers = yield from ask_all([Write(prompt, inputs) for prompt in prompts])
    found = read_keywords(answers)
    if not found:
        return (yield from plain(query, first, answers))
    view = View(((query.text, repeat), *((keyword, 1.0) for keyword in found)))
    return Expansion(query, (view,), found, tuple(answers))


def grf_prompts(parameters: Mapping[str, object]) -> list[str]:
    """What `grf` has written."""
    return _chosen(str(parameters["tasks"]), GRF_TASKS)


def keyword_prompts(parameters: Mapping[str, object]) -> list[str]:
    """What `keywords` has written."""
    return _chosen(str(parameters["tasks"]), LISTS)


def _chosen(tasks: str, known: Sequence[str]) -> list[str]:
    """The prompts of the tasks in `a+b`, or of all."""
    names = list(known) if tasks == "all" else [name.strip() for name in tasks.split("+")]
    for name in names:
        if name not in known or names.count(name) > 1:
            raise SpecError(f"tasks: {name!r} is not one of: all, {', '.join(known)}, each once")
    return [f"grf_{name}" for name in names]
