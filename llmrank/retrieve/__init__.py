"""First-stage retrieval: analysers, BM25, exact dense search and fusion."""

from llmrank.retrieve._folder import distinct
from llmrank.retrieve.analysis import ANALYZERS, english, plain
from llmrank.retrieve.bm25 import BM25, BM25Index, score_passages
from llmrank.retrieve.dense import DenseIndex
from llmrank.retrieve.engine import Engine, ask_engine
from llmrank.retrieve.fusion import (
    Fusion,
    check_fusion,
    hybrid,
    minmax,
    product,
    reciprocal_rank,
    zscore,
)

__all__ = [
    "ANALYZERS",
    "BM25",
    "BM25Index",
    "DenseIndex",
    "Engine",
    "Fusion",
    "ask_engine",
    "check_fusion",
    "distinct",
    "english",
    "hybrid",
    "minmax",
    "plain",
    "product",
    "reciprocal_rank",
    "score_passages",
    "zscore",
]
