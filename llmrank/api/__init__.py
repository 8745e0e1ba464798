"""The library: rerankers, retrievers, expansion, generation, estimates, and whole runs."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from llmrank.api.estimate import Estimate, estimate
from llmrank.api.expansion import expand, expand_run
from llmrank.api.generation import (
    Example,
    Recipe,
    demonstrations,
    draw,
    funnel,
    generate,
    generate_folder,
)
from llmrank.api.pipeline import Pipeline
from llmrank.api.pipeline import parse as parse_pipeline
from llmrank.api.pipeline import run as run_pipeline
from llmrank.api.reranker import Passage, Reranker, default_method
from llmrank.api.retriever import Retriever
from llmrank.api.runs import Inputs, RunInput, demand, rerank_run
from llmrank.api.session import Session, Settings, check
from llmrank.api.simulation import (
    Case,
    Noise,
    Prediction,
    judged_cases,
    ndcg,
    simulate,
    synthetic_cases,
)
from llmrank.api.tuning import Tuned, search_tuned
from llmrank.backends.wrappers import Caps
from llmrank.types import Query, Ranking

__all__ = [
    "Caps",
    "Case",
    "Estimate",
    "Example",
    "Inputs",
    "Noise",
    "Pipeline",
    "Prediction",
    "Recipe",
    "Reranker",
    "Retriever",
    "RunInput",
    "Session",
    "Settings",
    "Tuned",
    "arerank",
    "check",
    "default_method",
    "demand",
    "demonstrations",
    "draw",
    "estimate",
    "expand",
    "expand_run",
    "funnel",
    "generate",
    "generate_folder",
    "judged_cases",
    "ndcg",
    "parse_pipeline",
    "rerank",
    "rerank_run",
    "run_pipeline",
    "search_tuned",
    "simulate",
    "synthetic_cases",
]


@lru_cache(maxsize=8)
def _shared(model: str | None, method: str | None, base_url: str | None) -> Reranker:
    return Reranker(model, method=method, base_url=base_url)


def rerank(
    query: str | Query,
    passages: Iterable[Passage],
    model: str | None = None,
    *,
    method: str | None = None,
    base_url: str | None = None,
) -> Ranking:
    """Rank passages in one line; the model stays loaded for the next call."""
    return _shared(model, method, base_url).rank(query, passages)


async def arerank(
    query: str | Query,
    passages: Iterable[Passage],
    model: str | None = None,
    *,
    method: str | None = None,
    base_url: str | None = None,
) -> Ranking:
    """`rerank` for asynchronous code."""
    return await _shared(model, method, base_url).arank(query, passages)
