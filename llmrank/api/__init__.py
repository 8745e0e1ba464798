"""The library: rerankers, retrievers, expansion, generation, estimates, and whole runs."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from llmrank.api.estimate import Estimate, estimate, estimate_pipeline, stand_in
from llmrank.api.expansion import expand, expand_run
from llmrank.api.exporting import Exported, export
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
from llmrank.api.synthesis import Passed, check_recipe, parse_recipe, shots, synthesize
from llmrank.api.synthesis import first_stage_of as recipe_first_stage
from llmrank.api.synthesis import needs_of as recipe_needs
from llmrank.api.tuning import Tuned, search_tuned
from llmrank.api.world import Corpus
from llmrank.backends.wrappers import Caps
from llmrank.types import Query, Ranking

__all__ = [
    "Caps",
    "Case",
    "Corpus",
    "Estimate",
    "Exported",
    "Inputs",
    "Noise",
    "Passed",
    "Pipeline",
    "Prediction",
    "Reranker",
    "Retriever",
    "RunInput",
    "Session",
    "Settings",
    "Tuned",
    "arerank",
    "check",
    "check_recipe",
    "default_method",
    "demand",
    "estimate",
    "estimate_pipeline",
    "expand",
    "expand_run",
    "export",
    "judged_cases",
    "ndcg",
    "parse_pipeline",
    "parse_recipe",
    "recipe_first_stage",
    "recipe_needs",
    "rerank",
    "rerank_run",
    "run_pipeline",
    "search_tuned",
    "shots",
    "simulate",
    "stand_in",
    "synthesize",
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
